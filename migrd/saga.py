"""The saga engine: start, step, fold. Pure, for every kind of operation alike.

`step(state, event) -> (state, commands)` looks up one table per kind (`migrd.sagas`). An event without a
row raises IllegalEvent and changes nothing. The caller journals the event, and only then carries out the
commands; each command ends in exactly one event (aborts and cancels of children excepted).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from migrd.sagas import cold, drain, migrate, power, roster, undrain
from migrd.sagas.cold_state import ColdState
from migrd.sagas.commands import IllegalEvent, SagaCommand
from migrd.sagas.drain import DrainState
from migrd.sagas.events import (
    ColdRequested,
    DrainRequested,
    Event,
    HostAdded,
    HostRemoved,
    MigrateRequested,
    PowerRequested,
    Request,
    UndrainRequested,
)
from migrd.sagas.migrate_state import MigrateState
from migrd.sagas.power import PowerState
from migrd.sagas.roster import RosterState
from migrd.sagas.undrain import UndrainState

MoveState = MigrateState | ColdState
"""One guest on its way from one host to another: `request` names both, `stage` has PENDING and PARKED."""

SagaState = MoveState | DrainState | UndrainState | PowerState | RosterState
Result = tuple[SagaState, tuple[SagaCommand, ...]]


def start(operation: str, request: Request) -> Result:
    """The state after an operation's first row, and what is to be done first."""
    match request:
        case MigrateRequested():
            return migrate.begin(operation, request), ()
        case ColdRequested():
            return cold.begin(operation, request), ()
        case DrainRequested():
            return drain.begin(operation, request)
        case UndrainRequested():
            return undrain.begin(operation, request)
        case PowerRequested():
            return power.begin(operation, request)
        case HostAdded() | HostRemoved():
            return roster.begin(operation, request)
        case _:
            assert_never(request)


def step(state: SagaState, event: Event) -> Result:
    """One row of one table. Raises IllegalEvent; the state is a value, so nothing has changed then."""
    match state:
        case MigrateState():
            return migrate.step(state, event)
        case ColdState():
            return cold.step(state, event)
        case DrainState():
            return drain.step(state, event)
        case UndrainState():
            return undrain.step(state, event)
        case PowerState():
            return power.step(state, event)
        case RosterState():
            return roster.step(state, event)
        case _:
            assert_never(state)


def fold(operation: str, events: Iterable[Event]) -> SagaState:
    """The state that a journal describes: commands of the past are not carried out again."""
    state: SagaState | None = None
    for event in events:
        if state is None:
            if not isinstance(event, Request):
                raise IllegalEvent(f"{operation}: begins with {type(event).__name__}, not with a request")
            state, _ = start(operation, event)
        else:
            state, _ = step(state, event)
    if state is None:
        raise IllegalEvent(f"{operation}: no events")
    return state


def ended(state: SagaState) -> bool:
    return state.stage.ended if isinstance(state, MoveState) else state.phase.ended


def parked(state: SagaState) -> bool:
    return word_of(state) == "parked"


def pending(state: SagaState) -> bool:
    """A move that waits for a slot: nothing of it has begun."""
    return word_of(state) == "pending"


def word_of(state: SagaState) -> str:
    """The stage or phase, in the word that people see."""
    return state.stage.value if isinstance(state, MoveState) else state.phase.value


def only_waits(before: SagaState, after: SagaState) -> bool:
    """True if the event said nothing new: the saga goes on looking. Such an event need not be journalled.

    All that a crash loses is the count of a wait; the event that ends the wait brings it along.
    """
    match before, after:
        case MigrateState(), MigrateState():
            return replace(before, looks=0) == replace(after, looks=0)
        case ColdState(), ColdState():
            return replace(before, looks=0) == replace(after, looks=0)
        case UndrainState(), UndrainState():
            # Why a host is not ready yet is for people only.
            return replace(before, reasons=()) == replace(after, reasons=())
        case _:
            return before == after


__all__ = [
    "IllegalEvent",
    "MoveState",
    "Result",
    "SagaState",
    "ended",
    "fold",
    "only_waits",
    "parked",
    "pending",
    "start",
    "step",
    "word_of",
]
