"""The shortest saga: a host is added or removed. Its first row is the decision, its commit point and its end.

What follows from it (the host is watched, or no longer) is derived from the rows at every start, as what is
decided about hosts is (`migrd.projection.administrative`). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from migrd.sagas.commands import IllegalEvent, SagaCommand
from migrd.sagas.events import Event, HostAdded, HostRemoved


class Phase(StrEnum):
    DONE = "done"

    @property
    def ended(self) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterState:
    operation: str
    request: HostAdded | HostRemoved
    phase: Phase = Phase.DONE
    reasons: tuple[str, ...] = ()
    remedy: str = ""


def begin(operation: str, request: HostAdded | HostRemoved) -> tuple[RosterState, tuple[SagaCommand, ...]]:
    return RosterState(operation=operation, request=request), ()


def step(state: RosterState, event: Event) -> tuple[RosterState, tuple[SagaCommand, ...]]:
    """Raises IllegalEvent: nothing can happen to it any more."""
    raise IllegalEvent(f"{state.operation}: {type(event).__name__} after its end")
