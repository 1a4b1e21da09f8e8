"""Begin attempts, remember them, answer for them: one at a time per guest, many guests at once.

The order is the invariant: the ledger holds an attempt before it begins and its outcome before it is
announced. A second submission of the same attempt answers with the first one, running or ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from agents.attempts.cold_steps import move_definition, settle, start
from agents.attempts.control import Control
from agents.attempts.domain_steps import shut_down, sweep, undefine
from agents.attempts.migration import Pace, adopt, migrate
from agents.attempts.outcomes import Ended, outcome_of
from agents.attempts.storage_steps import Drivers, replicas, run_storage
from agents.hypervisor.words import Hypervisor
from agents.ledger import DifferentCommandError, Ledger, LedgerError
from agents.protocol import (
    AcquireVolumes,
    Attempt,
    AttemptReport,
    AttemptResult,
    CloseWindow,
    ConnectReplicas,
    DisconnectReplicas,
    MigrateDomain,
    MigrationProgress,
    MoveDefinition,
    OpenWindow,
    Outcome,
    PrepareVolumes,
    ReleaseVolumes,
    SettleDomain,
    ShutdownDomain,
    StartDomain,
    SweepTarget,
    UndefineDomain,
)
from agents.streams.words import Streams
from storage.driver import InUse

Key = tuple[str, str, int]

log = structlog.get_logger()

LEDGER_RETRY_S = 5.0


class DomainBusyError(Exception):
    """Another attempt runs on this domain."""


class TooManyAttemptsError(Exception):
    """As many attempts as allowed run already."""


@dataclass(slots=True)
class Live:
    """An attempt that runs, or that ended and is not yet in the ledger."""

    attempt: Attempt
    began_s: float
    outcome: AttemptReport | None = None
    control: Control = field(default_factory=Control)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def report(self) -> AttemptReport:
        """Its outcome, or RUNNING with the latest figures."""
        if self.outcome is not None:
            return self.outcome
        return AttemptReport(
            operation=self.attempt.operation,
            step=self.attempt.step,
            attempt=self.attempt.attempt,
            outcome=Outcome.RUNNING,
            result=AttemptResult(progress=self.control.progress),
        )


OnEnd = Callable[[Attempt, AttemptReport, float], None]
"""Called with the attempt, its report and its duration in seconds."""


class Attempts:
    """`run()` must run beside it: attempts live in its TaskGroup."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        hypervisor: Hypervisor,
        drivers: Drivers,
        streams: Streams,
        in_use: InUse,
        on_end: OnEnd,
        attempts_max: int = 16,
        migrations_max: int = 8,
        storage_deadline_s: float = 180.0,
        pace: Pace | None = None,
    ) -> None:
        self._ledger = ledger
        self._hypervisor = hypervisor
        self._drivers = drivers
        self._streams = streams
        self._in_use = in_use
        self._on_end = on_end
        self._attempts_max = attempts_max
        self._migrations_max = migrations_max
        self._storage_deadline_s = storage_deadline_s
        self._pace = pace or Pace()
        self._live: dict[Key, Live] = {}
        self._submitting = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None
        self._closing = False

    async def run(self, ready: asyncio.Event) -> None:
        """Adopt what a former life left running, set `ready`, and hold the attempts until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for attempt in await self._ledger.running():
                self._start(tasks, attempt, adopted=True)
            self._tasks = tasks
            ready.set()
            await asyncio.Event().wait()

    @property
    def running(self) -> tuple[Attempt, ...]:
        """Attempts that have not ended."""
        return tuple(live.attempt for live in self._live.values() if not live.ended.is_set())

    @property
    def migrations(self) -> tuple[tuple[str, MigrationProgress | None], ...]:
        """(domain uuid, latest progress) of the migrations that run."""
        return tuple(
            (live.attempt.command.uuid, live.report.result.progress)
            for live in self._live.values()
            if isinstance(live.attempt.command, MigrateDomain) and not live.ended.is_set()
        )

    async def submit(self, attempt: Attempt, wait_s: float = 0.0) -> AttemptReport:
        """Begin it, or answer with the one begun before; as it stands after its end or after `wait_s`.

        Raises StaleEpochError, DifferentCommandError, DomainBusyError, TooManyAttemptsError, LedgerError:
        then nothing was begun.
        """
        report = await self._begin(attempt)
        live = self._live.get(_key(attempt))
        if live is None or wait_s <= 0:
            return report
        return await _until_end(live, wait_s)

    async def _begin(self, attempt: Attempt) -> AttemptReport:
        async with self._submitting:
            await self._ledger.obey(attempt.epoch)
            live = self._live.get(_key(attempt))
            if live is not None:
                if live.attempt.command != attempt.command:
                    raise DifferentCommandError(f"attempt {_name(attempt)} was for another command")
                return live.report
            known = await self._ledger.find(*_key(attempt))
            if known is None:
                self._check_room(attempt)
            admission = await self._ledger.admit(attempt)
            if not admission.fresh:
                return admission.report
            if self._tasks is None:
                raise LedgerError("the agent is not ready yet")
            return self._start(self._tasks, attempt, adopted=False).report

    async def wait(self, key: Key, wait_s: float) -> AttemptReport | None:
        """The attempt, after its end or after `wait_s`. Raises LedgerError.

        None if it was never seen, and then it never begins either: whoever asks goes on, believing so.
        """
        live = self._live.get(key)
        if live is None:
            return await self._ledger.disown(*key)
        return await _until_end(live, wait_s)

    async def abort(self, key: Key, epoch: int) -> AttemptReport | None:
        """Ask it to stop. Migrations and shutdowns listen; storage commands are short and run to their end.

        Raises StaleEpochError, LedgerError.
        """
        return await self._signal(key, epoch, lambda control: control.abort)

    async def destroy_source(self, key: Key, epoch: int) -> AttemptReport | None:
        """The guest was seen to run on the target. Only a migration listens.

        Raises StaleEpochError, LedgerError.
        """
        return await self._signal(key, epoch, lambda control: control.destroy_source)

    async def drain(self, grace_s: float) -> None:
        """Begin nothing more; wait for the short commands. Migrations go on without us and are adopted."""
        self._closing = True
        ends = [
            live.ended.wait()
            for live in self._live.values()
            if not isinstance(live.attempt.command, MigrateDomain | ShutdownDomain)
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await asyncio.gather(*ends)

    # -- inside ----------------------------------------------------------------------------------

    async def _signal(
        self, key: Key, epoch: int, event: Callable[[Control], asyncio.Event]
    ) -> AttemptReport | None:
        await self._ledger.obey(epoch)
        live = self._live.get(key)
        if live is None:
            return await self._ledger.find(*key)
        event(live.control).set()
        return live.report

    def _check_room(self, attempt: Attempt) -> None:
        if self._closing or self._tasks is None:
            raise TooManyAttemptsError("the agent is starting or stopping")
        running = self.running
        domain = domain_of(attempt)
        for other in running:
            if domain_of(other) == domain:
                raise DomainBusyError(f"domain {domain}: attempt {_name(other)} runs on it")
        if len(running) >= self._attempts_max:
            raise TooManyAttemptsError(f"{self._attempts_max} attempts run on this host already")
        if isinstance(attempt.command, MigrateDomain) and len(self.migrations) >= self._migrations_max:
            raise TooManyAttemptsError(f"{self._migrations_max} migrations leave this host already")

    def _start(self, tasks: asyncio.TaskGroup, attempt: Attempt, *, adopted: bool) -> Live:
        key = _key(attempt)
        live = self._live[key] = Live(attempt, _now())
        tasks.create_task(self._carry_out(key, live, adopted=adopted), name=f"attempt {_name(attempt)}")
        return live

    async def _carry_out(self, key: Key, live: Live, *, adopted: bool) -> None:
        with structlog.contextvars.bound_contextvars(operation=key[0], step=key[1], attempt=key[2]):
            log.info("attempt begins", kind=live.attempt.command.kind, adopted=adopted)
            try:
                ended = await (self._adopt(live) if adopted else self._do(live))
            except Exception as error:  # its outcome is Unknown whatever it was
                outcome, reasons = outcome_of(error)
                ended = Ended(outcome=outcome, reasons=reasons, result=live.report.result)
                if reasons and reasons[0].startswith("internal error"):
                    log.exception("attempt failed by a bug")
            report = replace(live.report, outcome=ended.outcome, reasons=ended.reasons, result=ended.result)
            await self._end(key, live, report)

    async def _end(self, key: Key, live: Live, report: AttemptReport) -> None:
        """The outcome goes to the ledger first. If it cannot, it is told all the same and written later:
        after a crash in between the answer is UNKNOWN, which is true."""
        written = await self._written(report)
        live.outcome = report
        live.ended.set()
        took_s = _now() - live.began_s
        log.info("attempt ended", outcome=report.outcome, reasons=report.reasons, took_s=round(took_s, 3))
        self._on_end(live.attempt, report, took_s)
        while not written:
            await asyncio.sleep(LEDGER_RETRY_S)
            written = await self._written(report)
        del self._live[key]

    async def _written(self, report: AttemptReport) -> bool:
        try:
            await self._ledger.finish(report)
        except LedgerError as error:
            log.error("the ledger does not take an outcome", error=str(error))  # noqa: TRY400 - its text says all
            return False
        return True

    async def _adopt(self, live: Live) -> Ended:
        command = live.attempt.command
        if isinstance(command, MigrateDomain):
            return await self._follow(command, live.control, "the agent restarted while this migration ran")
        return Ended(outcome=Outcome.UNKNOWN, reasons=("the agent restarted while this ran",))

    async def _follow(self, command: MigrateDomain, control: Control, why: str) -> Ended:
        if command.unwanted:
            control.abort.set()
        return await adopt(
            command,
            self._hypervisor,
            self._drivers,
            self._streams,
            control=control,
            pace=self._pace,
            why=why,
        )

    async def _do(self, live: Live) -> Ended:  # noqa: PLR0911 - a table
        match live.attempt.command:
            case MigrateDomain(under_way=True) as command:
                return await self._follow(command, live.control, "this migration was taken up on its way")
            case MigrateDomain() as command:
                return await migrate(
                    command,
                    self._hypervisor,
                    self._drivers,
                    self._streams,
                    control=live.control,
                    pace=self._pace,
                )
            case SweepTarget() as command:
                return await sweep(command, self._hypervisor)
            case UndefineDomain() as command:
                return await undefine(command, self._hypervisor, self._in_use)
            case ShutdownDomain() as command:
                return await shut_down(command, self._hypervisor, live.control)
            case MoveDefinition() as command:
                return await move_definition(command, self._hypervisor, self._in_use)
            case SettleDomain() as command:
                return await settle(command, self._hypervisor)
            case StartDomain() as command:
                return await start(command, self._hypervisor, self._drivers, self._in_use)
            case DisconnectReplicas() | ConnectReplicas() as command:
                return await replicas(command, self._drivers, deadline_s=self._storage_deadline_s)
            case (
                PrepareVolumes()
                | OpenWindow()
                | AcquireVolumes()
                | ReleaseVolumes()
                | CloseWindow() as command
            ):
                return await run_storage(command, self._drivers, deadline_s=self._storage_deadline_s)


async def _until_end(live: Live, wait_s: float) -> AttemptReport:
    """Its report after its end, or after `wait_s`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await live.ended.wait()
    return live.report


