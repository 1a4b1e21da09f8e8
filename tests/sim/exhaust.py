"""I16, exhaustively: one kill per run, at every journal write, around every side effect, at every await.

A story is a cluster, what goes before, and one operation. It is run once undisturbed, to count its journal
writes, the side effects of each agent and the callbacks of each process; then once per kill, with a restart
and time to converge. A gap in a host's event stream at each journal write is told the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from migrd.operations import Operation, OperationState
from storage.errors import Refused
from storage.words import IscsiQemuVolume
from tests.core.vloop import VirtualLoop
from tests.sim.converge import converge
from tests.sim.process import Process
from tests.sim.quiet import quiet
from tests.sim.sim import BrokenError, Sim

RESTART_S = 3.0
LATE_RESTART_S = 45.0
UNCOUNTED = 10**9  # callbacks: no story has as many
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
    """`who`: "migrd" at journal write `number`, or a host's agent at side effect `number`; or either of them
    at its callback `number`."""

    who: str
    number: int
    when: str  # "before", "after"; "at": a callback

    def __str__(self) -> str:
        what = "callback" if self.when == "at" else "write" if self.who == "migrd" else "effect"
        return f"{self.who} killed {self.when} {what} {self.number}"


@dataclass(frozen=True, slots=True)
class Gap:
    """All connections to the agent of `host`, its event stream too, break at journal write `number`."""

    host: str
    number: int

    def __str__(self) -> str:
        return f"{self.host} not heard at write {self.number}"


Blow = Kill | Gap


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
    callbacks: tuple[tuple[str, int], ...]  # of "migrd" and each agent that was not killed at one


def repetition(story: Story, blow: Blow | None) -> str:
    """One line that repeats a run."""
    return f"make sim BLOW='{story.name}: {blow}'"


def play(story: Story, blow: Blow | None = None) -> End:
    """One run. Raises BrokenError, also if the blow never struck."""
    quiet()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_play(story, blow))


async def _play(story: Story, blow: Blow | None) -> End:
    async with Sim(seed=1, repeat=repetition(story, blow)) as sim:
        story.build(sim)
        await sim.start()
        before_places = _places(sim), _homes(sim)
        if story.before is not None:
            await _finish(sim, story.before)
            await sim.pass_time(20.0)  # roles and reports settle
            before_places = _places(sim), _homes(sim)
        writes = sim.writes
        effects = {host: agent.effects.number for host, agent in sim.agents.items()}
        lives = {who: each.life for who, each in _processes(sim).items() if each.life is not None}
        for life in lives.values():
            life.steps_left = UNCOUNTED
        struck = _arm(sim, blow, writes, effects)
        operation = await _finish(sim, story.act)
        callbacks = tuple(
            (who, UNCOUNTED - life.steps_left) for who, life in lives.items() if life.steps_left is not None
        )
        if not struck():
            sim.trace.violate("test", f"it never struck: {blow}")
            sim.check()
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
            callbacks=callbacks,
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


def _processes(sim: Sim) -> dict[str, Process]:
    return {"migrd": sim.daemon, **sim.agents}


def _arm(sim: Sim, blow: Blow | None, writes: int, effects: dict[str, int]) -> Callable[[], bool]:
    """Returns what says whether it has struck."""
    match blow:
        case None:
            return lambda: True
        case Gap(host=host, number=number):
            sim.world.led_since = lambda _source, _target: 0.0
            gap = asyncio.get_running_loop().create_task(_gap(sim, host, writes + number))
            return gap.done
        case Kill(who=who, number=number, when=when):
            process = _processes(sim)[who]
            if _restart_s(blow) == RESTART_S:  # soon enough for everything: nothing is excused
                sim.world.led_since = lambda _source, _target: 0.0
            process.on_death = lambda: sim.at(_restart_s(blow), _start, sim, who)
            if when == "at":
                life = process.life
                assert life is not None, f"{who} does not live"
                process.kill_after(number)
                return lambda: life.dead and life.steps_left is None
            if who == "migrd":
                sim.kill_at_write = (writes + number, when)
                return lambda: sim.kill_at_write is None
            agent = sim.agents[who]
            agent.effects.kill_at = (effects[who] + number, when)
            return lambda: agent.effects.kill_at is None


def _start(sim: Sim, who: str) -> None:
    if who == "migrd":
        sim.start_daemon()
    else:
        sim.start_agent(who)


async def _gap(sim: Sim, host: str, write: int) -> None:
    await sim.written(write)
    sim.break_stream(host)


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


def same(story: Story, end: End, undisturbed: End, *, strictly: bool = False) -> bool:
    """Is `end` one that the story may have? `strictly`: without the way back that a kill excuses."""
    if end.state is OperationState.UNDONE and not strictly:
        return story.may_be_undone  # then `_play` has seen that everything is where it was
    if story.drained:
        there = [[story.drained in hosts for _, hosts in each.places] for each in (end, undisturbed)]
        moved = there[0] == there[1]
    else:
        moved = (end.places, end.homes) == (undisturbed.places, undisturbed.homes)
    return moved and end.state is undisturbed.state and end.powered == undisturbed.powered


def kills(end: End) -> Iterator[Kill]:
    """Of a story, from its undisturbed run: every write and every side effect, before and after."""
    for number in range(1, end.writes + 1):
        for when in ("before", "after"):
            yield Kill("migrd", number, when)
    for host, count in end.effects:
        for number in range(1, count + 1):
            for when in ("before", "after"):
                yield Kill(host, number, when)


def awaits(end: End) -> Iterator[Kill]:
    """Every callback of every process."""
    for who, count in end.callbacks:
        yield from (Kill(who, number, "at") for number in range(1, count + 1))


def gaps(end: End) -> Iterator[Gap]:
    """Every host, at every write."""
    for host, _ in end.effects:
        yield from (Gap(host, number) for number in range(1, end.writes + 1))


def wrong(story: Story, blows: Callable[[End], Iterable[Blow]]) -> list[str]:
    """What went wrong at which of them, each with the line that repeats it."""
    undisturbed = play(story)
    expected = OperationState.UNDONE if story.comes_home else OperationState.DONE
    assert undisturbed.state is expected, undisturbed
    chosen = list(blows(undisturbed))
    assert chosen, "nothing to strike at"
    return [failure for blow in chosen if (failure := strike(story, blow, undisturbed))]


def strike(story: Story, blow: Blow, undisturbed: End) -> str:
    """One run with one blow: what is wrong with it, and the line that repeats it; "" if nothing is."""
    try:
        end = play(story, blow)
    except BrokenError as error:
        return str(error)
    except Exception:  # of production or of the harness: told, and the other blows are struck all the same
        return f"{traceback.format_exc()}\n{repetition(story, blow)}"
    if same(story, end, undisturbed, strictly=isinstance(blow, Gap)):
        return ""
    return f"ended as {end}, undisturbed as {undisturbed}\n{repetition(story, blow)}"
