"""The daemon's core behind its one door, `migrd.control.Control`.

journal = await Journal.open(state_dir / "journal.sqlite3")
view = ClusterView(agents, administrative=lambda: controller.administrative(),
                   on_change=lambda change: controller.on_change(change), ...)
controller = Controller(view=view, interviewer=Interviewer(agents), planner=BoundPlanner(policy),
                        agents=agents, journal=journal, power=Power(bmcs), ...)
await controller.recover()      # before view.run(): hosts keep what was decided about them
... run view.run() and controller.run() in the daemon's TaskGroup
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Literal

import structlog

from migrd import saga
from migrd.changes import Change
from migrd.control import DrainRequest, MigrateRequest, NotFound, Readiness, UndrainRequest, reasons_of
from migrd.engine import Engine, Settings
from migrd.feed import Feed
from migrd.host_config import HostConfig
from migrd.lives import outdated
from migrd.model import Cluster, Guest, HostState, Plan
from migrd.operations import ClusterEvent, Operation, OperationState
from migrd.placement import Placement, find_guest
from migrd.ports import (
    AgentPort,
    Clock,
    InterviewerPort,
    JournalPort,
    JournalReadOnly,
    MembersPort,
    NoMembers,
    NullObserver,
    Observer,
    PlannerPort,
    PowerPort,
    RealClock,
    Row,
    ViewPort,
)
from migrd.projection import Record, operation
from migrd.retention import last_drain
from migrd.roster import reasons_not_to_add, reasons_not_to_remove
from migrd.sagas.drain import DrainState
from migrd.sagas.events import (
    CancelRequested,
    ColdRequested,
    DrainRequested,
    HostAdded,
    HostRemoved,
    MovedGuest,
    PowerRequested,
    Request,
    Resumed,
    UndrainRequested,
)
from migrd.sagas.events import MigrateRequested as MigrateRow
from migrd.sagas.power import PowerState
from migrd.sagas.roster import RosterState
from migrd.sagas.undrain import UndrainState
from storage.errors import Refused

log = structlog.get_logger("migrd.controller")

TICK_S = 2.0
WAKE_AFTER_S = 60.0  # a parked operation whose hosts all answer is taken up again after this,
WAKE_AT_MOST_S = 3600.0  # then after twice as long each time, up to this: its rows must not fill the journal
TIDY_S = 30.0
HEARD_S = 5.0  # after a start with open operations: how long hosts may take to be heard
NEAR = 5


class Controller:
    """Implements `migrd.control.Control`. One event loop; `recover()` once, then `run()`."""

    def __init__(
        self,
        *,
        view: ViewPort,
        interviewer: InterviewerPort,
        planner: PlannerPort,
        agents: Mapping[str, AgentPort],
        journal: JournalPort,
        power: PowerPort,
        settings: Settings | None = None,
        clock: Clock | None = None,
        observer: Observer | None = None,
        members: MembersPort | None = None,
    ) -> None:
        self._view = view
        self._journal = journal
        self._power = power
        self._clock = clock or RealClock()
        self._observer = observer or NullObserver()
        self._members = members or NoMembers()
        self._feed = Feed(journal.epoch)
        self._read_only = ""
        self._recovered = False
        self._parked: dict[str, tuple[float, bool]] = {}  # id -> (since, a host it waits for was silent)
        self._wakes: dict[str, int] = {}  # id -> how often it was taken up again and parked again
        self._moving: set[str] = set()

        def placement(engine: Engine) -> Placement:
            return Placement(
                view=view,
                interviewer=interviewer,
                planner=planner,
                clock=self._clock,
                in_flight=lambda: {s.request.guest: s.request.target for _, s in engine.moves()},
                powered_off=lambda: [
                    name for name, state in engine.administrative().items() if state is HostState.OFF
                ],
                power=power,
            )

        self._engine = Engine(
            agents=agents,
            journal=journal,
            power=power,
            placement=placement,
            settings=settings or Settings(),
            clock=self._clock,
            changed=self._on_record,
            alarm=self._alarm,
        )

    # -- life -------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Read the journal. Raises JournalError when it cannot be followed: the daemon must not start."""
        await self._engine.recover()
        for name, host in self._engine.added.items():
            self._members.take(name, host)
        self._recovered = True

    async def run(self) -> None:
        """Work until cancelled. An error in here is a bug and ends it, and with it the daemon."""
        if not self._recovered:
            await self.recover()
        if self._engine.open():
            await self._hosts_heard()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._engine.run(), name="engine")
            tasks.create_task(self._tick(), name="parked operations")
            tasks.create_task(self._tidy(), name="journal tidying")

    async def _hosts_heard(self) -> None:
        """Before open operations go on: a target is not to be refused because its agent has not spoken yet.

        Bounded: a host that is down is judged as such.
        """
        until_s = self._clock.monotonic() + HEARD_S
        while self._clock.monotonic() < until_s:
            if all(h.observed is not HostState.UNKNOWN for h in self._view.cluster().hosts.values()):
                return
            await self._clock.sleep(0.1)

    def administrative(self) -> Mapping[str, HostState]:
        """Draining, drained, off: for `ClusterView`."""
        return self._engine.administrative()

    def on_change(self, change: Change) -> None:
        """What the view has seen: for subscribers."""
        at_s = self._clock.wall()
        match change.kind:
            case "host":
                self._feed.publish(at_s, "host", change.message, host=change.host)
            case "alert":
                self._feed.publish(at_s, "alert", change.message, host=change.host, guest=change.guest)
            case "attempt":
                pass  # the operation tells it
            case _:
                self._feed.publish(at_s, "guest", change.message, host=change.host, guest=change.guest)

    def _alarm(self, message: str) -> None:
        log.error("alert", message=message)
        self._feed.publish(self._clock.wall(), "alert", message)

    def _on_record(self, record: Record, row: Row | None) -> None:
        """After every step of every operation: metrics and subscribers."""
        shown = operation(record)
        if row is None:
            if shown.progress is not None and not saga.ended(record.state):
                self._observer.move_progress(shown, shown.progress)
            self._publish(shown, f"{shown.id} {shown.subject}: copying")
            return
        if isinstance(record.state, RosterState):
            self._follow(record.state.request)
        self._observer.operation_changed(shown)
        self._note_move(record, shown)
        where = f" in {saga.word_of(record.state)}" if not shown.state.ended else ""
        why = f": {shown.reason}" if shown.reason else ""
        self._publish(shown, f"{shown.id} {shown.kind} {shown.subject} is {shown.state}{where}{why}")
        if shown.state is OperationState.PARKED:
            if record.id not in self._parked:
                self._parked[record.id] = (self._clock.monotonic(), False)
                self._alarm(f"{shown.id} {shown.kind} {shown.subject} is parked{why}; {shown.remedy}")
        else:
            self._parked.pop(record.id, None)
        if shown.state.ended:
            self._wakes.pop(record.id, None)
            self._observer.operation_ended(shown)

    def _follow(self, request: HostAdded | HostRemoved) -> None:
        """Journalled, so it is true: from this moment on."""
        match request:
            case HostAdded():
                self._members.take(request.host, request.config)
            case HostRemoved():
                self._members.drop(request.host)

    def _note_move(self, record: Record, shown: Operation) -> None:
        if not isinstance(record.state, saga.MoveState):
            return
        waits = saga.pending(record.state) or saga.parked(record.state)
        active = not shown.state.ended and not waits
        if active and record.id not in self._moving:
            self._moving.add(record.id)
            self._observer.move_started(shown)
        elif not active and record.id in self._moving:
            self._moving.discard(record.id)
            self._observer.move_ended(shown)
            if shown.state is OperationState.DONE and shown.downtime_ms is not None:
                self._observer.downtime(shown.downtime_ms / 1000)

    def _publish(self, shown: Operation, message: str) -> None:
        self._feed.publish(self._clock.wall(), "operation", message, operation=shown, guest=shown.guest)

    # -- what goes by itself ----------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(TICK_S)
            if self._journal.read_only:
                await self._journal.probe()
            if self._journal.read_only != self._read_only:
                self._read_only = self._journal.read_only
                self._observer.journal_read_only(self._read_only)
                self._alarm(self._read_only or "the journal can be written again")
            self._wake_parked()

    async def _tidy(self) -> None:
        """Journal and memory stay bounded, however many operations have ended."""
        while True:
            try:
                await self._engine.tidy()
            except JournalReadOnly as error:
                log.warning("journal-not-tidied", why=str(error))
            await self._clock.sleep(TIDY_S)

    def _wake_parked(self) -> None:
        """Take up what waits for hosts, once they all answer again."""
        hosts = self._view.cluster().hosts
        now_s = self._clock.monotonic()
        for record in self._engine.open():
            state = record.state
            if not isinstance(state, saga.MoveState) or not saga.parked(state) or not state.waits_for:
                continue
            since_s, was_silent = self._parked.get(record.id, (now_s, False))
            there = all(
                name in hosts and hosts[name].observed is HostState.ONLINE for name in state.waits_for
            )
            self._parked[record.id] = (since_s, was_silent or not there)
            wakes = self._wakes.get(record.id, 0)
            due = now_s - since_s >= min(WAKE_AFTER_S * 2 ** min(wakes, 10), WAKE_AT_MOST_S)
            if there and (was_silent or due):
                self._parked[record.id] = (now_s, False)
                self._wakes[record.id] = 0 if was_silent else wakes + 1
                self._engine.post(record.id, Resumed(by="host-returned"))

    # -- Control: reading -------------------------------------------------------------------------

    def cluster(self) -> Cluster:
        return self._view.cluster()

    def silent_s(self) -> Mapping[str, float]:
        return self._view.silent_s()

    def readiness(self) -> Readiness:
        reasons = []
        if not self._recovered:
            reasons.append("the journal has not been read yet")
        if self._journal.read_only:
            reasons.append(self._journal.read_only)
        reasons += [self._engine.superseded] if self._engine.superseded else self._outdated()
        return Readiness(ready=not reasons, reasons=tuple(reasons))

    def operations(self, *, limit: int = 200) -> tuple[Operation, ...]:
        newest = sorted(self._engine.records.values(), key=lambda record: record.seq, reverse=True)
        return tuple(operation(record) for record in newest[: max(limit, 0)])

    def open_operations(self) -> tuple[Operation, ...]:
        return tuple(operation(record) for record in reversed(self._engine.open()))

    def operation(self, operation_id: str) -> Operation:
        return operation(self._record(operation_id))

    def events(self, after_seq: int | None = None) -> AsyncIterator[ClusterEvent]:
        return self._feed.events(after_seq)

    async def power_status(self, host: str) -> str:
        self._host(host)
        return await self._power.status(host)

    # -- Control: planning ------------------------------------------------------------------------

    async def plan_drain(self, host: str, request: DrainRequest) -> Plan:
        self._host(host)
        plan = await self._engine.placement.plan_drain(host, request.allow_stop)
        refusals = (*self._host_busy(host), *plan.refusals)
        if request.power_off and not self._power.has(host):
            refusals += (
                f"{host} has no BMC: add [hosts.{host}.bmc] to migrd.toml, or drain without power-off",
            )
        return replace(plan, refusals=tuple(dict.fromkeys(refusals)))

    async def plan_migrate(self, guest: str, request: MigrateRequest) -> Plan:
        found = self._guest(guest)
        if request.to is not None:
            self._host(request.to)
        plan = await self._engine.placement.plan_migrate(found, request.to, cold=request.cold)
        refusals = (*self._engine.busy(found.uuid), *plan.refusals)
        return replace(plan, refusals=tuple(dict.fromkeys(refusals)))

    # -- Control: work ----------------------------------------------------------------------------

    async def drain(self, host: str, request: DrainRequest) -> Operation:
        plan = await self.plan_drain(host, request)
        _refuse(plan)
        names = {g.uuid: g.name for g in self._view.cluster().guests_on(host)}
        consent = tuple(
            u for u, name in names.items() if u in request.allow_stop or name in request.allow_stop
        )
        row = DrainRequested(
            host=host,
            power_off=request.power_off,
            allow_stop=consent,
            moves=plan.moves,
            stops=tuple((uuid, names.get(uuid, uuid)) for uuid in plan.stops),
        )
        self._engine.placement.hold((move.guest, move.target) for move in plan.moves)
        try:
            return await self._begin(row, host)
        except (Refused, JournalReadOnly):
            self._engine.placement.release(move.guest for move in plan.moves)
            raise

    async def undrain(self, host: str, request: UndrainRequest) -> Operation:
        self._host(host)
        decided = self._engine.administrative().get(host)
        reasons = self._host_busy(host)
        if decided not in (HostState.DRAINED, HostState.OFF) and not reasons:
            reasons.append(f"{host} is not drained: there is nothing to take back")
        if decided is HostState.OFF and not self._power.has(host):
            text = f"{host} is off and has no BMC: switch it on by hand, then migrctl host power {host} on"
            reasons.append(text)
        if reasons:
            raise Refused(*reasons)
        drain = last_drain(self._engine.records.values(), host)
        restore = () if drain is None or not request.restore else _moved(drain)
        row = UndrainRequested(
            host=host,
            drain=drain.operation if drain is not None else "",
            power_on=decided is HostState.OFF or (request.restore and await self._switched_off_by_hand(host)),
            restore=restore,
        )
        return await self._begin(row, host)

    async def _switched_off_by_hand(self, host: str) -> bool:
        """Somebody took a drained host for the maintenance that it was drained for."""
        silent = self.cluster().hosts[host].observed is not HostState.ONLINE
        return silent and self._power.has(host) and await self._power.status(host) == "off"

    async def migrate(self, guest: str, request: MigrateRequest) -> Operation:
        plan = await self.plan_migrate(guest, request)
        _refuse(plan)
        if not plan.moves:
            raise Refused(f"{guest}: there is nothing to move")
        move = plan.moves[0]
        engine = self._engine
        if request.cold:
            return await self._begin(
                engine.cold_request(move.guest, move.source, move.target, request.to), ""
            )
        return await self._begin(engine.request(move.guest, move.source, move.target, "", request.to), "")

    async def power(self, host: str, action: Literal["on", "off"]) -> Operation:
        self._host(host)
        reasons = self._host_busy(host)
        if not self._power.has(host):
            reasons.append(f"{host} has no BMC: add [hosts.{host}.bmc] to migrd.toml")
        if action == "off":
            reasons += (await self._engine.check_power_off(host)).reasons
        if reasons:
            raise Refused(*reasons)
        return await self._begin(PowerRequested(host=host, action=action), host)

    async def add_host(self, name: str, host: HostConfig) -> Operation:
        def conflict() -> list[str]:
            fixed, added = self._members.fixed, self._engine.added
            return [*reasons_not_to_add(name, host, fixed, added), *self._members.problems(host)]

        return await self._journalled(HostAdded(host=name, config=host), conflict)

    async def remove_host(self, name: str) -> Operation:
        known = {*self._members.fixed, *self._engine.added}
        if name not in known:
            raise NotFound(f"no host {name}; there are {', '.join(sorted(known)[:NEAR])}: see migrctl hosts")
        shown = self._view.cluster().hosts.get(name)
        if shown is not None and shown.observed is HostState.ONLINE:
            await self._engine.placement.survey(name)  # what it has now, not seconds ago

        def conflict() -> list[str]:
            cluster = self._view.cluster()
            return reasons_not_to_remove(name, self._members.fixed, cluster, self.open_operations())

        return await self._journalled(HostRemoved(host=name), conflict)

    async def _journalled(self, row: HostAdded | HostRemoved, conflict: Callable[[], list[str]]) -> Operation:
        def all_reasons() -> list[str]:
            read_only = self._journal.read_only
            return [*conflict(), *([f"no new work is taken: {read_only}"] if read_only else [])]

        try:
            return operation(await self._engine.begin(row, all_reasons))
        except JournalReadOnly as error:
            raise Refused(f"no new work is taken: {error}") from None

    async def cancel(self, operation_id: str) -> Operation:
        record = self._record(operation_id)
        await self._engine.ask(record.id, CancelRequested())
        return operation(record)

    async def resume(self, operation_id: str) -> Operation:
        record = self._record(operation_id)
        if not saga.parked(record.state):
            raise Refused(f"{record.id} is not parked: it is {operation(record).state}")
        await self._engine.ask(record.id, Resumed())
        return operation(record)

    async def _begin(self, row: Request, host: str) -> Operation:
        """Raises Refused, JournalReadOnly: then nothing was begun."""

        def conflict() -> list[str]:
            if isinstance(row, MigrateRow | ColdRequested):
                return [*self._engine.busy(row.guest), *self._outdated()]
            alone = self._last_in_use(host) if isinstance(row, DrainRequested) else []
            return [*self._host_busy(host), *alone, *self._outdated()]

        return operation(await self._engine.begin(row, conflict))

    # -- looking things up ------------------------------------------------------------------------

    def _outdated(self) -> list[str]:
        """Why agents would refuse this daemon (I4), known before anything is asked of them."""
        hosts = self._view.cluster().hosts.values()
        highest = max((host.epoch for host in hosts), default=0)
        if highest <= self._journal.epoch:
            return []
        names = ", ".join(sorted(host.name for host in hosts if host.epoch > self._journal.epoch)[:NEAR])
        return [f"{names}: obeys epoch {highest}: {outdated(self._journal.epoch, highest)}"]

    def _host_busy(self, host: str) -> list[str]:
        """One operation per host at a time: why no other may begin on it now."""
        return [
            f"{host} is held by {record.id} ({operation(record).kind}): migrctl op show {record.id}"
            for record in self._engine.open()
            if isinstance(record.state, DrainState | UndrainState | PowerState)
            and record.state.request.host == host
        ]

    def _last_in_use(self, host: str) -> list[str]:
        """Another drain may have begun since this one was planned."""
        decided = self._engine.administrative()
        if any(name != host and name not in decided for name in self._view.cluster().hosts):
            return []
        return [
            f"{host} is the last host in use: every other one is {' or '.join(sorted(set(decided.values())))}"
        ]

    def _record(self, operation_id: str) -> Record:
        record = self._engine.records.get(operation_id)
        if record is None:
            raise NotFound(f"no operation {operation_id}: see migrctl ops")
        return record

    def _host(self, host: str) -> None:
        hosts = self._view.cluster().hosts
        if host not in hosts:
            raise NotFound(f"no host {host}; there are {', '.join(sorted(hosts)[:NEAR])}: see migrctl hosts")

    def _guest(self, name: str) -> Guest:
        found = find_guest(self._view.cluster(), name)
        if not found:
            raise NotFound(f"no guest {name}: see migrctl vms")
        if len(found) > 1:
            raise Refused(*(f"{name} is the name of {g.uuid} on {g.host}: give the uuid" for g in found))
        return found[0]


def _moved(drain: DrainState) -> tuple[MovedGuest, ...]:
    return tuple(MovedGuest(guest=uuid, name=t.name, now_on=t.target) for uuid, t in drain.moved)


def _refuse(plan: Plan) -> None:
    """All reasons at once, or nothing."""
    reasons = reasons_of(plan)
    if reasons:
        raise Refused(*reasons)
