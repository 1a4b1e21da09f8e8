"""The words of work in progress: what the journal holds, the API answers and migrctl shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from agents.protocol import MigrationProgress


class OperationKind(StrEnum):
    MIGRATE = "migrate"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    POWER = "power"
    HOST = "host"  # added or removed: done with its first row


class OperationState(StrEnum):
    """Every operation ends in one of the last four (I15)."""

    PENDING = "pending"  # journalled, waits for a slot
    RUNNING = "running"
    CANCELLING = "cancelling"  # going back, or finishing what is past its commit point
    DONE = "done"
    UNDONE = "undone"  # cancelled or failed before the commit point; everything is as it was
    FAILED = "failed"  # ended, partly done, nothing left open; a drain with guests left parks instead
    PARKED = "parked"  # needs an operator: `reason` says why, `remedy` which command resolves it

    @property
    def ended(self) -> bool:
        return self in (OperationState.DONE, OperationState.UNDONE, OperationState.FAILED)


StepWord = Literal["waiting", "running", "done", "undone", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One step of a saga as shown to people."""

    name: str
    state: StepWord
    attempt: int = 0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A projection of the journal. Times are wall-clock seconds since the epoch, for people only."""

    id: str  # sortable and unique, e.g. "op-000042"
    kind: OperationKind
    state: OperationState
    subject: str  # host name (drain, undrain, power, host) or guest name (migrate)
    guest: str = ""  # uuid (migrate)
    source: str = ""
    target: str = ""
    parent: str = ""  # a drain's id
    children: tuple[str, ...] = ()
    request: Mapping[str, object] = field(default_factory=dict)  # as asked
    steps: tuple[StepView, ...] = ()
    progress: MigrationProgress | None = None
    reason: str = ""  # why it is undone, failed or parked
    remedy: str = ""  # the next command
    downtime_ms: int | None = None  # as libvirt measured it
    requested_at_s: float = 0.0
    started_at_s: float | None = None
    first_call_at_s: float | None = None  # first migrate call (drain_first_move_s)
    ended_at_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterEvent:
    """One item of GET /v1/events (server-sent events) and `migrctl events`."""

    seq: int
    at_s: float  # wall clock
    kind: Literal["operation", "host", "guest", "alert"]
    message: str
    operation: Operation | None = None
    host: str = ""
    guest: str = ""
