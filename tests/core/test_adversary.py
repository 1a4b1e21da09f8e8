"""A world that sticks to what it says: no walk of a live move runs for ever, whoever answers what (I15, I20).

Each question has one answer, which seldom changes: that is what keeps loops turning. Uniform dice, as in
test_saga_table, leave a loop at the next throw.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from agents.protocol import DomainState, Outcome
from migrd import saga
from migrd.sagas import migrate
from migrd.sagas.commands import Abort, Call, DestroySource, Follow, Look, LookAtSwitchOver, SagaCommand
from migrd.sagas.events import (
    EVENT,
    Admitted,
    Answered,
    CancelRequested,
    Event,
    Looked,
    Recovered,
    Resumed,
    SwitchOverSeen,
)
from migrd.sagas.migrate_state import MigrateState, Stage
from storage.words import Health, Side
from tests.core.test_saga_table import REQUEST, report, seen

EVENTS_MAX = 12_000  # an hour of looks every two seconds is the longest wait there is, and may begin anew
RESUMES = 3
DISTURBED_MAX = 4  # restarts and cancels, which begin waits anew
CHANGES_ITS_MIND = 0.02
ENDS = (Outcome.UNKNOWN, Outcome.UNKNOWN, Outcome.RETRYABLE, Outcome.REFUSED, Outcome.FAILED)
WALKS = 150
SEEDS = 6


class World:
    """`source`, `target`: what a look shows, by moment."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._doubts = rng.choice((0.0, CHANGES_ITS_MIND))
        self._said: dict[tuple[object, ...], int] = {}

    def answer(self, state: MigrateState, command: SagaCommand) -> Event:
        moment = (type(command), state.stage, state.committed, state.going_back, getattr(command, "side", ""))
        if moment not in self._said or self._rng.random() < self._doubts:
            self._said[moment] = self._rng.getrandbits(32)
        dice = random.Random(self._said[moment])
        match command:
            case Look(number=number):
                return _look(dice, state, number)
            case LookAtSwitchOver(number=number, attempt=attempt):
                there = dice.choice((DomainState.RUNNING, DomainState.PAUSED_INCOMING))
                return SwitchOverSeen(
                    attempt=attempt, source=seen(DomainState.PAUSED), target=seen(there), number=number
                )
            case Call() | Follow():
                return _end(dice, command)
            case _:
                raise AssertionError(command)


R, P, A, S = DomainState.RUNNING, DomainState.PAUSED, DomainState.ABSENT, DomainState.SHUTOFF
INCOMING = DomainState.PAUSED_INCOMING
SCENES: tuple[tuple[DomainState | None, DomainState | None, bool], ...] = (  # source, target, a job
    *[(R, A, False)] * 4,  # it stayed
    *[(A, R, False)] * 4,  # it moved
    *[(R, INCOMING, True)] * 3,  # it copies
    *[(P, INCOMING, True), (P, R, True), (P, R, False), (R, INCOMING, False)]
    * 2,  # it switches over, or did not
    *[(S, R, False), (None, R, False), (None, P, False), (R, None, True), (R, None, False)] * 2,
    (S, S, False),
    (S, A, False),
    (None, None, False),
    (A, None, False),
    (R, R, False),
    (DomainState.UNKNOWN, R, False),
    (DomainState.SHUTDOWN, R, False),
)


def _look(dice: random.Random, state: MigrateState, number: int) -> Looked:
    if state.stage is Stage.PRECHECK:
        return Looked(source=seen(R), target=seen(A), number=number)
    here, there, job = dice.choice(SCENES)
    if state.committed and dice.random() < 0.7:
        here, there, job = dice.choice((None, None, S, S, A, DomainState.UNKNOWN)), R, False
    if dice.random() < 0.05:
        here, there, job = dice.choice([*DomainState]), dice.choice([*DomainState]), dice.random() < 0.5
    source = None if here is None else seen(here, job=job)
    if source is not None and dice.random() < 0.2:  # not known to be the same as the target's
        source = replace(source, volumes=tuple(replace(v, health=Health.DEGRADED) for v in source.volumes))
    target = None if there is None else seen(there, flag=dice.random() < 0.1)
    off = tuple(
        side
        for side, shown in ((Side.SOURCE, source), (Side.TARGET, target))
        if shown is None and dice.random() < 0.5
    )
    return Looked(source=source, target=target, off=off, number=number, reasons=("silent",) if off else ())


def _end(dice: random.Random, command: Call | Follow) -> Answered:
    moves = command.step == "migrate"
    outcome = dice.choice([Outcome.DONE, *ENDS] if moves or dice.random() < 0.15 else [Outcome.DONE])
    return Answered(
        side=command.side,
        step=command.step,
        attempt=command.attempt,
        outcome=outcome,
        ended=outcome is not Outcome.UNKNOWN or dice.random() < 0.8,
        volumes=(report(),) if command.step == "prepare" else (),
    )


def check(before: MigrateState, after: MigrateState, commands: tuple[SagaCommand, ...]) -> None:
    assert after.committed or not before.committed
    for command in commands:
        if not isinstance(command, Call):
            continue
        assert command.side not in after.off, f"{command.step} is asked of a host without power"
        if command.side is Side.SOURCE and command.step in (Stage.RELEASE, Stage.UNDEFINE_SOURCE):
            assert after.proved, f"{command.step}, and the copies were not compared (I7)"


def walk(rng: random.Random) -> MigrateState:
    """To its end, or until it has been parked a few times whatever a person did."""
    world = World(rng)
    state, pending = migrate.step(migrate.begin("op", REQUEST), Admitted())
    journal: list[Event] = [REQUEST, Admitted()]
    parked, since, disturbed = 0, 0, 0
    while not (state.stage.ended or (state.stage is Stage.PARKED and parked == RESUMES)):
        if state.stage is Stage.PARKED:
            assert state.reasons
            assert state.remedy
            parked, since, pending = parked + 1, 0, ()
            event: Event = rng.choice((Resumed(), Resumed(by="host-returned"), CancelRequested()))
        else:
            pending = tuple(each for each in pending if not isinstance(each, Abort | DestroySource))
            assert pending, f"nothing is in flight in {state.stage}: it would hang"
            event = world.answer(state, pending[0])
            if disturbed < DISTURBED_MAX and rng.random() < 0.02:
                disturbed += 1
                event = rng.choice((CancelRequested(), CancelRequested(by="parent"), Recovered(epoch=2)))
        after, commands = migrate.step(state, event)
        check(state, after, commands)
        if not saga.only_waits(state, after):
            journal.append(EVENT.validate_json(EVENT.dump_json(event)))
        if isinstance(event, Recovered):
            pending = commands
        elif isinstance(event, CancelRequested) and state.stage is not Stage.PARKED:
            pending = (*pending, *commands)
        else:
            pending = (*pending[1:], *commands)
        state, since = after, since + 1
        assert since < EVENTS_MAX, f"it goes on for ever: {state}"
    assert saga.only_waits(saga.fold("op", journal), state)
    return state


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_walk_runs_for_ever_and_none_undoes_what_was_not_compared(seed: int) -> None:
    rng = random.Random(seed)
    ends = [walk(rng) for _ in range(WALKS)]
    assert {Stage.DONE, Stage.UNDONE} <= {state.stage for state in ends}
    assert sum(state.attempts.get(Stage.MIGRATE, 0) > 1 for state in ends) > WALKS / 50
    assert sum(state.committed for state in ends) > WALKS / 10
