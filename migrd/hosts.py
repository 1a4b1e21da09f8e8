"""From what an agent said to what the planner sees. Pure: the age of a heartbeat is passed in.

Two questions are kept apart: what a host shows (`observed_state`: heartbeats, libvirt) and what was
decided about it (draining, drained, off: the journal's). `host_state` combines them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from operator import is_

from agents.mistakes import Mistake, MistakesError, Seconds
from agents.protocol import PROTOCOL, DomainReport, Event, HostReport
from migrd.model import Guest, Host, HostState

ADMINISTRATIVE = (HostState.DRAINING, HostState.DRAINED, HostState.OFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When silence counts. An agent's heartbeat comes at least every second."""

    suspect_after_s: Seconds = 3.0
    unreachable_after_s: Seconds = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.suspect_after_s <= self.unreachable_after_s:
            message = "must be above 0 and at most unreachable_after_s"
            raise MistakesError([Mistake(("suspect_after_s",), message, (("unreachable_after_s",),))])


def observed_state(
    heard_age_s: float | None, *, libvirt_ok: bool, doubtful: bool, thresholds: Thresholds
) -> HostState:
    """What the host shows. `heard_age_s`: seconds since its last heartbeat, None = never heard.

    `doubtful`: its identity is in question (see `identity_problems`), so nothing may be sent there.
    """
    if heard_age_s is None:
        return HostState.UNKNOWN
    if heard_age_s >= thresholds.unreachable_after_s:
        return HostState.UNREACHABLE
    if heard_age_s >= thresholds.suspect_after_s:
        return HostState.SUSPECT
    return HostState.ONLINE if libvirt_ok and not doubtful else HostState.DEGRADED


def next_turn_s(heard_age_s: float | None, thresholds: Thresholds) -> float:
    """Seconds until silence alone, if it lasts, makes another state of it; infinite when nothing will."""
    if heard_age_s is None:
        return math.inf
    limits = (thresholds.suspect_after_s, thresholds.unreachable_after_s)
    return min((limit - heard_age_s for limit in limits if limit > heard_age_s), default=math.inf)


def host_state(observed: HostState, administrative: HostState | None) -> HostState:
    """What may be done with the host: a decision of the journal outlives whatever the host shows."""
    return administrative if administrative in ADMINISTRATIVE else observed


def identity_problems(reports: Mapping[str, HostReport]) -> dict[str, tuple[str, ...]]:
    """Configured host name -> why its identity is in doubt; only hosts that have a reason.

    DRBD peers are found by node name and guests are counted per host: one machine under two names, or one
    node name on two machines, would make both wrong (I1, I9).
    """
    found: dict[str, list[str]] = {}
    for name, report in reports.items():
        if report.host != name:
            text = f"the agent configured as {name} says that it is {report.host}: check its address"
            found.setdefault(name, []).append(text)
        if report.protocol > PROTOCOL:
            text = f"its agent speaks protocol {report.protocol}, this daemon {PROTOCOL}: upgrade the daemon"
            found.setdefault(name, []).append(text)
    for what in ("node", "boot_id"):
        owners: dict[str, list[str]] = {}
        for name, report in sorted(reports.items()):
            if getattr(report, what):
                owners.setdefault(getattr(report, what), []).append(name)
        for value, names in owners.items():
            for name in names if len(names) > 1 else ():
                rest = ", ".join(other for other in names if other != name)
                found.setdefault(name, []).append(f"{what} {value} is claimed by {rest} too")
    return {name: tuple(reasons) for name, reasons in found.items()}


def host_of(name: str, report: HostReport | None, state: HostState, *, observed: HostState) -> Host:
    """The planner's view of a host, without times; a host never heard of has nothing but its name."""
    if report is None:
        return Host(name=name, state=state, observed=observed)
    return Host(
        name=name,
        state=state,
        observed=observed,
        claimed=report.host,
        arch=report.cpu.arch,
        node=report.node,
        boot_id=report.boot_id,
        epoch=report.epoch,
        memory_total_bytes=report.memory_total_bytes,
        memory_available_bytes=report.memory_available_bytes,
        threads=report.cpu.threads,
        bridges=frozenset(report.bridges),
        networks=frozenset(report.networks),
        volumes={each.volume.name: each for each in report.volumes},
        versions=dict(report.versions),
        problems=report.problems,
        migration_uri=report.migration_uri,
        migration_address=report.migration_address,
    )


def guest_of(domain: DomainReport, host: str) -> Guest:
    return Guest(
        uuid=domain.uuid,
        name=domain.name,
        host=host,
        state=domain.state,
        memory_bytes=domain.memory_bytes,
        vcpus=domain.vcpus,
        persistent=domain.persistent,
        autostart=domain.autostart,
        volumes=domain.volumes,
        bridges=domain.bridges,
        networks=domain.networks,
        cpu_xml=domain.cpu_xml,
        blockers=domain.blockers,
        cold_blockers=domain.cold_blockers,
        job=domain.job,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """Where one host's event stream stands: the newest report, with its domains' changes folded in."""

    stream: str = ""
    seq: int = -1
    report: HostReport | None = None


def follow(before: Followed, event: Event) -> tuple[Followed, bool]:
    """Fold one event. The flag: something may have been missed, so the whole report must be read.

    A gap in `seq` or a new `stream` (the agent restarted) loses events; a volume event says only that
    storage changed. An event seen twice or out of order is a gap as well: reading is always right.
    """
    expected = before.seq + 1 if event.stream == before.stream else None
    missed = event.kind == "hello" or event.seq != expected
    after = replace(before, stream=event.stream, seq=event.seq)
    if event.kind == "report" and event.report is not None:
        return replace(after, report=kept(before.report, event.report)), False
    if after.report is None:
        return after, True
    if event.kind == "domain":
        domains = _changed(after.report.domains, event)
        after = replace(after, report=replace(after.report, domains=domains))
    return after, missed or event.kind == "volume"


def kept(before: HostReport | None, report: HostReport) -> HostReport:
    """The newer one. A guest that is as it was stays the same object; a definition not sent is the last one.

    Thousands of equal objects instead of those that are known would be walked over by the garbage collector
    as often as hosts are read, a third of a second each time at 20,000 guests.
    """
    if before is None:
        return report
    known = {domain.uuid: domain for domain in before.domains}
    found = []
    for domain in report.domains:
        old = known.get(domain.uuid)
        new = domain if domain.xml or old is None else replace(domain, xml=old.xml)
        found.append(old if old is not None and old == new else new)
    same = len(found) == len(before.domains) and all(map(is_, found, before.domains))
    return replace(report, domains=before.domains if same else tuple(found))


def _changed(domains: Iterable[DomainReport], event: Event) -> tuple[DomainReport, ...]:
    """The domains with one replaced, added or gone. An event without XML keeps the XML known."""
    gone = event.domain_gone if event.domain is None else event.domain.uuid
    kept = []
    known_xml = ""
    for domain in domains:
        if domain.uuid == gone:
            known_xml = domain.xml
        else:
            kept.append(domain)
    if event.domain is not None:
        kept.append(event.domain if event.domain.xml else replace(event.domain, xml=known_xml))
    return tuple(kept)
