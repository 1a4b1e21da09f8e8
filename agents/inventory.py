"""The inventory loop: one report of the host after the other, and events for what changed.

A hung libvirtd or a stuck volume costs at most its deadline here; the last known guests are then reported
with the state UNKNOWN, which nobody takes for safe (I19).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from agents.changes import difference
from agents.discovery import Discover, domain_report
from agents.events import Hub
from agents.host_facts import HostFacts, look
from agents.hypervisor.words import DomainFull, Hypervisor, HypervisorReport
from agents.protocol import PROTOCOL, CpuReport, DomainReport, DomainState, HostReport
from agents.volumes import VolumeLooks
from storage.errors import Retryable
from storage.words import VolumeReport

SETTLE_S = 0.05  # several events of one change become one look
WAIT_FOR_FRESH_S = 2.0
STALE_S = 6.0  # an older look says nothing about now


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What this agent says of itself in every report."""

    host: str
    agent_version: str
    tool_versions: dict[str, str]
    migration_uri: str
    migration_address: str


class Inventory:
    """`run()` must run beside it. `latest` is None until the first look has ended."""

    def __init__(
        self,
        *,
        identity: Identity,
        hypervisor: Hypervisor,
        volumes: VolumeLooks,
        discover: Discover,
        hub: Hub,
        epoch: Callable[[], int],
        inventory_s: float = 2.0,
        storage_s: float = 5.0,
        host_facts: Callable[[], HostFacts] = look,
        on_look: Callable[[float], None] = lambda _took_s: None,
    ) -> None:
        self._identity = identity
        self._hypervisor = hypervisor
        self._volumes = volumes
        self._discover = discover
        self._hub = hub
        self._epoch = epoch
        self._inventory_s = inventory_s
        self._storage_s = storage_s
        self._host_facts = host_facts
        self._on_look = on_look
        self._wake = asyncio.Event()
        self._looked = asyncio.Condition()
        self._storage_due_s = 0.0
        self._volume_reports: tuple[VolumeReport, ...] = ()
        self._storage_problems: tuple[str, ...] = ()
        self.latest: HostReport | None = None
        hypervisor.changes.listeners.append(lambda _uuid: self.poke())

    def poke(self, *, storage: bool = False) -> None:
        """Something changed: look soon. `storage`: at the volumes too."""
        if storage:
            self._storage_due_s = 0.0
        self._wake.set()

    async def run(self) -> None:
        """Look when something changed, and every `inventory_s` in any case."""
        while True:
            self._wake.clear()
            await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._inventory_s):
                    await self._wake.wait()
            await asyncio.sleep(SETTLE_S)

    async def fresh(self, max_age_s: float = 0.0) -> HostReport | None:
        """A report not older than `max_age_s`; if that takes longer than 2 s, the latest, or None.

        By default its look began after the question, at the volumes too: half a second ago a guest that has
        just left was still here, paused, and a drain that asks what is left would park on it; and a power-off
        decided on roles and copies of five seconds ago could take the only current one (I12).

        A report older than 6 s says that every guest is UNKNOWN: nobody must decide on it (I19).
        """

        def good() -> bool:
            return self.latest is not None and self.latest.observed_s >= wanted

        wanted = _now_s() - max_age_s
        if not good():
            self.poke(storage=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_FOR_FRESH_S), self._looked:
                    await self._looked.wait_for(good)
        return None if self.latest is None else aged(self.latest, _now_s() - self.latest.observed_s)

    async def _look(self) -> None:
        began = _now_s()
        facts = self._host_facts()
        trouble: str | None = None
        try:
            hypervisor = await self._hypervisor.report()
            domains = await self._domain_reports(hypervisor.domains)
        except Retryable as error:
            trouble = "; ".join(error.reasons)
            hypervisor = HypervisorReport(cpu_xml="", arch="", versions={}, networks=(), domains=())
            domains = self._last_known(trouble)
        if _now_s() >= self._storage_due_s:
            await self._look_at_storage(domains)
        self._publish(self._compose(began, facts, hypervisor, domains, trouble))
        self._on_look(_now_s() - began)
        async with self._looked:
            self._looked.notify_all()

    async def _domain_reports(self, found: tuple[DomainFull, ...]) -> tuple[DomainReport, ...]:
        return tuple([domain_report(domain, await self._discover(domain)) for domain in found])

    def _last_known(self, trouble: str) -> tuple[DomainReport, ...]:
        return () if self.latest is None else _unknown(self.latest.domains, trouble)

    async def _look_at_storage(self, domains: tuple[DomainReport, ...]) -> None:
        self._storage_due_s = _now_s() + self._storage_s
        held, problems = await self._volumes.held()
        used = [volume for domain in domains for volume in domain.volumes if volume.kind != "other"]
        self._volume_reports = await self._volumes.inspect((*held, *used))
        self._storage_problems = problems

    def _compose(
        self,
        began: float,
        facts: HostFacts,
        hypervisor: HypervisorReport,
        domains: tuple[DomainReport, ...],
        trouble: str | None,
    ) -> HostReport:
        me = self._identity
        problems = (*facts.problems, *hypervisor.problems, *self._storage_problems)
        return HostReport(
            protocol=PROTOCOL,
            host=me.host,
            node=facts.node,
            boot_id=facts.boot_id,
            epoch=self._epoch(),
            agent_version=me.agent_version,
            versions={**me.tool_versions, **facts.versions, **hypervisor.versions},
            libvirt_ok=trouble is None,
            problems=problems if trouble is None else (*problems, trouble),
            cpu=CpuReport(
                arch=hypervisor.arch or facts.arch,
                threads=facts.cpu_threads,
                model=facts.cpu_model,
                host_xml=hypervisor.cpu_xml,
            ),
            memory_total_bytes=facts.memory_total_bytes,
            memory_available_bytes=facts.memory_available_bytes,
            bridges=facts.bridges,
            networks=hypervisor.networks,
            domains=domains,
            volumes=self._volume_reports,
            migration_uri=me.migration_uri,
            migration_address=me.migration_address,
            observed_s=began,
        )

    def _publish(self, report: HostReport) -> None:
        changed = difference(self.latest, report)
        self.latest = report
        if changed.host:
            self._hub.report(report)
            return
        for domain in changed.domains:
            self._hub.domain(domain)
        for uuid in changed.gone:
            self._hub.domain_gone(uuid)
        if changed.volumes:
            self._hub.volume()


def _now_s() -> float:
    """The loop's monotonic clock, so that a loop in virtual time can run an agent."""
    return asyncio.get_running_loop().time()


def aged(report: HostReport, age_s: float) -> HostReport:
    """Pure: the report, with nothing certain left in it when it is too old. Ages in seconds."""
    if age_s <= STALE_S:
        return report
    trouble = f"the last look at this host is {age_s:.0f} s old"
    return replace(
        report,
        libvirt_ok=False,
        problems=(*report.problems, trouble),
        domains=_unknown(report.domains, trouble),
    )


def _unknown(domains: tuple[DomainReport, ...], trouble: str) -> tuple[DomainReport, ...]:
    return tuple(replace(each, state=DomainState.UNKNOWN, reason=trouble) for each in domains)
