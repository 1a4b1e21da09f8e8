"""One seed from its plan to its verdict: faults first, then healing, then every operation must end."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import traceback
from dataclasses import dataclass

from migrd.control import NotFound
from migrd.engine import Settings
from migrd.model import HostState
from migrd.operations import OperationState
from migrd.ports import JournalReadOnly
from migrd.retention import Keep
from storage.errors import Refused, Unknown
from tests.core.vloop import VirtualLoop
from tests.sim.converge import converge
from tests.sim.plan import Deed, Plan, plan
from tests.sim.quiet import quiet
from tests.sim.sim import BrokenError, Sim

AT_MOST_S = 20_000.0  # virtual; a run that takes longer hangs


@dataclass(frozen=True, slots=True)
class Verdict:
    seed: int
    digest: str
    cpu_s: float
    virtual_s: float
    events: int
    failure: str = ""  # the whole story


def run_seed(seed: int) -> Verdict:
    """Run one plan in a loop of its own."""
    return run_plan(plan(seed))


def run_plan(what: Plan) -> Verdict:
    quiet()
    began_s = time.process_time()
    gc.disable()  # nothing must depend on when garbage is found
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            digest, virtual_s, events, failure = runner.run(_bounded(what))
    finally:
        gc.enable()
    gc.collect(1)
    return Verdict(what.seed, digest, time.process_time() - began_s, virtual_s, events, failure)


async def _bounded(what: Plan) -> tuple[str, float, int, str]:
    failure = ""
    settings = Settings(keep=Keep(operations=what.keep))
    async with Sim(what.seed, settings, repeat=f"make sim SEED={what.seed}") as sim:
        try:
            async with asyncio.timeout(AT_MOST_S):
                await _story(sim, what)
        except* BrokenError as group:
            failure = f"{what}\n\n{_first(group)}"
        except* TimeoutError:
            failure = f"{what}\n\n{sim.story([f'I20: not over after {AT_MOST_S:g} virtual seconds'])}"
        except* Exception as group:  # of a command that the operator gave: no answer that he could act upon
            error = _first(group)
            told = "".join(traceback.format_exception(error))
            failure = f"{what}\n\n{sim.story([f'bug: {error!r}'])}\n\n{told}"
        return sim.trace.digest(), sim.trace.now_s, len(sim.trace.log), failure


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _story(sim: Sim, what: Plan) -> None:
    build(sim, what)
    await sim.start()
    began_s = sim.trace.now_s
    dice = random.Random(f"{what.seed}:deeds")
    async with asyncio.TaskGroup() as deeds:
        tasks = [deeds.create_task(_later(sim, deed, dice)) for deed in what.deeds]
        await sim.pass_time(what.heal_at_s - (sim.trace.now_s - began_s))
        for task in tasks:
            task.cancel()  # what the journal never came to, and commands that nobody answers
    await converge(sim)
    sim.check_end()
    if what.undrain:
        await _bring_back(sim, dice)
        await converge(sim)
        sim.check_end()


def build(sim: Sim, what: Plan) -> None:
    """The plan's machines and guests, running where they belong."""
    sim.world.auto_demote = what.auto_demote
    for host in what.hosts:
        sim.world.add_machine(host)
    for each in what.guests:
        guest = sim.world.add_guest(
            each.name, each.host, each.kinds, peer=each.peer, memory_bytes=each.memory_bytes
        )
        if each.wrong_on:
            sim.world.wrong_disk(each.wrong_on, guest)
        if each.off:
            sim.world.shut_off(each.name, held=each.off == "held")


async def _later(sim: Sim, deed: Deed, dice: random.Random) -> None:
    await sim.written(deed.writes)
    await asyncio.sleep(deed.at_s)
    try:
        if deed.what == "cancel_late":
            await _cancel_late(sim)
            return
        if deed.what.endswith("_some"):
            await _some(sim, deed.what, dice)
            return
        done = getattr(sim, deed.what)(*deed.arguments, **deed.options)
        if asyncio.iscoroutine(done):
            await done
    except (Refused, NotFound, JournalReadOnly, Unknown):
        return  # said so in the trace: a command may make no sense by then


async def _cancel_late(sim: Sim) -> None:
    """When a guest is just being switched over: too late, so it has to finish forward."""
    found: list[str] = []
    while not found:
        await asyncio.sleep(0.05)
        found = [o.id for o in sim.open_operations() if sim.migrations.switching(o.guest or "")]
    await sim.cancel(found[0])


async def _some(sim: Sim, what: str, dice: random.Random) -> None:
    """Cancel or resume whatever is open just then."""
    parked = what == "resume_some"
    found = [o for o in sim.open_operations() if not parked or o.state is OperationState.PARKED]
    if found:
        chosen = dice.choice(found).id
        await (sim.resume(chosen) if parked else sim.cancel(chosen))


async def _bring_back(sim: Sim, dice: random.Random) -> None:
    """An operator undrains everything that is drained or off."""
    assert sim.controller is not None
    for host, state in sorted(sim.controller.administrative().items()):
        if state in (HostState.DRAINED, HostState.OFF):
            try:
                await sim.undrain(host, restore=dice.random() < 0.7)
            except (Refused, JournalReadOnly):
                continue
    await sim.pass_time(5.0)
