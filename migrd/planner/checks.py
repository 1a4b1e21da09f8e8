"""The verdict list: every reason why a guest cannot leave its host, or cannot go to one target.

Each check is a pure function that returns reasons (none = fine) and never stops the others, so the
operator sees everything at once, with what to do about it. What is not known is a reason (I19).

A check says for which kind of move it holds: what only memory or a CPU in use needs does not keep a guest
from being moved cold; a disk, a bridge or a name that is missing does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from agents.protocol import DomainState
from migrd.model import Cluster, Facts, Guest, Host, HostState
from migrd.planner.policy import Policy, amount
from migrd.planner.room import Room
from storage.words import DrbdVolume, Health, IscsiVolume, OtherVolume, Role, VolumeReport

_LIVE = (DomainState.RUNNING, DomainState.BLOCKED)


@dataclass(frozen=True, slots=True)
class Reason:
    """`text` never names the target, so that equal reasons of many targets can be shown as one."""

    text: str
    remedy: str


class Asked(StrEnum):
    """Who reads the remedies: each command has options of its own, and none helps an operation under way."""

    DRAIN = "drain"
    MIGRATE = "migrate"
    MIGRATE_TO = "migrate to"  # to the one host that was named
    UNDER_WAY = "under way"


@dataclass(frozen=True, slots=True)
class Case:
    """What the checks look at. `busy`: guest uuid -> what is being done to it. `cold`: without its memory."""

    cluster: Cluster
    facts: Facts
    policy: Policy
    busy: Mapping[str, str]
    asked: Asked
    cold: bool = False


class Holds(StrEnum):
    """For which kind of move a check speaks."""

    BOTH = "both"
    LIVE = "live"
    COLD = "cold"


Reasons = tuple[Reason, ...]
GuestCheck = Callable[[Case, Guest], Reasons]
TargetCheck = Callable[[Case, Guest, Host], Reasons]


# -- can the guest leave its host at all ---------------------------------------------------------


def check_state(case: Case, guest: Guest) -> Reasons:
    """Only a running guest is moved live; what is half-way somewhere is left alone (I5)."""
    match guest.state:
        case DomainState.RUNNING | DomainState.BLOCKED:
            return ()
        case DomainState.PAUSED | DomainState.PMSUSPENDED:
            remedy = f"resume it (virsh resume {guest.name}) or shut it down, then plan again"
        case DomainState.PAUSED_INCOMING | DomainState.SHUTDOWN:
            remedy = "wait until that has ended, then plan again"
        case DomainState.PAUSED_POSTCOPY:
            remedy = "its memory is on two hosts: let that migration end first"
        case DomainState.CRASHED:
            remedy = f"save what you need of it, then virsh destroy {guest.name} and plan again"
        case DomainState.SHUTOFF:
            remedy = f"only a running guest moves live: virsh start {guest.name}, or move it shut off: --cold"
        case DomainState.ABSENT | DomainState.UNKNOWN:
            remedy = f"look at it with virsh domstate {guest.name} --reason on {guest.host}"
    return (Reason(f"the guest is {guest.state}", remedy),)


def check_cold_state(case: Case, guest: Guest) -> Reasons:
    """A guest that runs is shut down and started again; one that is shut off stays so. Nothing in between."""
    if guest.state is DomainState.SHUTOFF:
        return ()
    if guest.state not in _LIVE:
        return check_state(case, guest)
    if guest.persistent:
        return ()
    remedy = f"define it (virsh dumpxml --inactive {guest.name} | virsh define /dev/stdin), or move it live"
    return (Reason("it is transient: once shut down, nothing of it would be left", remedy),)


def check_busy(case: Case, guest: Guest) -> Reasons:
    what = case.busy.get(guest.uuid)
    if what is not None:
        return (Reason(f"it is being worked on: {what}", "wait for that (migrctl ops), or cancel it"),)
    if guest.job:
        return (
            Reason(
                "a libvirt job runs on it",
                f"wait for it (virsh domjobinfo {guest.name} on {guest.host}), then plan again",
            ),
        )
    return ()


def check_blockers(case: Case, guest: Guest) -> Reasons:
    remedy = _instead_of_live(case, guest)
    disks = [volume.reason for volume in guest.volumes if isinstance(volume, OtherVolume)]
    return tuple(Reason(text, remedy) for text in dict.fromkeys((*guest.blockers, *disks)))


def _instead_of_live(case: Case, guest: Guest) -> str:
    match case.asked:
        case Asked.DRAIN:
            return f"change its definition, or shut it down and let it stay: --allow-stop {guest.name}"
        case Asked.MIGRATE | Asked.MIGRATE_TO if not any(check(case, guest) for check in _COLD_ONLY):
            return "change its definition, or let it be shut down for its move: --cold"
        case Asked.MIGRATE | Asked.MIGRATE_TO:
            return "change its definition"
        case Asked.UNDER_WAY:
            return "change its definition, or shut it down"
        case _:
            assert_never(case.asked)


def check_cold_blockers(case: Case, guest: Guest) -> Reasons:
    if guest.cold_blockers is None:
        remedy = f"upgrade migrd-agent on {guest.host}"
        return (Reason(f"the agent on {guest.host} does not say what would hold in a cold move", remedy),)
    disks = [volume.reason for volume in guest.volumes if isinstance(volume, OtherVolume)]
    remedy = f"change its definition on {guest.host}, then plan again"
    return tuple(Reason(text, remedy) for text in dict.fromkeys((*guest.cold_blockers, *disks)))


def check_other_instances(case: Case, guest: Guest) -> Reasons:
    """The same uuid with a process elsewhere: in flight, or about to be two guests (I1)."""
    found = []
    for other in sorted(case.cluster.others(guest), key=lambda g: g.host):
        if not other.state.has_process or case.cluster.is_off(other.host):
            continue
        found.append(
            Reason(
                f"a domain with its uuid is {other.state} on {other.host}",
                f"find out which is real (virsh domstate {guest.uuid} on both) before anything moves",
            )
        )
    return tuple(found)


def check_source_volumes(case: Case, guest: Guest) -> Reasons:
    """Every disk must be handed over from a healthy state, and DRBD with its window closed (I6, I7)."""
    source = case.cluster.hosts.get(guest.host)
    reports = source.volumes if source is not None else {}
    found: list[Reason] = []
    for volume in guest.volumes:
        report = reports.get(volume.name)
        if report is not None and _rests(guest, report):
            continue
        if report is not None:
            found += _sick(volume.name, report, f"on {guest.host}")
        elif isinstance(volume, DrbdVolume):
            remedy = f"check drbdadm status on {guest.host} and its agent's log"
            found.append(Reason(f"{volume.name}: {guest.host} does not report it", remedy))
    return tuple(found)


def _rests(guest: Guest, report: VolumeReport) -> bool:
    """A LUN of a guest that is shut off need not be logged in to: the move does that, and proves it."""
    off = guest.state is DomainState.SHUTOFF and report.role is Role.DETACHED
    return off and isinstance(report.volume, IscsiVolume)


GUEST_CHECKS: tuple[tuple[GuestCheck, Holds], ...] = (
    (check_state, Holds.LIVE),
    (check_cold_state, Holds.COLD),
    (check_busy, Holds.BOTH),
    (check_blockers, Holds.LIVE),
    (check_cold_blockers, Holds.COLD),
    (check_other_instances, Holds.BOTH),
    (check_source_volumes, Holds.BOTH),
)


_COLD_ONLY = tuple(check for check, holds in GUEST_CHECKS if holds is Holds.COLD)


# -- can it go to this target --------------------------------------------------------------------


def check_host(case: Case, guest: Guest, target: Host) -> Reasons:
    """Only an online host takes guests; each other state says how it becomes one."""
    match target.state:
        case HostState.ONLINE:
            return ()
        case HostState.DRAINING:
            remedy = "cancel that drain, or choose another host"
        case HostState.DRAINED | HostState.OFF:
            remedy = f"migrctl undrain {target.name}"
        case HostState.DEGRADED:
            remedy = f"see migrctl host show {target.name}; check libvirtd there"
        case HostState.SUSPECT | HostState.UNREACHABLE | HostState.UNKNOWN:
            remedy = f"check that {target.name} is up and its migrd-agent answers"
    return (Reason(f"host is {target.state}", remedy),)


def check_door(case: Case, guest: Guest, target: Host) -> Reasons:
    if target.migration_uri and target.migration_address:
        return ()
    missing = "migration_address" if target.migration_uri else "migration_uri"
    return (Reason(f"the host's {missing} is not known", f"set {missing} in agent.toml of {target.name}"),)


def check_arch(case: Case, guest: Guest, target: Host) -> Reasons:
    source = case.cluster.hosts.get(guest.host)
    here = source.arch if source is not None else ""
    if here and here == target.arch:
        return ()
    text = f"architecture is {target.arch or 'unknown'}, and {here or 'unknown'} on {guest.host}"
    return (Reason(text, "choose a host of the same architecture"),)


def check_cpu(case: Case, guest: Guest, target: Host) -> Reasons:
    """The guest's machine and live CPU against the target, as the target's libvirt judged them."""
    if not guest.cpu_xml:
        return (Reason(f"its CPU is not known from {guest.host}", f"check the agent on {guest.host}"),)
    answer = case.facts.cpu.get((target.name, guest.cpu_xml))
    if answer == ():
        return ()
    if answer is None:
        return (_unanswered("whether its CPU can run there", target),)
    remedy = "give the guest a CPU model that all hosts have (virsh hypervisor-cpu-baseline), and restart it"
    return tuple(Reason(f"cpu: {text}", remedy) for text in answer)


def check_bridges(case: Case, guest: Guest, target: Host) -> Reasons:
    if target.bridges.issuperset(guest.bridges):
        return ()
    names = ", ".join(sorted(set(guest.bridges) - target.bridges))
    return (Reason(f"bridge {names} does not exist there", f"create {names} on {target.name}"),)


def check_networks(case: Case, guest: Guest, target: Host) -> Reasons:
    if target.networks.issuperset(guest.networks):
        return ()
    names = ", ".join(sorted(set(guest.networks) - target.networks))
    remedy = f"define and start it on {target.name} (virsh net-start)"
    return (Reason(f"libvirt network {names} is not active there", remedy),)


def check_name(case: Case, guest: Guest, target: Host) -> Reasons:
    """libvirt refuses a second domain of a name, and a leftover of the same uuid may be somebody's guest."""
    for other in case.cluster.others(guest):
        if other.host == target.name and other.state is not DomainState.ABSENT:
            remedy = f"if it is a leftover: virsh undefine {guest.name} on {target.name}"
            return (Reason(f"a domain with its uuid is defined there already ({other.state})", remedy),)
    for clash in case.cluster.called(guest.name):
        if clash.host == target.name and clash.uuid != guest.uuid:
            remedy = (
                f"rename one of the two (virsh domrename, while it is shut off); there it is {clash.uuid}"
            )
            return (Reason("another domain has its name there", remedy),)
    return ()


