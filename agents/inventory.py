"""The inventory loops: one report of the host after the other, and events for what changed.

A hung libvirtd or a stuck volume costs at most its deadline here; the last known guests are then reported
with the state UNKNOWN, which nobody takes for safe (I19).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from agents.changes import difference
from agents.discovery import Discover, domain_report
from agents.events import Hub
from agents.host_facts import HostFacts, look
from agents.hypervisor.words import DomainFull, Hypervisor, HypervisorReport
from agents.protocol import PROTOCOL, CpuReport, DomainReport, DomainState, HostReport
from agents.volume_inventory import VolumeInventory
from agents.volumes import VolumeLooks
from storage.errors import Retryable
from storage.words import Volume

SETTLE_S = 0.05  # several events of one change become one look
REST = 9  # after a look, so many times what it took: while guests move, events never end, and looks must not
REST_MAX_S = 0.5
WAIT_FOR_FRESH_S = 2.0
WAIT_FOR_STORAGE_S = 8.0  # below the daemon's own deadline for a report
STALE_S = 6.0  # an older look says nothing about now


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What this agent says of itself in every report."""

    host: str
    agent_version: str
    tool_versions: dict[str, str]
    migration_uri: str
    migration_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What one look at the host and its guests found."""

    began_s: float
    facts: HostFacts
    hypervisor: HypervisorReport
    domains: tuple[DomainReport, ...]
    trouble: str | None


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
        self._volumes = VolumeInventory(volumes, every_s=storage_s)
        self._discover = discover
        self._hub = hub
        self._epoch = epoch
        self._inventory_s = inventory_s
        self._host_facts = host_facts
        self._on_look = on_look
        self._wake = asyncio.Event()
        self._published = asyncio.Event()
        self._asked = asyncio.Event()  # somebody waits for a fresh report
        self._found: _Look | None = None
        self.latest: HostReport | None = None
        hypervisor.changes.listeners.append(lambda _uuid: self.poke())

    def poke(self, *, kinds: Collection[str] = ()) -> None:
        """Something changed: look soon. `kinds`: at volumes of these kinds, too."""
        self._volumes.touch(kinds)
        self._wake.set()

    async def run(self) -> None:
        """Look when something changed, and every `inventory_s` in any case; at volumes every `storage_s`."""
        self._found = await self._look()
        await self._volumes.look(self._used())
        self._publish()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="inventory of the host")
            tasks.create_task(self._volumes.run(self._used, self._publish), name="inventory of volumes")

    async def _watch(self) -> None:
        took_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._inventory_s):
                    await self._wake.wait()
            with contextlib.suppress(TimeoutError):  # unless somebody waits for the answer
                async with asyncio.timeout(max(SETTLE_S, min(REST * took_s, REST_MAX_S))):
                    await self._asked.wait()
            self._wake.clear()
            self._asked.clear()
            began_s = _now_s()
            self._found = await self._look()
            took_s = _now_s() - began_s
            self._publish()

    async def fresh(self, max_age_s: float = 0.0, *, storage: bool = False) -> HostReport | None:
        """A report not older than `max_age_s`; if that takes longer than 2 s, the latest, or None.

        By default its look began after the question: half a second ago a guest that has just left was still
        here, paused, and a drain that asks what is left would park on it. Volumes are as old as the last look
        at them, which is never older than a command that touched them and ended before the question.

        `storage`: all volumes are looked at anew, too, for which it waits up to 8 s (I12). One whose look did
        not begin after the question is UNKNOWN then, and a look that has not ended is a problem of the host.

        A report older than 6 s says that every guest is UNKNOWN: nobody must decide on it (I19).
        """

        def good() -> bool:
            return (
                self.latest is not None
                and self.latest.observed_s >= wanted_s
                and self._volumes.covered >= touches
                and (not storage or self._volumes.whole_s >= asked_s)
            )

        asked_s, touches = _now_s(), self._volumes.touches
        wanted_s = asked_s - max_age_s
        if not good():
            if storage:
                self._volumes.demand()
            self.poke()
            self._asked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_FOR_STORAGE_S if storage else WAIT_FOR_FRESH_S):
                    while not good():
                        await self._published.wait()
        if self.latest is None:
            return None
        report = aged(self.latest, _now_s() - self.latest.observed_s)
        return self._with_storage_of(report, asked_s) if storage else report

    def _with_storage_of(self, report: HostReport, asked_s: float) -> HostReport:
        """Only volumes that were looked at after the question, and a problem if that is not all of them."""
        trouble = () if self._volumes.whole_s >= asked_s else ("not all volumes could be looked at in time",)
        return replace(report, volumes=self._volumes.since(asked_s), problems=(*report.problems, *trouble))

    async def _look(self) -> _Look:
        began_s = _now_s()
        facts = self._host_facts()
        trouble: str | None = None
        try:
            hypervisor = await self._hypervisor.report()
            domains = await self._domain_reports(hypervisor.domains)
        except Retryable as error:
            trouble = "; ".join(error.reasons)
            hypervisor = HypervisorReport(cpu_xml="", arch="", versions={}, networks=(), domains=())
            domains = self._last_known(trouble)
        self._on_look(_now_s() - began_s)
        return _Look(began_s=began_s, facts=facts, hypervisor=hypervisor, domains=domains, trouble=trouble)

    async def _domain_reports(self, found: tuple[DomainFull, ...]) -> tuple[DomainReport, ...]:
        return tuple([domain_report(domain, await self._discover(domain)) for domain in found])

    def _last_known(self, trouble: str) -> tuple[DomainReport, ...]:
        return () if self.latest is None else _unknown(self.latest.domains, trouble)

    def _used(self) -> tuple[Volume, ...]:
        found = self._found
        return () if found is None else tuple(each for domain in found.domains for each in domain.volumes)

    def _compose(self, found: _Look) -> HostReport:
        facts, hypervisor, trouble = found.facts, found.hypervisor, found.trouble
        me = self._identity
        problems = (*facts.problems, *hypervisor.problems, *self._volumes.problems)
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
            domains=found.domains,
            volumes=self._volumes.reports,
            migration_uri=me.migration_uri,
            migration_address=me.migration_address,
            observed_s=found.began_s,
        )

    def _publish(self) -> None:
        """What was found last of the host, with what was found last of the volumes."""
        if self._found is None:
            return
        report = self._compose(self._found)
        changed = difference(self.latest, report)
        self.latest = report
        self._published.set()  # wakes those who wait now; the next ones wait for the next report
        self._published = asyncio.Event()
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
