"""What is to be done: the output of a saga. The executor carries them out; each ends in one event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agents.protocol import AnyVolume, Command
from storage.words import Side


class IllegalEvent(Exception):  # noqa: N818 - a verdict on the caller, not a malfunction of the saga
    """The saga's table has no such transition. The state is unchanged and nothing was emitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Submit an attempt and wait for its end -> Answered. At most `deadline_s` without an end."""

    host: str
    side: Side
    step: str
    attempt: int
    command: Command
    deadline_s: float
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """Wait for the end of an attempt submitted earlier, perhaps by an earlier daemon -> Answered."""

    host: str
    side: Side
    step: str
    attempt: int
    deadline_s: float
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Ask a running attempt to stop. No event: the attempt's own end is the answer."""

    host: str
    step: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Observe one guest on both hosts at the same time -> Looked."""

    guest: str
    source: str
    target: str
    volumes: tuple[AnyVolume, ...]
    number: int  # of looks in this stage; comes back in the event
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAtSwitchOver:
    """Observe one guest on both hosts while a migrate attempt runs, its volumes aside -> SwitchOverSeen."""

    guest: str
    source: str
    target: str
    attempt: int
    number: int
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DestroySource:
    """Tell a running migrate attempt that its guest runs on the target, so its QEMU on `host` is to end.

    No event: the attempt's own end is the answer.
    """

    host: str
    step: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartMove:
    """Journal a child migration under this very id, unless it is there already -> ChildEnded."""

    child: str
    guest: str
    source: str
    target: str
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelChild:
    """Ask a child to go back. No event: the child's own end is the answer."""

    child: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeChild:
    """Wake a parked child and wait for its end -> ChildEnded."""

    child: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choose:
    """Find a target for one guest from a fresh snapshot -> Chosen. `to`: only this host will do."""

    guest: str
    source: str
    exclude: tuple[str, ...] = ()
    to: str = ""
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Ask the host itself which guests it has -> Surveyed."""

    host: str
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StopGuest:
    """Ask a guest to shut down; only with consent (I5) -> StopAnswered."""

    host: str
    guest: str
    attempt: int
    deadline_s: float
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPowerOff:
    """Fresh reports of every host, then the pure safety verdict -> PowerChecked (I12)."""

    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPower:
    """-> PowerActed."""

    host: str
    action: Literal["on", "off"]
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPower:
    """-> PowerRead. `stays_on`: nothing more is done to cut the power, so unless it is off by now, the host's
    replicas are connected again."""

    host: str
    number: int = 1  # of reads in this phase; comes back in the event
    after_s: float = 0.0
    stays_on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckHost:
    """Is the host's agent there, libvirt answering, its replicas current? -> HostChecked."""

    host: str
    number: int = 1  # of checks in this phase; comes back in the event
    after_s: float = 0.0


SagaCommand = (
    Call
    | Follow
    | Abort
    | Look
    | LookAtSwitchOver
    | DestroySource
    | StartMove
    | CancelChild
    | ResumeChild
    | Choose
    | Survey
    | StopGuest
    | CheckPowerOff
    | SetPower
    | ReadPower
    | CheckHost
)
