"""What the two sagas that move one guest, live and cold, have in common. Pure.

Only what is the same thing, not what merely looks alike: how far each goes back, and what a lost answer
means, differs between a guest with memory and one without, and stays in their own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from agents.protocol import Outcome
from migrd.sagas.commands import IllegalEvent, Look
from migrd.sagas.compare import reasons_not_to_hand_over
from migrd.sagas.events import Answered, ColdRequested, MigrateRequested
from storage.words import Side

FINAL = (Outcome.REFUSED, Outcome.FAILED)
PRECHECK_LOOKS = 3
MAX_TRIES = 4  # of one stage, before the commit point
MAX_TRIES_BOUND = 8  # of one stage that has to succeed: going back, or after the commit point
REFUSED_TRIES = 3  # a refusal when going back may pass (the other host demotes a second later)
MAX_FAILURES = 40  # of one operation between two resumes: whatever the interplay of stages, it ends (I20)
STEP_DEADLINE_S = 180.0  # one storage step, its agent's own deadlines included
MAX_BACKOFF_S = 30.0


def backoff_s(tries: int) -> float:
    """1, 2, 4 ... 30 seconds; 0 before the first retry is counted."""
    return 0.0 if tries < 1 else min(MAX_BACKOFF_S, float(2 ** min(tries - 1, 10)))


def look_of(request: MigrateRequested | ColdRequested, number: int, after_s: float) -> Look:
    """Both hosts of the move, seen at the same time; `number` comes back in the event."""
    return Look(
        guest=request.guest,
        source=request.source,
        target=request.target,
        volumes=request.volumes,
        number=number,
        after_s=after_s,
    )


def expect(
    event: Answered,
    *,
    operation: str,
    stage: str,
    attempt: int,
    sides: Collection[Side],
    answers: Sequence[Answered],
) -> None:
    """Raises IllegalEvent unless this is the first answer of an asked side to the attempt in flight."""
    if event.step != stage or event.attempt != attempt or event.side not in sides:
        raise IllegalEvent(
            f"{operation}: answer to {event.step}/{event.attempt} of {event.side} in stage {stage}/{attempt}"
        )
    if any(answer.side is event.side for answer in answers):
        raise IllegalEvent(f"{operation}: second answer of {event.side} to {event.step}/{event.attempt}")


def reasons_prepared_apart(
    request: MigrateRequested | ColdRequested, answers: Sequence[Answered]
) -> tuple[str, ...]:
    """I9: why what both sides reported when they prepared is not the same disk, fit to be handed over."""
    by_side = {answer.side: answer.volumes for answer in answers}
    return reasons_not_to_hand_over(
        request.volumes,
        by_side[Side.SOURCE],
        by_side[Side.TARGET],
        hosts=(request.source, request.target),
    )


def trouble_of(failed: Sequence[Answered], host: Callable[[Side], str]) -> tuple[str, ...]:
    """What went wrong, each with its host: the agents' reasons, or the bare outcome."""
    return tuple(
        f"{host(answer.side)}: {reason}"
        for answer in failed
        for reason in (answer.reasons or (f"{answer.step} ended: {answer.outcome}",))
    )


def remedy_of(operation: str, waits_for: Sequence[str]) -> str:
    """The next command of the operator of a parked move (I15), and what to wait for before it."""
    resume = f"migrctl op resume {operation}"
    return f"{resume} once {' and '.join(waits_for)} answers again" if waits_for else resume


def remedy_of_failure(
    operation: str, name: str, failed: Sequence[Answered], host: Callable[[Side], str]
) -> str:
    """The next commands when a step that has to succeed did not; "" if its hosts may yet say how it ended.

    It is tried again by itself, ever more rarely; a refusal that stays needs a person at that host.
    """
    if any(answer.outcome not in FINAL for answer in failed):
        return ""
    hosts = [host(answer.side) for answer in failed]
    first = f"see to the reason on {' and '.join(hosts)}"
    if (
        failed[0].step == "sweep"
    ):  # what ran there is never swept by itself, and may be what the guest wrote last (I1)
        first = f"look at {name} on both hosts, and virsh undefine {name} on the one that is to lose it"
    return f"{first}; then migrctl op resume {operation}"


def told_with_earlier(earlier: Sequence[str], told: tuple[str, ...], *, going_back: bool) -> tuple[str, ...]:
    """The reasons of a parked move: on the way back, why it turned round comes first."""
    return (*(reason for reason in earlier if reason not in told), *told) if going_back else told
