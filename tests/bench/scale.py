"""The production daemon over 1,000 hosts and 20,000 guests, in virtual time: python -m tests.bench.scale

A wave of drains is carried out against agents that cost little; copies take as long as real ones. Virtual
time passes with the processor's: the lag of a timer is what it would be. What is the daemon's own is in it:
AgentClient, every answer and event as JSON, and metrics that are scraped. What agents would do elsewhere is
not, nor are threads and the kernel (journal, TLS, sockets).
"""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import parse_qsl, unquote

from agents.client import AgentClient
from agents.protocol import (
    AnyVolume,
    Attempt,
    AttemptReport,
    AttemptResult,
    CpuReport,
    DomainReport,
    DomainState,
    Event,
    HostReport,
    MigrateDomain,
    MigrationProgress,
    Observation,
    Observe,
    Outcome,
    Preflight,
    PreflightReport,
    PrepareVolumes,
)
from agents.wire import dump, read
from migrd.control import DrainRequest
from migrd.daemon import assemble, spare_the_collector
from migrd.engine import Settings
from migrd.metrics import Metrics
from migrd.model import HostState
from migrd.operations import OperationState
from migrd.planner import Policy
from migrd.watch import WatchPolicy
from storage.words import Health, IscsiQemuVolume, Role, VolumeReport
from tests.bench.measures import Tally, asked_strict, note
from tests.core.harness import MemoryJournal
from tests.core.vloop import LoopClock, VirtualLoop

T = TypeVar("T")

SCRAPED_EVERY_S = 15.0  # Prometheus's usual interval
HOSTS = 1_000
GUESTS = 20_000
DRAINS = 100
COPY_S = 12.0
TICK_S = 0.01
GIB = 1 << 30


def measure(tally: Tally, hosts: int, guests: int, drains: int) -> None:
    loop = MeasuredLoop()
    gc.callbacks.append(loop.collects)
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            took_s, rss_mib = runner.run(_wave(hosts, guests, drains))
    finally:
        gc.callbacks.remove(loop.collects)
    note(f"scale: {drains} drains in {took_s:.0f} virtual s, {loop.busy_s:.0f} CPU s")
    tally.say("sim_loop_lag_p99_s", loop.lag_p99_s(), "s", 0.05, 1)
    tally.say(f"daemon_rss_mib_{hosts}x{guests}", rss_mib, "MiB", 1024.0, 1)


def run(tally: Tally) -> None:
    with tally.taking("sim_loop_lag_p99_s", f"daemon_rss_mib_{HOSTS}x{GUESTS}"):
        measure(tally, HOSTS, GUESTS, DRAINS)


class MeasuredLoop(VirtualLoop):
    """Virtual time that also passes while the processor works: what a turn costs, every timer waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.busy_s = self._elsewhere_s = self._collected_s = 0.0
        self.late_s: list[float] = []  # of a timer that goes off every 10 ms

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What is done inside would be another machine's work: no time passes for the daemon.

        But for the garbage collector, which walks over what the daemon knows wherever it is woken.
        """
        began_s, collected_s = time.thread_time(), self._collected_s
        yield
        self._elsewhere_s += time.thread_time() - began_s - (self._collected_s - collected_s)

    def collects(self, phase: str, _info: dict[str, int]) -> None:
        """See gc.callbacks."""
        self._collected_s += time.thread_time() * (1 if phase == "stop" else -1)

    def _run_once(self) -> None:
        began_s, self._elsewhere_s = time.thread_time(), 0.0
        super()._run_once()
        took_s = time.thread_time() - began_s - self._elsewhere_s
        self.busy_s += took_s
        self.now_s += took_s

    async def probe(self) -> None:
        """Every tick that was due while something else ran was late: a long turn counts for each of them."""
        due_s = self.time() + TICK_S
        while True:
            await asyncio.sleep(max(0.0, due_s - self.time()))
            now_s = self.time()
            while due_s <= now_s:
                self.late_s.append(now_s - due_s)
                due_s += TICK_S

    def lag_p99_s(self) -> float:
        late = sorted(self.late_s)
        return late[int(len(late) * 0.99)]


@dataclass
class Cluster:
    """Who runs what; a migration is a move from one dictionary to another."""

    agents: dict[str, LightAgent] = field(default_factory=dict)


