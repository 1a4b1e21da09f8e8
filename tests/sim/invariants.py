"""What must hold after every change of the world (charter, section 3), looked at from outside.

The journal is read as it is on disk: consent and open windows count from the moment they are durable.
"""

from __future__ import annotations

from typing import TypeGuard

from migrd import saga
from migrd.saga import SagaState
from migrd.sagas.drain import DrainState
from migrd.sagas.events import DrainRequested, Event, PowerRead
from migrd.sagas.migrate_state import MigrateState
from migrd.sagas.power import PowerState
from storage.words import Role
from tests.sim.world import Machine, World

UNKNOWABLE_S = 1.0


class Books:
    """The journal, folded row by row as rows become durable: what the daemon must know after a crash."""

    def __init__(self) -> None:
        self.states: dict[str, SagaState] = {}

    def add(self, operation: str, event: Event) -> None:
        before = self.states.get(operation)
        after = saga.fold(operation, [event]) if before is None else saga.step(before, event)[0]
        self.states[operation] = after

    def window_allowed(self, uuid: str) -> bool:
        """Does an open operation of this guest have its window journalled (I6)?"""
        return any(
            isinstance(state, MigrateState) and state.request.guest == uuid and state.window_may_be_open
            for state in self.states.values()
        )


class Invariants:
    """`check` follows every change, `journalled` every durable row; `power_cut` comes before a BMC acts."""

    def __init__(self, world: World, books: Books) -> None:
        self._world = world
        self._books = books
        world.check = self.check

    def journalled(self, operation: str, event: Event) -> None:
        self._books.add(operation, event)
        if isinstance(event, DrainRequested):
            self._world.consented |= set(event.allow_stop)
        state = self._books.states[operation]
        if isinstance(event, PowerRead) and _believed_off(state):
            host = state.request.host
            if self._world.machines[host].powered:
                self._violate("I3", f"{operation} believes that {host} is off")
        if saga.parked(state) and not (state.reasons and state.remedy):
            self._violate("I15", f"{operation} is parked without reason or remedy")
        if saga.ended(state):
            self.check(f"{operation} has ended")

    def check(self, event: str) -> None:
        for uuid in self._world.guests:
            self._instances(uuid, event)
        for machine in self._world.machines.values():
            if machine.powered:
                self._disks(machine, event)
        for resource in self._world.resources.values():
            if not any(resource.current(host) for host in resource.replicas):
                self._violate("I10", f"no full copy of {resource.name} is left", event)
            for replica in resource.replicas.values():
                if replica.flag and not self._books.window_allowed(self._world.owner(resource.name).uuid):
                    self._violate(
                        "I6",
                        f"{resource.name}: flag on {replica.host} outside of a journalled window",
                        event,
                    )

    def power_cut(self, host: str, told_s: float) -> None:
        """The BMC is about to cut the power because migrd said so at `told_s`.

        What breaks in the instants between the last report and the BMC's ear cannot be known to anyone.
        """
        machine = self._world.machines[host]
        alive = [self._world.guests[u].name for u in self._world.guests if machine.has_process(u)]
        if alive:
            self._violate("I12", f"{host} is powered off with {', '.join(alive)} on it")
        for resource in self._world.resources.values():
            if host not in resource.replicas:
                continue
            mine, peer = resource.mine(host), resource.peer(host)
            if resource.connected and peer.role is Role.PRIMARY:
                self._violate("I5", f"{host} vanishes from {resource.name}: {peer.host} holds writes back")
            if mine.role is Role.PRIMARY:
                self._violate("I12", f"{host} is powered off as primary of {resource.name}")
            elif mine.is_behind(peer) or (not resource.connected and told_s - resource.lost_s < UNKNOWABLE_S):
                continue
            elif not peer.up or not resource.current(peer.host):
                self._violate("I12", f"{host} is powered off with the only current copy of {resource.name}")

    def _instances(self, uuid: str, event: str) -> None:
        world, name = self._world, self._world.guests[uuid].name
        running = world.where(uuid)
        if len(running) > 1:
            self._violate("I1", f"{name} runs on {' and '.join(running)}", event)
        if running or uuid in world.excused or uuid in world.consented:
            return
        alive = any(
            uuid in m.domains and m.domains[uuid].process and m.domains[uuid].ran
            for m in world.machines.values()
        )
        if not alive:
            self._violate("I5", f"{name} runs nowhere", event)

    def _disks(self, machine: Machine, event: str) -> None:
        world = self._world
        for uuid, guest in world.guests.items():
            if not machine.has_process(uuid):
                continue
            for volume in guest.volumes:
                if not world.holds(machine.name, volume):
                    self._violate("I11", f"QEMU of {guest.name} on {machine.name} lost {volume.name}", event)

    def _violate(self, invariant: str, text: str, event: str = "") -> None:
        self._world.trace.violate(invariant, text, event)


def _believed_off(state: SagaState) -> TypeGuard[DrainState | PowerState]:
    """Has this operation taken the power for off?"""
    if isinstance(state, DrainState):
        return state.off
    return isinstance(state, PowerState) and state.request.action == "off" and state.phase == "done"


def leftovers(world: World) -> list[str]:
    """All that must not be left once every operation has ended and every fault is healed."""
    found = []
    for machine in world.machines.values():
        for uuid, domain in machine.domains.items():
            name = world.guests[uuid].name
            if domain.process and not world.executes(machine, uuid):
                found.append(f"{name} is {domain.state} on {machine.name}")
            elif domain.job:
                found.append(f"a job runs on {name} on {machine.name}")
        for volume_name in machine.sessions:
            owner = world.owner(volume_name)
            if not world.executes(machine, owner.uuid) and owner.uuid not in machine.domains:
                found.append(f"{machine.name} still has {volume_name}")
    for resource in world.resources.values():
        owner = world.owner(resource.name)
        for replica in resource.replicas.values():
            if replica.flag:
                found.append(f"{resource.name}: two primaries are still allowed on {replica.host}")
            if replica.role is Role.PRIMARY and not world.executes(world.machines[replica.host], owner.uuid):
                found.append(f"{resource.name} is primary on {replica.host} without its guest")
    return found