def check_volumes(case: Case, guest: Guest, target: Host) -> Reasons:
    """Each disk is reachable from the target; a DRBD disk only on the node that holds the other copy."""
    found: list[Reason] = []
    source = case.cluster.hosts.get(guest.host)
    for volume in guest.volumes:
        if isinstance(volume, OtherVolume):
            continue  # a reason of the guest wherever it went
        if isinstance(volume, DrbdVolume):
            elsewhere = _drbd_elsewhere(volume, source, target)
            if elsewhere:
                found += elsewhere
                continue
            found += _drbd_copy(volume, target)
        answer = case.facts.volume.get((target.name, volume.name))
        if answer is None:
            found.append(_unanswered(f"whether {volume.name} can be opened there", target))
        else:
            remedy = f"make {volume.name} reachable from {target.name}"
            found += [Reason(f"{volume.name}: {text}", remedy) for text in answer]
    return tuple(found)


TARGET_CHECKS: tuple[tuple[TargetCheck, Holds], ...] = (
    (check_door, Holds.BOTH),
    (check_arch, Holds.BOTH),
    (check_cpu, Holds.LIVE),  # a start that the target's CPU cannot serve fails, and the guest is taken back
    (check_bridges, Holds.BOTH),
    (check_networks, Holds.BOTH),
    (check_name, Holds.BOTH),
    (check_volumes, Holds.BOTH),
)

