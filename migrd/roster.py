"""May a host be added, or removed? Pure; every reason against it. What was added is a fold of the journal.

Hosts of migrd.toml stay in migrd.toml: the file says of them what is true. Where both name a host, or the
same agent, the file holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from migrd.host_config import HostConfig
from migrd.model import Cluster, Host
from migrd.operations import Operation, OperationKind
from migrd.sagas.events import HostAdded, HostRemoved
from storage.words import DrbdVolume, Health, Role

Hosts = Mapping[str, HostConfig]

MAX_HOSTS = 1000  # twice what migrd is made for (I20)


def after(added: Hosts, request: HostAdded | HostRemoved) -> dict[str, HostConfig]:
    """The hosts added by operators once `request` is journalled."""
    rest = {name: host for name, host in added.items() if name != request.host}
    return {**rest, request.host: request.config} if isinstance(request, HostAdded) else rest


def shadowed(fixed: Hosts, name: str, host: HostConfig) -> str:
    """Why an added host is not followed: migrd.toml speaks of it; '' when it does not."""
    if name in fixed:
        return f"{name} was added by an operator and is in migrd.toml now: the file holds"
    owner = next((other for other, each in fixed.items() if each.agent == host.agent), "")
    if owner:
        return f"{name} was added by an operator with the agent of {owner} of migrd.toml: the file holds"
    return ""


def reasons_not_to_add(name: str, host: HostConfig, fixed: Hosts, added: Hosts) -> list[str]:
    """Empty = it may be added."""
    known = {**added, **fixed}
    reasons = []
    if name in known:
        reasons.append(f"host {name} exists already: see migrctl host show {name}")
    owners = sorted(other for other, each in known.items() if each.agent == host.agent and other != name)
    reasons += [f"{host.agent} is the agent of {owner} already" for owner in owners]
    if len(known) >= MAX_HOSTS:
        reasons.append(f"there are {len(known)} hosts: more than {MAX_HOSTS} are not followed")
    return reasons


def reasons_not_to_remove(
    name: str, fixed: Hosts, cluster: Cluster, unfinished: Iterable[Operation]
) -> list[str]:
    """Empty = it may be removed."""
    reasons = []
    if name in fixed:
        reasons.append(f"{name} is in migrd.toml: remove [hosts.{name}] there, then restart migrd")
    reasons += [
        f"{op.id} ({op.kind} {op.subject}) has not ended: see migrctl op show {op.id}"
        for op in unfinished
        if name in _hosts_of(op)
    ]
    host = cluster.hosts.get(name)
    if host is None or _stands_for_another(host, cluster):
        return reasons  # what it shows is not its own
    reasons += [
        f"{name} still has guest {guest.name} ({guest.state}): migrctl drain {name} moves what runs; "
        "what is shut off has to be undefined there"
        for guest in sorted(cluster.guests_on(name), key=lambda guest: guest.name)
    ]
    held = _held_here(host) if host.node else _perhaps_held(host, cluster)
    reasons += [
        f"{name} is the only holder of a current replica of {volume} that is known: replicate it first"
        for volume in held
        if not _current_elsewhere(volume, host, cluster)
    ]
    return reasons


def _hosts_of(operation: Operation) -> tuple[str, ...]:
    here = () if operation.kind is OperationKind.MIGRATE else (operation.subject,)
    return (operation.source, operation.target, *here)


def _stands_for_another(host: Host, cluster: Cluster) -> bool:
    """Added with a wrong address: its agent says that it is another host, or the machine is followed already.

    Nothing is ever sent to such a host, so nothing could be drained from it either.
    """
    twin = any(
        other is not host and other.boot_id and other.boot_id == host.boot_id
        for other in cluster.hosts.values()
    )
    return twin or host.claimed not in ("", host.name)


def _held_here(host: Host) -> list[str]:
    return [
        name
        for name, report in host.volumes.items()
        if isinstance(report.volume, DrbdVolume) and report.role is not Role.DETACHED
    ]


def _perhaps_held(host: Host, cluster: Cluster) -> list[str]:
    """Never heard since the daemon started: what others share with a node that nobody heard is (I19)."""
    heard = {each.node for each in cluster.hosts.values()}
    return sorted(
        {
            name
            for other in cluster.hosts.values()
            for name, report in other.volumes.items()
            if isinstance(report.volume, DrbdVolume) and not heard.issuperset(report.volume.nodes)
        }
    )


def _current_elsewhere(volume: str, host: Host, cluster: Cluster) -> bool:
    """Is another host known to hold a current copy? OK means both are current (I10); unknown is no (I19)."""
    own = host.volumes.get(volume)
    if own is not None and own.sole_current_copy:
        return False
    copies = [
        other.volumes[volume]
        for other in cluster.hosts.values()
        if other is not host and volume in other.volumes
    ]
    return any(
        copy.role in (Role.PRIMARY, Role.SECONDARY) and (copy.sole_current_copy or copy.health is Health.OK)
        for copy in copies
    )
