"""One index over the cluster, built in a single pass, and the memory that each host still has to give.

Everything else in the planner asks here, so that a plan costs one walk over all guests of the cluster
and then only looks at the guests that move.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from agents.protocol import DomainState
from migrd.model import Cluster, Guest, HostState, Promise
from migrd.planner.policy import Policy

_OCCUPYING = frozenset(state for state in DomainState if state.has_process)


class _Book:
    """Guests by a key that nearly always has one guest: no list is made for those."""

    def __init__(self) -> None:
        self._first: dict[str, Guest] = {}
        self._more: dict[str, list[Guest]] = {}

    def add(self, key: str, guest: Guest) -> None:
        first = self._first.setdefault(key, guest)
        if first is not guest:
            self._more.setdefault(key, [first]).append(guest)

    def get(self, key: str) -> Sequence[Guest]:
        more = self._more.get(key)
        if more is not None:
            return more
        first = self._first.get(key)
        return () if first is None else (first,)


class Index:
    """The cluster by host and by guest. Read only once built."""

    def __init__(self, cluster: Cluster) -> None:
        self.hosts = cluster.hosts
        self.by_host: dict[str, list[Guest]] = {name: [] for name in cluster.hosts}
        self.committed_bytes: dict[str, int] = dict.fromkeys(cluster.hosts, 0)
        self._uuids, self._names = _Book(), _Book()
        # The only loop over all guests of the cluster; a plan's speed at 20,000 guests is this loop.
        by_host, committed = self.by_host, self.committed_bytes
        by_uuid, by_name = self._uuids.add, self._names.add
        for guest in cluster.guests:
            by_uuid(guest.uuid, guest)
            by_name(guest.name, guest)
            if guest.host in by_host:
                by_host[guest.host].append(guest)
                if guest.state in _OCCUPYING:
                    committed[guest.host] += guest.memory_bytes

    def named(self, host: str, name: str) -> Guest | None:
        """The domain called `name` on `host`, defined or running."""
        return next((guest for guest in self._names.get(name) if guest.host == host), None)

    def instances(self, uuid: str) -> Sequence[Guest]:
        """Every host's domain of this uuid."""
        return self._uuids.get(uuid)

    def instance(self, uuid: str) -> Guest | None:
        """Where the guest runs; if it runs nowhere, where it is defined. Deterministic for any order."""
        found = sorted(self.instances(uuid), key=lambda guest: (_rank(guest), guest.host))
        return found[0] if found else None

    def others(self, guest: Guest) -> list[Guest]:
        """The same uuid on other hosts: a migration in flight, a leftover, or a guest that runs twice."""
        return [other for other in self.instances(guest.uuid) if other.host != guest.host]

    def is_off(self, host: str) -> bool:
        """Its last report no longer describes running guests: power was read back as off."""
        found = self.hosts.get(host)
        return found is not None and found.state is HostState.OFF


def occupies(guest: Guest) -> bool:
    """May it use memory on its host? CRASHED can be a QEMU kept for a dump (on_crash=preserve)."""
    return guest.state in _OCCUPYING


def _rank(guest: Guest) -> int:
    match guest.state:
        case DomainState.RUNNING | DomainState.BLOCKED:
            return 0
        case DomainState.PAUSED_INCOMING:
            return 2  # a target that has not taken over: the source is the guest
        case DomainState.ABSENT:
            return 4
        case _:
            return 1 if occupies(guest) else 3


class Room:
    """Memory that each host can still take: a ledger that placement writes to.

    Free is the smaller of two figures, because each misses something. "Total minus what its guests may
    grow to" misses what else runs on the host; "available now" misses memory that guests were given and
    have not touched. Both lose the reserve and what moves in flight were promised.
    """

    def __init__(self, index: Index, policy: Policy, promises: Collection[Promise] = ()) -> None:
        self._free: dict[str, int] = {}
        self._total: dict[str, int] = {}
        shown: dict[str, int] = {}
        hidden: dict[str, int] = {}
        for promise in promises:
            seen = any(
                guest.host == promise.target and occupies(guest) for guest in index.instances(promise.guest)
            )
            book = shown if seen else hidden
            book[promise.target] = book.get(promise.target, 0) + promise.memory_bytes
        for name, host in index.hosts.items():
            unseen = hidden.get(name, 0)  # not among the target's guests yet
            uncommitted = host.memory_total_bytes - index.committed_bytes[name] - unseen
            available = host.memory_available_bytes - unseen - shown.get(name, 0)
            reserve = policy.reserve_bytes(host.memory_total_bytes)
            self._free[name] = min(uncommitted, available) - reserve
            self._total[name] = max(host.memory_total_bytes, 1)

    def free_bytes(self, host: str) -> int:
        """What a guest may still be promised there; negative when the host is overcommitted already."""
        return self._free[host]

    def fits(self, guest: Guest, host: str) -> bool:
        return guest.memory_bytes <= self._free[host]

    def load_after(self, guest: Guest, host: str) -> float:
        """Share of the host's memory that would be spoken for: placement takes the lowest."""
        return 1.0 - (self._free[host] - guest.memory_bytes) / self._total[host]

    def take(self, guest: Guest, host: str) -> None:
        self._free[host] -= guest.memory_bytes

    def give_back(self, guest: Guest, host: str) -> None:
        self._free[host] += guest.memory_bytes
