"""What a scenario tells: one short typed line per thing that matters, without ids, times and prose.

Journal rows become lines about operations, changes of the world become lines about guests, hosts and
replicas. Everything that is told, and every stage of a saga, is an event that `when` can wait for.
"""

from __future__ import annotations

from collections.abc import Callable

from agents.protocol import Outcome
from migrd.projection import operation_state
from migrd.reconcile import Pair, verdict
from migrd.saga import SagaState
from migrd.sagas.drain import DrainState, Task
from migrd.sagas.drain import Phase as Drain
from migrd.sagas.events import (
    Answered,
    CancelRequested,
    Event,
    Looked,
    PowerRead,
    Resumed,
    Withdrawn,
)
from migrd.sagas.migrate_state import MigrateState, Stage
from migrd.sagas.power import PowerState
from migrd.sagas.undrain import Back, UndrainState
from tests.scenarios.why import why
from tests.sim.world import World


class Teller:
    """`lines`: what is told. `on_event(text, now)`: every event, told or not."""

    def __init__(self, world: World, on_event: Callable[[str], None], *, brief: bool) -> None:
        self.lines: list[str] = []
        self.closed = False
        self._world = world
        self._on_event = on_event
        self._brief = brief
        self._seen: dict[str, str] = {}
        self.most: dict[str, int] = {}  # "out of h1" -> migrations at once, at most

    def say(self, text: str) -> None:
        """Tell it, and let others act on it."""
        if not self.closed:
            self.lines.append(text)
        self._on_event(text)

    def usual(self, text: str) -> None:
        """Left out of a brief story."""
        if self._brief:
            self._on_event(text)
        else:
            self.say(text)

    # -- the world -------------------------------------------------------------------------------

    def look(self) -> None:
        """After every change of the world: tell what is different for guests, hosts and replicas."""
        for host, machine in self._world.machines.items():
            jobs = [domain.job for domain in machine.domains.values()]
            for way, where in (("out", f"out of {host}"), ("in", f"into {host}")):
                self.most[where] = max(self.most.get(where, 0), jobs.count(way))
        for subject, (text, usual) in self._facts().items():
            before = self._seen.get(subject)
            if before is None or before == text:
                self._seen[subject] = text
                continue
            self._seen[subject] = text
            if text == "switches over":
                self._on_event(f"{subject} {text}")
            elif usual:
                self.usual(f"{subject} {text}")
            else:
                self.say(f"{subject} {text}")

    def _facts(self) -> dict[str, tuple[str, bool]]:
        """Subject -> (what is the case, is that usual)."""
        world, found = self._world, {}
        for host, machine in world.machines.items():
            found[host] = (
                "is up" if machine.booted else "boots" if machine.powered else "has no power",
                False,
            )
        for guest in world.guests.values():
            found[guest.name] = (_guest(world, guest.uuid), True)
        for resource in world.resources.values():
            name = world.owner(resource.name).name
            both = any(replica.flag for replica in resource.replicas.values())
            found[f"{name}: two primaries"] = ("allowed" if both else "not allowed", True)
            link = "resyncs" if resource.syncing else "whole" if resource.connected else "broken"
            if any(replica.standalone for replica in resource.replicas.values()):
                link = "left" if any(replica.left for replica in resource.replicas.values()) else "split"
            found[f"{name}: replication"] = (link, False)
        return found

    # -- the journal -----------------------------------------------------------------------------

    def journalled(self, before: SagaState | None, event: Event, after: SagaState) -> None:
        """One durable row."""
        match after:
            case MigrateState():
                assert before is None or isinstance(before, MigrateState)
                self._migrate(before, event, after)
            case DrainState():
                assert before is None or isinstance(before, DrainState)
                self._drain(before, event, after)
            case UndrainState():
                assert before is None or isinstance(before, UndrainState)
                self._undrain(before, event, after)
            case PowerState():
                self._power(before, event, after)

    def _migrate(self, before: MigrateState | None, event: Event, after: MigrateState) -> None:
        request = after.request
        subject = f"migrate {request.name}"
        if before is None:
            self.usual(f"{subject} {request.source}->{request.target}")
            return
        if _stage(before) != _stage(after):
            self._on_event(f"{subject} at {after.stage}")
        if isinstance(event, Resumed):
            self.say(f"{subject} resumed by {event.by}")
        if isinstance(event, CancelRequested):
            self.say(f"{subject} cancel asked")
        copies = after.attempts.get(Stage.MIGRATE, 0)
        if copies != before.attempts.get(Stage.MIGRATE, 0):
            self.usual(f"{subject} copies" + (f" again ({copies})" if copies > 1 else ""))
        cause = _cause(event, before=before)
        if after.committed and not before.committed:
            self._on_event(f"{subject} committed")
        if after.going_back and not before.going_back and not after.stage.ended:
            self.say(f"{subject} goes back: {'cancelled' if after.cancelled else why(*after.reasons)}")
        if after.stage is Stage.SALVAGE is not before.stage:
            self.say(f"{subject} closes the source's half of the window")
        if after.stage is before.stage:
            return
        if after.stage is Stage.PARKED:
            word = "ALARM" if any("ALARM" in reason for reason in after.reasons) else "parked"
            until = f", until {' and '.join(after.waits_for)} answers" if after.waits_for else ""
            self.say(f"{subject} {word}: {cause}{until}")
        elif after.stage is Stage.UNDONE:
            told = "cancelled" if after.cancelled else why(*after.reasons)
            self.say(f"{subject} undone" + ("" if before.going_back else f": {told}"))
        elif after.stage is Stage.DONE:
            shut = " (shut down meanwhile)" if after.stopped else " (with remarks)" if after.reasons else ""
            self.usual(f"{subject} done") if not shut else self.say(f"{subject} done{shut}")

    def _drain(self, before: DrainState | None, event: Event, after: DrainState) -> None:
        subject = f"drain {after.request.host}"
        if before is None:
            stops = [f"may stop {name}" for _, name in after.request.stops]
            self.say(" ".join([subject, *stops]))
            return
        if isinstance(event, Resumed):
            self.say(f"{subject} resumed by {event.by}")
        for uuid, task in after.guests.items():
            old = before.guests.get(uuid)
            if old == task:
                continue
            match task.task:
                case Task.STUCK if old is None or old.task is not Task.STUCK:
                    self.say(f"{subject}: {task.name} stuck: {why(task.reason)}")
                case Task.STOPPING if old is None or old.stops != task.stops:
                    self.say(f"{subject}: {task.name} is asked to stop")
                case Task.STOPPED if old is None or old.task is not Task.STOPPED:
                    self.say(f"{subject}: {task.name} stopped")
                case Task.CHOOSING if old is None:
                    self.say(f"{subject}: {task.name} is there too")
                case Task.MOVING if old is not None and old.task is Task.CHOOSING and old.failed_on:
                    self.say(f"{subject}: {task.name} again, to {task.target}")
                case _:
                    pass
        if before.phase is after.phase:
            return
        self._on_event(f"{subject} at {after.phase}")
        match after.phase:
            case Drain.POWER_OFF:
                self.say(f"{subject} switches the power off")
            case Drain.POWER_PROBE:
                self.say(f"{subject} asks whether the power is off already")
            case Drain.CANCELLING:
                self.say(f"{subject} cancel asked")
            case Drain.PARKED:
                left = [task.name for task in after.guests.values() if task.task is Task.STUCK]
                self.say(f"{subject} parked: {' '.join(left) or _cause(event, after.reasons)}")
            case Drain.UNDONE:
                self.say(f"{subject} undone")
            case Drain.DONE:
                self.say(f"{subject} done" + (" (off)" if after.off else ""))
            case _:
                pass

    def _undrain(self, before: UndrainState | None, event: Event, after: UndrainState) -> None:
        subject = f"undrain {after.request.host}"
        if before is None:
            self.say(subject)
            return
        if isinstance(event, Resumed):
            self.say(f"{subject} resumed by {event.by}")
        if after.cancelled and not before.cancelled:
            self.say(f"{subject} cancel asked")
        if after.usable and not before.usable:
            self.say(f"{after.request.host} takes guests again")
        for uuid, task in after.guests.items():
            old = before.guests.get(uuid)
            if old is None or old.task is task.task:
                continue
            if task.task is Back.WAITING:
                self.say(f"{subject}: {task.name} waits: {why(task.reason)}")
            elif task.task is Back.SKIPPED:
                self.say(f"{subject}: {task.name} is not where the drain put it")
            elif task.task is Back.STUCK:
                self.say(f"{subject}: {task.name} stuck: {why(task.reason)}")
        if before.phase is not after.phase:
            self._on_event(f"{subject} at {after.phase}")
            self._ended(subject, event, after)

    def _power(self, before: SagaState | None, event: Event, after: PowerState) -> None:
        subject = f"power {after.request.host} {after.request.action}"
        if before is None:
            self.say(subject)
            return
        assert isinstance(before, PowerState)
        if before.phase is not after.phase:
            self._on_event(f"{subject} at {after.phase}")
            self._ended(subject, event, after)

    def _ended(self, subject: str, event: Event, after: UndrainState | PowerState) -> None:
        state = operation_state(after)
        if state in ("done", "undone", "failed", "parked"):
            cause = f": {_cause(event, after.reasons)}" if state != "done" else ""
            self.say(f"{subject} {state}{cause}")


