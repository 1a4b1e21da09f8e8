"""Puts the production core on top of the fake world: journal in memory, a view without delay, a fake BMC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping, Sequence
from types import TracebackType

from agents.protocol import HostReport
from migrd import condensed, saga
from migrd.controller import Controller
from migrd.engine import Settings
from migrd.hosts import guest_of, host_of, host_state
from migrd.model import Cluster, HostState
from migrd.operations import Operation
from migrd.planner import Policy
from migrd.planning import BoundPlanner
from migrd.ports import JournalReadOnly, MembersPort, NoMembers, Observer, Row
from migrd.preflight import Interviewer
from migrd.projection import Record
from migrd.sagas.events import EVENT, ColdRequested, DrainRequested, Event
from migrd.sagas.migrate_state import MigrateState
from storage.errors import Retryable
from storage.words import Role
from tests.core.fake_agent import FakeAgent
from tests.core.fake_world import World
from tests.core.vloop import LoopClock


class MemoryJournal:
    """JournalPort. Rows pass through JSON, as on disk. `kill_after`, `kill_before`: it dies at row N."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float]] = []
        self.kept: dict[str, str] = {}  # ended operations, condensed
        self.dropped: set[str] = set()
        self.lives: list[tuple[int, str]] = []  # (rows before it, name), one per start
        self.epoch = 0
        self.read_only = ""
        self.kill_after: int | None = None
        self.kill_before: int | None = None
        self.dead = asyncio.Event()

    def life(self, seq: int) -> str:
        return [name for before, name in self.lives if before < seq][-1]

    async def ended(self) -> Sequence[Record]:
        return [condensed.read(body) for body in self.kept.values()]

    async def load(self, skip: Container[str] = ()) -> Sequence[Row]:
        return [
            Row(seq=seq, operation=operation, event=EVENT.validate_json(payload), at_s=at_s)
            for seq, (operation, payload, at_s) in enumerate(self.rows, start=1)
            if operation not in skip and operation not in self.dropped
        ]

    async def append(self, operation: str, event: Event, at_s: float) -> Row:
        await asyncio.sleep(0.001)  # an fsync
        if self.read_only:
            raise JournalReadOnly(self.read_only)
        number = len(self.rows) + 1
        if self.dead.is_set() or number == self.kill_before:
            await self._die()
        self.rows.append((operation, EVENT.dump_json(event).decode(), at_s))
        if number == self.kill_after:
            await self._die()
        return Row(seq=number, operation=operation, event=event, at_s=at_s)

    async def _die(self) -> None:
        self.dead.set()
        await asyncio.Event().wait()

    async def condense(self, records: Sequence[Record]) -> None:
        if self.read_only:
            raise JournalReadOnly(self.read_only)
        self.kept |= {record.id: condensed.dump(record) for record in records}

    async def drop(self, operations: Sequence[str]) -> None:
        if self.read_only:
            raise JournalReadOnly(self.read_only)
        self.dropped |= set(operations)
        self.kept = {name: body for name, body in self.kept.items() if name not in operations}

    async def probe(self) -> None:
        return


class FakeView:
    """ViewPort straight from the world: nothing is ever late."""

    def __init__(self, world: World, agents: Mapping[str, FakeAgent]) -> None:
        self.world = world
        self.agents = agents
        self.silent_until_s = 0.0  # a view that has just begun to listen knows no host and no guest
        self.administrative: Callable[[], Mapping[str, HostState]] = dict

    def cluster(self) -> Cluster:
        hosts, guests = {}, []
        decided = self.administrative()
        for name, machine in self.world.machines.items():
            report = self.world.report(name)
            observed = HostState.ONLINE if machine.agent else HostState.UNREACHABLE
            if asyncio.get_running_loop().time() < self.silent_until_s:
                observed = HostState.UNKNOWN
            hosts[name] = host_of(name, report, host_state(observed, decided.get(name)), observed=observed)
            if machine.powered and observed is not HostState.UNKNOWN:
                guests += [guest_of(domain, name) for domain in report.domains]
        return Cluster(hosts=hosts, guests=tuple(guests))

    def silent_s(self) -> Mapping[str, float]:
        return dict.fromkeys(self.world.machines, 0.0)

    async def reread(self, host: str, *, storage: bool = False) -> HostReport:
        return await self.agents[host].report(storage=storage)


class FakePower:
    """BMCs with real consequences. I12 is checked at the very moment the power goes."""

    def __init__(self, world: World) -> None:
        self.world = world

    def has(self, host: str) -> bool:
        return host in self.world.machines and host not in self.world.no_bmc

    async def status(self, host: str) -> str:
        await asyncio.sleep(0.1)
        if host in self.world.bmc_dead:
            return "unknown: timeout"
        return "on" if self.world.machines[host].powered else "off"

    async def switch(self, host: str, action: str) -> str:
        await asyncio.sleep(0.1)
        if host in self.world.bmc_dead:
            return "timeout"
        if action == "on":
            self.world.power_on(host)
            return ""
        machine = self.world.machines[host]
        self.world.off_commands.append(host)
        alive = [self.world.guests[u].name for u, d in machine.domains.items() if d.process]
        primary = [name for name, held in machine.held.items() if held.role is Role.PRIMARY]
        if host not in self.world.away:
            self.world.violate(f"I5: {host} vanishes from its replicas: their primaries hold writes back")
        if alive or primary:
            self.world.violate(f"I12: {host} is powered off with {alive} running, {primary} primary")
        self.world.cut(host)
        return ""


