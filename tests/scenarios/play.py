"""Plays one scenario: the deeds at their times, then to its quiet end, then healing and liveness."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

from agents.protocol import DomainState
from migrd.control import NotFound
from migrd.controller import Controller
from migrd.engine import Settings
from migrd.operations import Operation, OperationState
from migrd.ports import JournalReadOnly
from migrd.saga import SagaState
from migrd.sagas.events import Event
from migrd.slots import Caps
from storage.errors import Refused
from tests.core.vloop import VirtualLoop
from tests.scenarios.deeds import DEEDS, Deed, old_daemon
from tests.scenarios.parse import Cue, Scenario, ScenarioError
from tests.scenarios.tell import Teller
from tests.scenarios.why import why
from tests.sim.converge import converge
from tests.sim.invariants import leftovers
from tests.sim.quiet import quiet
from tests.sim.sim import Sim
from tests.sim.world import World

CALM_S = 4.0  # nothing new for that long: the story is over
AT_MOST_S = 5000.0
KILLS = ("kill-daemon", "kill-agent")


def play(scenario: Scenario) -> str:
    """What was told, ready to stand in the file. Raises BrokenError at a violated invariant."""
    quiet()
    gc.disable()  # nothing must depend on when garbage is found
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(_play(scenario))
    finally:
        gc.enable()


async def _play(scenario: Scenario) -> str:
    settings = Settings(
        caps=Caps(
            per_source=int(scenario.settings.get("per-source", 2)),
            per_target=int(scenario.settings.get("per-target", 2)),
        ),
        migrate_deadline_s=scenario.settings.get("deadline", 3600.0),
    )
    repeat = f"pytest 'tests/scenarios/test_scenarios.py::test_scenario[{scenario.name}]'"
    async with Sim(seed=int(scenario.settings.get("seed", 1)), settings=settings, repeat=repeat) as sim:
        async with asyncio.timeout(AT_MOST_S * 4):
            return await Stage(scenario, sim).run()


class Stage:
    """One performance. Cues wait for their time or event; each is given once."""

    def __init__(self, scenario: Scenario, sim: Sim) -> None:
        self.scenario = scenario
        self.sim = sim
        self.teller = Teller(sim.world, self._event, brief=scenario.brief)
        self._waiting = [cue for cue in scenario.cues if cue.at_s is None]
        self._due = 0  # deeds whose time has not come yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard: list[Controller] = []  # daemons whose alerts are told
        self._quiet_since_s = 0.0
        self._lines = 0

    async def run(self) -> str:
        sim = self.sim
        self._build()
        self._hook()
        await sim.start()
        self._watch_agents()
        self.teller.look()
        began_s = sim.trace.now_s
        for cue in self.scenario.cues:
            if cue.at_s is not None:
                self._later(cue.at_s, cue.deed)
        ended = await sim.until(
            lambda: self._over() and sim.trace.now_s - began_s >= self.scenario.lasts_s, at_most_s=AT_MOST_S
        )
        if self._waiting:
            never = "\n".join(
                f"{self.scenario.name}:{cue.line}: never happened: {cue.on}" for cue in self._waiting
            )
            raise ScenarioError(never + "\n" + "\n".join(self.teller.lines))
        self.teller.closed = True
        told = ["expect", *(f"  {line}" for line in self.teller.lines)]
        unrest = self._unrest()
        told += ["end", *(f"  {line}" for line in self._end())]
        if not ended:
            told += [f"  not over after {AT_MOST_S:g} s"]
        if not self.scenario.unhealed:
            await converge(sim)
            sim.check_end()
            if unrest:
                told += ["healed", *(f"  {line}" for line in self._end())]
        for task in self._tasks:
            task.result()
        return "\n".join(told) + "\n"

    # -- before it begins ------------------------------------------------------------------------

    def _build(self) -> None:
        world = self.sim.world
        for host, memory_bytes in self.scenario.hosts.items():
            world.add_machine(host, memory_bytes)
        for each in self.scenario.guests:
            match each.kind:
                case "drbd":
                    guest = world.add_drbd(each.name, each.host, each.peer, each.memory_bytes)
                case "iscsi":
                    guest = world.add_iscsi(each.name, each.host, each.memory_bytes)
                case _:
                    guest = world.add_iscsi_qemu(each.name, each.host, each.memory_bytes)
            self.sim.migrations.copy_s[guest.uuid] = each.copy_s

    def _hook(self) -> None:
        """Stand beside the simulator's own observers."""
        sim, world = self.sim, self.sim.world
        journalled, check, violate = sim.invariants.journalled, world.check, sim.trace.violate

        def on_row(operation: str, event: Event) -> None:
            before: SagaState | None = sim.books.states.get(operation)
            journalled(operation, event)
            self._note(before, event, sim.books.states[operation])

        def on_change(what: str) -> None:
            check(what)
            self.teller.look()

        def on_violation(invariant: str, text: str, event: str = "") -> None:
            if any(f"{invariant}: {text}".startswith(each) for each in self.scenario.allowed):
                line = f"{invariant}: {text}"
                if line not in self.teller.lines:
                    self.teller.say(line)
            else:
                violate(invariant, text, event)

        sim.invariants.journalled = on_row  # type: ignore[method-assign]
        world.check = on_change
        sim.trace.violate = on_violation  # type: ignore[method-assign]

    def _note(self, before: SagaState | None, event: Event, after: SagaState) -> None:
        self.teller.journalled(before, event, after)

    def _watch_agents(self) -> None:
        """Every side effect of an agent is an event: `before h2 promote`, `after h2 promote`."""
        for host, agent in self.sim.agents.items():
            effects = agent.effects

            def reached(when: str, host: str = host) -> bool:
                agent, effects = self.sim.agents[host], self.sim.agents[host].effects
                self._event(f"{when} {host} {effects.seen[-1]}", at_once=True)
                return not agent.alive

            effects.reached = reached  # type: ignore[method-assign]

    # -- while it runs ---------------------------------------------------------------------------

    def _event(self, text: str, *, at_once: bool = False) -> None:
        """Give every cue that waits for this."""
        for cue in [each for each in self._waiting if _matches(each, text)]:
            self._waiting.remove(cue)
            if cue.after_s == 0.0 and cue.deed.name in KILLS:
                self._do(cue.deed)  # a process dies at this very point
            else:
                self._later(cue.after_s, cue.deed)

    def _later(self, after_s: float, deed: Deed) -> None:
        self._due += 1

        def now() -> None:
            self._due -= 1
            self._do(deed)

        self.sim.at(after_s, now)

    def _do(self, deed: Deed) -> None:
        sim, kind = self.sim, DEEDS[deed.name]
        self.teller.say(f"> {deed}")
        done = kind.do(sim, deed)
        if asyncio.iscoroutine(done):
            self._spawn(self._command(deed, done))
        if deed.for_s is not None:
            self._due += 1
            sim.at(deed.for_s, self._undo, deed)

    def _undo(self, deed: Deed) -> None:
        self._due -= 1
        undo = DEEDS[deed.name].undo
        assert undo is not None
        self.teller.say(f"> {deed.name} is over")
        undo(self.sim, deed)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Outside of any simulated process."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)

    async def _command(self, deed: Deed, done: Coroutine[Any, Any, None]) -> None:
        try:
            await done
        except Refused as error:
            self.teller.say(f"refused {deed.name} {' '.join(deed.words)}: {why(*error.reasons)}")
        except JournalReadOnly as error:
            self.teller.say(f"refused {deed.name} {' '.join(deed.words)}: {why(str(error))}")
        except NotFound:
            self.teller.say(f"refused {deed.name} {' '.join(deed.words)}: not found")

    def _over(self) -> bool:
        """All deeds are done, nothing is in flight, and nothing new has been told for a while."""
        self._listen()
        now_s = self.sim.trace.now_s
        busy = self._due or any(not task.done() for task in self._tasks) or not self._quiet()
        if busy or len(self.teller.lines) != self._lines:
            self._quiet_since_s, self._lines = now_s, len(self.teller.lines)
        return now_s - self._quiet_since_s >= CALM_S

    def _quiet(self) -> bool:
        """A daemon is there, and whatever is open waits for an operator."""
        still = all(each.state is OperationState.PARKED for each in self.sim.open_operations())
        return self.sim.controller is not None and still

    def _listen(self) -> None:
        """Tell the alerts of the living daemons; that an operation is parked is told already."""
        for name, daemon in (("", self.sim.daemon), ("of the old daemon", old_daemon(self.sim))):
            if daemon is None or daemon.life is None or daemon.controller is None:
                continue
            if daemon.controller not in self._heard:
                self._heard.append(daemon.controller)
                daemon.life.spawn(self._follow(daemon.controller, name), name="alerts")

    async def _follow(self, controller: Controller, name: str) -> None:
        async for event in controller.events():
            if event.kind == "alert" and " is parked" not in event.message:
                self.teller.say(" ".join(filter(None, ("alert", name))) + f": {why(event.message)}")

    # -- at its end ------------------------------------------------------------------------------

    def _unrest(self) -> bool:
        """Is there anything that healing could change?"""
        sim = self.sim
        whole = all(m.booted or h in sim.bmcs.off_by_migrd for h, m in sim.world.machines.items())
        runs = all(len(sim.where(guest.name)) == 1 for guest in sim.world.guests.values())
        return bool(sim.open_operations()) or not whole or not runs

    def _end(self) -> list[str]:
        sim, world = self.sim, self.sim.world
        decided = sim.controller.administrative() if sim.controller is not None else {}
        lines = []
        for guest in world.guests.values():
            where = sim.where(guest.name)
            lines.append(
                f"{guest.name} " + (f"runs on {' AND '.join(where)}" if where else _still(world, guest.uuid))
            )
        for host, machine in world.machines.items():
            words = [] if machine.booted else ["has no power"] if not machine.powered else ["boots"]
            words += [f"is {decided[host]}"] if host in decided else []
            if words:
                lines.append(f"{host} {', '.join(words)}")
        for operation in sim.operations():
            if not operation.parent or not operation.state.ended:
                lines.append(_ended(operation))
        if sim.controller is not None and not sim.controller.readiness().ready:
            lines.append(f"migrd is not ready: {why(*sim.controller.readiness().reasons)}")
        if self.scenario.brief:
            lines += [f"at most {most} at once {where}" for where, most in self.teller.most.items() if most]
        return lines + [f"left over: {each}" for each in leftovers(world)]


def _still(world: World, uuid: str) -> str:
    for host, machine in world.machines.items():
        domain = machine.domains.get(uuid)
        if domain is not None and domain.state is not DomainState.SHUTOFF:
            return f"is {domain.state} on {host}"
    hosts = [host for host, machine in world.machines.items() if uuid in machine.domains]
    return f"is shut off on {' and '.join(hosts)}" if hosts else "is nowhere"


def _ended(operation: Operation) -> str:
    action = f" {operation.request['action']}" if "action" in operation.request else ""
    return f"{operation.kind} {operation.subject}{action} {operation.state}"


def _matches(cue: Cue, text: str) -> bool:
    return text == cue.on or text.startswith(cue.on + " ") or text.startswith(cue.on + ":")


__all__ = ["play"]
