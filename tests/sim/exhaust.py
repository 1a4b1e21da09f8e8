"""I16, exhaustively: one kill per run, at every journal write and around every side effect.

A story is a cluster, what goes before, and one operation. It is run once undisturbed, to count its journal
writes and the side effects of each agent; then once per kill, with a restart and time to converge.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from migrd.operations import Operation, OperationState
from storage.errors import Refused
from storage.words import IscsiQemuVolume
from tests.core.vloop import VirtualLoop
from tests.sim.converge import converge
from tests.sim.quiet import quiet
from tests.sim.sim import Sim

RESTART_S = 3.0
LATE_RESTART_S = 45.0
ENDS_WITHIN_S = 1200.0
Build = Callable[[Sim], None]
Act = Callable[[Sim], Awaitable[str]]
Places = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Story:
    """`act` asks for the operation and returns its id; asked again when the daemon died before it knew."""

    name: str
    build: Build
    act: Act
    before: Act | None = None  # an operation that has to end first
    may_be_undone: bool = False
    comes_home: bool = False  # undone, also if nobody is killed
    drained: str = ""  # a host that must be left; where to is free


@dataclass(frozen=True, slots=True)
class Kill:
    """`who`: "migrd" at journal write `number`, or a host's agent at side effect `number`."""

    who: str
    number: int
    when: str  # "before", "after"

    def __str__(self) -> str:
        return f"{self.who} killed {self.when} {'write' if self.who == 'migrd' else 'effect'} {self.number}"


@dataclass(frozen=True, slots=True)
class End:
    """`places`: where every guest runs; `homes`: where it is defined, and who has its disks; `powered`: hosts
    with power; `state`: of the operation."""

    state: OperationState
    places: Places
    homes: Places
    powered: tuple[str, ...]
    writes: int
    effects: tuple[tuple[str, int], ...]


def play(story: Story, kill: Kill | None = None) -> End:
    """One run. Raises BrokenError."""
    quiet()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_play(story, kill))


async def _play(story: Story, kill: Kill | None) -> End:
    async with Sim(seed=1) as sim:
        story.build(sim)
        await sim.start()
        before_places = _places(sim), _homes(sim)
        if story.before is not None:
            await _finish(sim, story.before)
            await sim.pass_time(20.0)  # roles and reports settle
            before_places = _places(sim), _homes(sim)
        writes = sim.writes
        effects = {host: agent.effects.number for host, agent in sim.agents.items()}
        if kill is not None:
            _arm(sim, kill, writes, effects)
        operation = await _finish(sim, story.act)
        found = sim.operation(operation)
        assert found is not None
        sim.start_daemon()
        await converge(sim)
        sim.check_end()
        found = sim.operation(operation)
        assert found is not None
        after_places = _places(sim), _homes(sim)
        if found.state is OperationState.UNDONE and after_places != before_places:
            sim.trace.violate("I16", f"{operation} is undone, and the guests are at {after_places}")
            sim.check()
        return End(
            state=found.state,
            places=_places(sim),
            homes=_homes(sim),
            powered=tuple(sorted(m.name for m in sim.world.machines.values() if m.powered)),
            writes=sim.writes - writes,
            effects=tuple((host, agent.effects.number - effects[host]) for host, agent in sim.agents.items()),
        )


def _places(sim: Sim) -> Places:
    return tuple((g.name, tuple(sim.where(g.name))) for g in sim.world.guests.values())


def _homes(sim: Sim) -> Places:
    world = sim.world
    disks = [
        v for guest in world.guests.values() for v in guest.volumes if not isinstance(v, IscsiQemuVolume)
    ]
    return (
        *((g.name, tuple(world.defined(g.name))) for g in world.guests.values()),
        *((v.name, tuple(host for host in world.machines if world.holds(host, v))) for v in disks),
    )


def _arm(sim: Sim, kill: Kill, writes: int, effects: dict[str, int]) -> None:
    if _restart_s(kill) == RESTART_S:  # soon enough for everything: nothing is excused
        sim.world.led_since = lambda _source, _target: 0.0
    if kill.who == "migrd":
        sim.kill_at_write = (writes + kill.number, kill.when)
        sim.daemon.on_death = lambda: sim.at(_restart_s(kill), sim.start_daemon)
    else:
        agent = sim.agents[kill.who]
        agent.effects.kill_at = (effects[kill.who] + kill.number, kill.when)
        agent.on_death = lambda: sim.at(_restart_s(kill), sim.start_agent, kill.who)


def _restart_s(kill: Kill) -> float:
    """Some come back at once, others after everybody has given them up."""
    return RESTART_S if kill.number % 3 else LATE_RESTART_S


async def _finish(sim: Sim, act: Act) -> str:
    """Ask, and wait for the end; an operation that parks is resumed, as its remedy says."""
    operation = ""
    while not operation:
        with contextlib.suppress(Refused):  # busy: the first request was journalled after all
            operation = await act(sim)
        if not operation:
            await sim.until(lambda: sim.controller is not None, at_most_s=60.0)
            operation = next((o.id for o in sim.open_operations() if not o.parent), "")
    ends_s = sim.trace.now_s + ENDS_WITHIN_S
    while sim.trace.now_s < ends_s:
        await sim.until(lambda: _over(sim, operation), at_most_s=ENDS_WITHIN_S)
        found = sim.operation(operation)
        if found is not None and found.state.ended:
            return operation
        if found is not None and found.state is OperationState.PARKED:
            with contextlib.suppress(Refused):
                await sim.resume(operation)
        await sim.pass_time(2.0)
    sim.trace.violate("I20", f"{operation} has not ended in {ENDS_WITHIN_S:g} s")
    sim.check()
    return operation


def _over(sim: Sim, operation: str) -> bool:
    found: Operation | None = sim.operation(operation)
    return found is not None and (found.state.ended or found.state is OperationState.PARKED)


def same(story: Story, end: End, undisturbed: End) -> bool:
    """Is `end` one that the story may have?"""
    if end.state is OperationState.UNDONE:
        return story.may_be_undone  # then `_play` has seen that everything is where it was
    if story.drained:
        there = [[story.drained in hosts for _, hosts in each.places] for each in (end, undisturbed)]
        moved = there[0] == there[1]
    else:
        moved = (end.places, end.homes) == (undisturbed.places, undisturbed.homes)
    return moved and end.state is undisturbed.state and end.powered == undisturbed.powered


def kills(end: End) -> Iterator[Kill]:
    """Every kill of a story, from its undisturbed run."""
    for number in range(1, end.writes + 1):
        for when in ("before", "after"):
            yield Kill("migrd", number, when)
    for host, count in end.effects:
        for number in range(1, count + 1):
            for when in ("before", "after"):
                yield Kill(host, number, when)
