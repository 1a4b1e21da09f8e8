"""The moves that every row of the cold table is made of: enter, look, follow, retry, go back, park."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agents.protocol import Outcome
from migrd.sagas.cold_state import (
    BACK,
    DOMAIN_STEPS,
    FORWARD,
    MOVES,
    SIDES,
    ColdStage,
    ColdState,
    command_for,
    reattached,
)
from migrd.sagas.commands import Call, Follow, SagaCommand
from migrd.sagas.events import CANCELLED, Answered
from migrd.sagas.guest_move import (
    FINAL,
    MAX_FAILURES,
    MAX_TRIES,
    MAX_TRIES_BOUND,
    REFUSED_TRIES,
    STEP_DEADLINE_S,
    backoff_s,
    look_of,
    remedy_of,
    remedy_of_failure,
    told_with_earlier,
    trouble_of,
)

Result = tuple[ColdState, tuple[SagaCommand, ...]]

SHUTDOWN_TRIES = 2  # some guests take the first press of the power button for a wake-up
SHUTDOWN_GRACE_S = 30.0  # beyond the request's own deadline


def enter(state: ColdState, stage: ColdStage, after_s: float = 0.0) -> Result:
    """Begin a stage that calls agents, under a new attempt number."""
    attempt = state.attempts.get(stage, 0) + 1
    entered = replace(
        state,
        stage=stage,
        attempts={**state.attempts, stage: attempt},
        answers=(),
        looks=0,
        back_to=None,
        open=stage if stage in DOMAIN_STEPS else None,
    )
    calls = tuple(
        Call(
            host=state.host(side),
            side=side,
            step=stage,
            attempt=attempt,
            command=command_for(state, stage, side),
            deadline_s=_deadline_s(state, stage),
            after_s=after_s,
        )
        for side in SIDES[stage]
    )
    return entered, calls


def _deadline_s(state: ColdState, stage: ColdStage) -> float:
    if stage is ColdStage.SHUTDOWN:
        return state.request.shutdown_deadline_s + SHUTDOWN_GRACE_S
    return STEP_DEADLINE_S


def look(state: ColdState, stage: ColdStage, after_s: float = 0.0) -> Result:
    """Begin a stage that observes both hosts."""
    entered = replace(state, stage=stage, looks=1, answers=())
    return entered, (look_of(entered.request, entered.looks, after_s),)


def look_again(state: ColdState, after_s: float) -> Result:
    """Stay, and look once more after a while. Callers bound it by `state.looks`."""
    again = replace(state, looks=state.looks + 1)
    return again, (look_of(again.request, again.looks, after_s),)


def follow(state: ColdState, after_s: float) -> Result:
    """Wait for the end of the open domain step. None is aborted: a shutdown cannot be taken back."""
    assert state.open is not None
    side = SIDES[state.open][0]
    waiting = replace(state, stage=state.open, answers=(), looks=0, back_to=None)
    stay = Follow(
        host=state.host(side),
        side=side,
        step=state.open,
        attempt=state.attempts[state.open],
        deadline_s=_deadline_s(state, state.open),
        after_s=after_s,
    )
    return waiting, (stay,)


def needed(state: ColdState, stage: ColdStage) -> bool:  # noqa: PLR0911, PLR0912 - a table
    """Undo only what may have been done; call no driver for a guest without disks."""
    match stage:
        case ColdStage.PREPARE | ColdStage.RELEASE:
            return bool(state.request.volumes)
        case ColdStage.SHUTDOWN | ColdStage.START:
            return state.ran
        case ColdStage.LEAVE:
            return bool(state.left)
        case ColdStage.ACQUIRE:
            return bool(state.taken)
        case ColdStage.RETURN:
            return state.moved
        case ColdStage.SETTLE | ColdStage.SWEEP:
            return state.issued(ColdStage.MOVE)
        case ColdStage.FREE_TARGET:
            return state.issued(ColdStage.ACQUIRE) and not state.alone
        case ColdStage.REATTACH:
            return _may_have_let_go(state) and bool(reattached(state))
        case ColdStage.REACQUIRE:
            return _may_have_let_go(state) and bool(state.taken)
        case ColdStage.RESTART:
            return state.down and state.ran
        case ColdStage.RELEASE_TARGET:
            # After FREE_TARGET once more: the target may have been silent when it was to be freed.
            return state.issued(ColdStage.PREPARE)
        case ColdStage.LEAVE_SOURCE:
            return state.down and state.issued(ColdStage.PREPARE) and bool(state.left)
        case _:
            return True


def _may_have_let_go(state: ColdState) -> bool:
    """Does the source perhaps not hold what it held? DRBD may demote by itself once its last opener is gone,
    and a host that has rebooted holds nothing."""
    return state.down and (state.ran or state.issued(ColdStage.RELEASE))


def next_needed(state: ColdState, order: Sequence[ColdStage]) -> Result:
    """The first stage of `order` that this guest needs; past the last one, look whether it is over."""
    for stage in order:
        if needed(state, stage):
            if stage in FORWARD and state.cancelled:
                return go_back(state, (CANCELLED,))
            return enter(state, stage)
    return look(state, ColdStage.VERIFY_BACK if state.going_back else ColdStage.RECONCILE)


def forward_from(state: ColdState, reached: ColdStage | None) -> Result:
    """What comes after `reached` on the way forward."""
    rest = FORWARD if reached is None else FORWARD[FORWARD.index(reached) + 1 :]
    return next_needed(state, rest)


def go_back(state: ColdState, reasons: tuple[str, ...]) -> Result:
    """Turn round. Reality first: the guest may have stopped, moved or started meanwhile."""
    turned = replace(state, going_back=True, reasons=reasons, back_to=None, tries=0)
    if not any(state.issued(stage) for stage in FORWARD):
        return replace(turned, stage=ColdStage.UNDONE), ()
    if turned.open is not None:
        return follow(turned, 0.0)
    return look(turned, ColdStage.RECONCILE)


def start_back(state: ColdState) -> Result:
    """What was seen allows it: undo in order, beginning with the first stage that has something to undo."""
    if not state.going_back:
        stayed = state.trouble or (f"the guest did not leave {state.request.source}",)
        reasons = (CANCELLED,) if state.cancelled else stayed
        state = replace(state, going_back=True, reasons=reasons, tries=0)
    return next_needed(replace(state, back_to=None), BACK)


def retry(state: ColdState, failed: Sequence[Answered]) -> Result:
    """Some call did not end as DONE: look at both hosts, then once more, bounded; else back, or park."""
    trouble = trouble_of(failed, state.host)
    restart = state.stage is ColdStage.RESTART
    tries = (state.starts if restart else state.tries) + 1
    state = replace(state, tries=tries, failures=state.failures + 1, trouble=trouble)
    if restart:  # before the next one the disks are seen to: that this succeeds must not make it endless
        state = replace(state, starts=tries)
    forward = state.stage in FORWARD and not state.going_back
    lost = any(not answer.ended for answer in failed) and state.stage in DOMAIN_STEPS
    state = replace(state, open=state.open if lost else None)
    if state.stage in MOVES and not lost and any(a.outcome is Outcome.UNKNOWN for a in failed):
        state = replace(state, unsettled=state.stage)
    final = any(answer.outcome in FINAL for answer in failed)
    limit = _limit(state, failed, forward=forward, lost=lost, final=final)
    if forward and not lost and (final or state.tries >= limit or state.failures >= MAX_FAILURES):
        return go_back(state, trouble)
    if state.tries >= limit or state.failures >= MAX_FAILURES:
        return _give_up(state, failed)
    if lost:
        return follow(state, backoff_s(state.tries))
    # A stage forward that ends after the saga has turned round is not tried again: what is seen decides.
    again = None if state.going_back and state.stage in FORWARD else state.stage
    return look(replace(state, back_to=again), ColdStage.RECONCILE, backoff_s(state.tries))


def _give_up(state: ColdState, failed: Sequence[Answered]) -> Result:
    """Nothing that can be done now brings it further."""
    request = state.request
    if not state.alone:
        remedy = remedy_of_failure(state.operation, request.name, failed, state.host)
        waits_for = tuple(state.host(answer.side) for answer in failed)
        return park(state, state.trouble, remedy=remedy, waits_for=waits_for)
    remedy = ""
    if state.stage is ColdStage.REACQUIRE:
        # The driver does not promote while the peer is silent (I7). A person may know better: the target has
        # never run the guest, so the source's copy has every write.
        remedy = (
            f"migrctl op resume {state.operation} once {request.target} answers again; if it never will: "
            f"drbdadm primary RESOURCE on {request.source}, whose copy is the last one written, then resume"
        )
    return park(state, state.trouble, remedy=remedy, waits_for=(request.target,))


def _limit(state: ColdState, failed: Sequence[Answered], *, forward: bool, lost: bool, final: bool) -> int:
    if lost or not forward:
        return REFUSED_TRIES if final else MAX_TRIES_BOUND
    if state.stage is ColdStage.SHUTDOWN and all(a.outcome is Outcome.UNKNOWN for a in failed):
        return SHUTDOWN_TRIES
    return MAX_TRIES


def park(
    state: ColdState, reasons: tuple[str, ...], *, remedy: str = "", waits_for: tuple[str, ...] = ()
) -> Result:
    """Stop here, and say why and what resolves it (I15). Nothing is running on our behalf any more."""
    told = (*reasons, "the guest is not running") if state.ran and state.down else reasons
    parked = replace(
        state,
        stage=ColdStage.PARKED,
        parked_in=state.stage,
        reasons=told_with_earlier(state.reasons, told, going_back=state.going_back),
        remedy=remedy or remedy_of(state.operation, waits_for),
        waits_for=waits_for,
        answers=(),
    )
    return parked, ()
