"""The cold saga: one table, (stage, event) -> (state, commands). No await, no clock, no IO.

A guest is moved without its memory: shut down with consent (I5), let go by its old host once that host
reports no QEMU (I2, I11), taken by the new one (never both at once: no window is opened, I6), its definition
moved, and started there. At every moment the definition is where a start is to be made, and a host without
definition cannot start it (I1). Why it can never run twice: docs/SAFETY.md, "A cold move".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from agents.protocol import Outcome
from migrd.reconcile import Pair, SideView
from migrd.sagas import cold_verdicts as verdicts
from migrd.sagas.cold_moves import Result, follow, forward_from, go_back, look, look_again, retry
from migrd.sagas.cold_moves import next_needed as next_of
from migrd.sagas.cold_state import BACK, DOMAIN_STEPS, FORWARD, SIDES, ColdStage, ColdState
from migrd.sagas.commands import IllegalEvent
from migrd.sagas.events import (
    CANCELLED,
    Admitted,
    Answered,
    CancelRequested,
    ColdRequested,
    Event,
    Looked,
    Recovered,
    Resumed,
    Withdrawn,
)
from migrd.sagas.guest_move import PRECHECK_LOOKS, expect, reasons_prepared_apart
from storage.words import Role


def begin(operation: str, request: ColdRequested) -> ColdState:
    """The state after the operation's first row. It waits for a slot (`Admitted`)."""
    return ColdState(operation=operation, request=request)


def step(state: ColdState, event: Event) -> Result:
    """Apply one event. Raises IllegalEvent and changes nothing when the table has no such row."""
    handler = TABLE.get((state.stage, type(event)))
    if handler is None:
        raise IllegalEvent(f"{state.operation}: {type(event).__name__} in stage {state.stage}")
    if isinstance(event, Looked):
        state = replace(state, looks=event.number)
    return handler(state, event)


# -- operator and daemon --------------------------------------------------------------------------


def _admitted(state: ColdState, _event: Admitted) -> Result:
    return look(state, ColdStage.PRECHECK)


def _withdrawn(state: ColdState, event: Withdrawn) -> Result:
    return replace(state, stage=ColdStage.UNDONE, reasons=(event.reason,)), ()


def _cancel_pending(state: ColdState, _event: CancelRequested) -> Result:
    reasons = ("cancelled by the operator before it began",)
    return replace(state, stage=ColdStage.UNDONE, cancelled=True, reasons=reasons), ()


def _cancel(state: ColdState, _event: CancelRequested) -> Result:
    """Taken note of: a step in flight ends first, a shutdown too; the next decision goes back, if it can."""
    return replace(state, cancelled=True), ()


def _cancel_parked(state: ColdState, _event: CancelRequested) -> Result:
    return _wake(replace(state, cancelled=True, going_back=True))


def _resumed(state: ColdState, _event: Resumed) -> Result:
    return _wake(state)


def _wake(state: ColdState) -> Result:
    """Observe first. Everything that follows is safe to repeat, so it begins anew from what is seen."""
    fresh = _fresh(replace(state, back_to=None, waits_for=(), remedy="", parked_in=None))
    return follow(fresh, 0.0) if fresh.open is not None else look(fresh, ColdStage.RECONCILE)


def _stays(state: ColdState, _event: Recovered) -> Result:
    return state, ()


def _recovered_precheck(state: ColdState, _event: Recovered) -> Result:
    return look(state, ColdStage.PRECHECK)


def _recovered(state: ColdState, _event: Recovered) -> Result:
    fresh = _fresh(state)
    if fresh.open is not None:
        return follow(fresh, 0.0)
    if state.stage in SIDES:
        fresh = replace(fresh, back_to=state.stage)
    return look(fresh, ColdStage.RECONCILE)


def _fresh(state: ColdState) -> ColdState:
    return replace(state, tries=0, starts=0, failures=0, looks=0, answers=())


# -- looking --------------------------------------------------------------------------------------


