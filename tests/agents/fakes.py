"""A hypervisor and a storage driver that behave, in memory: real state changes, scripted trouble.

The simulator may use them too: nothing here knows of a test framework.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from agents.discovery import Needs
from agents.hypervisor.words import (
    Changes,
    DomainFacts,
    DomainFull,
    HypervisorReport,
    Job,
    MigrateRequest,
)
from agents.protocol import DomainState, MigrationProgress
from agents.streams.words import Stream
from storage.calls import Lane, NoSlot, TimedOut
from storage.errors import Refused, Retryable, Unknown
from storage.words import (
    Handover,
    Health,
    Role,
    Volume,
    VolumeReport,
    WindowOptions,
)

MIB = 1 << 20


def running(uuid: str, *, name: str = "", job: bool = False) -> DomainFull:
    """A running, persistent guest."""
    facts = DomainFacts(uuid=uuid, state=DomainState.RUNNING, reason="booted", persistent=True, job=job)
    return DomainFull(facts=facts, name=name or uuid, autostart=False, live_xml="<domain/>", xml="<domain/>")


class FakeStreams:
    """Connections as a test lists them. What is cut fails the migration, as QEMU's own error would."""

    def __init__(self) -> None:
        self.found: tuple[Stream, ...] = ()
        self.asked: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        self.was_cut: list[str] = []
        self.on_cut: Callable[[], None] = lambda: None

    async def addresses(self, host: str) -> frozenset[str]:
        return frozenset({host})

    async def to(self, uuid: str, addresses: Collection[str], besides: Collection[str]) -> tuple[Stream, ...]:
        self.asked.append((uuid, tuple(addresses), tuple(besides)))
        return self.found

    async def into(self, port: int) -> tuple[Stream, ...]:
        return ()

    async def hold(self, stream: Stream) -> None:
        return None

    async def cut(self, stream: Stream) -> bool:
        self.was_cut.append(stream.remote)
        self.on_cut()
        return True


class FakeHypervisor:
    """One host. `domains` is its truth; `blocking` (if set) runs in a thread inside every read."""

    def __init__(self, *domains: DomainFull) -> None:
        self.changes = Changes()
        self.domains = {domain.facts.uuid: domain for domain in domains}
        self.trouble: str | None = None
        self.calls: list[str] = []
        self.migrate_error: Exception | None = None
        self.leave_source = False  # libvirt says success, but nothing has changed
        self.cold_error: Exception | None = None
        self.migration_steps = 3
        self.step_s = 0.02
        self.begins_after_s = 0.0
        self.job_told: asyncio.Event | None = None  # a look at a job waits for it
        self.honours_abort = True
        self.blocking: Callable[[], None] | None = None
        self._lane = Lane("fake", 2)
        self._abort: set[str] = set()
        self._jobs: dict[str, Job] = {}
        self._last: dict[str, MigrationProgress] = {}

    async def run(self) -> None:
        """Nothing to keep."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing to close."""

    async def _answer(self) -> None:
        if self.trouble is not None:
            raise Retryable(self.trouble)
        if self.blocking is not None:
            try:
                await self._lane.call(self.blocking, deadline_s=0.3)
            except (TimedOut, NoSlot) as error:
                raise Retryable(str(error)) from None

    def set_state(self, uuid: str, state: DomainState, reason: str = "unknown", *, job: bool = False) -> None:
        """Change a domain from outside, as an operator with virsh would."""
        domain = self.domains.get(uuid) or running(uuid)
        facts = replace(domain.facts, state=state, reason=reason, job=job)
        self.domains[uuid] = replace(domain, facts=facts)
        self.changes.tell(uuid)

    def set_job(self, uuid: str, job: Job | None) -> None:
        """A migration that somebody else began."""
        if job is None:
            self._jobs.pop(uuid, None)
        else:
            self._jobs[uuid] = job

    async def report(self) -> HypervisorReport:
        await self._answer()
        return HypervisorReport(
            cpu_xml="<cpu/>",
            arch="x86_64",
            versions={"libvirt": "9.0.0"},
            networks=("default",),
            domains=tuple(self.domains.values()),
        )

    async def facts(self, uuid: str) -> DomainFacts:
        await self._answer()
        found = self.domains.get(uuid)
        return DomainFacts.absent(uuid) if found is None else found.facts

    async def handing_over(self, uuid: str) -> bool:
        facts = await self.facts(uuid)
        return facts.state is DomainState.PAUSED and facts.reason == "migration"

    async def cpu_reasons(self, question: str) -> tuple[str, ...]:
        await self._answer()
        return ("no such feature here",) if "avx9" in question else ()

    async def migrate(self, request: MigrateRequest) -> None:
        self.calls.append(f"migrate {request.uuid}")
        await asyncio.sleep(self.begins_after_s)
        if request.unwanted():
            raise Refused("aborted before it began")
        total = 64 * MIB
        for step in range(self.migration_steps):
            done = total * step // self.migration_steps
            self._jobs[request.uuid] = Job(
                outgoing=True,
                progress=MigrationProgress(
                    memory_total_bytes=total,
                    memory_processed_bytes=done,
                    memory_remaining_bytes=total - done,
                ),
            )
            await asyncio.sleep(self.step_s)
            if request.uuid in self._abort and self.honours_abort:
                del self._jobs[request.uuid]
                raise Unknown("libvirt: operation aborted: migration out job: canceled by client")
        self._jobs.pop(request.uuid, None)
        if self.migrate_error is not None:
            raise self.migrate_error
        if not self.leave_source:
            self.domains.pop(request.uuid, None)
            self.changes.tell(request.uuid)
        self._last[request.uuid] = MigrationProgress(memory_processed_bytes=total, downtime_ms=123)

    async def job(self, uuid: str) -> Job | None:
        if self.job_told is not None:
            await self.job_told.wait()
        if self.trouble is not None:
            raise Retryable(self.trouble)
        return self._jobs.get(uuid)

    async def last_job(self, uuid: str, *, wait_s: float) -> MigrationProgress | None:
        return self._last.get(uuid)

    async def abort(self, uuid: str) -> None:
        self.calls.append(f"abort {uuid}")
        self._abort.add(uuid)

    async def set_downtime(self, uuid: str, downtime_limit_ms: int) -> None:
        self.calls.append(f"downtime {uuid} {downtime_limit_ms}")

    async def destroy_incoming(self, uuid: str) -> None:
        self.calls.append(f"destroy {uuid}")
        self.set_state(uuid, DomainState.SHUTOFF, "destroyed")

    async def destroy_outgoing(self, uuid: str) -> None:
        self.calls.append(f"destroy outgoing {uuid}")
        facts = await self.facts(uuid)
        if (facts.state, facts.reason) != (DomainState.PAUSED, "migration"):
            raise Refused(f"domain {uuid} is {facts.state} ({facts.reason}) by now: it is not destroyed")
        self.set_state(uuid, DomainState.SHUTOFF, "destroyed")

    async def undefine(self, uuid: str) -> None:
        self.calls.append(f"undefine {uuid}")
        self.domains.pop(uuid, None)

    async def shutdown(self, uuid: str) -> None:
        self.calls.append(f"shutdown {uuid}")
        if uuid not in self.domains:
            raise Refused("no such domain")
        self.set_state(uuid, DomainState.SHUTOFF, "shutdown")

    async def move_definition(self, uuid: str, target_uri: str, target_address: str) -> None:
        self.calls.append(f"move {uuid} {target_uri} {target_address}")
        if self.cold_error is not None:
            raise self.cold_error
        if not self.leave_source:
            self.domains.pop(uuid, None)
            self.changes.tell(uuid)

    async def settle(self, uuid: str) -> None:
        self.calls.append(f"settle {uuid}")
        if self.cold_error is not None:
            raise self.cold_error
        if uuid not in self.domains:
            raise Retryable(f"libvirt: no domain with uuid {uuid}")

    async def start(self, uuid: str) -> None:
        self.calls.append(f"start {uuid}")
        if self.cold_error is not None:
            raise self.cold_error
        if not self.leave_source:
            self.set_state(uuid, DomainState.RUNNING, "booted")


