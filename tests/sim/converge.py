"""The liveness half of a run: every fault has healed, and an operator does what parked operations ask for.

Strict: a parked operation is resumed a few times, then cancelled; guests that a power cut has stopped are
started by hand, once no operation works on them, where a current copy of their disks is. What is still open
after that never ends, and that is a failure of the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from agents.protocol import DomainState
from migrd.operations import Operation, OperationState
from migrd.ports import JournalReadOnly
from migrd.sagas.migrate_state import MigrateState, Stage
from storage.errors import Refused, Unknown
from storage.words import DrbdVolume
from tests.sim.drbd import Resource
from tests.sim.sim import Sim
from tests.sim.world import Guest

ROUNDS = 10
RESUMES = 4  # rounds in which parked operations are resumed; cancelled from then on
QUIET_AT_MOST_S = 2000.0  # back-offs, lost contact, twice UNKNOWN_LOOKS, and half an hour of an undrain
PATIENCE_S = 900.0  # then whoever waits for a host that is off gets it back
LOOK_AT_DISKS_S = 30.0
BETWEEN_ROUNDS_S = 12.0  # an operator looks again once what he sees is fresh
SETTLES_IN_S = 120.0  # a request to shut down that came late is waited for by its agent, to its deadline
READY_AT_MOST_S = 90.0
NOT_NOW = (Refused, JournalReadOnly, Unknown)  # an operator tries again


async def converge(sim: Sim) -> None:
    """Heal everything, then work until every operation has ended. Raises BrokenError."""
    sim.heal()
    if not await sim.until(lambda: _ready(sim), at_most_s=READY_AT_MOST_S):
        sim.trace.violate("I16", "the cluster does not come up after all faults have healed")
        sim.check()
    for number in range(ROUNDS):
        sim.start_daemon()
        if not await _becomes_quiet(sim):
            told = "; ".join(f"{o.id} {o.kind} is {o.state}" for o in sim.open_operations())
            sim.trace.violate("I20", f"neither ended nor parked after {QUIET_AT_MOST_S:g} s: {told}")
            sim.check()
        await start_stopped(sim)
        parked = sim.open_operations()
        if not parked and not _stopped(sim) and not _stopping(sim):
            break
        for each in _roots(parked):
            await _wish(sim, each, cancel=number >= RESUMES)
        await sim.pass_time(BETWEEN_ROUNDS_S)
    await sim.until(lambda: _settled(sim), at_most_s=SETTLES_IN_S)
    for state in sim.books.states.values():  # a person ended it without its source, which is back now
        if isinstance(state, MigrateState) and state.given_up and state.stage is Stage.DONE:
            sim.world.undefine_by_hand(state.request.source, state.request.guest)


def _stopping(sim: Sim) -> bool:
    """Is a guest on its way out, by its own will?"""
    machines = sim.world.machines.values()
    shuts_down = any(domain.state is DomainState.SHUTDOWN for m in machines for domain in m.domains.values())
    return shuts_down or any(m.ending & sim.world.excused for m in machines)


async def _becomes_quiet(sim: Sim) -> bool:
    """What waits for a disk to be whole says so, and its operator sees to the disk."""
    ends_s = sim.trace.now_s + QUIET_AT_MOST_S
    while not _quiet(sim):
        if sim.trace.now_s >= ends_s - QUIET_AT_MOST_S + PATIENCE_S:
            await _bring_back_all(sim)
        if sim.trace.now_s >= ends_s:
            return False
        connect_by_hand(sim)
        await sim.until(lambda: _quiet(sim), at_most_s=LOOK_AT_DISKS_S)
    connect_by_hand(sim)
    return True


def _ready(sim: Sim) -> bool:
    booted = all(m.booted or m.name in sim.bmcs.off_by_migrd for m in sim.world.machines.values())
    return (
        booted
        and sim.controller is not None
        and all(r.connected or any(each.standalone for each in r.replicas.values()) for r in _wanted(sim))
    )


def _wanted(sim: Sim) -> list[Resource]:
    """Resources whose two hosts have power."""
    up = {m.name for m in sim.world.machines.values() if m.booted}
    return [r for r in sim.world.resources.values() if set(r.replicas) <= up]


def _quiet(sim: Sim) -> bool:
    """Nothing is in flight: what is open is parked, or waits for a parked child."""
    if sim.controller is None or sim.world.will_stop:
        return False
    parked = {o.id for o in sim.open_operations() if o.state is OperationState.PARKED}
    return all(
        o.id in parked or (o.children and any(child in parked for child in o.children) and not _busy(sim, o))
        for o in sim.open_operations()
    )


def _busy(sim: Sim, parent: Operation) -> bool:
    return any(o.parent == parent.id and o.state is not OperationState.PARKED for o in sim.open_operations())


def _settled(sim: Sim) -> bool:
    world = sim.world
    still = any(m.ending for m in world.machines.values()) or any(r.syncing for r in world.resources.values())
    return not still and not any(a.running_attempts() for a in sim.agents.values() if a.alive)


def _roots(operations: Iterable[Operation]) -> list[Operation]:
    """Parents first: they resume their children by themselves."""
    known = {o.id for o in operations}
    return [o for o in operations if o.parent not in known and o.state is OperationState.PARKED] + [
        o for o in operations if o.parent in known and o.state is OperationState.PARKED
    ]


async def _wish(sim: Sim, operation: Operation, *, cancel: bool) -> None:
    found = sim.operation(operation.id)
    if found is None or found.state is not OperationState.PARKED:
        return
    if any(f"{host} answers again" in found.remedy for host in sim.bmcs.off_by_migrd):
        await _bring_back_all(sim)  # a cold move began just as the power of its source was about to go
    if "virsh undefine" in found.remedy and found.guest:
        here = found.source if f"on {found.source}" in found.remedy else found.target
        sim.world.undefine_by_hand(here, found.guest)  # its other definition is on the other host
    if "stop the wrong one by hand" in found.remedy and found.guest:
        sim.world.end_wrong_one_by_hand(found.source, found.guest)
    with contextlib.suppress(*NOT_NOW):  # it went on by itself meanwhile
        await (sim.cancel(operation.id) if cancel else sim.resume(operation.id))


async def _bring_back_all(sim: Sim) -> None:
    for host in sorted(sim.bmcs.off_by_migrd):
        with contextlib.suppress(*NOT_NOW):
            await sim.undrain(host)


def _stopped(sim: Sim) -> list[Guest]:
    """Guests that a fault has stopped, or that stopped with consent and have to run again."""
    return [
        guest
        for guest in sim.world.guests.values()
        if guest.uuid in sim.world.excused
        and not any(m.has_process(guest.uuid) for m in sim.world.machines.values())
    ]


def connect_by_hand(sim: Sim) -> None:
    """`drbdadm connect` for connections that were given up over differing flags, once no window is open.

    Where a parked operation asks for one replica of two copies, its window is closed by hand.
    """
    for resource in sim.world.resources.values():
        asked = [o for o in sim.open_operations() if o.guest == sim.world.owner(resource.name).uuid]
        if asked and all(o.state is OperationState.PARKED and "its replica" in o.remedy for o in asked):
            sim.world.adjust_by_hand(resource)
        flags = [replica.flag for replica in resource.replicas.values()]
        left = any(replica.left for replica in resource.replicas.values())  # a host whose power goes next
        if not any(flags) and not left and any(r.standalone for r in resource.replicas.values()):
            sim.world.connect_by_hand(resource)


async def start_stopped(sim: Sim) -> None:
    """`virsh start` by an operator, for guests that no operation works on; their host comes back first."""
    for guest in _stopped(sim):
        if any(o.guest == guest.uuid for o in sim.open_operations()):
            continue
        homes = [m for m in sim.world.machines.values() if guest.uuid in m.domains]
        able = next((m for m in homes if m.booted and _current(sim, m.name, guest)), None)
        if able is not None:
            sim.world.start_by_hand(able.name, guest.uuid)
        elif off := next((m for m in homes if m.name in sim.bmcs.off_by_migrd), None):
            with contextlib.suppress(*NOT_NOW):  # an operation holds it: once that has ended
                await sim.undrain(off.name)
    await sim.pass_time(1.0)


def _current(sim: Sim, host: str, guest: Guest) -> bool:
    for volume in guest.volumes:
        if isinstance(volume, DrbdVolume):
            resource = sim.world.resources[volume.name]
            if host not in resource.replicas or not resource.mine(host).up or not resource.current(host):
                return False
    return True
