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
from storage.words import DrbdVolume, Health, Role, VolumeReport

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
    """Empty = it may be removed. From what is known: a host never heard of has nothing that speaks for it."""
    reasons = []
    if name in fixed:
        reasons.append(f"{name} is in migrd.toml: remove [hosts.{name}] there, then restart migrd")
    reasons += [
        f"{name} still has guest {guest.name} ({guest.state}): migrctl drain {name} moves what runs; "
        "what is shut off has to be undefined there"
        for guest in sorted(cluster.guests_on(name), key=lambda guest: guest.name)
    ]
    reasons += [
        f"{op.id} ({op.kind} {op.subject}) has not ended: see migrctl op show {op.id}"
        for op in unfinished
        if name in _hosts_of(op)
    ]
    host = cluster.hosts.get(name)
    for report in host.volumes.values() if host is not None else ():
        if isinstance(report.volume, DrbdVolume) and not _held_elsewhere(host, report, cluster):
            reasons.append(
                f"{name} is the only holder of a current replica of {report.volume.name} that is known: "
                "let it be replicated first"
            )
    return reasons


def _hosts_of(operation: Operation) -> tuple[str, ...]:
    here = () if operation.kind is OperationKind.MIGRATE else (operation.subject,)
    return (operation.source, operation.target, *here)


def _held_elsewhere(host: Host | None, report: VolumeReport, cluster: Cluster) -> bool:
    """Is another host known to hold a current copy? OK means both are current (I10); unknown is no (I19)."""
    if report.role is Role.DETACHED:
        return True  # there is none here
    if report.sole_current_copy:
        return False
    copies = [
        other.volumes[report.volume.name]
        for other in cluster.hosts.values()
        if other is not host and report.volume.name in other.volumes
    ]
    return any(
        copy.role in (Role.PRIMARY, Role.SECONDARY) and (copy.sole_current_copy or copy.health is Health.OK)
        for copy in copies
    )