_GUEST: Mapping[bool, tuple[GuestCheck, ...]] = {
    cold: tuple(check for check, holds in GUEST_CHECKS if holds in (Holds.BOTH, kind))
    for cold, kind in ((False, Holds.LIVE), (True, Holds.COLD))
}
_TARGET: Mapping[bool, tuple[TargetCheck, ...]] = {
    cold: tuple(check for check, holds in TARGET_CHECKS if holds in (Holds.BOTH, kind))
    for cold, kind in ((False, Holds.LIVE), (True, Holds.COLD))
}
"""Picked out once: a plan asks thousands of times."""


def check_memory(case: Case, guest: Guest, target: Host, room: Room) -> Reasons:
    """Last and apart: the only verdict that changes while a plan fills the target."""
    if room.fits(guest, target.name):
        return ()
    free = room.free_bytes(target.name)
    reserve = case.policy.reserve_bytes(target.memory_total_bytes)
    text = (
        f"memory: needs {amount(guest.memory_bytes)}, {amount(free)} left "
        f"after a reserve of {amount(reserve)} and the other moves"
    )
    return (Reason(text, _for_room(case.asked, target)),)


def _for_room(asked: Asked, target: Host) -> str:
    match asked:
        case Asked.DRAIN:
            return f"free memory on {target.name}, or let some guest stop: --allow-stop NAME"
        case Asked.MIGRATE_TO:
            return f"free memory on {target.name}, or choose another host: --to HOST"
        case Asked.MIGRATE | Asked.UNDER_WAY:  # every other host has been judged
            return f"free memory on {target.name}"
        case _:
            assert_never(asked)