def _prechecked(state: ColdState, event: Looked) -> Result:
    """Nothing has been touched yet: whatever is wrong here is a refusal."""
    if state.cancelled:
        return replace(state, stage=ColdStage.UNDONE, reasons=(CANCELLED,)), ()
    seen = Pair.of(event.source, event.target)
    if SideView.UNKNOWN in (seen.source, seen.target) and state.looks < PRECHECK_LOOKS:
        return look_again(state, 1.0)
    reason = verdicts.refusal(state, event, seen)
    if reason:
        return replace(state, stage=ColdStage.UNDONE, reasons=event.reasons or (reason,)), ()
    assert event.source is not None, "refusal() answers for a host that was not seen"
    held = tuple(
        report.volume.name for report in event.source.volumes if report.role in (Role.PRIMARY, Role.ATTACHED)
    )
    ran = seen.source is SideView.RUNNING
    return forward_from(replace(state, ran=ran, down=not ran, held=held), None)


def _reconciled(state: ColdState, event: Looked) -> Result:
    return verdicts.decide(state, event)


# -- calls ----------------------------------------------------------------------------------------


def _answered(state: ColdState, event: Answered) -> Result:
    """Collect the answers of the present stage; when all are in, go on, look, or retry."""
    _expect(state, event)
    state = replace(state, answers=(*state.answers, event))
    if len(state.answers) < len(SIDES[state.stage]):
        return state, ()
    failed = [answer for answer in state.answers if answer.outcome is not Outcome.DONE]
    if failed:
        return retry(state, failed)
    state = replace(state, tries=0, back_to=None, open=None)
    if state.stage in FORWARD:
        state = replace(state, reached=state.stage)
    if state.stage in DOMAIN_STEPS:
        after = BACK[BACK.index(state.stage) + 1] if state.stage in BACK else None
        return look(replace(state, trouble=(), back_to=after), ColdStage.RECONCILE)
    if state.stage is ColdStage.PREPARE:
        return _compared(state)
    if state.stage in FORWARD:
        return forward_from(state, state.stage)
    return next_of(state, BACK[BACK.index(state.stage) + 1 :])


def _compared(state: ColdState) -> Result:
    """I9: the same disk on both hosts, proved, or the guest is not even asked to shut down."""
    reasons = reasons_prepared_apart(state.request, state.answers)
    if reasons:
        return go_back(state, reasons)
    return forward_from(state, ColdStage.PREPARE)


def _expect(state: ColdState, event: Answered) -> None:
    expect(
        event,
        operation=state.operation,
        stage=state.stage,
        attempt=state.attempts.get(state.stage, 0),
        sides=SIDES[state.stage],
        answers=state.answers,
    )


# -- the table ------------------------------------------------------------------------------------

Handler = Callable[[ColdState, "Event"], Result]


def _rows() -> dict[tuple[ColdStage, type], Handler]:
    """One entry per legal (stage, event). What is not here is illegal."""
    table: dict[tuple[ColdStage, type], object] = {
        (ColdStage.PENDING, Admitted): _admitted,
        (ColdStage.PENDING, Withdrawn): _withdrawn,
        (ColdStage.PENDING, CancelRequested): _cancel_pending,
        (ColdStage.PENDING, Recovered): _stays,
        (ColdStage.PRECHECK, Looked): _prechecked,
        (ColdStage.PRECHECK, CancelRequested): _cancel,
        (ColdStage.PRECHECK, Recovered): _recovered_precheck,
        (ColdStage.PARKED, CancelRequested): _cancel_parked,
        (ColdStage.PARKED, Resumed): _resumed,
        (ColdStage.PARKED, Recovered): _stays,
        (ColdStage.RECONCILE, Looked): _reconciled,
        (ColdStage.VERIFY_BACK, Looked): verdicts.verify_back,
    }
    for stage in SIDES:
        table[stage, Answered] = _answered
    for stage in (*SIDES, ColdStage.RECONCILE, ColdStage.VERIFY_BACK):
        table[stage, CancelRequested] = _cancel
        table[stage, Recovered] = _recovered
    return table  # type: ignore[return-value]  # each handler takes exactly the event type of its key


TABLE: Mapping[tuple[ColdStage, type], Handler] = _rows()