def _guest(world: World, uuid: str) -> str:
    executes = [m.name for m in world.machines.values() if world.executes(m, uuid)]
    if executes:
        return f"runs on {' AND '.join(executes)}"
    for host, machine in world.machines.items():
        domain = machine.domains.get(uuid)
        if domain is not None and domain.process and domain.ran and domain.reason in ("user", "ioerror"):
            return f"is {domain.state} on {host}"
    alive = any(
        uuid in m.domains and m.domains[uuid].process and m.domains[uuid].ran for m in world.machines.values()
    )
    return "switches over" if alive else "runs nowhere"


def _stage(state: MigrateState) -> tuple[Stage, int]:
    return state.stage, state.attempts.get(state.stage, 0)


def _cause(event: Event, reasons: tuple[str, ...] = (), before: MigrateState | None = None) -> str:
    """The typed part of why."""
    if before is not None and isinstance(event, Answered):
        bad = (each for each in (*before.answers, event) if each.outcome is not Outcome.DONE)
        event = next(bad, event)
    match event:
        case Looked():
            return f"the pair shows {verdict(Pair.of(event.source, event.target, event.off))}"
        case Answered(outcome=Outcome.DONE):
            return f"after {event.step}"
        case Answered():
            return f"{event.step} on {event.side} is {event.outcome if event.ended else 'not ended'}"
        case CancelRequested():
            return "cancelled"
        case Withdrawn():
            return "withdrawn"
        case PowerRead():
            return f"power reads {event.status.partition(':')[0]}"
        case _:
            return why(*reasons)


__all__ = ["Teller"]
