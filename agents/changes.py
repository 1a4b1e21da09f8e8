"""What is different between two reports of a host. Pure; decides which events are sent."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agents.protocol import DomainReport, HostReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`host`: anything beyond domains, volumes, the clock and free memory, which changes all the time."""

    domains: tuple[DomainReport, ...]  # new or changed
    gone: tuple[str, ...]
    volumes: bool
    host: bool


def difference(old: HostReport | None, new: HostReport) -> Difference:
    """Compare; everything is new when there is no old report."""
    if old is None:
        return Difference(domains=(), gone=(), volumes=False, host=True)
    before = {domain.uuid: domain for domain in old.domains}
    after = {domain.uuid: domain for domain in new.domains}
    return Difference(
        domains=tuple(domain for uuid, domain in after.items() if before.get(uuid) != domain),
        gone=tuple(uuid for uuid in before if uuid not in after),
        volumes=old.volumes != new.volumes,
        host=_host_only(old) != _host_only(new),
    )


def _host_only(report: HostReport) -> HostReport:
    return replace(report, domains=(), volumes=(), observed_s=0.0, memory_available_bytes=0)
