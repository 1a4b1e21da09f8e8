"""What must hold after every change of the world (charter, section 3), looked at from outside.

The journal is read as it is on disk: consent and open windows count from the moment they are durable.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeGuard

from agents.protocol import Attempt, ConnectReplicas, DisconnectReplicas
from migrd import saga
from migrd.saga import IllegalEvent, MoveState, SagaState
from migrd.sagas.cold_state import ColdStage, ColdState
from migrd.sagas.drain import DrainState, Phase, Task
from migrd.sagas.events import Admitted, Answered, DrainRequested, Event, MigrateRequested
from migrd.sagas.migrate_state import MigrateState, Stage
from migrd.sagas.power import Phase as PowerPhase
from migrd.sagas.power import PowerState
from migrd.sagas.undrain import UndrainState
from migrd.slots import Caps
from storage.words import Role
from tests.sim.world import Machine, World

UNKNOWABLE_S = 1.0


class Books:
    """The journal, folded row by row as rows become durable: what the daemon must know after a crash."""

    def __init__(self) -> None:
        self.states: dict[str, SagaState] = {}
        self.drained: set[tuple[str, str]] = set()  # (host, guest): a drain has moved it away
        self._parked: set[str] = set()  # were parked once: resumed ones go on whether a slot is free or not

    def add(self, operation: str, event: Event) -> None:
        before = self.states.get(operation)
        after = saga.fold(operation, [event]) if before is None else saga.step(before, event)[0]
        self.states[operation] = after
        if saga.parked(after):
            self._parked.add(operation)
        if isinstance(after, MigrateState) and after.stage is Stage.DONE:
            parent = self.states.get(after.request.parent)
            if isinstance(parent, DrainState):
                self.drained.add((parent.request.host, after.request.guest))

    def works_on(self, uuid: str) -> bool:
        return any(
            isinstance(state, MoveState) and state.request.guest == uuid and not state.stage.ended
            for state in self.states.values()
        )

    def window_allowed(self, uuid: str) -> bool:
        """Does an open operation of this guest have its window journalled (I6)?"""
        return any(
            isinstance(state, MigrateState) and state.request.guest == uuid and state.window_may_be_open
            for state in self.states.values()
        )

    def cold_move(self, uuid: str) -> ColdState | None:
        """The open cold move of this guest."""
        for state in self.states.values():
            if isinstance(state, ColdState) and state.request.guest == uuid and not state.stage.ended:
                return state
        return None

    def at_work(self) -> tuple[Counter[str], Counter[str]]:
        """Moves that hold a slot of their source, and of their target."""
        holding = [
            state.request
            for name, state in self.states.items()
            if isinstance(state, MoveState)
            and not (name in self._parked or state.stage.ended or saga.pending(state))
            and not (isinstance(state, MigrateState) and state.committed)
        ]
        return Counter(each.source for each in holding), Counter(each.target for each in holding)


class Invariants:
    """`check` follows every change, `journalled` every durable row; `power_cut` comes before a BMC acts."""

    def __init__(self, world: World, books: Books, caps: Caps) -> None:
        self._world = world
        self._books = books
        self._caps = caps
        world.check = self.check
        world.on_cold_act = self.cold_act

    def journalled(self, operation: str, event: Event) -> None:
        before = self._books.states.get(operation)
        try:
            self._books.add(operation, event)
        except IllegalEvent as error:
            self._violate("I16", f"{operation}: the journal cannot be followed: {error}")
            return
        if isinstance(event, DrainRequested):
            self._world.consented |= set(event.allow_stop)
        state = self._books.states[operation]
        if _believed_off(state) and (before is None or not _believed_off(before)):
            host = state.request.host
            if self._world.machines[host].powered:
                self._violate("I3", f"{operation} believes that {host} is off")
        state = self._books.states[operation]
        if isinstance(state, MigrateState):
            committed = isinstance(before, MigrateState) and before.committed
            self._move(operation, state, event, commits=state.committed and not committed)
            if isinstance(before, MigrateState) and _blind(before, state, event):
                self._violate("I16", f"{operation} goes on as if its migrate attempt had ended")
        if isinstance(state, ColdState):
            self._slots(operation, state, event)
            self._cold(operation, before, state, event)
        if isinstance(before, DrainState) and isinstance(state, DrainState) and state.phase is Phase.DONE:
            for uuid, task in before.guests.items():
                if task.task is Task.STUCK and state.request.host in self._world.where(uuid):
                    self._violate("I19", f"{operation} ends, and {task.name} runs on {state.request.host}")
        if saga.parked(state) and not (state.reasons and state.remedy):
            self._violate("I15", f"{operation} is parked without reason or remedy")
        if saga.ended(state):
            self.check(f"{operation} has ended")

    def sent(self, attempt: Attempt) -> None:
        """Journal, then act: what the daemon asks of an agent is on its disk by then."""
        operation = attempt.operation.partition("@")[0]
        state = self._books.states.get(operation)
        if isinstance(attempt.command, DisconnectReplicas | ConnectReplicas):
            # A part of cutting the power, which is what the journal names; numbered by this life alone.
            journalled = attempt.attempt if _works_on_power(state) else 0
        elif isinstance(state, DrainState):
            task = state.guests.get(attempt.step.removeprefix("stop-").removeprefix("release-"))
            journalled = task.stops if task is not None else 0
        elif isinstance(state, MoveState):
            journalled = {str(stage): number for stage, number in state.attempts.items()}.get(attempt.step, 0)
        else:
            journalled = attempt.attempt if state is not None else 0
        if attempt.attempt > journalled:
            self._violate(
                "I16", f"{operation}/{attempt.step}/{attempt.attempt} is sent and not yet journalled"
            )

    def _move(self, operation: str, state: MigrateState, event: Event, *, commits: bool) -> None:
        guest, source, target = state.request.guest, state.request.source, state.request.target
        if commits and self._world.machines[source].has_process(guest):
            self._violate("I11", f"{operation} is past its commit point, and its QEMU is still on {source}")
        if (commits and self._world.machines[source].powered) or state.stage is Stage.DONE:
            for name in self._world.lost_writes(guest, left=source, on=target):
                if not state.given_up:
                    self._violate("I7", f"{operation} goes on: writes of {name} are on {source} alone")
        self._slots(operation, state, event)
        if isinstance(event, MigrateRequested):
            parent = self._books.states.get(event.parent)
            if isinstance(parent, UndrainState) and (parent.request.host, guest) not in self._books.drained:
                self._violate(
                    "I5", f"{operation} brings {event.name} to {target}, which no drain took from it"
                )

    def _slots(self, operation: str, state: MoveState, event: Event) -> None:
        if isinstance(event, Admitted):
            source, target = state.request.source, state.request.target
            sources, targets = self._books.at_work()
            if sources[source] > self._caps.per_source or targets[target] > self._caps.per_target:
                self._violate("I20", f"{operation} begins without a free slot on {source} and {target}")

    def _cold(self, operation: str, before: SagaState | None, state: ColdState, event: Event) -> None:
        """Consent as far as the journal has it, and what a cold move believes at its end."""
        request, cold = state.request, self._world.cold
        source, target = (self._world.machines[name] for name in (request.source, request.target))
        asked = state.issued(ColdStage.SHUTDOWN) and request.may_stop
        for guests, now in (
            (cold.down, asked and not state.stage.ended),
            (cold.going, asked and state.open is ColdStage.SHUTDOWN),
        ):
            (guests.add if now else guests.discard)(request.guest)
        if asked:
            cold.asked.add(request.guest)
        if isinstance(before, ColdState) and _blind_cold(before, state, event):
            self._violate("I16", f"{operation} goes on as if {before.open} had ended")
        if state.stage is ColdStage.DONE:
            if source.has_process(request.guest):
                self._violate("I11", f"{operation} is done, and its QEMU is still on {source.name}")
            if request.guest in source.domains:
                self._violate("I1", f"{operation} is done, and {source.name} can still start {request.name}")
        if (
            state.stage is ColdStage.UNDONE
            and state.issued(ColdStage.MOVE)
            and request.guest in target.domains
        ):
            self._violate("I1", f"{operation} is undone, and {target.name} can start {request.name}")

    def cold_act(self, what: str, host: str, uuid: str) -> None:
        """An agent asks its libvirt to start a guest, or to hand its definition over."""
        world, name = self._world, self._world.guests[uuid].name
        state = self._books.cold_move(uuid)
        if what != "start":
            return
        if state is None or not state.ran:
            self._violate("I16", f"{name} is started on {host}, and it did not run before")
            return
        for other in world.machines.values():
            if other.name == host or other.name not in (state.request.source, state.request.target):
                continue
            if other.has_process(uuid):
                self._violate("I11", f"{name} is started on {host}, and its QEMU is still on {other.name}")
            if uuid in other.domains:
                self._violate("I1", f"{name} is started on {host}, and {other.name} can start it as well")
        for volume in world.guests[uuid].volumes:
            if world.identity(host, volume) != world.identity(state.request.source, volume):
                self._violate("I9", f"{name} opens another disk on {host}")

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
                if (
                    replica.flag
                    and not resource.by_hand
                    and not self._books.window_allowed(self._world.owner(resource.name).uuid)
                ):
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
        if len(running) > 1 and uuid not in world.twice:
            self._violate("I1", f"{name} runs on {' and '.join(running)}", event)
        if running or world.may_be_down(uuid):
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


def _blind(before: MigrateState, after: MigrateState, event: Event) -> bool:
    """Is a migrate attempt given up, or made again, though nobody has told its end?"""
    told = isinstance(event, Answered) and event.step == Stage.MIGRATE and event.ended
    if not before.migrate_open or told or after.committed:
        return False
    again = after.attempts.get(Stage.MIGRATE, 0) > before.attempts.get(Stage.MIGRATE, 0)
    return again or not after.migrate_open


def _blind_cold(before: ColdState, after: ColdState, event: Event) -> bool:
    """Is a step on the guest itself given up, or made again, though nobody has told its end?"""
    if before.open is None or (isinstance(event, Answered) and event.step == before.open and event.ended):
        return False
    again = after.attempts.get(before.open, 0) > before.attempts.get(before.open, 0)
    return again or after.open is not before.open


def leftovers(world: World) -> list[str]:
    """All that must not be left once every operation has ended and every fault is healed."""
    found = []
    for guest in world.guests.values():
        homes = world.defined(guest.name)
        if len(homes) > 1:
            found.append(f"{guest.name} is defined on {' and '.join(homes)}")
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
            machine = world.machines[replica.host]
            kept = not world.auto_demote and owner.uuid in machine.domains and not world.where(owner.uuid)
            if replica.role is Role.PRIMARY and not world.executes(machine, owner.uuid) and not kept:
                found.append(f"{resource.name} is primary on {replica.host} without its guest")
    return found


def _works_on_power(state: SagaState | None) -> bool:
    drains = (Phase.POWER_OFF, Phase.POWER_READ, Phase.POWER_PROBE)
    powers = (PowerPhase.ACT, PowerPhase.READ, PowerPhase.PROBE)
    return (isinstance(state, DrainState) and state.phase in drains) or (
        isinstance(state, PowerState) and state.request.action == "off" and state.phase in powers
    )
