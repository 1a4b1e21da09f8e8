"""An agent of the fake world: does what it is told, keeps a ledger, obeys the newest epoch (I4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from agents.client import AttemptNotSeen, StaleEpoch
from agents.protocol import (
    AcquireVolumes,
    Attempt,
    AttemptReport,
    AttemptResult,
    CloseWindow,
    ConnectReplicas,
    DisconnectReplicas,
    DomainState,
    HostReport,
    MigrateDomain,
    MigrationProgress,
    MoveDefinition,
    Observation,
    Observe,
    OpenWindow,
    Outcome,
    Preflight,
    PreflightReport,
    PrepareVolumes,
    ReleaseVolumes,
    SettleDomain,
    ShutdownDomain,
    StartDomain,
    SweepTarget,
    UndefineDomain,
)
from storage.errors import Retryable, Unknown
from storage.words import IscsiQemuVolume, IscsiVolume, Side, VolumeReport, WindowOptions
from tests.core.fake_world import RUNS, World

Key = tuple[str, str, int]
Did = tuple[Outcome, tuple[str, ...], AttemptResult]
DONE: Did = (Outcome.DONE, (), AttemptResult())


class FakeAgent:
    """Implements AgentPort. Story hooks: `script` outcomes per step, `lose_reply`, `before`."""

    def __init__(self, world: World, host: str) -> None:
        self.world = world
        self.host = host
        self.epoch = 0
        self.ledger: dict[Key, AttemptReport] = {}
        self.tasks: dict[Key, asyncio.Task[None]] = {}
        self.script: dict[str, list[Outcome]] = {}  # step -> outcomes instead of doing it
        self.lose_reply: dict[str, int] = {}  # step -> how many replies get lost, though it is done
        self.before: dict[str, Callable[[], None]] = {}  # step -> what happens just before it is done
        self.seen: list[Attempt] = []
        self.seen_volumes: tuple[VolumeReport, ...] | None = None  # by the last look, if it is an older one

    # -- RPC --------------------------------------------------------------------------------------

    def _reach(self) -> None:
        if not self.world.machines[self.host].agent:
            raise Retryable(f"{self.host}: connection refused")

    async def report(self, *, storage: bool = False) -> HostReport:
        await asyncio.sleep(0.001)
        self._reach()
        report = self.world.report(self.host)
        if storage or self.seen_volumes is None:
            return report
        return replace(report, volumes=self.seen_volumes)

    async def preflight(self, question: Preflight) -> PreflightReport:
        await asyncio.sleep(0.001)
        self._reach()
        return PreflightReport(
            cpus=tuple(() for _ in question.cpus), volumes=tuple(() for _ in question.volumes)
        )

    async def observe(self, question: Observe) -> Observation:
        await asyncio.sleep(0.001)
        self._reach()
        machine = self.world.machines[self.host]
        domain = machine.domains.get(question.uuid)
        return Observation(
            uuid=question.uuid,
            state=domain.state if domain is not None else DomainState.ABSENT,
            reason="unknown",
            persistent=domain is not None,
            qemu_process=domain is not None and domain.process,
            job=domain is not None and domain.job,
            volumes=tuple(
                self.world.volume(self.host, volume)
                for volume in question.volumes
                if volume.name in machine.held
            ),
        )

    async def submit(self, attempt: Attempt, wait_s: float = 0.0) -> AttemptReport:
        await asyncio.sleep(0.001)
        self._reach()
        if attempt.epoch < self.epoch:
            stale = f"{self.host} obeys epoch {self.epoch}, this is {attempt.epoch}"
            raise StaleEpoch(stale, highest=self.epoch)
        self.epoch = attempt.epoch
        key = (attempt.operation, attempt.step, attempt.attempt)
        if key not in self.ledger:
            uuid = _uuid_of(attempt)
            for other, task in self.tasks.items():
                if not task.done() and _name(other[0]) == _name(attempt.operation):
                    raise Retryable(f"{self.host}: {other[1]}/{other[2]} still runs on {uuid}")
            self.seen.append(attempt)
            self.ledger[key] = AttemptReport(
                operation=key[0], step=key[1], attempt=key[2], outcome=Outcome.RUNNING
            )
            self.tasks[key] = asyncio.get_running_loop().create_task(self._do(key, attempt))
        if self.lose_reply.get(attempt.step, 0) > 0:
            self.lose_reply[attempt.step] -= 1
            raise Unknown(f"{self.host}: the reply was lost")
        try:
            return await self._until_end(key, wait_s)
        except Retryable as error:  # it died while the submission waited: that reply is lost, too
            raise Unknown(*error.reasons) from None

    async def wait(self, operation: str, step: str, attempt: int, wait_s: float = 30.0) -> AttemptReport:
        await asyncio.sleep(0.001)
        self._reach()
        key = (operation, step, attempt)
        if key not in self.ledger:
            raise AttemptNotSeen(f"{self.host} has no record of {step}/{attempt}")
        return await self._until_end(key, wait_s)

    async def _until_end(self, key: tuple[str, str, int], wait_s: float) -> AttemptReport:
        until_s = asyncio.get_running_loop().time() + wait_s
        while self.ledger[key].outcome is Outcome.RUNNING and asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(0.02)
            self._reach()
        return self.ledger[key]

    async def abort(self, operation: str, step: str, attempt: int, *, epoch: int) -> AttemptReport:
        await asyncio.sleep(0.001)
        self._reach()
        if epoch < self.epoch:
            raise StaleEpoch(f"{self.host} obeys epoch {self.epoch}, this is {epoch}")
        key = (operation, step, attempt)
        if key not in self.ledger:
            raise AttemptNotSeen(f"{self.host} has no record of {step}/{attempt}")
        self.world.trace.append(f"{self.host} is asked to abort {step}/{attempt}")
        for uuid, copying in self.world.copying.items():
            domain = self.world.machines[self.host].domains.get(uuid)
            if domain is not None and domain.job and domain.state in RUNS:
                copying.cancel()
        return self.ledger[key]

    async def destroy_source(self, operation: str, step: str, attempt: int, *, epoch: int) -> AttemptReport:
        """No answer of libvirt's is ever lost in this world, so there is nothing to be ended."""
        self.world.violate(f"I5: {self.host} is told to end the source of {step}/{attempt}")
        raise AttemptNotSeen(f"{self.host} has no record of {step}/{attempt}")

    # -- doing ------------------------------------------------------------------------------------

    async def _do(self, key: Key, attempt: Attempt) -> None:
        await asyncio.sleep(0.05)
        scripted = self.script.get(attempt.step)
        if attempt.step in self.before:
            self.before.pop(attempt.step)()
        if not self.world.machines[self.host].agent:
            self.ledger[key] = _ended(key, Outcome.UNKNOWN, ("the agent died",), AttemptResult())
            return
        if scripted:
            outcome = scripted.pop(0)
            self.ledger[key] = _ended(
                key, outcome, (f"{attempt.step} was told to end {outcome}",), AttemptResult()
            )
            return
        try:
            outcome, reasons, result = await self._carry_out(attempt)
        except Exception as error:
            self.world.violate(f"{self.host} broke at {attempt.step}: {error!r}")
            raise
        self.ledger[key] = _ended(key, outcome, reasons, result)

    async def _carry_out(self, attempt: Attempt) -> Did:
        world, host = self.world, self.host
        match attempt.command:
            case PrepareVolumes(volumes=volumes, handover=handover):
                for volume in volumes:
                    if handover.side is Side.TARGET and isinstance(volume, IscsiVolume | IscsiQemuVolume):
                        world.promote(host, volume)
                return Outcome.DONE, (), AttemptResult(volumes=tuple(world.volume(host, v) for v in volumes))
            case OpenWindow(volumes=volumes):
                before = tuple(
                    WindowOptions(
                        volume=v.name,
                        allow_two_primaries=world.machines[host].held[v.name].dual_primary,
                    )
                    for v in volumes
                )
                for volume in volumes:
                    world.allow_two(host, volume, allowed=True)
                return Outcome.DONE, (), AttemptResult(before=before)
            case AcquireVolumes(volumes=volumes):
                reasons = tuple(why for v in volumes if (why := world.promote(host, v)))
                return (Outcome.FAILED, reasons, AttemptResult()) if reasons else DONE
            case ReleaseVolumes(volumes=volumes):
                for volume in volumes:
                    world.let_go(host, volume)
                return DONE
            case CloseWindow(volumes=volumes, before=before):
                was = {each.volume: each.allow_two_primaries for each in before}
                reasons = tuple(
                    why for v in volumes if (why := world.allow_two(host, v, allowed=was.get(v.name, False)))
                )
                return (Outcome.REFUSED, reasons, AttemptResult()) if reasons else DONE
            case DisconnectReplicas() | ConnectReplicas():
                connected = isinstance(attempt.command, ConnectReplicas)
                (world.away.discard if connected else world.away.add)(host)
                world.trace.append(f"{host}: {attempt.command.kind}")
                return DONE
            case MigrateDomain():
                return await self._migrate(attempt.command)
            case SweepTarget(uuid=uuid):
                return self._sweep(uuid)
            case UndefineDomain(uuid=uuid):
                self.world.violate(f"I5: {host} is to undefine {uuid}, and no answer of libvirt's was lost")
                return DONE
            case ShutdownDomain(uuid=uuid) if attempt.step == "shutdown":
                return await self._power_button(uuid, attempt.command.deadline_s)
            case ShutdownDomain(uuid=uuid):
                return self._shutdown(uuid)
            case MoveDefinition(uuid=uuid, target_uri=uri):
                return await self._move_definition(uuid, uri)
            case SettleDomain(uuid=uuid):
                if uuid in world.machines[host].domains:
                    return DONE
                return Outcome.RETRYABLE, (f"{uuid} is not defined on {host}",), AttemptResult()
            case StartDomain(handover=handover):
                return self._start(handover.domain_uuid)

    async def _migrate(self, command: MigrateDomain) -> Did:
        target = command.target_uri.removeprefix("qemu+tls://").removesuffix("/system")
        domain = self.world.machines[self.host].domains.get(command.uuid)
        if domain is None or domain.state not in RUNS:
            return Outcome.FAILED, ("the guest does not run here",), AttemptResult()
        work = asyncio.get_running_loop().create_task(self.world.migrate(command.uuid, self.host, target))
        self.world.copying[command.uuid] = work
        await asyncio.wait([work])  # cancelling the attempt leaves the migration alone
        if not self.world.machines[self.host].agent:
            return Outcome.UNKNOWN, ("the agent restarted while it ran",), AttemptResult()
        if work.cancelled():
            return Outcome.FAILED, ("the migration was aborted",), AttemptResult()
        error = work.result()
        if error:
            return Outcome.FAILED, (error,), AttemptResult()
        return Outcome.DONE, (), AttemptResult(progress=MigrationProgress(downtime_ms=100))

    def _sweep(self, uuid: str) -> Did:
        machine = self.world.machines[self.host]
        domain = machine.domains.pop(uuid, None)
        if domain is not None and domain.ran and domain.process:
            self.world.violate(f"I5: {self.host} swept a guest that has run there")
        self.world.check(f"{self.host} is swept of {self.world.guests[uuid].name}")
        return DONE

    async def _power_button(self, uuid: str, deadline_s: float) -> Did:
        """A guest asked to shut down does so after a while, also when this agent has died meanwhile."""
        world, machine = self.world, self.world.machines[self.host]
        world.catch_up()
        if uuid not in world.consented:
            world.violate(f"I5: {world.guests[uuid].name} is shut down without consent")
        world.trace.append(f"{world.guests[uuid].name} is asked to shut down on {self.host}")
        domain = machine.domains.get(uuid)
        if domain is None or not domain.process:
            return DONE
        if uuid in world.deaf:
            await asyncio.sleep(deadline_s)
            ignored = ("the guest was asked to shut down and is still running",)
            return Outcome.UNKNOWN, ignored, AttemptResult()

        def off() -> None:
            if machine.powered and machine.domains.get(uuid) is domain:
                world.stop_guest(self.host, uuid)

        asyncio.get_running_loop().call_later(world.shutdown_s, off)
        await asyncio.sleep(world.shutdown_s + 0.1)
        return DONE

    async def _move_definition(self, uuid: str, target_uri: str) -> Did:
        domain = self.world.machines[self.host].domains.get(uuid)
        if domain is None or domain.state is not DomainState.SHUTOFF:
            return Outcome.REFUSED, (f"{uuid} is not shut off here",), AttemptResult()
        target = target_uri.removeprefix("qemu+tls://").removesuffix("/system")
        error = await self.world.move_definition(uuid, self.host, target)
        return (Outcome.UNKNOWN, (error,), AttemptResult()) if error else DONE

    def _start(self, uuid: str) -> Did:
        domain = self.world.machines[self.host].domains.get(uuid)
        if domain is None or domain.state is not DomainState.SHUTOFF:
            if domain is not None and domain.state in RUNS:
                return DONE
            return Outcome.REFUSED, (f"{uuid} is not shut off here",), AttemptResult()
        error = self.world.start_guest(self.host, uuid)
        return (Outcome.FAILED, (error,), AttemptResult()) if error else DONE

    def _shutdown(self, uuid: str) -> Did:
        self.world.catch_up()
        if uuid not in self.world.consented:
            self.world.violate(f"I5: {self.world.guests[uuid].name} is shut down without consent")
        domain = self.world.machines[self.host].domains.get(uuid)
        if domain is not None:
            domain.state, domain.process, domain.ran = DomainState.SHUTOFF, False, True
        self.world.check(f"{self.world.guests[uuid].name} is shut down on {self.host}")
        return DONE

    # -- faults -----------------------------------------------------------------------------------

    def kill(self) -> None:
        """kill -9 of the agent. Migrations are peer-to-peer: they go on."""
        self.world.machines[self.host].agent = False
        self.world.trace.append(f"agent of {self.host} is killed")

    def restart(self) -> None:
        """What ran when it died: unknown, unless a migration's job still runs, which it follows."""
        for key, report in self.ledger.items():
            task = self.tasks[key]
            if report.outcome is Outcome.RUNNING and (key[1] != "migrate" or task.done()):
                task.cancel()
                self.ledger[key] = _ended(key, Outcome.UNKNOWN, ("the agent restarted",), AttemptResult())
        self.world.machines[self.host].agent = self.world.machines[self.host].powered
        self.world.trace.append(f"agent of {self.host} is back")


def _ended(key: Key, outcome: Outcome, reasons: tuple[str, ...], result: AttemptResult) -> AttemptReport:
    return AttemptReport(
        operation=key[0], step=key[1], attempt=key[2], outcome=outcome, reasons=reasons, result=result
    )


def _uuid_of(attempt: Attempt) -> str:
    command = attempt.command
    if isinstance(command, MigrateDomain | SweepTarget | UndefineDomain | ShutdownDomain):
        return command.uuid
    if isinstance(command, MoveDefinition | SettleDomain):
        return command.uuid
    if isinstance(command, DisconnectReplicas | ConnectReplicas):
        return ""
    return command.handover.domain_uuid


def _name(operation: str) -> str:
    """Without the life: an agent runs one attempt per guest, whoever issued it."""
    return operation.partition("@")[0]
