"""All operations of the daemon: begins them, recovers them, paces them, and carries out their commands."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TypeVar

import structlog

from agents.protocol import MigrationProgress
from migrd import projection, retention, roster, saga
from migrd.acts import Acts, Patience, Superseded
from migrd.admission import Admission
from migrd.executor import ANSWER_S, JOURNAL_RETRY_S, Runner
from migrd.host_config import HostConfig
from migrd.lives import Lives, outdated
from migrd.model import HostState
from migrd.operations import OperationState
from migrd.placement import Placement
from migrd.ports import AgentPort, Clock, JournalError, JournalPort, JournalReadOnly, PowerPort, Row
from migrd.projection import Record
from migrd.sagas.commands import (
    Abort,
    Call,
    CancelChild,
    CheckHost,
    CheckPowerOff,
    Choose,
    DestroySource,
    Follow,
    IllegalEvent,
    Look,
    LookAtSwitchOver,
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
    HostAdded,
    HostRemoved,
    MigrateRequested,
    PowerActed,
    PowerChecked,
    PowerRead,
    Recovered,
    Request,
    Resumed,
    Surveyed,
    Withdrawn,
)
from migrd.sagas.roster import RosterState
from migrd.sagas.undrain import UndrainState
from migrd.slots import Caps
from storage.errors import Refused, Unknown

T = TypeVar("T")

log = structlog.get_logger("migrd.engine")

TIDY_AT_ONCE = 50  # operations per transaction: rows never wait long behind the tidying


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator fixes about the carrying out of moves."""

    caps: Caps = field(default_factory=Caps)
    patience: Patience = field(default_factory=Patience)
    downtime_limit_ms: int = 300  # QEMU's target for the switch-over
    bandwidth_bps: int | None = None  # bytes per second and move; None = no limit
    migrate_deadline_s: float = 3600.0  # a move that copies for longer is aborted
    keep: retention.Keep = field(default_factory=retention.Keep)


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
        self._acts = Acts(agents, power=power, epoch=journal.epoch, clock=clock, patience=settings.patience)
        self.placement = placement(self)
        self.added: dict[str, HostConfig] = {}  # hosts that are not in migrd.toml
        self._open: dict[str, Record] = {}
        self._runners: dict[str, Runner] = {}
        self._deciding: dict[str, Record] = {}  # operations that say something about hosts
        self._admission = Admission(settings.caps)
        self._host_acts = itertools.count(1)
        self._beginning = asyncio.Lock()
        self._asked: set[asyncio.Task[Record]] = set()  # what people wait for, and what came of their waiting
        self._tasks: asyncio.TaskGroup | None = None
        self._runner_tasks: set[asyncio.Task[None]] = set()
        self._administrative: dict[str, HostState] | None = None
        self._lives = Lives(journal)

    # -- life -------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Fold the journal. Raises JournalError if this version cannot follow it."""
        for record in await self._journal.ended():
            self.records[record.id] = record
            if not isinstance(record.state, saga.MoveState):
                self._deciding[record.id] = record
        for row in await self._journal.load(skip=frozenset(self.records)):
            found = self.records.get(row.operation)
            try:
                if found is None:
                    if not isinstance(row.event, Request):
                        raise IllegalEvent(f"begins with {row.event.kind}")  # noqa: TRY301 - one way out
                    state, commands = saga.start(row.operation, row.event)
                    found = self._register(row.operation, row.event, state, row)
                else:
                    found.state, commands = saga.step(found.state, row.event)
            except IllegalEvent as error:
                raise JournalError(
                    f"journal row {row.seq} of {row.operation} does not follow from those before: {error}; "
                    "rows are missing or altered, or another version of migrd wrote them: start that one, "
                    "or put a backup of the journal in its place"
                ) from None
            found.note(row.at_s)
            self._lives.issued(row, commands)
        self._open = {name: record for name, record in self._open.items() if not saga.ended(record.state)}
        self._lives.forget(name for name in self.records if name not in self._open)
        self.records = dict(sorted(self.records.items(), key=lambda item: item[1].seq))
        self._deciding = {name: record for name, record in self.records.items() if name in self._deciding}
        self.added = {}
        for record in self.records.values():
            self._join(record)
            if isinstance(record.state, RosterState):
                self.added = roster.after(self.added, record.state.request)
        self._administrative = None
        self._admission = Admission(self.settings.caps)  # folding showed it states that are over
        for record in self.open():
            self._admission.note(record)

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

    async def begin(self, request: Request, conflict: Callable[[], list[str]]) -> Record:
        """What a person asks for, who waits at most ANSWER_S. Raises Refused, JournalReadOnly.

        Raises Unknown if its first row is being written to a disk that hangs. That goes on, and if the row
        becomes durable the operation begins: memory must not lack what the journal has.
        """
        beginning = asyncio.create_task(self._begin("", request, conflict), name=f"begin {request.kind}")
        self._asked.add(beginning)
        beginning.add_done_callback(self._asked.discard)
        try:
            await asyncio.wait({beginning}, timeout=ANSWER_S)
        finally:
            if not beginning.done():
                beginning.add_done_callback(_began_late)
        if not beginning.done():
            raise Unknown(
                "the journal does not answer, and it may still begin: "
                "look with migrctl ops before you ask again"
            )
        return beginning.result()

    async def _begin(self, operation: str, request: Request, conflict: Callable[[], list[str]]) -> Record:
        """Journal the first row, then act. `conflict` is asked with nothing able to come in between.

        Raises Refused, JournalReadOnly.
        """
        if self._beginning.locked() and self._journal.read_only:
            raise JournalReadOnly(self._journal.read_only)  # what holds the lock may hold it for as long
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
            self._join(record)
        if isinstance(request, MigrateRequested | ColdRequested):
            self.placement.release([request.guest])  # from here on it counts as in flight
        record.note(row.at_s)
        self._spawn(record, commands)
        self._changed(record, row)
        self._admit()
        return record

    def _register(self, operation: str, request: Request, state: saga.SagaState, row: Row) -> Record:
        parent = request.parent if isinstance(request, MigrateRequested) else ""
        record = Record(id=operation, state=state, requested_at_s=row.at_s, seq=row.seq, parent=parent)
        self.records[operation] = self._open[operation] = record
        if not isinstance(state, saga.MoveState):
            self._deciding[operation] = record
        self._admission.note(record)
        if isinstance(request, HostAdded | HostRemoved):
            self.added = roster.after(self.added, request)
        return record

    def _join(self, record: Record) -> None:
        """What a parent knows of its children."""
        parent = self.records.get(record.parent)
        if parent is None:
            return
        parent.children.append(record.id)
        if parent.first_call_at_s is None:
            parent.first_call_at_s = record.first_call_at_s

    def _next_id(self) -> str:
        return f"op-{max(map(retention.number, self.records), default=0) + 1:06d}"

    async def tidy(self) -> None:
        """Forget what `retention` lets go, in the journal and here; spare the next start to fold the rest.

        Raises JournalReadOnly; what was not done is done the next time.
        """
        records = list(self.records.values())
        old = retention.to_drop(records, self._clock.wall(), self.settings.keep)
        # The order is part of the proof: stop at one whose runner has not quite gone yet.
        for names in _batches(list(takewhile(lambda name: name not in self._runners, old))):
            await self._journal.drop(names)
            for name in names:
                self._deciding.pop(name, None)
                parent = self.records.get(self.records.pop(name).parent)
                if parent is not None:
                    parent.children.remove(name)
        for some in _batches([r for r in self.records.values() if saga.ended(r.state) and not r.condensed]):
            await self._journal.condense(some)
            for record in some:
                record.condensed = True

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
        # Not in _guarded: a task that is cancelled before its first step runs no `finally`.
        task.add_done_callback(lambda _: self._over(runner))

    def _over(self, runner: Runner) -> None:
        self._runners.pop(runner.record.id, None)
        runner.abandon(self.superseded or "the daemon is stopping: ask again")

    async def _guarded(self, runner: Runner) -> None:
        try:
            await runner.run()
        except* Superseded as group:
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            assert isinstance(first, Superseded)
            self._stand_down(first)
        finally:
            self._runners.pop(runner.record.id, None)

    def _stand_down(self, why: Superseded) -> None:
        """Another daemon is master (I4): stop all work where it is; that one goes on by its own journal."""
        if self.superseded:
            return
        remedy = outdated(self._journal.epoch, why.highest)
        self.superseded = f"an agent obeys another, newer migrd: {why}: {remedy}"
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
            if record.id in self._deciding:
                self._administrative = None
            ended = saga.ended(record.state)
            parent = self.records.get(record.parent)
            if parent is not None and parent.first_call_at_s is None:
                parent.first_call_at_s = record.first_call_at_s
            if ended:
                self._open.pop(record.id, None)
                self._lives.forget([record.id])
                self._admission.forget(record.id)
            if ended or saga.parked(record.state):
                self._tell_parent(record)
            if self._admission.note(record) or record.id in self._deciding:
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
            cancelled=isinstance(state, saga.MoveState) and state.cancelled,
        )

    def moves(self) -> list[tuple[Record, saga.MoveState]]:
        """Every open move of a guest, live or cold."""
        return [(r, r.state) for r in self.open() if isinstance(r.state, saga.MoveState)]

    def administrative(self) -> Mapping[str, HostState]:
        """Draining, drained, off: what the journal says about hosts."""
        if self._administrative is None:
            self._administrative = projection.administrative(self._deciding.values())
        return self._administrative

    def _admit(self) -> None:
        """Let waiting moves begin as far as slots are free."""
        if self._tasks is None or self.superseded:
            return
        for operation, reason in self._admission.withdraw(self.administrative()).items():
            self.post(operation, Withdrawn(reason=reason))
        for operation in self._admission.let_in():
            self.post(operation, Admitted())

    # -- commands ---------------------------------------------------------------------------------

    async def do(  # noqa: PLR0911 - a table
        self, operation: str, command: SagaCommand, on_progress: Callable[[MigrationProgress], None]
    ) -> Event | None:
        """Carry out one command. Implements `migrd.executor.Doer`."""
        match command:
            case Call():
                return await self._acts.call(self._lives.name(operation, command), command, on_progress)
            case Follow():
                return await self._acts.follow(self._lives.name(operation, command), command, on_progress)
            case Look():
                return await self._acts.look(command)
            case StopGuest():
                name = self._lives.name(operation, command)
                return await self._acts.stop(name, command, self.placement.volumes_of(command.guest))
            case LookAtSwitchOver():
                return await self._acts.look_at_switch_over(command)
            case Abort() | DestroySource():
                await self._acts.signal(self._lives.name(operation, command), command)
                return None
            case _:
                return await self._do_more(operation, command)

    async def _do_more(self, operation: str, command: SagaCommand) -> Event | None:  # noqa: PLR0911 - a table
        match command:
            case StartMove():
                return await self._start_move(operation, command)
            case CancelChild(child=child):
                self.post(child, CancelRequested(by="parent"))
                return None
            case ResumeChild(child=child):
                return self._resume_child(child)
            case Choose():
                return await self.placement.choose(command)
            case Survey(host=host):
                return await self.survey(host)
            case CheckPowerOff(host=host):
                return await self.check_power_off(host)
            case CheckHost(host=host, number=number):
                return await self.placement.check_host(host, number)
            case SetPower():
                return await self._set_power(operation, command)
            case ReadPower():
                return await self._read_power(operation, command)
            case _:
                raise AssertionError(f"no hand for {type(command).__name__}")

    async def _set_power(self, operation: str, command: SetPower) -> PowerActed:
        """Off only once the host's replicas have left: else their primaries hold writes back for seconds.

        That may take long enough for what was checked before to be of another moment (I12).
        """
        host, action = command.host, command.action
        if action == "off":
            reasons = await self._replicas(operation, host, connected=False)
            if not reasons:
                reasons = self._with_moves(host, await self.placement.check_power_off_again(host)).reasons
            if reasons:
                return PowerActed(action=action, reason="; ".join(reasons), asked=False)
        return PowerActed(action=action, reason=await self._power.switch(host, action))

    async def _read_power(self, operation: str, command: ReadPower) -> PowerRead:
        status = await self._power.status(command.host)
        if command.stays_on and status != "off":  # nobody waits for the cut any longer
            await self._replicas(operation, command.host, connected=True)
        return PowerRead(status=status, number=command.number)

    async def _replicas(self, operation: str, host: str, *, connected: bool) -> tuple[str, ...]:
        """Under a number of its own each time: it is done anew, and this life's name keeps it apart."""
        name, attempt = self._lives.fresh(operation), next(self._host_acts)
        return await self._acts.replicas(name, host, connected=connected, attempt=attempt)

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
                await self._begin(command.child, request, lambda: self.busy(command.guest))
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
                self.post(command.child, CancelRequested(by="parent"))
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

    async def survey(self, host: str) -> Surveyed:
        """What the host reports, and every open move that will bring a guest to it: no report shows that yet.

        A move that still waits for a slot is withdrawn when its target is drained.
        """
        seen = await self.placement.survey(host)
        arriving = tuple(
            f"{state.request.name} is not on {host} yet, but on its way: see migrctl op show {record.id}"
            for record, state in self.moves()
            if state.request.target == host
            and (not saga.pending(state) or self._admission.has_admitted(record.id))
        )
        return replace(seen, reasons=(*seen.reasons, *arriving))

    async def check_power_off(self, host: str) -> PowerChecked:
        """I12: what the hosts report at this moment, and every open move from or to `host`.

        A move that is still preparing shows in no report, and can have brought its guest before the BMC acts.
        """
        return self._with_moves(host, await self.placement.check_power_off(host))

    def _with_moves(self, host: str, seen: PowerChecked) -> PowerChecked:
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


def _began_late(beginning: asyncio.Task[Record]) -> None:
    """Whoever asked has been told that it is not known."""
    if beginning.cancelled():
        return
    if (error := beginning.exception()) is not None:
        log.warning("not-begun", name=beginning.get_name(), why=str(error))
    else:
        log.warning("begun-late", name=beginning.get_name(), operation=beginning.result().id)


def _batches(things: list[T]) -> Iterator[list[T]]:
    for first in range(0, len(things), TIDY_AT_ONCE):
        yield things[first : first + TIDY_AT_ONCE]
