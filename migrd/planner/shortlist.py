"""Whom to ask first: in a large cluster the emptiest few dozen hosts nearly always hold a whole plan.

Asking every one of a thousand hosts about every disk of a drain costs more than all else in it. A shortlist
only leaves candidates out, so a plan made with it is a good plan; but one that refuses or stops a guest
says nothing about the hosts left out, and has to be made again with all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from migrd.model import Cluster, Guest, HostState, Promise
from migrd.planner.checks import drbd_nodes
from migrd.planner.policy import Policy
from migrd.planner.room import Room

SHORT = 64


def shortlist(
    cluster: Cluster,
    guests: Sequence[Guest],
    policy: Policy,
    *,
    promises: Collection[Promise] = (),
    exclude: Collection[str] = (),
) -> tuple[str, ...] | None:
    """Names of hosts to ask about `guests`, the emptiest first. None: they are so few that all are asked."""
    left_out = {*exclude, *(guest.host for guest in guests)}
    online = [
        host
        for host in cluster.hosts.values()
        if host.state is HostState.ONLINE and host.name not in left_out
    ]
    nodes = [drbd_nodes(guest) for guest in guests]
    roaming = sum(1 for near in nodes if near is None)
    length = max(SHORT, 2 * roaming)
    if len(online) <= length:
        return None
    near = {node for each in nodes if each is not None for node in each}
    found = [host.name for host in online if host.node in near]
    if roaming:
        room = Room(cluster, policy, promises)
        largest = max(
            (guest for guest, each in zip(guests, nodes, strict=True) if each is None),
            key=lambda guest: guest.memory_bytes,
        )
        names = (host.name for host in online)
        found += sorted(names, key=lambda name: (room.load_after(largest, name), name))[:length]
    return tuple(dict.fromkeys(found))