class LightAgent:
    """What an agent does, over a dictionary of domains, after a moment."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name = name
        self.domains: dict[str, DomainReport] = {}
        self.streams: list[asyncio.Queue[Event]] = []
        self._cluster = cluster
        self._seq = 0
        self._ends: dict[tuple[str, str, int], asyncio.Future[AttemptReport]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def report(self, *, storage: bool = False) -> HostReport:
        await asyncio.sleep(0.002)
        return HostReport(
            protocol=1,
            host=self.name,
            node=self.name,
            boot_id=f"boot-{self.name}",
            epoch=1,
            agent_version="light",
            versions={},
            libvirt_ok=True,
            problems=(),
            cpu=CpuReport(arch="x86_64", threads=64, model="light", host_xml=""),
            memory_total_bytes=512 * GIB,
            memory_available_bytes=512 * GIB - sum(d.memory_bytes for d in self.domains.values()),
            bridges=("br0",),
            networks=(),
            domains=tuple(self.domains.values()),
            volumes=(),
            migration_uri=f"qemu+tls://{self.name}/system",
            migration_address=f"tcp://{self.name}",
            observed_s=asyncio.get_running_loop().time(),
        )

    async def events(self) -> AsyncIterator[Event]:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self.streams.append(queue)
        await asyncio.sleep(random.random())
        yield Event(stream=self.name, seq=self._seq, kind="hello", report=await self.report())
        while True:
            try:
                async with asyncio.timeout(1.0):
                    event = await queue.get()
            except TimeoutError:
                event = self._event(kind="heartbeat")
            yield event

    def _event(self, **more: object) -> Event:
        self._seq += 1
        return Event(stream=self.name, seq=self._seq, **more)  # type: ignore[arg-type]

    def _tell(self, **more: object) -> None:
        event = self._event(**more)
        for stream in self.streams:
            stream.put_nowait(event)

    async def preflight(self, question: Preflight) -> PreflightReport:
        await asyncio.sleep(0.005)
        return PreflightReport(cpus=((),) * len(question.cpus), volumes=((),) * len(question.volumes))

    async def observe(self, question: Observe) -> Observation:
        await asyncio.sleep(0.005)
        domain = self.domains.get(question.uuid)
        return Observation(
            uuid=question.uuid,
            state=domain.state if domain is not None else DomainState.ABSENT,
            reason="unknown",
            persistent=domain is not None,
            qemu_process=domain is not None,
            job=False,
            volumes=tuple(volume_report(volume) for volume in question.volumes),
        )

    async def submit(self, attempt: Attempt, wait_s: float = 0.0) -> AttemptReport:
        await asyncio.sleep(0.002)
        key = (attempt.operation, attempt.step, attempt.attempt)
        self._ends[key] = asyncio.get_running_loop().create_future()
        task = asyncio.get_running_loop().create_task(self._do(key, attempt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await self.wait(*key, wait_s)

    async def wait(self, operation: str, step: str, attempt: int, wait_s: float = 30.0) -> AttemptReport:
        key = (operation, step, attempt)
        done, _ = await asyncio.wait([self._ends[key]], timeout=wait_s)
        if done:
            return self._ends[key].result()
        progress = MigrationProgress(memory_total_bytes=GIB, memory_processed_bytes=GIB // 2)
        return _report(key, Outcome.RUNNING, AttemptResult(progress=progress))

    async def _do(self, key: tuple[str, str, int], attempt: Attempt) -> None:
        command, result = attempt.command, AttemptResult()
        if isinstance(command, PrepareVolumes):
            await asyncio.sleep(0.2)
            result = AttemptResult(volumes=tuple(volume_report(volume) for volume in command.volumes))
        elif isinstance(command, MigrateDomain):
            await asyncio.sleep(COPY_S * random.uniform(0.7, 1.3))
            target = self._cluster.agents[command.target_uri.removeprefix("qemu+tls://").split("/")[0]]
            target.domains[command.uuid] = self.domains.pop(command.uuid)
            target._tell(kind="domain", domain=target.domains[command.uuid])
            self._tell(kind="domain", domain_gone=command.uuid)
            result = AttemptResult(progress=MigrationProgress(downtime_ms=80))
        report = _report(key, Outcome.DONE, result)
        self._ends[key].set_result(report)
        self._tell(kind="attempt", attempt=report)


class LightTransport:
    """agents.client.Transport: from the daemon's bytes to a LightAgent and back."""

    def __init__(self, agent: LightAgent, loop: MeasuredLoop) -> None:
        self._agent = agent
        self._loop = loop

    async def call(
        self, method: str, target: str, body: bytes | None, *, changes: bool, extra_s: float
    ) -> tuple[int, bytes]:
        path, _, query = target.partition("?")
        agent, given = self._agent, dict(parse_qsl(query))
        wait_s = float(given.get("wait_s", 0.0))
        answer: object
        match path.split("/")[2:]:
            case ["report"]:
                answer = await agent.report()
            case ["preflight"]:
                answer = await agent.preflight(self._read(Preflight, body))
            case ["observe"]:
                answer = await agent.observe(self._read(Observe, body))
            case ["attempts"]:
                answer = await agent.submit(self._read(Attempt, body), wait_s)
            case ["attempts", operation, step, attempt]:
                answer = await agent.wait(unquote(operation), step, int(attempt), wait_s)
            case _:
                raise AssertionError(f"the bench has no answer to {method} {target}")
        return 200, self._dump(answer)

    async def lines(self) -> AsyncGenerator[bytes, None]:
        async for event in self._agent.events():
            yield self._dump(event)

    async def close(self) -> None:
        """Nothing is kept."""

    def _dump(self, answer: object) -> bytes:
        with self._loop.elsewhere():
            return dump(answer)

    def _read(self, cls: type[T], body: bytes | None) -> T:
        assert body is not None
        with self._loop.elsewhere():
            return read(cls, body)


