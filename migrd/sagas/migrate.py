"""The migrate saga: one table, (stage, event) -> (state, commands). No await, no clock, no IO.

Storage order, which the invariants rest on (I6, I9, I11): identities are compared before a window opens,
the window opens before the target is promoted, the source lets go only after its QEMU is gone, and the
window closes last. Every retry looks at both hosts first: nothing is repeated blind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from agents.protocol import Outcome
from migrd.reconcile import Pair, SideView, Verdict, verdict
from migrd.sagas import migrate_switch_over as switch_over
from migrd.sagas import migrate_verdicts as verdicts
from migrd.sagas.commands import Abort, IllegalEvent
from migrd.sagas.events import (
    CANCELLED,
    Admitted,
    Answered,
    CancelRequested,
    Event,
    HandingOver,
    Looked,
    MigrateRequested,
    Recovered,
    Resumed,
    SwitchOverSeen,
    Withdrawn,
)
from migrd.sagas.guest_move import PRECHECK_LOOKS, expect, reasons_prepared_apart
from migrd.sagas.migrate_moves import (
    Result,
    follow,
    go_back,
    look,
    look_again,
    next_needed,
    park,
    retry,
)
from migrd.sagas.migrate_state import (
    BACK,
    FINISH,
    FORWARD,
    SIDES,
    MigrateState,
    Stage,
)


def begin(operation: str, request: MigrateRequested) -> MigrateState:
    """The state after the operation's first row. It waits for a slot (`Admitted`)."""
    return MigrateState(operation=operation, request=request)


def step(state: MigrateState, event: Event) -> Result:
    """Apply one event. Raises IllegalEvent and changes nothing when the table has no such row."""
    handler = TABLE.get((state.stage, type(event)))
    if handler is None:
        raise IllegalEvent(f"{state.operation}: {type(event).__name__} in stage {state.stage}")
    if isinstance(event, Looked):
        away = event.source is None
        state = replace(
            state,
            looks=event.number,
            off=event.off,
            missed=state.missed and away,
            given_up=state.given_up and away,
        )
    return handler(state, event)


# -- operator and daemon --------------------------------------------------------------------------


def _admitted(state: MigrateState, _event: Admitted) -> Result:
    if state.cancelled:
        return replace(state, stage=Stage.UNDONE, reasons=(CANCELLED,)), ()
    return look(state, Stage.PRECHECK)


def _withdrawn(state: MigrateState, event: Withdrawn) -> Result:
    return replace(state, stage=Stage.UNDONE, reasons=(event.reason,)), ()


def _cancel_pending(state: MigrateState, _event: CancelRequested) -> Result:
    reasons = ("cancelled by the operator before it began",)
    return replace(state, stage=Stage.UNDONE, cancelled=True, reasons=reasons), ()


def _cancel(state: MigrateState, event: CancelRequested) -> Result:
    """Taken note of: a step in flight ends first; the next decision goes back, if it still can."""
    return replace(state, cancelled=True, given_up=_gives_up(state, event)), ()


def _gives_up(state: MigrateState, event: CancelRequested) -> bool:
    """A person who was told that only the source is missing (`missed`) ends the move without it."""
    return state.missed and event.by == "operator"


def _cancel_migrate(state: MigrateState, _event: CancelRequested) -> Result:
    stop = Abort(host=state.request.source, step=Stage.MIGRATE, attempt=state.attempts[Stage.MIGRATE])
    return replace(state, cancelled=True), (stop,)


def _cancel_parked(state: MigrateState, event: CancelRequested) -> Result:
    """Before the commit point: try to go back now. After it: the same as resume, but see `_gives_up`."""
    return _wake(
        replace(state, cancelled=True, going_back=not state.committed, given_up=_gives_up(state, event))
    )


def _resumed(state: MigrateState, _event: Resumed) -> Result:
    return _wake(replace(state, given_up=False))


def _wake(state: MigrateState) -> Result:
    """Observe first. Everything that follows is safe to repeat, so it begins anew from what is seen."""
    fresh = replace(
        state,
        tries=0,
        failures=0,
        rounds=0,
        returns=0,
        adrift=min(state.adrift, 1),
        followers=0,
        looks=0,
        back_to=None,
        waits_for=(),
        remedy="",
        parked_in=None,
        answers=(),
    )
    if fresh.migrate_open:
        return follow(fresh, 0.0)
    return look(fresh, Stage.RECONCILE)


def _recovered_pending(state: MigrateState, _event: Recovered) -> Result:
    return state, ()


def _recovered_precheck(state: MigrateState, _event: Recovered) -> Result:
    return look(state, Stage.PRECHECK)


def _recovered(state: MigrateState, _event: Recovered) -> Result:
    back_to = state.stage if state.stage in FORWARD else None
    going_back = state.going_back or state.stage is Stage.SALVAGE
    fresh = replace(state, tries=0, failures=0, looks=0, answers=(), going_back=going_back)
    if fresh.migrate_open:
        return follow(fresh, 0.0)
    return look(replace(fresh, back_to=back_to), Stage.RECONCILE)


# -- looking --------------------------------------------------------------------------------------


