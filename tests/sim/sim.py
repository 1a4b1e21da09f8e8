"""One simulated cluster: production daemon and agents on fake hardware, in virtual time.

    async with Sim(seed=7) as sim:
        sim.world.add_machine("h1"); sim.world.add_machine("h2"); sim.world.add_drbd("db", "h1", "h2")
        await sim.start()
        op = await sim.drain("h1", power_off=True)
        sim.at(3.0, sim.cut, "h2")
        await sim.until(lambda: sim.operation(op).state.ended)
        await sim.converge()
        sim.check_end()

Commands are those of migrd.control, asked of the living daemon. Faults take effect at once; `at` delays them.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any, TypeVar

from migrd import saga
from migrd.control import DrainRequest, MigrateRequest, UndrainRequest
from migrd.controller import Controller
from migrd.engine import Settings
from migrd.journal import DEADLINE_S
from migrd.model import HostState
from migrd.operations import Operation
from migrd.projection import Record, administrative
from migrd.sagas.events import EVENT
from tests.core.vloop import LIFE, unwind
from tests.sim.bmc import Bmcs
from tests.sim.disk import Database, Disk, Fault
from tests.sim.invariants import Books, Invariants, leftovers
from tests.sim.migration import Migrations
from tests.sim.network import Network
from tests.sim.process import JOURNAL, AgentProcess, DaemonProcess
from tests.sim.quiet import bugs
from tests.sim.trace import Trace
from tests.sim.world import World

T = TypeVar("T")
POLL_S = 0.25
HITCH_LASTS_S = 60.0  # until every operation has got over it
LIBVIRTD_AWAY_S = (0.5, 4.0)  # until systemd has restarted it


class BrokenError(AssertionError):
    """An invariant was violated, or the end is not what it must be. The message has the trace's tail."""


