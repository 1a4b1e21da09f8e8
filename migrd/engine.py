"""All operations of the daemon: begins them, recovers them, paces them, and carries out their commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from agents.protocol import MigrationProgress
from migrd import projection, saga
from migrd.acts import Acts, Patience, Superseded
from migrd.executor import JOURNAL_RETRY_S, Runner
from migrd.model import HostState
from migrd.operations import OperationState
from migrd.placement import Placement
from migrd.ports import AgentPort, Clock, JournalPort, JournalReadOnly, PowerPort, Row
from migrd.projection import Record
from migrd.sagas.commands import (
    Abort,
    Call,
    CancelChild,
    CheckHost,
    CheckPowerOff,
    Choose,
    Follow,
    Look,
    ReadPower,
    ResumeChild,
    SagaCommand,
    SetPower,
    StartMove,
    StopGuest,
    Survey,
)
from migrd.sagas.drain import DrainState
from migrd.sagas.events import (
    Admitted,
    CancelRequested,
    ChildEnded,
    ColdRequested,
    Event,
    MigrateRequested,
    PowerActed,
    PowerChecked,
    PowerRead,
    Recovered,
    Request,
    Resumed,
    Withdrawn,
)
from migrd.sagas.undrain import UndrainState
from migrd.slots import Caps, Slot, admit
from storage.errors import Refused

log = structlog.get_logger("migrd.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator fixes about the carrying out of moves."""

    caps: Caps = field(default_factory=Caps)
    patience: Patience = field(default_factory=Patience)
    downtime_limit_ms: int = 300  # QEMU's target for the switch-over
    bandwidth_bps: int | None = None  # bytes per second and move; None = no limit
    migrate_deadline_s: float = 3600.0  # a move that copies for longer is aborted