def _prechecked(state: MigrateState, event: Looked) -> Result:
    """Nothing has been touched yet: whatever is wrong here is a refusal."""
    if state.cancelled:
        return replace(state, stage=Stage.UNDONE, reasons=(CANCELLED,)), ()
    pair = Pair.of(event.source, event.target, event.off)
    found = verdict(pair)
    if found is Verdict.STILL_ON_SOURCE and pair.target is SideView.GONE:
        return next_needed(state, FORWARD)
    passing = found in (Verdict.UNKNOWN, Verdict.COPYING)  # a job may be a query of its monitor
    if passing and state.looks < PRECHECK_LOOKS:
        return look_again(state, 1.0)
    reasons = event.reasons or (verdicts.refusal(state, pair, found),)
    return replace(state, stage=Stage.UNDONE, reasons=reasons), ()


def _reconciled(state: MigrateState, event: Looked) -> Result:
    return verdicts.decide(state, event)


# -- calls ----------------------------------------------------------------------------------------


def _answered(state: MigrateState, event: Answered) -> Result:
    """Collect the answers of the present stage; when all are in, go on or retry."""
    _expect(state, event)
    state = replace(state, answers=(*state.answers, event))
    if len(state.answers) < len(state.sides(state.stage)):
        return state, ()
    failed = [answer for answer in state.answers if answer.outcome is not Outcome.DONE]
    if failed:
        return retry(state, failed)
    state = replace(state, tries=0, back_to=None)
    if state.stage is Stage.PREPARE:
        return _compared(state)
    for order in (FORWARD, FINISH, BACK):
        if state.stage in order:
            return next_needed(state, order[order.index(state.stage) + 1 :])
    raise AssertionError(f"no successor of {state.stage}")


def _compared(state: MigrateState) -> Result:
    """I9: the same disk on both hosts, proved, or nothing is opened."""
    reasons = reasons_prepared_apart(state.request, state.answers)
    if reasons:
        return go_back(state, reasons)
    return next_needed(state, FORWARD[1:])


def _migrated(state: MigrateState, event: Answered) -> Result:
    """Whatever the migrate call said: only the pair of observations decides."""
    _expect(state, event)
    if not event.ended:
        return retry(replace(state, answers=(event,)), [event])
    state = replace(
        state,
        answers=(event,),
        migrate_open=False,
        downtime_ms=event.downtime_ms if event.downtime_ms is not None else state.downtime_ms,
    )
    if event.outcome is Outcome.DONE:
        return look(replace(state, back_to=None, trouble=(), adrift=0), Stage.RECONCILE)
    if event.outcome is Outcome.UNKNOWN:
        state = replace(state, adrift=state.adrift + 1)
    state = replace(state, trouble=event.reasons or (f"the migration ended: {event.outcome}",))
    if event.outcome is Outcome.RETRYABLE and not state.adrift:
        return retry(state, [event])
    return look(replace(state, back_to=None), Stage.RECONCILE)


def _salvaged(state: MigrateState, event: Answered) -> Result:
    """The source's half is closed, or it is not: either way the rest waits for the target."""
    _expect(state, event)
    note = (
        ()
        if event.outcome is Outcome.DONE
        else tuple(f"window on {state.request.source}: {reason}" for reason in event.reasons)
    )
    return park(state, (*state.trouble, *note), waits_for=(state.request.target,))


def _expect(state: MigrateState, event: Answered) -> None:
    expect(
        event,
        operation=state.operation,
        stage=state.stage,
        attempt=state.attempts.get(state.stage, 0),
        sides=SIDES[state.stage],
        answers=state.answers,
    )


# -- the table ------------------------------------------------------------------------------------

Handler = Callable[[MigrateState, "Event"], Result]


def _rows() -> dict[tuple[Stage, type], Handler]:
    """One entry per legal (stage, event). What is not here is illegal."""
    table: dict[tuple[Stage, type], object] = {
        (Stage.PENDING, Admitted): _admitted,
        (Stage.PENDING, Withdrawn): _withdrawn,
        (Stage.PENDING, CancelRequested): _cancel_pending,
        (Stage.PENDING, Recovered): _recovered_pending,
        (Stage.PRECHECK, Looked): _prechecked,
        (Stage.PRECHECK, CancelRequested): _cancel,
        (Stage.PRECHECK, Recovered): _recovered_precheck,
        (Stage.MIGRATE, Answered): _migrated,
        (Stage.MIGRATE, HandingOver): switch_over.handing_over,
        (Stage.MIGRATE, SwitchOverSeen): switch_over.seen,
        (Stage.MIGRATE, CancelRequested): _cancel_migrate,
        (Stage.MIGRATE, Recovered): _recovered,
        (Stage.SALVAGE, Answered): _salvaged,
        (Stage.SALVAGE, CancelRequested): _cancel,
        (Stage.SALVAGE, Recovered): _recovered,
        (Stage.PARKED, CancelRequested): _cancel_parked,
        (Stage.PARKED, Resumed): _resumed,
        (Stage.PARKED, Recovered): _recovered_pending,
        (Stage.RECONCILE, Looked): _reconciled,
        (Stage.SETTLE, Looked): _reconciled,
        (Stage.VERIFY, Looked): verdicts.verify,
        (Stage.VERIFY_BACK, Looked): verdicts.verify_back,
    }
    for stage in (*FORWARD[:-1], *FINISH, *BACK):
        table[stage, Answered] = _answered
    for stage in (
        *FORWARD[:-1],
        *FINISH,
        *BACK,
        Stage.RECONCILE,
        Stage.SETTLE,
        Stage.VERIFY,
        Stage.VERIFY_BACK,
    ):
        table[stage, CancelRequested] = _cancel
        table[stage, Recovered] = _recovered
    return table  # type: ignore[return-value]  # each handler takes exactly the event type of its key


TABLE: Mapping[tuple[Stage, type], Handler] = _rows()
