"""What happened: the rows of the journal, and the only input of a saga. State is a fold over them.

Every event is a frozen dataclass with a `kind`; pydantic reads and writes them. An event is written and
synced before the commands that follow from it are carried out, so the journal always names the intent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from agents.protocol import AnyVolume, DomainState, Observation, Outcome
from migrd.host_config import HostConfig
from migrd.model import Move
from migrd.operations import OperationState
from storage.words import Side, VolumeReport

# -- requests: the first row of an operation ------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateRequested:
    """Everything the saga needs to know of one move; nothing is looked up later."""

    guest: str  # uuid
    name: str
    source: str
    source_node: str  # uname -n
    target: str
    target_node: str
    target_uri: str
    target_address: str
    volumes: tuple[AnyVolume, ...]
    downtime_limit_ms: int = 300
    bandwidth_bps: int | None = None
    deadline_s: float = 3600.0
    parent: str = ""
    asked_target: str | None = None  # as the operator asked; None = placed by the planner
    kind: Literal["migrate-requested"] = "migrate-requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdRequested:
    """A move of a guest that is, or will be, shut off. As above, nothing is looked up later."""

    guest: str  # uuid
    name: str
    source: str
    source_node: str  # uname -n
    source_uri: str  # how the target's libvirtd reaches the source's, for the way back
    source_address: str
    target: str
    target_node: str
    target_uri: str
    target_address: str
    volumes: tuple[AnyVolume, ...]
    may_stop: bool  # the operator named this guest with --cold: it may be asked to shut down (I5)
    autostart: bool = False
    shutdown_deadline_s: float = 90.0  # of one request to shut down
    asked_target: str | None = None  # as the operator asked; None = placed by the planner
    kind: Literal["cold-requested"] = "cold-requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested:
    host: str
    power_off: bool = False
    allow_stop: tuple[str, ...] = ()  # uuids; the operator's consent by name (I5)
    moves: tuple[Move, ...] = ()
    stops: tuple[tuple[str, str], ...] = ()  # (uuid, name): consented, and no target takes them
    kind: Literal["drain-requested"] = "drain-requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedGuest:
    """A guest that a drain moved, and where it put it."""

    guest: str
    name: str
    now_on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UndrainRequested:
    host: str
    drain: str  # the drain that is taken back; "" when the host was only powered off
    power_on: bool
    restore: tuple[MovedGuest, ...] = ()
    kind: Literal["undrain-requested"] = "undrain-requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRequested:
    host: str
    action: Literal["on", "off"]
    kind: Literal["power-requested"] = "power-requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAdded:
    """A host that is not in migrd.toml; `config` as the operator gave it. Holds no secret (I17)."""

    host: str
    config: HostConfig
    kind: Literal["host-added"] = "host-added"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRemoved:
    """It is no longer followed, and what was decided about it is void."""

    host: str
    kind: Literal["host-removed"] = "host-removed"


# -- the operator, and the daemon's own life ------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A slot on both hosts is free: the move may begin."""

    kind: Literal["admitted"] = "admitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """While it waited for a slot, its target was taken out of use: it never begins."""

    reason: str
    kind: Literal["withdrawn"] = "withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """The daemon started with this operation open: nothing is known of commands in flight."""

    epoch: int
    kind: Literal["recovered"] = "recovered"


CANCELLED = "cancelled by the operator"
"""The reason of an operation that ends, or goes back, because of this event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    by: Literal["operator", "parent"] = "operator"  # parent: the drain or undrain that began this move
    kind: Literal["cancel-requested"] = "cancel-requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    by: Literal["operator", "host-returned", "child-ended"] = "operator"
    kind: Literal["resumed"] = "resumed"


# -- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One agent's outcome of one attempt. `ended` False: contact was lost, it may still be running."""

    side: Side
    step: str
    attempt: int
    outcome: Outcome
    ended: bool = True
    reasons: tuple[str, ...] = ()
    volumes: tuple[VolumeReport, ...] = ()
    downtime_ms: int | None = None
    kind: Literal["answered"] = "answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """Both hosts observed. None: that host did not answer, and `reasons` says why.

    `off`: sides that did not answer and whose BMC, asked for the status by itself, says off (I3): no process
    runs there, and what DRBD and iSCSI had been told at run time is gone.

    `number`: how many looks the stage has had. Looks that say nothing new are not journalled, so the one that
    ends a wait has to say how long it was; otherwise the fold would decide differently.
    """

    source: Observation | None
    target: Observation | None
    reasons: tuple[str, ...] = ()
    off: tuple[Side, ...] = ()
    number: int = 1
    kind: Literal["looked"] = "looked"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandingOver:
    """While a migrate attempt runs: its guest has been paused for the switch-over for so long, in seconds."""

    paused_s: float
    kind: Literal["handing-over"] = "handing-over"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchOverSeen:
    """Both hosts observed while that migrate attempt ran. As in Looked; nobody asked for the volumes."""

    attempt: int
    source: Observation | None
    target: Observation | None
    number: int = 1
    kind: Literal["switch-over-seen"] = "switch-over-seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildEnded:
    """A child operation reached one of its ends (or parked)."""

    child: str
    state: OperationState
    target: str
    reason: str = ""
    cancelled: bool = False  # by an operator, who named the child itself
    kind: Literal["child-ended"] = "child-ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Where one guest could go now. Empty `target`: nowhere, and `reasons` says why."""

    guest: str
    target: str
    reasons: tuple[str, ...] = ()
    gone: bool = False  # it is no longer on the host that the question named
    kind: Literal["chosen"] = "chosen"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftGuest:
    guest: str
    name: str
    state: DomainState


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """What is on the host now, by its own fresh report. `reasons`: why it could not be asked."""

    guests: tuple[LeftGuest, ...]
    reasons: tuple[str, ...] = ()
    kind: Literal["surveyed"] = "surveyed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAnswered:
    guest: str
    attempt: int
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    kind: Literal["stop-answered"] = "stop-answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerChecked:
    """May the host be powered off now? Reasons against, from fresh reports of all (I12)."""

    reasons: tuple[str, ...]
    kind: Literal["power-checked"] = "power-checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerActed:
    """The BMC took the command, or not, or was not asked. Says nothing about the power itself (I3)."""

    action: Literal["on", "off"]
    reason: str = ""  # empty: accepted
    asked: bool = True  # False: `reason` came before the command
    kind: Literal["power-acted"] = "power-acted"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRead:
    """A separate status: "on", "off", or "unknown: REASON"."""

    status: str
    number: int = 1  # of reads, as in Looked
    kind: Literal["power-read"] = "power-read"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostChecked:
    """Why the host cannot take guests yet; empty when it can."""

    reasons: tuple[str, ...]
    number: int = 1  # of checks, as in Looked
    kind: Literal["host-checked"] = "host-checked"


Request = (
    MigrateRequested
    | ColdRequested
    | DrainRequested
    | UndrainRequested
    | PowerRequested
    | HostAdded
    | HostRemoved
)

Event = (
    Request
    | Admitted
    | Withdrawn
    | Recovered
    | CancelRequested
    | Resumed
    | Answered
    | Looked
    | HandingOver
    | SwitchOverSeen
    | ChildEnded
    | Chosen
    | Surveyed
    | StopAnswered
    | PowerChecked
    | PowerActed
    | PowerRead
    | HostChecked
)

EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])
"""Reads and writes one row's payload. A kind it does not know raises: a newer daemon wrote it."""