class Sim:
    """See the module. Everything random comes from `seed`; the same calls give the same trace.

    `repeat`: the line that a failure ends with, which repeats this very run. Without it the test's name does.
    """

    def __init__(self, seed: int = 0, settings: Settings | None = None, *, repeat: str = "") -> None:
        self.seed = seed
        self._repeat = repeat
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._unhandled)
        self.trace = Trace(self._loop.time)
        self.world = World(self._loop, self._rng("world"), self.trace)
        self.migrations = Migrations(self.world)
        self.network = Network(self._loop, self._rng("net"), self.trace)
        self.network.powered = lambda host: self.world.machines[host].booted
        self.books = Books()
        settings = settings or Settings()
        self.invariants = Invariants(self.world, self.books, settings.caps)
        self.network.on_send = self.invariants.sent
        self.bmcs = Bmcs(self.world, self._rng("bmc"), self.invariants.power_cut)
        self.agents: dict[str, AgentProcess] = {}
        self.daemon = DaemonProcess(
            self.world,
            self.network,
            self._rng("daemon"),
            power=self.bmcs.power,
            settings=settings,
        )
        self.writes = 0  # journal transactions with rows so far
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []  # for so many writes
        self.kill_at_write: tuple[int, str] | None = None  # (number, "before" | "after")
        self._kill_at_tidying: tuple[int, str] | None = None  # the same, of what forgets and condenses
        self.tidyings = 0  # of those, so far
        self._keep = settings.keep.operations
        self._seq = 0
        self._commands: set[asyncio.Task[Any]] = set()
        self.world.on_power = self._power_changed
        self.world.libvirtd_dies = self._libvirtd_dies
        self.world.watched_since = lambda host: self.agents[host].at_work_since_s
        self.world.led_since = self._led_since
        self._hitch_s = -HITCH_LASTS_S  # when something between daemon and agents changed last
        self.daemon.disk.before_commit = self._before_commit
        self.daemon.disk.after_commit = self._after_commit
        bugs.clear()

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}:{name}")

    async def __aenter__(self) -> Sim:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """All processes end, and their coroutines are unwound: the trace is closed, so it did not happen."""
        self.trace.close()
        self._loop.set_exception_handler(lambda _loop, _context: None)
        processes = (self.daemon, *self.agents.values())
        for process in processes:
            process.kill("end of the run")
        await unwind(life for process in processes for life in process.graves)
        for disk in (self.daemon.disk, *(agent.disk for agent in self.agents.values())):
            disk.erase()

    async def start(self) -> None:
        """Agents, then the daemon; returns when it has heard of every host."""
        for name, machine in self.world.machines.items():
            self.agents[name] = AgentProcess(
                self.world, machine, self.migrations, self.network, self._rng(f"agent {name}")
            )
            self.agents[name].start()
        self.daemon.start()
        await self.until(lambda: self.controller is not None and self._all_heard(), at_most_s=30.0)

    def _all_heard(self) -> bool:
        assert self.controller is not None
        hosts = self.controller.cluster().hosts.values()
        return all(host.observed is HostState.ONLINE for host in hosts)

    # -- queries ---------------------------------------------------------------------------------

    @property
    def controller(self) -> Controller | None:
        """The living daemon's; None while there is none that is ready."""
        return self.daemon.controller

    def operations(self) -> tuple[Operation, ...]:
        """Oldest first, as the living daemon tells them; empty while there is none."""
        return tuple(reversed(self.controller.operations())) if self.controller is not None else ()

    def operation(self, operation: str) -> Operation | None:
        return next((each for each in self.operations() if each.id == operation), None)

    def open_operations(self) -> tuple[Operation, ...]:
        return tuple(each for each in self.operations() if not each.state.ended)

    def where(self, guest: str) -> list[str]:
        return self.world.where(guest)

    async def until(self, true: Callable[[], bool], *, at_most_s: float = 600.0) -> bool:
        """Let virtual time pass until `true()`; False after `at_most_s`. Raises BrokenError."""
        ends_s = self._loop.time() + at_most_s
        while not true():
            self.check()
            if self._loop.time() >= ends_s:
                return False
            await asyncio.sleep(POLL_S)
        self.check()
        return True

    async def written(self, writes: int) -> None:
        """Wait until the journal has had so many transactions with rows."""
        if self.writes < writes:
            reached: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append((writes, reached))
            await reached

    async def pass_time(self, seconds: float) -> None:
        await self.until(lambda: False, at_most_s=seconds)

    def at(self, delay_s: float, what: Callable[..., object], *args: object) -> None:
        """Do something so many virtual seconds from now."""
        self.world.later(delay_s, lambda: what(*args))

    def _led_since(self, source: str, target: str) -> float:
        """Since when the daemon could see and command both hosts without a hitch; infinity if it cannot."""
        hosts = (source, target)
        disks = (self.daemon.disk, *(self.agents[host].disk for host in hosts))
        able = (
            self.controller is not None
            and all(self.network.links[host].calm for host in hosts)
            and all(self.world.machines[host].libvirt_up for host in hosts)
            and not any(disk.fault for disk in disks)
        )
        if not able:
            return float("inf")
        since_s = (self.agents[host].at_work_since_s for host in hosts)
        return max(self.daemon.at_work_since_s, *since_s, self._hitch_s + HITCH_LASTS_S)

    def _hitch(self) -> None:
        self._hitch_s = self._loop.time()

    # -- commands --------------------------------------------------------------------------------

    async def migrate(self, guest: str, to: str | None = None, *, cold: bool = False) -> str:
        """Each command returns the operation's id, "" if the daemon was or went down. Raises Refused."""
        words = f"migrate {guest} {to}{' cold' if cold else ''}"
        return await self._ask(words, lambda c: c.migrate(guest, MigrateRequest(to=to, cold=cold)))

    async def drain(self, host: str, *, power_off: bool = False, allow_stop: tuple[str, ...] = ()) -> str:
        request = DrainRequest(power_off=power_off, allow_stop=allow_stop)
        return await self._ask(f"drain {host} {request}", lambda c: c.drain(host, request))

    async def undrain(self, host: str, *, restore: bool = False) -> str:
        return await self._ask(
            f"undrain {host} restore={restore}", lambda c: c.undrain(host, UndrainRequest(restore=restore))
        )

    async def power(self, host: str, action: str) -> str:
        return await self._ask(f"power {host} {action}", lambda c: c.power(host, action))  # type: ignore[arg-type]

    async def cancel(self, operation: str) -> str:
        return await self._ask(f"cancel {operation}", lambda c: c.cancel(operation))

    async def resume(self, operation: str) -> str:
        return await self._ask(f"resume {operation}", lambda c: c.resume(operation))

    async def _ask(self, words: str, call: Callable[[Controller], Coroutine[Any, Any, Operation]]) -> str:
        """Run one command inside the daemon; it may die over it."""
        controller, life = self.daemon.controller, self.daemon.life
        self.trace.note("command", "operator", words)
        if controller is None or life is None:
            return ""
        over: asyncio.Future[None] = self._loop.create_future()

        def end(*_: object) -> None:
            if not over.done():
                over.set_result(None)

        task = life.spawn(call(controller), name=words)
        task.add_done_callback(end, context=Context())
        life.at_death.append(end)
        await over
        if not task.done():
            return ""
        try:
            return task.result().id
        except Exception as error:
            self.trace.note("command", "operator", f"{words}: {error}")
            raise

    # -- faults ----------------------------------------------------------------------------------

    def kill_daemon(self, after_steps: int = 0) -> None:
        self.daemon.kill_after(after_steps) if after_steps else self.daemon.kill()

    def kill_tidying(self, number: int, when: str) -> None:
        """Kill the daemon around the `number`th time from now that its journal forgets or condenses."""
        self._kill_at_tidying = (self.tidyings + number, when)

    def start_daemon(self) -> None:
        self.daemon.start()

    def kill_agent(self, host: str, after_steps: int = 0) -> None:
        agent = self.agents[host]
        agent.kill_after(after_steps) if after_steps else agent.kill()

    def start_agent(self, host: str) -> None:
        if self.world.machines[host].booted:
            self.agents[host].start()

    def cut(self, host: str) -> None:
        """Power loss of a machine, BMC aside."""
        self.world.power_off(host, "cut")

    def power_on(self, host: str) -> None:
        self.world.power_on(host)

    def libvirt_down(self, host: str, for_s: float) -> None:
        """libvirtd stops and comes back. Not within a switch-over: see tests.sim.migration."""
        machine = self.world.machines[host]
        if not machine.booted:
            return
        if self.migrations.critical(host):
            self.at(0.5, self.libvirt_down, host, for_s)
            return
        machine.libvirt_up = False
        self.trace.note("fault", host, f"libvirtd is down for {for_s:.1f} s")
        self.migrations.reconsider()
        self.at(for_s, self.libvirt_back, host)

    def libvirt_back(self, host: str, *, hitch: bool = True) -> None:
        machine = self.world.machines[host]
        if machine.booted and not machine.libvirt_up:
            machine.libvirt_up = True
            machine.libvirt_since_s = self._loop.time()
            machine.libvirt_lives += 1
            if hitch:
                self._hitch()
            self.trace.note("fault", host, "libvirtd is back")
            self.migrations.cold.reconsider()
            for listener in list(machine.listeners):
                listener(None)

    def partition(self, host: str, *, to_agent: bool = False, to_daemon: bool = False) -> None:
        """What still goes through between daemon and agent; by default nothing."""
        link = self.network.links[host]
        link.to_agent, link.to_daemon = to_agent, to_daemon
        self.trace.note("fault", host, f"partition: to agent {to_agent}, to daemon {to_daemon}")

    def unpartition(self, host: str) -> None:
        """Daemon and agent hear each other again, and lose nothing."""
        self.network.links[host].heal()
        self.network.healed()
        self._hitch()
        self.trace.note("fault", host, "network works")

    def lie(self) -> None:
        """The next migration of each guest succeeds, and libvirt calls it a failure."""
        self.migrations.lies |= set(self.world.guests)
        self.trace.note("fault", "libvirt", "will report success as failure")

    def lose_answer(self, guest: str, for_s: float) -> None:
        """In the guest's next switch-over: the target runs it, and the link is down before it can say so."""
        self.migrations.loses_answer_s[self.world.guest(guest).uuid] = for_s
        self.trace.note("fault", guest, f"its next switch-over will not be heard of for {for_s:.1f} s")

    def slow_switch_over(self, guest: str, for_s: float) -> None:
        """The guest's next switch-over takes so long."""
        self.migrations.switch_s[self.world.guest(guest).uuid] = for_s
        self.trace.note("fault", guest, f"its next switch-over will take {for_s:.1f} s")

    def ignore_aborts(self, guest: str, for_s: float) -> None:
        """From its beginning on libvirt does not follow an abort of the guest's next migration."""
        self.migrations.deaf_s[self.world.guest(guest).uuid] = for_s
        self.trace.note("fault", guest, f"its next migration will follow no abort for {for_s:.1f} s")

    def libvirtd_dies(self, guest: str) -> None:
        """In the guest's next switch-over the target's does, once the guest runs: see tests.sim.migration."""
        self.migrations.dies.add(self.world.guest(guest).uuid)
        self.trace.note("fault", guest, "the target's libvirtd will die in its next switch-over")

    def _libvirtd_dies(self, host: str) -> None:
        self.world.machines[host].libvirt_up = False
        self.trace.note("fault", host, "libvirtd dies")
        self.at(0.0, self.migrations.reconsider)
        # No hitch: a keepalive is long enough for everybody to see to it.
        self.at(self.world.between(LIBVIRTD_AWAY_S), lambda: self.libvirt_back(host, hitch=False))

    def fork(self, guest: str) -> None:
        """The guest's replication breaks in the instant before its next switch-over: nobody can help that."""
        self.migrations.forks.add(self.world.guest(guest).uuid)
        self.trace.note("fault", guest, "its replication will break right before its next switch-over")

    def cut_in_switch_over(self, guest: str, whose: str, phase: str) -> None:
        """In the guest's next switch-over "source" or "target" loses its power: see tests.sim.migration."""
        self.migrations.cuts[self.world.guest(guest).uuid] = f"{whose} {phase}"
        self.trace.note("fault", guest, f"the {whose} of its next migration will lose power at {phase}")

    def lossy(self, host: str, **shares: float) -> None:
        """lose_request, lose_reply, duplicate, late: shares of the messages; delay_s."""
        link = self.network.links[host]
        for name, share in shares.items():
            setattr(link, name, share)
        self.trace.note("fault", host, f"network {shares}")

    def break_stream(self, host: str) -> None:
        self._hitch()
        self.trace.note("fault", host, "connections are reset")
        self.network.reset(host)

    def stall_daemon(self, for_s: float) -> None:
        self.daemon.stall(for_s)

    def stall_agent(self, host: str, for_s: float) -> None:
        self.agents[host].stall(for_s)

    def window_by_hand(self, guest: str) -> None:
        """Somebody allows two primaries; not while a move of the guest does so, too."""
        uuid = self.world.guest(guest).uuid
        if not self.books.works_on(uuid):
            self.world.window_by_hand(guest)

    def drop_replication(self, host: str) -> None:
        self.world.drop_replication(host)

    def cut_replication(self, one: str, other: str) -> None:
        self.world.cut_replication(one, other)

    def stops_by_itself(self, guest: str) -> None:
        self.world.stops_by_itself(guest)

    def deaf(self, guest: str, how: str) -> None:
        """What it does when asked to shut down: "once" and "never" say what it ignores; "late"."""
        self.world.deaf[self.world.guest(guest).uuid] = how
        self.trace.note("fault", guest, f"is deaf to its power button: {how}")

    def slow_definition(self, guest: str, each_s: float) -> None:
        """A move of its definition: each answer between the two libvirtds takes so long."""
        self.world.slow_talk_s[self.world.guest(guest).uuid] = each_s
        self.trace.note("fault", guest, f"its definition moves slowly: {each_s:.1f} s per answer")

    def boots_not(self, guest: str, host: str) -> None:
        """A start of it fails on that host."""
        self.world.boots_not.add((host, self.world.guest(guest).uuid))
        self.trace.note("fault", guest, f"does not boot on {host}")

    def virsh_start(self, guest: str) -> None:
        """By a person, where the guest is defined, if kernel and libvirt let it be."""
        world, uuid = self.world, self.world.guest(guest).uuid
        homes = [machine for machine in world.machines.values() if uuid in machine.domains]
        if len(homes) != 1 or any(machine.has_process(uuid) for machine in world.machines.values()):
            return
        here = homes[0]
        if here.libvirt_up and not self.migrations.cold.busy(here.name, uuid) and world.openable(here, uuid):
            world.start_by_hand(here.name, uuid)

    def suspend(self, guest: str, for_s: float) -> None:
        self.world.suspend(guest, for_s)

    def cut_link(self, one: str, other: str) -> None:
        self.world.cut_link(one, other)

    def heal_link(self, one: str, other: str) -> None:
        self.world.heal_link(one, other)

    def disk(self, where: str, fault: Fault) -> None:
        """Of a host, or of "migrd"."""
        disk: Disk = self.daemon.disk if where == "migrd" else self.agents[where].disk
        disk.fault = fault
        self._hitch()
        self.trace.note("fault", where, f"disk: {fault or 'works'}")

    def bmc(self, host: str, mode: str) -> None:
        """ "", "dead", "garbage", "deaf", "slow"."""
        self.world.machines[host].bmc = mode
        self.trace.note("fault", host, f"BMC: {mode or 'works'}")

    def trouble(self, host: str, **shares: float) -> None:
        """tool_hangs, tool_lost, look_hangs, libvirt_slow: shares of the calls."""
        for name, share in shares.items():
            setattr(self.agents[host].trouble, name, share)
        self._hitch()
        self.trace.note("fault", host, f"trouble {shares}")

    def heal(self) -> None:
        """All faults end. Hosts that migrd itself powered off stay off."""
        self.trace.note("fault", "all", "healed")
        self.disk("migrd", "")
        self.world.no_windows_by_hand()
        self.world.reconnect_all()
        for pair in sorted(map(sorted, self.world.cut_links)):
            self.world.heal_link(*pair)
        for host, machine in self.world.machines.items():
            self.network.links[host].heal()
            self.disk(host, "")
            self.bmc(host, "")
            self.trouble(host, tool_hangs=0.0, tool_lost=0.0, libvirt_slow=0.0, look_hangs=0.0)
            self.agents[host].unstall()
            if not machine.powered and host not in self.bmcs.off_by_migrd:
                self.world.power_on(host)
            self.libvirt_back(host)
            self.start_agent(host)
        self.migrations.lies.clear()
        self.migrations.loses_answer_s.clear()
        self.migrations.switch_s.clear()
        self.migrations.deaf_s.clear()
        self.migrations.cuts.clear()
        self.migrations.forks.clear()
        self.migrations.dies.clear()
        self.world.boots_not.clear()
        self.world.slow_talk_s.clear()
        self.network.healed()
        self._kill_at_tidying = None
        self.daemon.unstall()
        for guest in self.world.guests.values():
            self.world.resume_by_hand(guest.name)
        self.daemon.start()

    # -- the end ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise BrokenError if anything was violated so far."""
        self._hang_is_told()
        for bug in bugs:
            self.trace.violate("bug", bug)
        if self.trace.violations:
            raise BrokenError(self.story(self.trace.violations))

    def _hang_is_told(self) -> None:
        """I20: a journal that hangs for longer than its deadline is a reason not to be ready."""
        since_s = max(self.daemon.disk.hung_since_s, self.daemon.at_work_since_s)
        overdue = self._loop.time() - since_s > DEADLINE_S + 1.0
        if overdue and self.controller is not None and self.controller.readiness().ready:
            self.trace.violate("I20", "the journal hangs, and /readyz does not say so")

    def check_end(self) -> None:
        """After `converge`: all has ended, guests run once, nothing is left, journal and memory agree."""
        self.check()
        wrong = [f"I15: {o.id} {o.kind} {o.subject} is {o.state}: {o.reason}" for o in self.open_operations()]
        for guest in self.world.guests.values():
            hosts = self.where(guest.name)
            down = self.world.may_be_down(guest.uuid) and guest.uuid not in self.world.excused
            if len(hosts) != 1 and not (down and not hosts):
                wrong.append(f"I16: {guest.name} runs on {hosts or 'no host'}")
            defined = self.world.defined(guest.name)
            if guest.uuid in self.world.off and (hosts or len(defined) != 1):
                wrong.append(f"I16: {guest.name} was shut off: it runs on {hosts}, is defined on {defined}")
        wrong += [f"I16: left over: {each}" for each in leftovers(self.world)]
        wrong += [
            f"I16: {n} attempts of {host} have no end"
            for host, agent in self.agents.items()
            if agent.alive and (n := agent.running_attempts())
        ]
        wrong += self._memory()
        if wrong:
            raise BrokenError(self.story(wrong))

    def _memory(self) -> list[str]:
        """What the daemon knows is what became durable, but for what it may forget; that changes nothing."""
        if self.controller is None:
            return []
        records, states = self.controller._engine.records, self.books.states
        wrong = [
            f"I16: {operation}: the journal says {state}"
            for operation, state in states.items()
            if (operation in records and not saga.only_waits(state, records[operation].state))
            or (operation not in records and not saga.ended(state))
        ]
        forgotten = states.keys() - records.keys()
        if forgotten and sum(saga.ended(each.state) for each in records.values()) < self._keep:
            wrong.append(f"I16: more is forgotten than may be: {sorted(forgotten)}")
        on_disk = self.daemon.disk.connect_again(JOURNAL).execute("SELECT DISTINCT operation FROM event")
        wrong += [f"I16: {name} is in the journal still" for (name,) in on_disk if name not in records]
        decided = administrative(
            Record(id=name, state=state, requested_at_s=0.0, seq=0) for name, state in states.items()
        )
        if dict(self.controller.administrative()) != decided:
            wrong.append(f"I16: hosts are {dict(self.controller.administrative())}; all rows say {decided}")
        for name, record in records.items():
            children = [each.id for each in records.values() if each.parent == name]
            if record.children != children:
                wrong.append(f"I16: children of {name}: {record.children}, and there are {children}")
        return wrong

    def story(self, wrong: list[str]) -> str:
        return "\n".join([*wrong, "", self.trace.tail(), "", self._repeat]).rstrip()

    # -- hooks -----------------------------------------------------------------------------------

    def _power_changed(self, host: str, up: bool) -> None:
        if up:
            self.agents[host].start()
        elif host in self.agents:
            self.agents[host].kill("power")

    def _before_commit(self, path: str) -> None:
        if path != str(JOURNAL):
            return
        database = self.daemon.disk.connect_again(JOURNAL)
        if self.kill_at_write == (self.writes + 1, "before") and self._has_rows(database):
            self.kill_at_write = None
        elif self._kill_at_tidying == (self.tidyings + 1, "before") and database.tidies:
            self._kill_at_tidying = None
        else:
            return
        self.daemon.kill()
        raise sqlite3.OperationalError("the process has just died")

    def _has_rows(self, database: Database) -> bool:
        found = database.execute("SELECT max(seq) FROM event").fetchone()[0]
        return (found or 0) > self._seq

    def _after_commit(self, path: str, database: Database) -> None:
        """What became durable: into the books."""
        if database.tidies:
            self.tidyings += 1
            self.trace.note("journal", "migrd", f"tidied, for the {self.tidyings}. time")
            if self._kill_at_tidying == (self.tidyings, "after"):
                self._kill_at_tidying = None
                self.daemon.kill()
        rows = database.execute(
            "SELECT seq, operation, kind, payload FROM event WHERE seq > ? ORDER BY seq", (self._seq,)
        ).fetchall()
        for seq, operation, kind, payload in rows:
            self._seq = seq
            self.trace.note("journal", operation, f"{kind} {_short(payload)}")
            self.invariants.journalled(operation, EVENT.validate_json(payload))
        if rows:
            self.writes += 1
            for number, reached in self._waiting:
                if number == self.writes and not reached.done():
                    reached.set_result(None)
            if self.kill_at_write == (self.writes, "after"):
                self.kill_at_write = None
                self.daemon.kill()

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        life = LIFE.get()
        if error is not None and (life is None or not life.dead):
            self.trace.violate("bug", f"{context.get('message')}: {error!r}")


def _short(payload: str) -> str:
    return payload if len(payload) < 160 else f"{payload[:150]}... {len(payload)}"