class Engine:
    """One event loop. `changed(record, row)` is told of every step; row None: progress only."""

    def __init__(
        self,
        *,
        agents: Mapping[str, AgentPort],
        journal: JournalPort,
        power: PowerPort,
        placement: Callable[[Engine], Placement],
        settings: Settings,
        clock: Clock,
        changed: Callable[[Record, Row | None], None],
        alarm: Callable[[str], None],
    ) -> None:
        self.records: dict[str, Record] = {}
        self.superseded = ""
        self.settings = settings
        self._journal = journal
        self._power = power
        self._clock = clock
        self._told = changed
        self._alarm = alarm
        self._acts = Acts(agents, epoch=journal.epoch, clock=clock, patience=settings.patience)
        self.placement = placement(self)
        self._open: dict[str, Record] = {}
        self._runners: dict[str, Runner] = {}
        self._admitted: set[str] = set()
        self._beginning = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None
        self._runner_tasks: set[asyncio.Task[None]] = set()
        self._administrative: dict[str, HostState] | None = None

    # -- life -------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Fold the journal. Raises JournalError or IllegalEvent if this version cannot follow it."""
        for row in await self._journal.load():
            record = self.records.get(row.operation)
            if record is None:
                assert isinstance(row.event, Request), f"{row.operation} begins with {row.event.kind}"
                state, _ = saga.start(row.operation, row.event)
                record = self._register(row.operation, row.event, state, row)
            else:
                record.state, _ = saga.step(record.state, row.event)
            record.note(row.at_s)
        self._open = {name: record for name, record in self._open.items() if not saga.ended(record.state)}
        self._administrative = None

    async def run(self) -> None:
        """Take up every open operation, and work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for record in self.open():
                self._spawn(record, ())
            for record in self.open():
                self.post(record.id, Recovered(epoch=self._journal.epoch))
            self._admit()
            await asyncio.Event().wait()

    def open(self) -> list[Record]:
        """Operations that have not ended, oldest first."""
        return list(self._open.values())

    async def begin(self, operation: str, request: Request, conflict: Callable[[], list[str]]) -> Record:
        """Journal the first row, then act. `conflict` is asked with nothing able to come in between.

        Raises Refused, JournalReadOnly.
        """
        async with self._beginning:
            reasons = conflict()
            if self._tasks is None:
                reasons.append("the daemon is starting: try again in a moment")
            if self.superseded:
                reasons.append(self.superseded)
            if reasons:
                raise Refused(*reasons)
            operation = operation or self._next_id()
            row = await self._journal.append(operation, request, self._clock.wall())
            state, commands = saga.start(operation, request)
            record = self._register(operation, request, state, row)
        if isinstance(request, MigrateRequested | ColdRequested):
            self.placement.release([request.guest])  # from here on it counts as in flight
        record.note(row.at_s)
        self._spawn(record, commands)
        self._changed(record, row)
        return record

    def _register(self, operation: str, request: Request, state: saga.SagaState, row: Row) -> Record:
        parent = request.parent if isinstance(request, MigrateRequested) else ""
        record = Record(id=operation, state=state, requested_at_s=row.at_s, seq=row.seq, parent=parent)
        self.records[operation] = self._open[operation] = record
        if parent in self.records:
            self.records[parent].children.append(operation)
        return record

    def _next_id(self) -> str:
        numbers = [int(name[3:]) for name in self.records if name[3:].isdigit()]
        return f"op-{max(numbers, default=0) + 1:06d}"

    def _spawn(self, record: Record, commands: tuple[SagaCommand, ...]) -> None:
        assert self._tasks is not None
        runner = Runner(
            record,
            commands,
            journal=self._journal,
            doer=self,
            clock=self._clock,
            changed=self._changed,
        )
        self._runners[record.id] = runner
        task = self._tasks.create_task(self._guarded(runner), name=record.id)
        self._runner_tasks.add(task)
        task.add_done_callback(self._runner_tasks.discard)

    async def _guarded(self, runner: Runner) -> None:
        try:
            await runner.run()
        except* Superseded as group:
            self._stand_down(str(group.exceptions[0]))
        finally:
            self._runners.pop(runner.record.id, None)

    def _stand_down(self, why: str) -> None:
        """Another daemon is master (I4): stop all work where it is; that one goes on by its own journal."""
        if self.superseded:
            return
        self.superseded = f"an agent obeys another, newer migrd: {why}"
        self._alarm(self.superseded)
        here = asyncio.current_task()
        for task in self._runner_tasks:
            if task is not here:
                task.cancel()

    # -- between operations -----------------------------------------------------------------------

    def post(self, operation: str, event: Event) -> None:
        runner = self._runners.get(operation)
        if runner is not None:
            runner.post(event)

    async def ask(self, operation: str, event: CancelRequested | Resumed) -> None:
        """A person's wish. Raises Refused when it makes no sense now."""
        runner = self._runners.get(operation)
        if runner is None:
            why = self.superseded or f"{operation} has ended"
            raise Refused(why)
        await runner.ask(event)

    def _changed(self, record: Record, row: Row | None) -> None:
        if row is not None:
            self._administrative = None
            ended = saga.ended(record.state)
            parent = self.records.get(record.parent)
            if parent is not None and parent.first_call_at_s is None:
                parent.first_call_at_s = record.first_call_at_s
            if ended:
                self._open.pop(record.id, None)
                self._admitted.discard(record.id)
            if ended or saga.parked(record.state):
                self._tell_parent(record)
            self._admit()
        self._told(record, row)

    def _tell_parent(self, record: Record) -> None:
        parent = self.records.get(record.parent)
        if parent is not None and not saga.ended(parent.state):
            self.post(parent.id, self._end_of(record))

    def _end_of(self, record: Record) -> ChildEnded:
        state = record.state
        target = state.request.target if isinstance(state, saga.MoveState) else ""
        return ChildEnded(
            child=record.id,
            state=projection.operation_state(state),
            target=target,
            reason="; ".join(state.reasons),
        )

    def moves(self) -> list[tuple[Record, saga.MoveState]]:
        """Every open move of a guest, live or cold."""
        return [(r, r.state) for r in self.open() if isinstance(r.state, saga.MoveState)]

    def administrative(self) -> Mapping[str, HostState]:
        """Draining, drained, off: what the journal says about hosts."""
        if self._administrative is None:
            self._administrative = projection.administrative(self.records.values())
        return self._administrative

    def _admit(self) -> None:
        """Let waiting moves begin as far as slots are free."""
        if self._tasks is None or self.superseded:
            return
        waiting, running = [], []
        for record, state in self.moves():
            slot = Slot(
                operation=record.id,
                group=record.parent or record.id,
                source=state.request.source,
                target=state.request.target,
                order=record.seq,
            )
            if saga.pending(state) and record.id not in self._admitted:
                decided = self.administrative().get(slot.target)
                if decided is None:
                    waiting.append(slot)
                else:
                    self._admitted.add(record.id)
                    self.post(record.id, Withdrawn(reason=f"{slot.target} is {decided} by now"))
            elif not saga.parked(state):
                running.append(slot)
        for operation in admit(waiting, running, self.settings.caps):
            self._admitted.add(operation)
            self.post(operation, Admitted())

    # -- commands ---------------------------------------------------------------------------------

    async def do(
        self, operation: str, command: SagaCommand, on_progress: Callable[[MigrationProgress], None]
    ) -> Event | None:
        """Carry out one command. Implements `migrd.executor.Doer`."""
        match command:
            case Call():
                return await self._acts.call(operation, command, on_progress)
            case Follow():
                return await self._acts.follow(operation, command, on_progress)
            case Look():
                return await self._acts.look(command)
            case StopGuest():
                return await self._acts.stop(operation, command)
            case Abort():
                await self._acts.abort(operation, command)
                return None
            case _:
                return await self._do_more(operation, command)

    async def _do_more(self, operation: str, command: SagaCommand) -> Event | None:  # noqa: PLR0911 - a table
        match command:
            case StartMove():
                return await self._start_move(operation, command)
            case CancelChild(child=child):
                self.post(child, CancelRequested())
                return None
            case ResumeChild(child=child):
                return self._resume_child(child)
            case Choose():
                return await self.placement.choose(command)
            case Survey(host=host):
                return await self.placement.survey(host)
            case CheckPowerOff(host=host):
                return await self.check_power_off(host)
            case CheckHost(host=host, number=number):
                return await self.placement.check_host(host, number)
            case SetPower(host=host, action=action):
                return PowerActed(action=action, reason=await self._power.switch(host, action))
            case ReadPower(host=host, number=number):
                return PowerRead(status=await self._power.status(host), number=number)
            case _:
                raise AssertionError(f"no hand for {type(command).__name__}")

    async def _start_move(self, parent: str, command: StartMove) -> Event | None:
        """The child's end comes by `_tell_parent`; here only what has ended, or cannot begin."""
        existing = self.records.get(command.child)
        if existing is not None:
            done = saga.ended(existing.state) or saga.parked(existing.state)
            return self._end_of(existing) if done else None
        while True:
            try:
                if self._cancelled(parent):
                    raise Refused("cancelled before it began")  # noqa: TRY301 - one way to say why not
                request = self.request(command.guest, command.source, command.target, parent)
                await self.begin(command.child, request, lambda: self.busy(command.guest))
            except Refused as error:
                return ChildEnded(
                    child=command.child,
                    state=OperationState.UNDONE,
                    target=command.target,
                    reason="; ".join(error.reasons),
                )
            except JournalReadOnly:
                await self._clock.sleep(JOURNAL_RETRY_S)
                continue
            if self._cancelled(parent):  # while its first row was being written
                self.post(command.child, CancelRequested())
            return None

    def _cancelled(self, operation: str) -> bool:
        state = self.records[operation].state
        return isinstance(state, DrainState | UndrainState) and state.cancelled

    def _resume_child(self, child: str) -> Event | None:
        record = self.records.get(child)
        if record is None or saga.ended(record.state):
            return None if record is None else self._end_of(record)
        self.post(child, Resumed(by="operator"))
        return None

    def request(
        self, guest: str, source: str, target: str, parent: str, asked: str | None = None
    ) -> MigrateRequested:
        """The first row of a move. Raises Refused when something about it is not known."""
        return self.placement.request(
            guest,
            source,
            target,
            parent=parent,
            asked_target=asked,
            downtime_limit_ms=self.settings.downtime_limit_ms,
            bandwidth_bps=self.settings.bandwidth_bps,
            deadline_s=self.settings.migrate_deadline_s,
        )

    def cold_request(self, guest: str, source: str, target: str, asked: str | None) -> ColdRequested:
        """The first row of a cold move, consent included (I5). Raises Refused when something is not known."""
        return self.placement.cold_request(guest, source, target, asked_target=asked, may_stop=True)

    async def check_power_off(self, host: str) -> PowerChecked:
        """I12: what the hosts report at this moment, and every open move from or to `host`.

        A move that is still preparing shows in no report, and can have brought its guest before the BMC acts.
        """
        seen = await self.placement.check_power_off(host)
        moving = tuple(
            f"{host}: {record.id} moves {state.request.name} from {state.request.source} to "
            f"{state.request.target}: see migrctl op show {record.id}"
            for record, state in self.moves()
            if host in (state.request.source, state.request.target)
        )
        return PowerChecked(reasons=(*seen.reasons, *moving))

    def busy(self, guest: str) -> list[str]:
        """Sequential per guest: why no other operation may begin on it now."""
        return [
            f"{record.id} works on {state.request.name}: see migrctl op show {record.id}"
            for record, state in self.moves()
            if state.request.guest == guest
        ]