@dataclass
class FakeDriver:
    """One kind of storage. `fail[(method, volume.name)]` is raised there; `block` holds every inspect."""

    fail: dict[tuple[str, str], Exception] = field(default_factory=dict)
    open_windows: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    held: tuple[Volume, ...] = ()
    block: asyncio.Event | None = None
    apart: tuple[str, ...] = ()  # why the replication is broken
    role: Role = Role.SECONDARY

    def _called(self, method: str, volume: Volume) -> None:
        self.calls.append(f"{method} {volume.name}")
        error = self.fail.get((method, volume.name))
        if error is not None:
            raise error

    async def volumes(self) -> tuple[Volume, ...]:
        return self.held

    async def reach(self, volume: Volume) -> tuple[str, ...]:
        self._called("reach", volume)
        return ()

    async def inspect(self, volume: Volume) -> VolumeReport:
        if self.block is not None:
            await self.block.wait()
        self._called("inspect", volume)
        return VolumeReport(
            volume=volume,
            role=self.role,
            health=Health.OK,
            identity=f"id of {volume.name}",
            size_bytes=MIB,
            dual_primary_allowed=volume.name in self.open_windows,
        )

    async def prepare(self, volume: Volume, handover: Handover) -> None:
        self._called("prepare", volume)

    async def open_window(self, volume: Volume, handover: Handover) -> WindowOptions | None:
        self._called("open", volume)
        self.open_windows.add(volume.name)
        return WindowOptions(volume=volume.name, allow_two_primaries=False)

    async def acquire(self, volume: Volume, handover: Handover) -> None:
        self._called("acquire", volume)

    async def reasons_apart(self, volume: Volume, handover: Handover) -> tuple[str, ...]:
        self._called("apart", volume)
        if self.block is not None:
            await self.block.wait()
        return self.apart

    async def release(self, volume: Volume, handover: Handover) -> None:
        self._called("release", volume)

    async def disconnect(self, volume: Volume) -> None:
        self._called("disconnect", volume)

    async def connect(self, volume: Volume) -> None:
        self._called("connect", volume)

    async def close_window(self, volume: Volume, handover: Handover, before: WindowOptions | None) -> None:
        self._called("close", volume)
        self.open_windows.discard(volume.name)


@dataclass
class FakeDiscover:
    """Every guest needs the same."""

    needs: Needs = field(default_factory=Needs)

    async def __call__(self, domain: DomainFull) -> Needs:
        return self.needs


@dataclass
class FakeInUse:
    """QEMU processes by domain."""

    running: set[str] = field(default_factory=set)

    async def __call__(self, domain_uuid: str) -> bool:
        return domain_uuid in self.running
