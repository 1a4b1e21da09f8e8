"""Blocking reads of libvirt, for use in a Link's thread. They return plain facts and change nothing."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import libvirt

from agents.hypervisor.states import ARRIVAL, is_running_job, state_of, with_job
from agents.hypervisor.words import DomainFacts, DomainFull, HypervisorReport
from agents.protocol import DomainState

T = TypeVar("T")

_GONE = (libvirt.VIR_ERR_NO_DOMAIN,)
CANNOT = (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED)
XML_MAX_AGE_S = 60.0


@dataclass(slots=True)
class Cache:
    """What need not be asked again while a connection lasts. Used by one report at a time."""

    xml: dict[str, CachedXml] = field(default_factory=dict)
    host_cpu: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class CachedXml:
    """Definitions as of `read_s` (monotonic), for the domain run `domain_id` (-1: not running)."""

    domain_id: int
    read_s: float
    live_xml: str
    xml: str


def find(connection: Any, uuid: str) -> Any | None:
    """The domain, or None when libvirt does not know it."""
    try:
        return connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _GONE:
            return None
        raise


def facts(connection: Any, uuid: str) -> DomainFacts:
    """State of one domain; ABSENT when libvirt does not know it."""
    domain = find(connection, uuid)
    found = None if domain is None else _facts(domain)
    return DomainFacts.absent(uuid) if found is None else found


def handing_over(connection: Any, uuid: str) -> bool:
    """Paused with the reason "migration". virDomainGetState alone: job statistics would wait for a QEMU that
    is stuck in the network (seen: until the call's deadline)."""
    domain = find(connection, uuid)
    try:
        return domain is not None and state_of(*domain.state()) == (DomainState.PAUSED, "migration")
    except libvirt.libvirtError as error:
        if error.get_error_code() in _GONE:
            return False
        raise


def job_stats(domain: Any) -> Mapping[str, object] | None:
    """virDomainGetJobStats of a job that runs; None when there is none. Never waits for another call.

    virDomainGetControlInfo comes first because it takes no lock on the domain: while the domain is
    occupied by another call, job statistics would wait for it (up to 30 s). Then the job is reported
    as one of unknown kind, so that nobody takes the domain for idle.
    """
    try:
        control, *_ = domain.controlInfo()
        if control != libvirt.VIR_DOMAIN_CONTROL_OK:
            return {"type": libvirt.VIR_DOMAIN_JOB_UNBOUNDED}
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (*CANNOT, libvirt.VIR_ERR_OPERATION_INVALID):
            raise
    try:
        stats: Mapping[str, object] = domain.jobStats()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return _arrival(domain)
        if error.get_error_code() in (
            libvirt.VIR_ERR_NO_SUPPORT,
            libvirt.VIR_ERR_OPERATION_INVALID,  # not running any more
            *_GONE,
        ):
            return None
        raise
    return stats if is_running_job(stats) else None


def _arrival(domain: Any) -> Mapping[str, object] | None:
    """Job statistics were refused as unsupported. libvirt's QEMU driver does that for one reason: "migration
    statistics are available only on the source host", so this is an incoming migration (seen on 9.0; the
    text may be translated, so the code counts). Of an inactive domain there is no job."""
    return ARRIVAL if domain.isActive() else None


def _facts(domain: Any) -> DomainFacts | None:
    """None when the domain went away meanwhile."""
    try:
        state, reason = state_of(*domain.state())
        job = None
        if state not in (DomainState.SHUTOFF, DomainState.CRASHED):
            job = job_stats(domain)
        return DomainFacts(
            uuid=domain.UUIDString(),
            state=with_job(state, reason, job),
            reason=reason,
            persistent=bool(domain.isPersistent()),
            job=job is not None,
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() in _GONE:
            return None
        raise


def report(connection: Any, cache: Cache) -> HypervisorReport:
    """Everything. Entries of domains that are gone leave the cache."""
    problems: list[str] = []
    if cache.host_cpu is None:
        cache.host_cpu = _host_cpu(connection, problems)
    cpu_xml, arch = cache.host_cpu
    domains = []
    for domain in connection.listAllDomains(0):
        found = _full(domain, cache.xml, problems)
        if found is not None:
            domains.append(replace(found, host_cpu_xml=cpu_xml))
    for uuid in cache.xml.keys() - {found.facts.uuid for found in domains}:
        cache.xml.pop(uuid, None)
    no_networks: tuple[str, ...] = ()
    return HypervisorReport(
        cpu_xml=cpu_xml,
        arch=arch,
        versions=_versions(connection),
        networks=tuple(sorted(_try("networks", lambda: _networks(connection), no_networks, problems))),
        domains=tuple(sorted(domains, key=lambda found: found.name)),
        problems=tuple(problems),
    )


def _full(domain: Any, cache: dict[str, CachedXml], problems: list[str]) -> DomainFull | None:
    state = _facts(domain)
    if state is None:
        return None
    try:
        xml = _xml(domain, cache.get(state.uuid))
        cache[state.uuid] = xml
        autostart = bool(domain.autostart()) if state.persistent else False
    except libvirt.libvirtError as error:
        if error.get_error_code() in _GONE:
            return None
        problems.append(f"domain {domain.name()}: {error}")
        return DomainFull(facts=state, name=domain.name(), autostart=False, live_xml="", xml="")
    return DomainFull(
        facts=state, name=domain.name(), autostart=autostart, live_xml=xml.live_xml, xml=xml.xml
    )


def _xml(domain: Any, cached: CachedXml | None) -> CachedXml:
    """Never with VIR_DOMAIN_XML_SECURE: a password in a definition must not leave libvirt (I17)."""
    now = time.monotonic()
    run = domain.ID()
    if cached is not None and cached.domain_id == run and now - cached.read_s < XML_MAX_AGE_S:
        return cached
    live = domain.XMLDesc(0)
    inactive = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if run != -1 else live
    return CachedXml(run, now, live, inactive)


def _networks(connection: Any) -> tuple[str, ...]:
    active = libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE
    return tuple(network.name() for network in connection.listAllNetworks(active))


def _versions(connection: Any) -> dict[str, str]:
    found = {"libvirt": _dotted(connection.getLibVersion())}
    if connection.getType() == "QEMU":
        found["qemu"] = _dotted(connection.getVersion())
    return found


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _host_cpu(connection: Any, problems: list[str]) -> tuple[str, str]:
    """<cpu> of the host capabilities and the architecture; ("", "") if libvirt does not say."""
    text = _try("capabilities", connection.getCapabilities, "", problems)
    if not text:
        return "", ""
    cpu = ET.fromstring(text).find("./host/cpu")  # noqa: S314 - libvirtd's own document, over a root socket
    if cpu is None:
        return "", ""
    return ET.tostring(cpu, encoding="unicode").strip(), cpu.findtext("arch", "")


def _try(what: str, function: Callable[[], T], otherwise: T, problems: list[str]) -> T:
    try:
        return function()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in CANNOT:
            problems.append(f"libvirt {what}: {error}")
        return otherwise
