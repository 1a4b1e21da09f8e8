"""An agent as the view meets it: it reports, beats every second, falls silent, loses events, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from agents.protocol import (
    PROTOCOL,
    CpuReport,
    DomainReport,
    DomainState,
    Event,
    HostReport,
    Preflight,
    PreflightReport,
)
from storage.errors import Retryable
from storage.words import VolumeReport

GIB = 1 << 30


def domain(name: str, state: DomainState = DomainState.RUNNING, **more: object) -> DomainReport:
    known: dict[str, object] = {
        "uuid": f"uuid-{name}",
        "reason": "unknown",
        "memory_bytes": GIB,
        "vcpus": 1,
        "persistent": True,
        "autostart": False,
        "volumes": (),
        "bridges": (),
        "networks": (),
        "cpu_xml": "",
        "blockers": (),
        "xml": f"<domain><name>{name}</name></domain>",
    }
    return DomainReport(name=name, state=state, **{**known, **more})  # type: ignore[arg-type]


def host_report(name: str, *domains: DomainReport, **more: object) -> HostReport:
    known: dict[str, object] = {
        "protocol": PROTOCOL,
        "host": name,
        "node": f"node-{name}",
        "boot_id": f"boot-{name}",
        "epoch": 1,
        "agent_version": "0",
        "versions": {},
        "libvirt_ok": True,
        "problems": (),
        "cpu": CpuReport(arch="x86_64", threads=4, model="m", host_xml="<cpu/>"),
        "memory_total_bytes": 16 * GIB,
        "memory_available_bytes": 12 * GIB,
        "bridges": ("br0",),
        "networks": (),
        "volumes": tuple[VolumeReport, ...](),
        "migration_uri": f"qemu+tls://{name}/system",
        "migration_address": f"tcp://{name}",
        "observed_s": 0.0,
    }
    return HostReport(domains=domains, **{**known, **more})  # type: ignore[arg-type]


class ScriptedAgent:
    """`beating`, `refusing`, `failing_reads` and `report_takes_s` may be changed at any time."""

    def __init__(self, name: str, *domains: DomainReport, **more: object) -> None:
        self.name = name
        self.now = host_report(name, *domains, **more)
        self.beating = True
        self.refusing = False
        self.failing_reads = 0  # so many reports fail while the stream goes on
        self.report_takes_s = 0.0
        self.connections = 0
        self.reads = 0
        self.asked: list[Preflight] = []
        self.answer: PreflightReport | Exception | None = None  # None: yes to everything
        self.answer_takes_s = 0.0
        self._stream = f"{name}-1"
        self._seq = 0
        self._lines: asyncio.Queue[Event] = asyncio.Queue()

    def restart(self, boot_id: str | None = None) -> None:
        """The agent (or, with a boot id, the machine) starts again: a new stream, nothing queued."""
        self._stream, self._seq = f"{self._stream}+", 0
        self._lines = asyncio.Queue()
        if boot_id is not None:
            self.now = replace(self.now, boot_id=boot_id)

    def has(self, *domains: DomainReport, told: bool = True) -> None:
        """These are the domains now; each change is an event of the stream, unless it gets lost."""
        before = {each.uuid: each for each in self.now.domains}
        after = {each.uuid: each for each in domains}
        self.now = replace(self.now, domains=domains, observed_s=self.now.observed_s + 1)
        for uuid in before.keys() - after.keys():
            self._tell(Event(stream=self._stream, seq=self._next(), kind="domain", domain_gone=uuid), told)
        for uuid, each in after.items():
            if before.get(uuid) != each:
                self._tell(Event(stream=self._stream, seq=self._next(), kind="domain", domain=each), told)

    def says(self, event: Event) -> None:
        self._lines.put_nowait(replace(event, stream=self._stream, seq=self._next()))

    def _tell(self, event: Event, told: bool) -> None:
        if told:
            self._lines.put_nowait(event)

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    async def report(self, *, storage: bool = False) -> HostReport:
        if self.refusing:
            raise Retryable(f"{self.name}: connection refused")
        self.reads += 1
        if self.failing_reads > 0:
            self.failing_reads -= 1
            raise Retryable(f"{self.name}: libvirt is busy")
        found = self.now
        await asyncio.sleep(self.report_takes_s)
        return found

    async def preflight(self, question: Preflight) -> PreflightReport:
        self.asked.append(question)
        await asyncio.sleep(self.answer_takes_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        return PreflightReport(cpus=((),) * len(question.cpus), volumes=((),) * len(question.volumes))

    async def events(self) -> AsyncIterator[Event]:
        self.connections += 1
        if self.refusing:
            raise Retryable(f"{self.name}: connection refused")
        stream = self._stream
        yield Event(stream=stream, seq=self._next(), kind="hello")
        while not self.refusing and stream == self._stream:
            try:
                async with asyncio.timeout(1.0):
                    event = await self._lines.get()
            except TimeoutError:
                if not self.beating:
                    continue
                event = Event(stream=stream, seq=self._next(), kind="heartbeat")
            yield event
        raise Retryable(f"{self.name}: the stream ended")