class Cluster3:
    """World, agents, journal, and one daemon at a time: `async with`, then `start()` and `kill()`."""

    def __init__(self, world: World | None = None, settings: Settings | None = None) -> None:
        self.world = world or World()
        self.agents = {name: FakeAgent(self.world, name) for name in self.world.machines}
        self.journal = MemoryJournal()
        self.settings = settings
        self.observer: Observer | None = None
        self.members: MembersPort = NoMembers()
        self.controller: Controller = None  # type: ignore[assignment]  # before the first start
        self._task: asyncio.Task[None] | None = None
        self._folded = 0  # journal rows that are in `_states`
        self._states: dict[str, saga.SagaState] = {}
        self.world.window_allowed = self._window_allowed
        self.world.catch_up = self._catch_up

    async def __aenter__(self) -> Cluster3:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()
        for agent in self.agents.values():
            for task in agent.tasks.values():
                task.cancel()
        for task in self.world.copying.values():
            task.cancel()

    async def start(self) -> None:
        self.journal.epoch += 1
        self.journal.lives.append((len(self.journal.rows), f"life{self.journal.epoch}"))
        self.journal.kill_after = self.journal.kill_before = None
        self.journal.dead.clear()
        view = FakeView(self.world, self.agents)
        if self.journal.epoch > 1:
            view.silent_until_s = asyncio.get_running_loop().time() + 0.5
        self.controller = Controller(
            view=view,
            interviewer=Interviewer(self.agents),
            planner=BoundPlanner(Policy(memory_reserve_bytes=0)),
            agents=self.agents,
            journal=self.journal,
            power=FakePower(self.world),
            settings=self.settings,
            clock=LoopClock(),
            observer=self.observer,
            members=self.members,
        )
        view.administrative = self.controller.administrative
        await self.controller.recover()
        self._task = asyncio.get_running_loop().create_task(self.controller.run())
        await asyncio.sleep(1.0 if self.journal.epoch > 1 else 0.01)

    async def kill(self) -> None:
        """kill -9: nothing is said, nothing is written."""
        assert self._task is not None
        self.journal.dead.set()
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    async def until(self, operation: str, *, parked: bool = True, at_most_s: float = 5000.0) -> Operation:
        """Wait for an end (or a park). A daemon that died by itself fails the story."""
        for _ in range(int(at_most_s / 0.1)):
            assert self._task is not None
            if self._task.done():
                await self.kill()
            shown = self.controller.operation(operation)
            if shown.state.ended or (parked and shown.state == "parked"):
                return shown
            await asyncio.sleep(0.1)
        raise AssertionError(f"{operation} has not ended: {self.controller.operation(operation)}")

    def _catch_up(self) -> None:
        """Fold what is on disk: consent (I5) and open windows (I6) count from the moment they are durable."""
        for operation, payload, _ in self.journal.rows[self._folded :]:
            event = EVENT.validate_json(payload)
            if isinstance(event, DrainRequested):
                self.world.consented |= set(event.allow_stop)
            if isinstance(event, ColdRequested) and event.may_stop:
                self.world.consented.add(event.guest)
            before = self._states.get(operation)
            state = saga.fold(operation, [event]) if before is None else saga.step(before, event)[0]
            self._states[operation] = state
        self._folded = len(self.journal.rows)

    def _window_allowed(self, uuid: str) -> bool:
        """Is there, on disk, an open operation of this guest that has reached its window (I6)?"""
        return any(
            isinstance(state, MigrateState) and state.request.guest == uuid and state.window_may_be_open
            for state in self._states.values()
        )

    def assert_clean(self) -> None:
        """The story's end: no invariant was broken, nothing is left behind, the journal tells the same."""
        self._catch_up()
        for operation, state in self._states.items():
            if operation in self.journal.dropped:
                assert operation not in self.controller._engine.records
                continue
            live = self.controller._engine.records[operation].state
            assert saga.only_waits(state, live), f"{operation}: journal {state}, memory {live}"
        for record in self.controller._engine.records.values():
            if saga.ended(record.state):  # what the next start reads instead of the rows
                again = condensed.read(condensed.dump(record))
                assert again.state == record.state, f"{record.id}: {again.state}"
        assert not self.world.violations, "\n".join([*self.world.violations, *self.world.trace[-30:]])
        assert self.world.leftovers() == []


__all__ = ["Cluster3", "FakePower", "FakeView", "MemoryJournal", "Retryable"]