# -- the list, as a whole ------------------------------------------------------------------------


def guest_reasons(case: Case, guest: Guest) -> Reasons:
    """Every reason why this guest cannot leave its host, whatever the target."""
    return tuple(reason for check in _GUEST[case.cold] for reason in check(case, guest))


def target_reasons(case: Case, guest: Guest, target: Host) -> Reasons:
    """Every lasting reason against this target. Of a host that is not online all else is stale: left out."""
    return check_host(case, guest, target) or tuple(
        reason for check in _TARGET[case.cold] for reason in check(case, guest, target)
    )


def possible_targets(case: Case, guest: Guest, candidates: Iterable[Host]) -> list[str]:
    """Candidates without a lasting reason against them: `target_reasons`, stopped at the first reason.

    A DRBD guest is judged only where its copies are: nearly all hosts of a large cluster are none of them.
    """
    near = drbd_nodes(guest)
    checks = _TARGET[case.cold]
    found = []
    for target in candidates:
        if near is not None and target.node not in near:
            continue
        if check_host(case, guest, target) or any(check(case, guest, target) for check in checks):
            continue
        found.append(target.name)
    return found


def may_be_stopped(case: Case, guest: Guest) -> bool:
    """A shutdown is asked only of a guest that can hear it and that nobody else works on."""
    return guest.state in _LIVE and not guest.job and guest.uuid not in case.busy


def _unanswered(question: str, target: Host) -> Reason:
    return Reason(f"it is not known {question}: no answer", f"plan again; check the agent on {target.name}")


def drbd_nodes(guest: Guest) -> set[str] | None:
    """Nodes that all DRBD volumes of the guest have in common; None = it has no such volume."""
    lists = [set(volume.nodes) for volume in guest.volumes if isinstance(volume, DrbdVolume)]
    return set.intersection(*lists) if lists else None


def _drbd_elsewhere(volume: DrbdVolume, source: Host | None, target: Host) -> list[Reason]:
    here = source.node if source is not None else ""
    if target.node and target.node != here and target.node in volume.nodes:
        return []
    peers = ", ".join(sorted(set(volume.nodes) - {here})) or "no other node"
    text = f"{volume.name}: its other copy is on {peers}"
    return [Reason(text, "a guest on DRBD can only go to the node with its other copy")]


def _drbd_copy(volume: DrbdVolume, target: Host) -> list[Reason]:
    report = target.volumes.get(volume.name)
    if report is None:
        remedy = f"check drbdadm status {volume.resource} on {target.name} and its agent's log"
        return [Reason(f"{volume.name}: the host does not report its copy", remedy)]
    found = _sick(volume.name, report, "there")
    if report.role is not Role.SECONDARY:
        remedy = f"find out who holds it: drbdadm status {volume.resource} on {target.name}"
        found.append(Reason(f"{volume.name}: its role there is {report.role}, not secondary", remedy))
    return found


def _sick(name: str, report: VolumeReport, where: str) -> list[Reason]:
    found = []
    if report.health is not Health.OK:
        why = f" ({'; '.join(report.problems)})" if report.problems else ""
        remedy = "wait for the resync" if report.health is Health.SYNCING else f"migrctl volume show {name}"
        found.append(Reason(f"{name} is {report.health} {where}{why}", remedy))
    if report.dual_primary_allowed:
        remedy = "an earlier migration left it on: see migrctl ops, then clear allow-two-primaries"
        found.append(Reason(f"{name}: two primaries are already allowed {where}", remedy))
    return found
