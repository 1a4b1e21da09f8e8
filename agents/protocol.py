"""The words between daemon and agent: reports, commands, outcomes. The agent side owns them.

Plain frozen dataclasses; `pydantic.TypeAdapter` over the same classes reads and writes the JSON at
the edge (agents.wire), so bad input gives every error at once. A reader of reports, outcomes and events
ignores fields it does not know (agents and daemon are upgraded one by one) and maps unknown enum words to
UNKNOWN (I19). An agent refuses a *request* with a field it does not know: it may carry a condition that
this agent would not honour.

HTTP surface of an agent (mTLS, port 7443):

    GET  /v1/report[?storage=1]          -> HostReport          (storage=1: all volumes looked at anew)
    GET  /v1/events                      -> NDJSON, one Event per line, a heartbeat at least every 1 s
    POST /v1/preflight   Preflight       -> PreflightReport     (reads only)
    POST /v1/observe     Observe         -> Observation         (reads only: one guest on this host)
    POST /v1/attempts    Attempt         -> AttemptReport       (202 while running; 200 when ended)
    GET  /v1/attempts/{operation}/{step}/{attempt}?wait_s=N     -> AttemptReport (long poll, N <= 30)
    POST /v1/attempts/{operation}/{step}/{attempt}/abort  Abort -> AttemptReport (asks it to stop)
    POST /v1/attempts/{operation}/{step}/{attempt}/destroy-source  DestroySource -> AttemptReport
    GET  /healthz, GET /metrics

Problems are RFC 9457 documents; 409 with type "stale-epoch" for I4, 404 for an attempt never seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from agents.mistakes import Seconds
from storage.words import Handover, Volume, VolumeReport, WindowOptions

PROTOCOL = 1

AnyVolume = Annotated[Volume, Field(discriminator="kind")]

# Bounds of what a daemon may ask. SQLite holds 64 bits and JSON readers 53, so an epoch beyond that could be
# obeyed once and never be followed by a higher one.
MAX_INTEGER = 2**53
MAX_ATTEMPT = 999_999_999  # as many digits as the path of an attempt takes
MAX_DOWNTIME_MS = 2_000_000  # QEMU's own bound

Epoch = Annotated[int, Field(ge=0, le=MAX_INTEGER)]


class DomainState(StrEnum):
    """virDomainState, in libvirt's words, plus the two that a migration pair needs told apart."""

    RUNNING = "running"
    BLOCKED = "blocked"  # running, waiting for IO (libvirt's word); counts as running
    PAUSED = "paused"
    PAUSED_INCOMING = "paused-incoming"  # a migration target that has not been resumed: never ran here
    PAUSED_POSTCOPY = "paused-postcopy"
    SHUTDOWN = "shutdown"  # shutting down: QEMU still exists
    SHUTOFF = "shutoff"  # defined, no QEMU
    CRASHED = "crashed"
    PMSUSPENDED = "pmsuspended"
    ABSENT = "absent"  # neither running nor defined on this host
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> DomainState:
        return cls.UNKNOWN  # a word of a newer version (I19)

    @property
    def has_process(self) -> bool:
        """May a QEMU process exist? UNKNOWN is never safe, and CRASHED can be kept (on_crash=preserve)."""
        return self not in (DomainState.SHUTOFF, DomainState.ABSENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuReport:
    arch: str
    threads: int
    model: str  # for people
    host_xml: str  # <cpu> of the host capabilities; "" if libvirt gave none


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainReport:
    """A libvirt domain as found on a host. No secret ever appears in the XML (I17)."""

    uuid: str
    name: str
    state: DomainState
    reason: str  # libvirt's reason word, e.g. "migrated"; "unknown" when not known
    memory_bytes: int  # what a target must have free: the maximum memory, hugepages included
    vcpus: int
    persistent: bool
    autostart: bool
    volumes: tuple[AnyVolume, ...]
    bridges: tuple[str, ...]
    networks: tuple[str, ...]
    cpu_xml: str  # for another host's Preflight.cpus, as it is: machine type and live CPU; "" = not known
    blockers: tuple[str, ...]  # reasons seen in the XML why it cannot migrate live, each a full sentence
    job: bool = False  # a libvirt job (e.g. a migration) runs on it
    xml: str = ""  # inactive definition, kept by the daemon
    cold_blockers: tuple[str, ...] | None = None  # why it cannot move shut off; None = not known


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """Everything one host knows of itself. `observed_s` is the agent's monotonic clock."""

    protocol: int
    host: str  # name of the host as agent.toml has it
    node: str  # uname -n, what DRBD calls it
    boot_id: str
    epoch: int
    agent_version: str
    versions: dict[str, str]  # libvirt, qemu, kernel, drbd, drbd-utils, open-iscsi: as far as known
    libvirt_ok: bool
    problems: tuple[str, ...]  # what this agent could not find out, for the operator
    cpu: CpuReport
    memory_total_bytes: int
    memory_available_bytes: int
    bridges: tuple[str, ...]
    networks: tuple[str, ...]  # active libvirt networks
    domains: tuple[DomainReport, ...]
    volumes: tuple[VolumeReport, ...]
    migration_uri: str  # destination connection URI for peer-to-peer, e.g. qemu+tls://h2/system
    migration_address: str  # where the memory goes, e.g. tcp://10.0.1.12
    observed_s: float


# -- reads ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """Could this host take guests with these CPUs and volumes? Lists are deduplicated by the caller.

    `cpus` are `DomainReport.cpu_xml` of the guests, unchanged.
    """

    cpus: tuple[str, ...] = ()
    volumes: tuple[AnyVolume, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightReport:
    """Answers in the order of the question; an empty tuple of reasons means yes."""

    cpus: tuple[tuple[str, ...], ...]
    volumes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe:
    uuid: str
    volumes: tuple[AnyVolume, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Reality of one guest on this host: what decides after a crash or a doubtful outcome."""

    uuid: str
    state: DomainState
    reason: str
    persistent: bool
    qemu_process: bool | None  # seen in /proc, independent of libvirt; None = could not look
    job: bool
    volumes: tuple[VolumeReport, ...]


# -- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareVolumes:
    """driver.prepare on every volume, then inspect: the result carries the reports (identity for I9)."""

    handover: Handover
    volumes: tuple[AnyVolume, ...]
    kind: Literal["prepare-volumes"] = "prepare-volumes"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWindow:
    handover: Handover
    volumes: tuple[AnyVolume, ...]
    kind: Literal["open-window"] = "open-window"


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquireVolumes:
    handover: Handover
    volumes: tuple[AnyVolume, ...]
    kind: Literal["acquire-volumes"] = "acquire-volumes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseVolumes:
    handover: Handover
    volumes: tuple[AnyVolume, ...]
    kind: Literal["release-volumes"] = "release-volumes"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseWindow:
    handover: Handover
    volumes: tuple[AnyVolume, ...]
    before: tuple[WindowOptions, ...]
    kind: Literal["close-window"] = "close-window"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateDomain:
    """Live pre-copy, peer-to-peer, persistent on the target, undefined on the source. Runs on the source.

    The agent watches the replication of `volumes` to `handover.peer_node` and aborts when it breaks (I7).
    Both are optional because ledgers hold rows from before they existed: those are not watched.

    `under_way`: begin nothing. An earlier attempt was given up while libvirt's job went on: follow that job
    as an agent that restarts does, and abort it at once if it is `unwanted`.
    """

    uuid: str
    target_uri: str
    target_address: str
    downtime_limit_ms: Annotated[int, Field(ge=1, le=MAX_DOWNTIME_MS)] = 300
    bandwidth_bps: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = None  # bytes a second; None: no limit
    deadline_s: Seconds = 3600.0  # asked to abort after that
    volumes: tuple[AnyVolume, ...] = ()
    handover: Handover | None = None
    under_way: bool = False
    unwanted: bool = False
    kind: Literal["migrate-domain"] = "migrate-domain"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTarget:
    """Remove what a failed migration left on its target: an incoming QEMU, a definition.

    The agent refuses unless the domain here is absent, shut off, or PAUSED_INCOMING: a domain that runs
    or ever ran on this host is never swept (I1, I5).
    """

    uuid: str
    kind: Literal["sweep-target"] = "sweep-target"


@dataclass(frozen=True, slots=True, kw_only=True)
class UndefineDomain:
    """Remove the definition of a guest that runs on another host by now, where libvirt has not done so.

    The daemon answers for the other host. The agent refuses unless the domain here is absent, or shut off
    with no QEMU of it in /proc (I11).
    """

    uuid: str
    kind: Literal["undefine-domain"] = "undefine-domain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownDomain:
    """Ask the guest to shut down (ACPI), with the operator's consent by name (I5); never destroys it."""

    uuid: str
    deadline_s: Seconds = 120.0
    kind: Literal["shutdown-domain"] = "shutdown-domain"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveDefinition:
    """Move the definition of a shut-off guest to another host. Runs where the definition is.

    libvirt defines it there first, without autostart, and undefines it here last. The agent refuses unless
    the domain is persistent, shut off, and no QEMU of it is seen in /proc (I11).
    """

    uuid: str
    target_uri: str
    target_address: str
    kind: Literal["move-definition"] = "move-definition"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleDomain:
    """Prove that libvirt does nothing to this domain any more, and that it is defined on this host.

    A move of its definition goes on when its agent dies, and no query tells of it. DONE: libvirt gave the
    domain's job lock to a change that changes nothing. The agent is RETRYABLE while another job holds it, and
    for a domain that is not here (any more).
    """

    uuid: str
    kind: Literal["settle-domain"] = "settle-domain"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartDomain:
    """Start a shut-off guest. The daemon answers for all other hosts (I1, I2), the agent for this one.

    The agent refuses unless the domain is defined here and shut off, no QEMU of it is seen in /proc, and this
    host holds every volume (role PRIMARY or ATTACHED). A guest that runs here already is DONE.
    """

    handover: Handover
    volumes: tuple[AnyVolume, ...]
    kind: Literal["start-domain"] = "start-domain"


@dataclass(frozen=True, slots=True, kw_only=True)
class DisconnectReplicas:
    """Every replicated volume of this host leaves its peers in good order: its power goes next.

    Refused while this host is primary of one.
    """

    kind: Literal["disconnect-replicas"] = "disconnect-replicas"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectReplicas:
    """The power did not go: the opposite of DisconnectReplicas."""

    kind: Literal["connect-replicas"] = "connect-replicas"


Command = Annotated[
    PrepareVolumes
    | OpenWindow
    | AcquireVolumes
    | ReleaseVolumes
    | CloseWindow
    | MigrateDomain
    | SweepTarget
    | UndefineDomain
    | ShutdownDomain
    | MoveDefinition
    | SettleDomain
    | StartDomain
    | DisconnectReplicas
    | ConnectReplicas,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of one step. The same (operation, step, attempt) again answers with the first outcome."""

    operation: str
    step: str
    attempt: Annotated[int, Field(ge=0, le=MAX_ATTEMPT)]
    epoch: Epoch
    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Ask a running attempt to stop. A command like any other, so it carries the epoch (I4)."""

    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class DestroySource:
    """To a running migrate-domain: the daemon saw the guest run on the target. Its QEMU here is to end (I1).

    The agent refuses unless that QEMU is paused for its switch-over. The attempt goes on until libvirt's call
    ends. Carries the epoch (I4).
    """

    epoch: Epoch


# -- outcomes ------------------------------------------------------------------------------------


class Outcome(StrEnum):
    """storage.errors in one word, plus the two that are no error."""

    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    RETRYABLE = "retryable"
    FAILED = "failed"
    UNKNOWN = "unknown"  # also: the agent restarted while it ran

    @classmethod
    def _missing_(cls, value: object) -> Outcome:
        return cls.UNKNOWN  # a word of a newer version (I19)


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationProgress:
    """virDomainGetJobStats, in base units. Totals may shrink and grow between iterations.

    `handing_over_s`: how long the guest has been seen paused for its switch-over; 0 when it is not.
    """

    elapsed_s: float = 0.0
    memory_total_bytes: int = 0
    memory_processed_bytes: int = 0
    memory_remaining_bytes: int = 0
    bandwidth_bps: int = 0  # bytes per second
    dirty_rate_bps: int = 0  # bytes per second (pages x page size)
    iteration: int = 0
    downtime_ms: int | None = None  # only final statistics carry the real one
    handing_over_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """What a command found or did, by kind; fields of other kinds stay empty."""

    volumes: tuple[VolumeReport, ...] = ()  # prepare-volumes
    before: tuple[WindowOptions, ...] = ()  # open-window
    progress: MigrationProgress | None = None  # migrate-domain: latest while running, final when done


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReport:
    operation: str
    step: str
    attempt: int
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    result: AttemptResult = AttemptResult()


# -- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the stream. `seq` grows by one per event; a gap or a new `stream` means: read /v1/report.

    kinds: hello (first line), heartbeat, domain (`domain` changed, or `domain_gone`), report (a full report),
    attempt (an attempt ended), volume (storage changed: re-read).
    """

    stream: str  # new for every start of the agent
    seq: int
    kind: Literal["hello", "heartbeat", "domain", "report", "attempt", "volume"]
    domain: DomainReport | None = None
    domain_gone: str | None = None  # uuid of a domain that is no longer here at all
    report: HostReport | None = None
    attempt: AttemptReport | None = None
