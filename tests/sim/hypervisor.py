"""libvirt of one host, as one life of its agent sees it. Implements agents.assembly.RunnableHypervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agents.hypervisor.words import (
    Changes,
    DomainFacts,
    DomainFull,
    HypervisorReport,
    Job,
    MigrateRequest,
)
from agents.protocol import DomainState, MigrationProgress
from storage.errors import Refused, Retryable, Unknown
from tests.sim.cold import Act
from tests.sim.host import CALL_S, Host
from tests.sim.world import Domain

LOCK_S = 30.0  # how long libvirt waits for the lock that a job holds
DOWN = "libvirt: Failed to connect socket to '/run/libvirt/libvirt-sock': Connection refused"


class SimHypervisor:
    def __init__(self, host: Host) -> None:
        self.changes = Changes()
        self._host = host
        self._last: dict[str, MigrationProgress] = {}
        host.machine.listeners.append(self._tell)

    @property
    def trouble(self) -> str | None:
        return None if self._host.machine.libvirt_up else DOWN

    async def run(self) -> None:
        """The connection comes back by itself."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing is held."""

    def _tell(self, uuid: str | None) -> None:
        if not self._host.life.dead:
            self.changes.tell(uuid)

    async def _call(self) -> None:
        slow = self._host.rng.random() < self._host.trouble.libvirt_slow
        await self._host.pause(3.0 if slow else CALL_S)
        if not self._host.machine.libvirt_up:
            raise Retryable(DOWN)

    def _domain(self, uuid: str) -> Domain | None:
        return self._host.machine.domains.get(uuid)

    def _facts(self, uuid: str) -> DomainFacts:
        domain = self._domain(uuid)
        if domain is None:
            return DomainFacts.absent(uuid)
        return DomainFacts(
            uuid=uuid,
            state=domain.state,
            reason=domain.reason,
            persistent=domain.persistent,
            job=bool(domain.job),
        )

    # -- reads -----------------------------------------------------------------------------------

    async def report(self) -> HypervisorReport:
        await self._call()
        domains = tuple(
            DomainFull(
                facts=self._facts(uuid),
                name=self._host.world.guests[uuid].name,
                autostart=uuid in self._host.world.autostart,
                live_xml="<domain/>",
                xml="<domain/>",
            )
            for uuid in sorted(self._host.machine.domains)
        )
        return HypervisorReport(
            cpu_xml="<cpu/>", arch="x86_64", versions={}, networks=("default",), domains=domains
        )

    async def facts(self, uuid: str) -> DomainFacts:
        await self._call()
        return self._facts(uuid)

    async def handing_over(self, uuid: str) -> bool:
        facts = await self.facts(uuid)
        return facts.state is DomainState.PAUSED and facts.reason == "migration"

    async def cpu_reasons(self, question: str) -> tuple[str, ...]:
        await self._call()
        return ()

    async def job(self, uuid: str) -> Job | None:
        await self._call()
        domain = self._domain(uuid)
        running = self._host.migrations.of(uuid, self._host.name)
        if domain is None or not domain.job or running is None:
            return None
        return Job(outgoing=domain.job == "out", progress=running.progress())

    async def last_job(self, uuid: str, *, wait_s: float) -> MigrationProgress | None:
        await self._host.pause(CALL_S)
        return self._last.get(uuid)

    # -- changes ---------------------------------------------------------------------------------

    async def migrate(self, request: MigrateRequest) -> None:
        await self._call()
        host, uuid = self._host, request.uuid
        target = request.target_uri.removeprefix("qemu+tls://").removesuffix("/system")
        domain = self._domain(uuid)
        if domain is None or not domain.process or domain.job:
            raise Refused("libvirt: Requested operation is not valid: domain is not running")
        if request.unwanted():
            raise Refused("aborted before it began")
        await host.act(f"migrate {uuid[-2:]}", lambda: self._begin(uuid, target))
        running = host.migrations.of(uuid, host.name)
        while running is not None and running.phase != "ended":
            await asyncio.sleep(0.1)
            if not host.machine.libvirt_up:
                raise Unknown("the connection to libvirt broke during the migration")
        if running is None:
            raise Unknown("libvirt: the migration is not known")
        if running.error is not None:
            raise running.error
        self._last[uuid] = MigrationProgress(
            elapsed_s=running.progress().elapsed_s, downtime_ms=running.downtime_ms
        )

    def _begin(self, uuid: str, target: str) -> str:
        self._host.world.touched(self._host.name, uuid, "migrate")
        self._host.migrations.begin(uuid, self._host.name, target)
        return ""

    async def abort(self, uuid: str) -> None:
        machine = self._host.machine
        machine.unheard_aborts += 1
        try:
            await self._call()
        finally:
            machine.unheard_aborts -= 1
            machine.heard_abort_s = asyncio.get_running_loop().time()
        running = self._host.migrations.of(uuid, self._host.name)
        if running is not None and running.source == self._host.name:
            await self._host.act(f"abort {uuid[-2:]}", running.abort)

    async def set_downtime(self, uuid: str, downtime_limit_ms: int) -> None:
        await self._call()

    async def destroy_incoming(self, uuid: str) -> None:
        await self._call()
        await self._host.act(f"destroy {uuid[-2:]}", lambda: self._destroy(uuid))

    def _destroy(self, uuid: str) -> str:
        self._host.world.touched(self._host.name, uuid, "destroy")
        host, domain = self._host, self._domain(uuid)
        if domain is None or domain.state is DomainState.SHUTOFF:
            return ""
        if domain.state is not DomainState.PAUSED_INCOMING:
            raise Refused(f"domain {uuid} is {domain.state} by now: it is not destroyed")
        running = host.migrations.of(uuid, host.name)
        host.world.end_process(host.name, uuid, keep=False, reason="destroyed")
        if running is not None:
            running.target_killed()
        return ""

    async def destroy_outgoing(self, uuid: str) -> None:
        await self._call()
        await self._host.act(f"destroy source {uuid[-2:]}", lambda: self._destroy_outgoing(uuid))

    def _destroy_outgoing(self, uuid: str) -> str:
        self._host.world.touched(self._host.name, uuid, "destroy the source")
        host, domain = self._host, self._domain(uuid)
        if domain is None or domain.state is DomainState.SHUTOFF:
            return ""
        if (domain.state, domain.reason) != (DomainState.PAUSED, "migration"):
            raise Refused(f"domain {uuid} is {domain.state} ({domain.reason}) by now: it is not destroyed")
        running = host.migrations.of(uuid, host.name)
        host.world.end_process(host.name, uuid, keep=domain.persistent, reason="destroyed")
        if running is not None:
            running.source_killed()
        return ""

    async def undefine(self, uuid: str) -> None:
        await self._call()
        await self._host.act(f"undefine {uuid[-2:]}", lambda: self._undefine(uuid))

    def _undefine(self, uuid: str) -> str:
        self._host.world.touched(self._host.name, uuid, "undefine")
        domain = self._domain(uuid)
        if self._leaves(uuid):
            raise Unknown("libvirt: Timed out during operation: cannot acquire state change lock")
        if domain is not None and domain.state is DomainState.SHUTOFF:
            del self._host.machine.domains[uuid]
            self._host.world.changed(self._host.name, f"{uuid[-2:]} is undefined", uuid=uuid)
        return ""

    async def move_definition(self, uuid: str, target_uri: str, target_address: str) -> None:
        target = target_uri.removeprefix("qemu+tls://").removesuffix("/system")
        cold = self._host.migrations.cold
        await self._act_on_shut_off(
            f"move {uuid[-2:]}", uuid, lambda: cold.move(uuid, self._host.name, target)
        )

    async def settle(self, uuid: str) -> None:
        await self._call()
        ends_s = asyncio.get_running_loop().time() + LOCK_S
        while self._host.migrations.cold.busy(self._host.name, uuid) or self._leaves(uuid):
            if asyncio.get_running_loop().time() >= ends_s:
                raise Retryable("libvirt: Timed out during operation: cannot acquire state change lock")
            await asyncio.sleep(0.1)
        if self._domain(uuid) is None:
            raise Retryable("libvirt: Domain not found")

    def _leaves(self, uuid: str) -> bool:
        running = self._host.migrations.of(uuid, self._host.name)
        return running is not None and running.source == self._host.name

    async def start(self, uuid: str) -> None:
        cold = self._host.migrations.cold
        await self._act_on_shut_off(f"start {uuid[-2:]}", uuid, lambda: cold.start(uuid, self._host.name))

    async def _act_on_shut_off(self, what: str, uuid: str, begin: Callable[[], Act]) -> None:
        """On a connection of its own, which may break: what comes of it is not known then."""
        host = self._host
        try:
            await self._call()
        except Retryable as error:
            raise Unknown(f"the connection to libvirt broke: {error}") from None
        begun: list[Act] = []

        def effect() -> str:
            domain = self._domain(uuid)  # looked at in the very thread that calls
            if domain is None:
                raise Refused(f"domain {uuid} is not on this host")
            if domain.state is not DomainState.SHUTOFF:
                raise Refused(f"domain {uuid} is {domain.state} ({domain.reason}), not shut off")
            if host.migrations.cold.busy(host.name, uuid):
                raise Unknown("libvirt: Timed out during operation: cannot acquire state change lock")
            host.world.on_cold_act(what.partition(" ")[0], host.name, uuid)
            begun.append(begin())
            return ""

        await host.act(what, effect)
        while not begun[0].ended:
            await asyncio.sleep(0.05)
            if not host.machine.libvirt_up:
                raise Unknown("the connection to libvirt broke")
        if begun[0].error is not None:
            raise begun[0].error

    async def shutdown(self, uuid: str) -> None:
        await self._call()
        domain = self._domain(uuid)
        if domain is None or not domain.process:
            raise Refused("libvirt: domain is not running")
        await self._host.act(f"shutdown {uuid[-2:]}", lambda: self._shutdown(uuid))

    def _shutdown(self, uuid: str) -> str:
        world = self._host.world
        world.touched(self._host.name, uuid, "shutdown")
        if uuid not in world.consented | world.excused | world.cold.asked:
            world.trace.violate("I5", f"{world.guests[uuid].name} is shut down without consent")
        domain = self._domain(uuid)
        if domain is None or domain.state is not DomainState.RUNNING:
            return ""
        if uuid in world.cold.asked or uuid in world.deaf:
            world.press_power_button(self._host.name, uuid)
        else:
            world.ask_to_stop(self._host.name, uuid)
        return ""
