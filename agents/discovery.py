"""What a domain needs of a host, read from its definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agents.hypervisor.words import DomainFull
from agents.protocol import DomainReport
from storage.words import Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Fields as in DomainReport."""

    memory_bytes: int = 0
    vcpus: int = 0
    volumes: tuple[Volume, ...] = ()
    bridges: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    cpu_xml: str = ""
    blockers: tuple[str, ...] = ()
    cold_blockers: tuple[str, ...] | None = None


class Discover(Protocol):
    """From a definition to what it needs. Never raises: what cannot be read is a blocker."""

    async def __call__(self, domain: DomainFull) -> Needs: ...


def domain_report(domain: DomainFull, needs: Needs) -> DomainReport:
    """The report of one domain."""
    return DomainReport(
        uuid=domain.facts.uuid,
        name=domain.name,
        state=domain.facts.state,
        reason=domain.facts.reason,
        memory_bytes=needs.memory_bytes,
        vcpus=needs.vcpus,
        persistent=domain.facts.persistent,
        autostart=domain.autostart,
        volumes=needs.volumes,
        bridges=needs.bridges,
        networks=needs.networks,
        cpu_xml=needs.cpu_xml,
        blockers=needs.blockers,
        cold_blockers=needs.cold_blockers,
        job=domain.facts.job,
        xml=domain.xml,
    )
