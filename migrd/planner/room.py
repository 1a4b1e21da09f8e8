"""The memory that each host still has to give: a ledger that placement writes to."""

from __future__ import annotations

from collections.abc import Collection

from migrd.model import Cluster, Guest, Promise
from migrd.planner.policy import Policy


class Room:
    """Memory that each host can still take: a ledger that placement writes to.

    Free is the smaller of two figures, because each misses something. "Total minus what its guests may
    grow to" misses what else runs on the host; "available now" misses memory that guests were given and
    have not touched. Both lose the reserve and what moves in flight were promised.
    """

    def __init__(self, cluster: Cluster, policy: Policy, promises: Collection[Promise] = ()) -> None:
        self._free: dict[str, int] = {}
        self._total: dict[str, int] = {}
        shown: dict[str, int] = {}
        hidden: dict[str, int] = {}
        for promise in promises:
            seen = any(
                guest.host == promise.target and guest.state.has_process
                for guest in cluster.instances(promise.guest)
            )
            book = shown if seen else hidden
            book[promise.target] = book.get(promise.target, 0) + promise.memory_bytes
        committed = cluster.committed_bytes
        for name, host in cluster.hosts.items():
            unseen = hidden.get(name, 0)  # not among the target's guests yet
            uncommitted = host.memory_total_bytes - committed[name] - unseen
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