def _report(key: tuple[str, str, int], outcome: Outcome, result: AttemptResult) -> AttemptReport:
    return AttemptReport(operation=key[0], step=key[1], attempt=key[2], outcome=outcome, result=result)


def volume_report(volume: AnyVolume) -> VolumeReport:
    return VolumeReport(
        volume=volume, role=Role.ATTACHED, health=Health.OK, identity=volume.name, size_bytes=GIB
    )


def populate(hosts: int, guests: int) -> Cluster:
    """Guests spread evenly, each with a definition of a usual length."""
    cluster = Cluster()
    names = [f"h{number:04}" for number in range(hosts)]
    for name in names:
        cluster.agents[name] = LightAgent(name, cluster)
    for number in range(guests):
        volume = IscsiQemuVolume(portal="10.0.0.5:3260", iqn=f"iqn.2026-11.org.bench:{number}", lun=0)
        uuid = f"00000000-0000-4000-8000-{number:012d}"
        cluster.agents[names[number % hosts]].domains[uuid] = DomainReport(
            uuid=uuid,
            name=f"g{number}",
            state=DomainState.RUNNING,
            reason="booted",
            memory_bytes=(1 + number % 8) * GIB,
            vcpus=2,
            persistent=True,
            autostart=False,
            volumes=(volume,),
            bridges=("br0",),
            networks=(),
            cpu_xml="<cpu mode='custom'><model>qemu64</model></cpu>",
            blockers=(),
            job=False,
            xml=f"<domain><uuid>{uuid}</uuid>{'<!-- of a usual length -->' * 200}</domain>",
        )
    return cluster


class NoPower:
    """No host has a BMC."""

    def has(self, host: str) -> bool:
        return False

    async def status(self, host: str) -> str:
        return "unknown: no BMC"

    async def switch(self, host: str, action: str) -> str:
        return "no BMC"


async def _scraped(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(SCRAPED_EVERY_S)
        metrics.exposition()


async def _wave(hosts: int, guests: int, drains: int) -> tuple[float, float]:
    """Virtual seconds that the wave took, and the most memory that this process had."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, MeasuredLoop)
    random.seed(1)
    cluster = populate(hosts, guests)
    spare_the_collector()  # of what agents know: it is on other machines
    journal = MemoryJournal()
    journal.epoch, journal.lives = 1, [(0, "bench")]
    metrics = Metrics("bench")
    view, controller = assemble(
        {name: AgentClient(name, LightTransport(agent, loop)) for name, agent in cluster.agents.items()},
        journal=journal,
        power=NoPower(),
        with_bmc=(),
        policy=Policy(),
        watch=WatchPolicy(),
        settings=Settings(),
        observer=metrics,
        clock=LoopClock(),
    )
    await controller.recover()
    metrics.follow(controller)
    work = [loop.create_task(each) for each in (view.run(), controller.run(), _scraped(metrics))]
    for _ in range(60):
        await asyncio.sleep(1.0)
        if all(host.observed is HostState.ONLINE for host in view.cluster().hosts.values()):
            break
    spare_the_collector()  # as the daemon does, once it has heard of its hosts
    loop.busy_s = 0.0
    probe = loop.create_task(loop.probe())
    began_s = loop.time()
    names = [f"h{number:04}" for number in range(drains)]
    started = [(await controller.drain(name, DrainRequest())).id for name in names]
    while open_ones := [id_ for id_ in started if not controller.operation(id_).state.ended]:
        parked = [id_ for id_ in open_ones if controller.operation(id_).state is OperationState.PARKED]
        assert not parked, controller.operation(parked[0])
        await asyncio.sleep(1.0)
    took_s = loop.time() - began_s
    left = sum(len(cluster.agents[name].domains) for name in names)
    assert left == 0, f"{left} guests are still on drained hosts"
    for task in (probe, *work):
        task.cancel()
    await asyncio.wait([probe, *work])
    return took_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    strict = asked_strict()
    alone = Tally()
    run(alone)
    sys.exit(alone.exit_code(strict=strict))
