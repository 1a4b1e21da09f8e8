"""The cluster as the daemon knows it: frozen snapshots that planner, API and CLI share.

Built from agents' reports by `migrd.watch`; never written to. Bytes, seconds and counts are plain ints
and floats with the unit in the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agents.protocol import AnyVolume, DomainState, HostReport
from storage.words import VolumeReport


class HostState(StrEnum):
    """What the daemon may do with a host. Shown to operators and counted in migrd_hosts{state}."""

    ONLINE = "online"  # agent connected, libvirt answers
    DEGRADED = "degraded"  # agent connected, but libvirt or something it needs does not answer
    SUSPECT = "suspect"  # heartbeats missed; not a target
    UNREACHABLE = "unreachable"  # no agent for longer than `unreachable_after_s`
    DRAINING = "draining"  # a drain runs or is parked; not a target
    DRAINED = "drained"  # a drain ended; not a target until undrain
    OFF = "off"  # powered off by a drain, status read back from the BMC
    UNKNOWN = "unknown"  # never heard of since the daemon started

    @classmethod
    def _missing_(cls, value: object) -> HostState:
        return cls.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    name: str
    state: HostState
    observed: HostState = HostState.UNKNOWN  # what its agent shows, whatever was decided about the host
    arch: str = ""  # e.g. x86_64
    claimed: str = ""  # the name that its agent gives itself; another one is a wrong address
    node: str = ""  # uname -n
    boot_id: str = ""
    epoch: int = 0  # the highest that its agent has obeyed (I4)
    memory_total_bytes: int = 0
    memory_available_bytes: int = 0
    threads: int = 0
    bridges: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    volumes: Mapping[str, VolumeReport] = field(default_factory=dict)  # by volume name
    versions: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    migration_uri: str = ""
    migration_address: str = ""
    last_heard_s: float | None = None  # monotonic clock of the daemon
    has_bmc: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One domain on one host. The same uuid on two hosts (a migration in flight) is two Guests."""

    uuid: str
    name: str
    host: str
    state: DomainState
    memory_bytes: int
    vcpus: int = 1
    persistent: bool = True
    autostart: bool = False
    volumes: tuple[AnyVolume, ...] = ()
    bridges: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    cpu_xml: str = ""  # the question for Preflight.cpus; "" = not known, so it goes nowhere
    blockers: tuple[str, ...] = ()  # to a live migration
    cold_blockers: tuple[str, ...] | None = None  # to a move shut off; None = its agent does not say
    job: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """One consistent moment of the whole cluster: the planner's only input besides the policy."""

    hosts: Mapping[str, Host]
    guests: tuple[Guest, ...]

    def guests_on(self, host: str) -> tuple[Guest, ...]:
        return tuple(g for g in self.guests if g.host == host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Answers of Preflight, gathered before planning: (host, question) -> reasons; empty = yes.

    A pair that is missing was not asked or not answered: never yes (I19).
    """

    cpu: Mapping[tuple[str, str], tuple[str, ...]]  # (host, cpu_xml)
    volume: Mapping[tuple[str, str], tuple[str, ...]]  # (host, volume name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    guest: str  # uuid
    name: str
    source: str
    target: str
    estimate_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """Why one guest cannot leave its host (`host` empty), or cannot go to one target."""

    guest: str
    name: str
    target: str  # "" = wherever it went
    reason: str
    remedy: str = ""  # what the operator can do about it


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """Memory of a target that a move in flight will need, whether or not it shows there yet."""

    guest: str  # uuid
    target: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One guest, one target: `move`, or None and every reason why not in `blockers`."""

    move: Move | None
    blockers: tuple[Blocker, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A drain or a migration, decided but not begun. `blockers` non-empty = refused as a whole."""

    host: str
    moves: tuple[Move, ...]
    stops: tuple[str, ...] = ()  # uuids that will be shut down, as the operator allowed by name
    stays: tuple[str, ...] = ()  # uuids that are shut off and stay defined here
    names: Mapping[str, str] = field(default_factory=dict)  # of the guests in `stops` and `stays`, by uuid
    blockers: tuple[Blocker, ...] = ()
    refusals: tuple[str, ...] = ()  # reasons about the host itself: unknown, already drained, last one ...
    estimate_s: float = 0.0


__all__ = [
    "Blocker",
    "Choice",
    "Cluster",
    "Facts",
    "Guest",
    "Host",
    "HostReport",
    "HostState",
    "Move",
    "Plan",
    "Promise",
]