def domain_of(attempt: Attempt) -> str:
    """UUID of the guest an attempt is about; "" for the host itself."""
    match attempt.command:
        case (
            MigrateDomain(uuid=uuid)
            | SweepTarget(uuid=uuid)
            | UndefineDomain(uuid=uuid)
            | ShutdownDomain(uuid=uuid)
            | MoveDefinition(uuid=uuid)
            | SettleDomain(uuid=uuid)
        ):
            return uuid
        case DisconnectReplicas() | ConnectReplicas():
            return ""  # the host itself: one of them at a time
        case _:
            return attempt.command.handover.domain_uuid


def touched_kinds(attempt: Attempt, drivers: Drivers) -> frozenset[str]:
    """Kinds of volumes that look different after this attempt.

    A guest that was stopped gives its disks up by itself, whatever they are. One that migrated does so, too,
    but is followed by the storage step that says so.
    """
    match attempt.command:
        case MigrateDomain() | MoveDefinition() | SettleDomain() | UndefineDomain():
            return frozenset()
        case SweepTarget() | ShutdownDomain() | StartDomain() | DisconnectReplicas() | ConnectReplicas():
            return frozenset(drivers)
        case _:
            return frozenset(volume.kind for volume in attempt.command.volumes)


def _key(attempt: Attempt) -> Key:
    return attempt.operation, attempt.step, attempt.attempt


def _name(attempt: Attempt) -> str:
    return "/".join(map(str, _key(attempt)))


def _now() -> float:
    return asyncio.get_running_loop().time()
