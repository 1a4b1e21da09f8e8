"""The cluster as the daemon knows it: frozen snapshots that planner, API and CLI share.

Built from agents' reports by `migrd.watch`; never written to. Bytes, seconds and counts are plain ints
and floats with the unit in the name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from operator import attrgetter

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


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One consistent moment of the whole cluster: the planner's only input besides the policy.

    The indexes are made when first asked for. The view gives out one object for as long as nothing changes,
    so a thousand questions about one moment walk over its guests once.
    """

    hosts: Mapping[str, Host]
    guests: tuple[Guest, ...]

    @cached_property
    def _by_host(self) -> Mapping[str, Sequence[Guest]]:
        found: dict[str, list[Guest]] = {name: [] for name in self.hosts}
        for guest in self.guests:
            found.setdefault(guest.host, []).append(guest)
        return found

    @cached_property
    def _by_uuid(self) -> _NearlyUnique:
        return _NearlyUnique(self.guests, attrgetter("uuid"))

    @cached_property
    def _by_name(self) -> _NearlyUnique:
        return _NearlyUnique(self.guests, attrgetter("name"))

    @cached_property
    def committed_bytes(self) -> Mapping[str, int]:
        """Memory that the guests of each host may grow to."""
        return {
            name: sum(guest.memory_bytes for guest in self._by_host.get(name, ()) if guest.state.has_process)
            for name in self.hosts
        }

    def guests_on(self, host: str) -> Sequence[Guest]:
        return self._by_host.get(host, ())

    def instances(self, uuid: str) -> Sequence[Guest]:
        """Every host's domain of this uuid."""
        return self._by_uuid.all(uuid)

    def called(self, name: str) -> Sequence[Guest]:
        """Every host's domain of this name."""
        return self._by_name.all(name)

    def instance(self, uuid: str) -> Guest | None:
        """Where the guest runs; if it runs nowhere, where it is defined. Deterministic for any order."""
        return min(self.instances(uuid), key=lambda guest: (_rank(guest), guest.host), default=None)

    def on_host(self, uuid: str, host: str) -> Guest | None:
        return next((guest for guest in self.instances(uuid) if guest.host == host), None)

    def others(self, guest: Guest) -> list[Guest]:
        """The same uuid on other hosts: a migration in flight, a leftover, or a guest that runs twice."""
        return [other for other in self.instances(guest.uuid) if other.host != guest.host]

    def is_off(self, host: str) -> bool:
        """Its last report no longer describes running guests: power was read back as off."""
        found = self.hosts.get(host)
        return found is not None and found.state is HostState.OFF


class _NearlyUnique:
    """Guests by a key that nearly always has one guest.

    Each moment of the cluster that is asked has one, so it makes no object per guest: tens of thousands of
    them, as often as anything changes, keep the garbage collector walking over all that the daemon knows.
    """

    def __init__(self, guests: tuple[Guest, ...], key: Callable[[Guest], str]) -> None:
        self._last = {key(guest): guest for guest in guests}
        self._several: dict[str, tuple[Guest, ...]] = {}
        if len(self._last) < len(guests):
            for guest in guests:
                if self._last[key(guest)] is not guest:
                    self._several[key(guest)] = (*self._several.get(key(guest), ()), guest)
            for name, others in self._several.items():
                self._several[name] = (*others, self._last[name])

    def all(self, name: str) -> Sequence[Guest]:
        """In the order of the cluster's guests."""
        found = self._several.get(name)
        if found is not None:
            return found
        only = self._last.get(name)
        return () if only is None else (only,)


def _rank(guest: Guest) -> int:
    match guest.state:
        case DomainState.RUNNING | DomainState.BLOCKED:
            return 0
        case DomainState.PAUSED_INCOMING:
            return 2  # a target that has not taken over: the source is the guest
        case DomainState.ABSENT:
            return 4
        case state:
            return 1 if state.has_process else 3


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
