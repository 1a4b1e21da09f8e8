"""What must be asked of which host before a plan: the CPUs and volumes of the guests that would move."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from agents.protocol import AnyVolume, DomainState, Preflight
from migrd.model import Cluster, Guest, Host, HostState
from storage.words import DrbdVolume, OtherVolume


def questions_for(
    cluster: Cluster,
    guests: Iterable[Guest],
    candidates: Collection[str] | None = None,
    *,
    cold: bool = False,
) -> dict[str, Preflight]:
    """For the guests of a drain, or one: candidate -> what to ask it, each CPU and volume once.

    Hosts with nothing to ask are left out; `candidates`: hosts that may be asked, None = any.

    `cold`: guests that are shut off are asked for as well, and nobody's CPU.
    """
    stay = (DomainState.ABSENT,) if cold else (DomainState.SHUTOFF, DomainState.ABSENT)
    asking = sorted(guests, key=lambda guest: (guest.host, guest.uuid))
    found: dict[str, Preflight] = {}
    names = cluster.hosts if candidates is None else cluster.hosts.keys() & set(candidates)
    for name in sorted(names):
        target = cluster.hosts[name]
        if target.state is not HostState.ONLINE:
            continue
        cpus: dict[str, None] = {}
        volumes: dict[str, AnyVolume] = {}
        for guest in asking:
            if guest.host == name or guest.state in stay:
                continue
            if guest.cpu_xml and not cold:
                cpus[guest.cpu_xml] = None
            volumes.update((volume.name, volume) for volume in guest.volumes if _concerns(volume, target))
        if cpus or volumes:
            found[name] = Preflight(cpus=tuple(cpus), volumes=tuple(volumes.values()))
    return found


def _concerns(volume: AnyVolume, target: Host) -> bool:
    """A DRBD volume is asked of its own nodes only; what no driver knows is asked of nobody."""
    if isinstance(volume, DrbdVolume):
        return target.node in volume.nodes
    return not isinstance(volume, OtherVolume)
