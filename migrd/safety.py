"""May this host lose its power without anyone noticing? Pure; every reason against it (I12).

Asked right before a power-off, with reports read at that moment. A guest that runs, a DRBD role that writes,
the only current copy of a volume, or anything that is not known, is a reason. Only silence of this function
is a yes; the off itself is believed only after the BMC says so (I3).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agents.protocol import DomainReport, HostReport
from storage.words import DrbdVolume, Health, Role, VolumeReport

MAX_AGE_S = 3.0  # a report older than this describes another moment

Reports = Mapping[str, tuple[HostReport, float]]
"""Host name -> its report and the report's age in seconds."""


def reasons_not_to_power_off(
    host: str, reports: Reports, unheard: Collection[str] = (), *, max_age_s: float = MAX_AGE_S
) -> tuple[str, ...]:
    """Why the power of `host` must stay on; empty = nothing speaks against it.

    `reports`: of the host itself and of all peers that answered; `unheard`: hosts asked without an answer.
    """
    own = reports.get(host)
    if own is None:
        return (f"{host}: no report of it, so nothing is known about what runs there",)
    report, age_s = own
    found = [*_stale(host, age_s, max_age_s), *_blind(host, report)]
    for domain in sorted(report.domains, key=lambda domain: domain.name):
        found += _guest(host, domain)
    fresh = {
        name: peer
        for name, (peer, peer_age_s) in reports.items()
        if name != host and name not in unheard and not _stale(name, peer_age_s, max_age_s)
    }
    for volume in sorted(report.volumes, key=lambda each: each.volume.name):
        found += _volume(host, report.node, volume, fresh)
    found += _seen_by_peers(report, fresh)
    return tuple(dict.fromkeys(found))


def _stale(host: str, age_s: float, max_age_s: float) -> list[str]:
    if 0 <= age_s <= max_age_s:  # also false for NaN
        return []
    return [f"{host}: its report is {age_s:.0f} s old, at most {max_age_s:g} s will do"]


def _blind(host: str, report: HostReport) -> list[str]:
    """What the agent could not see counts as there."""
    found = []
    if report.host != host:
        found.append(f"{host}: the report is one of {report.host}")
    if not report.libvirt_ok:
        found.append(f"{host}: libvirt does not answer, so its guests are not known")
    found += [f"{host}: not everything is known: {problem}" for problem in report.problems]
    return found


def _guest(host: str, domain: DomainReport) -> list[str]:
    if domain.state.has_process:
        return [f"{host}: guest {domain.name} is {domain.state}"]
    if domain.job:
        return [f"{host}: a libvirt job runs on guest {domain.name}"]
    return []


def _volume(host: str, node: str, report: VolumeReport, peers: Mapping[str, HostReport]) -> list[str]:
    name = report.volume.name
    found = []
    if report.role in (Role.PRIMARY, Role.UNKNOWN):
        found.append(f"{host}: its role of {name} is {report.role}")
    if report.dual_primary_allowed:
        found.append(f"{host}: two primaries are allowed on {name}: a migration window is open")
    if report.sole_current_copy:
        found.append(f"{host}: it may hold the only current copy of {name}")
    if isinstance(report.volume, DrbdVolume):
        found += _copies(host, node, report.volume, report, peers)
    return found


def _copies(
    host: str, node: str, volume: DrbdVolume, own: VolumeReport, peers: Mapping[str, HostReport]
) -> list[str]:
    """A current copy must be known to exist elsewhere, from the host that holds it (I10).

    "OK" on both sides: both are current. Otherwise the peer itself must say that the current copy is its own.
    """
    whys = []
    for other in sorted(set(volume.nodes) - {node}):
        found = next((peer for peer in peers.values() if peer.node == other), None)
        copy = _report_of(found, volume.name)
        if copy is None:
            whys.append(f"no fresh report of it from {other}")
        elif copy.role not in (Role.PRIMARY, Role.SECONDARY):
            whys.append(f"its role on {other} is {copy.role}")
        elif copy.sole_current_copy or (copy.health is Health.OK and own.health is Health.OK):
            return []
        else:
            whys.append(f"it is {own.health} here and {copy.health} on {other}")
    why = "; ".join(whys) or "no other node holds it"
    return [f"{host}: {volume.name} is not known to have a current copy elsewhere: {why}"]


def _report_of(peer: HostReport | None, name: str) -> VolumeReport | None:
    volumes = peer.volumes if peer is not None else ()
    return next((each for each in volumes if each.volume.name == name), None)


def _seen_by_peers(own: HostReport, peers: Mapping[str, HostReport]) -> list[str]:
    """A peer that sees this host as primary is believed over the host's own word."""
    found = []
    for name, peer in sorted(peers.items()):
        for each in peer.volumes:
            drbd = isinstance(each.volume, DrbdVolume) and own.node in each.volume.nodes
            if drbd and each.peer_role is Role.PRIMARY:
                found.append(f"{own.host}: {name} sees it as primary of {each.volume.name}")
            if drbd and _report_of(own, each.volume.name) is None:
                text = f"{own.host}: it does not report {each.volume.name}, which {name} shares with it"
                found.append(text)
    return found
