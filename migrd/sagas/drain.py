"""The drain saga: empties a host by child migrations, guest by guest. Pure.

One guest that fails does not stop the others: it is tried on another target, with back-off, a bounded
number of times, and then reported. A drain with guests left parks, and the host stays draining. Nothing is
ever stopped without the operator's consent by name (I5); power goes off only behind I12 and I3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from agents.protocol import Outcome
from migrd.operations import OperationState
from migrd.sagas.children import of_child, park_remedy
from migrd.sagas.commands import (
    CancelChild,
    CheckPowerOff,
    Choose,
    IllegalEvent,
    ReadPower,
    ResumeChild,
    SagaCommand,
    SetPower,
    StartMove,
    StopGuest,
    Survey,
)
from migrd.sagas.events import (
    CANCELLED,
    CancelRequested,
    ChildEnded,
    Chosen,
    DrainRequested,
    Event,
    PowerActed,
    PowerChecked,
    PowerRead,
    Recovered,
    Resumed,
    StopAnswered,
    Surveyed,
)

MAX_TRIES = 3  # targets tried per guest before it is reported
MAX_ROUNDS = 5  # surveys that may find new guests on the host
MAX_ASKS = 5  # of the host for what it has left, of all hosts whether its power may go
ASK_EVERY_S = 3.0
MAX_READS = 12  # of the power status after "off"
READ_EVERY_S = 2.0
RETRY_AFTER_S = 2.0  # doubled with every try
STOP_DEADLINE_S = 120.0


class Task(StrEnum):
    MOVING = "moving"
    CHOOSING = "choosing"
    STOPPING = "stopping"
    MOVED = "moved"
    STOPPED = "stopped"
    STUCK = "stuck"  # given up for now: `reason`; resume tries again

    @property
    def open(self) -> bool:
        return self in (Task.MOVING, Task.CHOOSING, Task.STOPPING)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestTask:
    name: str
    task: Task
    child: str = ""  # the latest child
    target: str = ""
    tries: int = 0
    stops: int = 0  # shutdown attempts; grows for ever
    failed_on: tuple[str, ...] = ()
    reason: str = ""
    parked: bool = False  # its child is parked: the child must end before anything else is tried


class Phase(StrEnum):
    MOVING = "moving"
    SURVEY = "survey"
    POWER_CHECK = "power-check"
    POWER_PROBE = "power-probe"  # "off" may have been asked for before a crash: is it off already?
    POWER_OFF = "power-off"
    POWER_READ = "power-read"
    CANCELLING = "cancelling"
    PARKED = "parked"
    DONE = "done"
    UNDONE = "undone"

    @property
    def ended(self) -> bool:
        return self in (Phase.DONE, Phase.UNDONE)


COMMIT_POINT = Phase.POWER_OFF
"""Before it a cancel gives the host back to its guests; from it on, the power may be gone: only forward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainState:
    operation: str
    request: DrainRequested
    phase: Phase
    guests: Mapping[str, GuestTask] = field(default_factory=dict)  # by uuid
    children: int = 0  # how many were named; their ids are OPERATION.1, .2 ...
    rounds: int = 0
    asks: int = 0  # that were answered with a reason, in this phase
    cancelled: bool = False
    off_asked: bool = False  # the power may have gone, or go at any moment
    off: bool = False  # status = off was read back (I3)
    reasons: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def moved(self) -> tuple[tuple[str, GuestTask], ...]:
        return tuple((uuid, task) for uuid, task in self.guests.items() if task.task is Task.MOVED)


Result = tuple[DrainState, tuple[SagaCommand, ...]]


def begin(operation: str, request: DrainRequested) -> Result:
    """The first row: the plan, already accepted. All children are named at once; slots pace them."""
    state = DrainState(operation=operation, request=request, phase=Phase.MOVING)
    commands: list[SagaCommand] = []
    for move in request.moves:
        state, command = _start(state, move.guest, move.name, move.target)
        commands.append(command)
    for uuid, name in request.stops:
        state, stop = _stop(state, uuid, name)
        commands.append(stop)
    if not commands:
        return _survey(state)
    return state, tuple(commands)


def step(state: DrainState, event: Event) -> Result:
    """Apply one event. Raises IllegalEvent and changes nothing when the table has no such row."""
    handler = TABLE.get((state.phase, type(event)))
    if handler is None:
        raise IllegalEvent(f"{state.operation}: {type(event).__name__} while {state.phase}")
    return handler(state, event)


# -- starting things ------------------------------------------------------------------------------


def _start(
    state: DrainState, uuid: str, name: str, target: str, after_s: float = 0.0
) -> tuple[DrainState, StartMove]:
    number = state.children + 1
    child = f"{state.operation}.{number}"
    before = state.guests.get(uuid, GuestTask(name=name, task=Task.MOVING))
    task = replace(
        before, task=Task.MOVING, child=child, target=target, tries=before.tries + 1, reason="", parked=False
    )
    state = replace(state, guests={**state.guests, uuid: task}, children=number)
    return state, StartMove(
        child=child, guest=uuid, source=state.request.host, target=target, after_s=after_s
    )


def _choose(state: DrainState, uuid: str, name: str, after_s: float = 0.0) -> tuple[DrainState, Choose]:
    before = state.guests.get(uuid, GuestTask(name=name, task=Task.CHOOSING))
    state = replace(state, guests={**state.guests, uuid: replace(before, task=Task.CHOOSING)})
    return state, Choose(guest=uuid, source=state.request.host, exclude=before.failed_on, after_s=after_s)


def _stop(state: DrainState, uuid: str, name: str, after_s: float = 0.0) -> tuple[DrainState, StopGuest]:
    """Only ever called for a guest that the request names (I5)."""
    assert uuid in state.request.allow_stop, f"no consent to stop {uuid}"
    before = state.guests.get(uuid, GuestTask(name=name, task=Task.STOPPING))
    task = replace(before, task=Task.STOPPING, stops=before.stops + 1, tries=before.tries + 1)
    state = replace(state, guests={**state.guests, uuid: task})
    return state, StopGuest(
        host=state.request.host,
        guest=uuid,
        attempt=task.stops,
        deadline_s=STOP_DEADLINE_S,
        after_s=after_s,
    )


def _survey(state: DrainState) -> Result:
    return replace(state, phase=Phase.SURVEY, asks=0), (Survey(host=state.request.host),)


def _settle(state: DrainState) -> Result:
    """Go on when nothing is in flight any more."""
    if any(task.task.open for task in state.guests.values()):
        return state, ()
    if state.cancelled:
        return replace(state, phase=Phase.UNDONE, reasons=(CANCELLED, *_left(state))), ()
    return _survey(state)


def _left(state: DrainState) -> tuple[str, ...]:
    return tuple(f"{t.name}: {t.reason}" for t in state.guests.values() if t.task is Task.STUCK)


def _set(state: DrainState, uuid: str, task: GuestTask) -> DrainState:
    return replace(state, guests={**state.guests, uuid: task})


# -- answers --------------------------------------------------------------------------------------


def _child_ended(state: DrainState, event: ChildEnded) -> Result:
    uuid, task = of_child(state.operation, state.guests, event.child)
    resolved = task.parked and event.state is not OperationState.PARKED  # it went on by itself
    if task.task is not Task.MOVING and not resolved:
        raise IllegalEvent(f"{state.operation}: {event.child} has ended before")
    if event.state is OperationState.DONE:
        moved = replace(task, task=Task.MOVED, target=event.target, reason="", parked=False)
        return _settle(_set(state, uuid, moved))
    if event.state is OperationState.PARKED:
        stuck = replace(task, task=Task.STUCK, reason=f"{event.child} is parked: {event.reason}", parked=True)
        return _settle(_set(state, uuid, stuck))
    failed = replace(task, failed_on=_also(task.failed_on, event.target), reason=event.reason, parked=False)
    if state.cancelled or event.cancelled:
        return _settle(_set(state, uuid, replace(failed, task=Task.STUCK)))
    if failed.tries >= MAX_TRIES:
        return _settle(_set(state, uuid, replace(failed, task=Task.STUCK)))
    state, choose = _choose(
        _set(state, uuid, failed), uuid, task.name, RETRY_AFTER_S * 2 ** (failed.tries - 1)
    )
    return state, (choose,)


def _chosen(state: DrainState, event: Chosen) -> Result:
    task = state.guests.get(event.guest)
    if task is None or task.task is not Task.CHOOSING:
        raise IllegalEvent(f"{state.operation}: nobody asked for a target of {event.guest}")
    if state.cancelled:
        return _settle(_set(state, event.guest, replace(task, task=Task.STUCK, reason="cancelled")))
    if event.gone:  # the survey at the end tells whether that is so
        reason = "; ".join(event.reasons)
        return _settle(_set(state, event.guest, replace(task, task=Task.STUCK, reason=reason)))
    if event.target:
        state, start = _start(state, event.guest, task.name, event.target)
        return state, (start,)
    if event.guest in state.request.allow_stop and task.tries < MAX_TRIES:
        state, stop = _stop(state, event.guest, task.name)
        return state, (stop,)
    if task.tries < MAX_TRIES:
        # Most of what refuses a guest passes by itself, and hosts that failed before may work by now.
        again = replace(task, failed_on=(), tries=task.tries + 1)
        state, choose = _choose(
            _set(state, event.guest, again), event.guest, task.name, RETRY_AFTER_S * 2**task.tries
        )
        return state, (choose,)
    why = "; ".join(dict.fromkeys(part for part in (task.reason, *event.reasons) if part))
    return _settle(_set(state, event.guest, replace(task, task=Task.STUCK, reason=why)))


def _stop_answered(state: DrainState, event: StopAnswered) -> Result:
    task = state.guests.get(event.guest)
    if task is None or task.task is not Task.STOPPING or task.stops != event.attempt:
        raise IllegalEvent(f"{state.operation}: nobody asked {event.guest} to stop (attempt {event.attempt})")
    if event.outcome is Outcome.DONE:
        return _settle(_set(state, event.guest, replace(task, task=Task.STOPPED, reason="")))
    reason = "; ".join(event.reasons) or f"shutdown ended: {event.outcome}"
    if task.tries < MAX_TRIES and not state.cancelled and event.outcome is not Outcome.REFUSED:
        # Also for an unknown outcome: to ask a guest that is shutting down once more does no harm.
        state, stop = _stop(state, event.guest, task.name, RETRY_AFTER_S * 2 ** (task.tries - 1))
        return state, (stop,)
    return _settle(_set(state, event.guest, replace(task, task=Task.STUCK, reason=reason)))


def _surveyed(state: DrainState, event: Surveyed) -> Result:
    """What the host itself still has. The plan's word counts for nothing here."""
    if event.reasons:
        return _ask_again(state, event.reasons)
    left = {each.guest: each for each in event.guests if each.state.has_process}
    known = {uuid for uuid in left if uuid in state.guests and state.guests[uuid].task is Task.STUCK}
    fresh = [each for uuid, each in left.items() if uuid not in known]
    if fresh and state.rounds < MAX_ROUNDS:
        state = replace(state, rounds=state.rounds + 1, phase=Phase.MOVING)
        commands: list[SagaCommand] = []
        for each in fresh:
            # It came back or came new: whatever was tried before no longer counts.
            clean = {uuid: task for uuid, task in state.guests.items() if uuid != each.guest}
            state, choose = _choose(replace(state, guests=clean), each.guest, each.name, 0.0)
            commands.append(choose)
        return state, tuple(commands)
    if left:
        reasons = tuple(
            f"{each.name}: {state.guests[uuid].reason or 'it came back'}"
            if uuid in state.guests
            else f"{each.name}: it was started on {state.request.host} during the drain"
            for uuid, each in left.items()
        )
        return _park(state, reasons)
    unfinished = tuple(
        f"{task.name}: {task.reason}"
        for task in state.guests.values()
        if task.task is Task.STUCK and task.parked
    )
    if unfinished:  # the guest left, but its migration is not tidied up
        return _park(state, unfinished)
    # A guest that was given up and is gone now left by another way: no longer this drain's matter.
    gone = {uuid: task for uuid, task in state.guests.items() if task.task is not Task.STUCK}
    state = replace(state, guests=gone)
    if state.request.power_off:
        return replace(state, phase=Phase.POWER_CHECK), (CheckPowerOff(host=state.request.host),)
    return replace(state, phase=Phase.DONE, reasons=()), ()


def _ask_again(state: DrainState, reasons: tuple[str, ...]) -> Result:
    """An agent that restarts, a guest that has just arrived: no reason to wake an operator."""
    if state.asks >= MAX_ASKS:
        return _park(state, reasons)
    again = Survey(host=state.request.host, after_s=ASK_EVERY_S)
    return replace(state, phase=Phase.SURVEY, asks=state.asks + 1), (again,)


def _power_checked(state: DrainState, event: PowerChecked) -> Result:
    if event.reasons:
        return _ask_again(state, event.reasons)
    state = replace(state, phase=COMMIT_POINT, off_asked=True)
    return state, (SetPower(host=state.request.host, action="off"),)


def _power_acted(state: DrainState, event: PowerActed) -> Result:
    """Whatever the BMC said, only the status tells (I3). If it was not asked, all is checked once more."""
    reasons = (event.reason,) if event.reason else ()
    if not event.asked:
        return _probe_power(replace(state, reasons=reasons))
    return _read(replace(state, phase=Phase.POWER_READ, reasons=reasons), 1, 0.0)


def _read(state: DrainState, number: int, after_s: float) -> Result:
    read = ReadPower(host=state.request.host, number=number, after_s=after_s, stays_on=number >= MAX_READS)
    return state, (read,)


def _power_read(state: DrainState, event: PowerRead) -> Result:
    if event.status == "off":
        return replace(state, phase=Phase.DONE, off=True, reasons=()), ()
    if event.number < MAX_READS:
        return _read(state, event.number + 1, READ_EVERY_S)
    return _park(state, (*state.reasons, f"power of {state.request.host} is {event.status}, not off"))


def _probe_power(state: DrainState) -> Result:
    return replace(state, phase=Phase.POWER_PROBE), (ReadPower(host=state.request.host, stays_on=True),)


def _power_probed(state: DrainState, event: PowerRead) -> Result:
    """Off: done. Else whatever was found before is stale: ask the host anew what it has, move that, and check
    again before any power command (I12)."""
    if event.status == "off":
        return replace(state, phase=Phase.DONE, off=True, reasons=()), ()
    if state.reasons:  # why the BMC was not asked
        return _ask_again(replace(state, reasons=()), state.reasons)
    return _survey(state)


def _park(state: DrainState, reasons: tuple[str, ...]) -> Result:
    return replace(state, phase=Phase.PARKED, reasons=reasons, remedy=park_remedy(state.operation)), ()


# -- operator and daemon --------------------------------------------------------------------------


def _cancel(state: DrainState, _event: CancelRequested) -> Result:
    """No new moves; those before their commit point go back; what has moved stays moved."""
    cancels = tuple(
        CancelChild(child=t.child) for t in state.guests.values() if t.task is Task.MOVING or t.parked
    )
    state = replace(state, cancelled=True, phase=Phase.CANCELLING)
    settled, commands = _settle(state)
    return settled, (*cancels, *commands)


def _cancel_again(state: DrainState, _event: CancelRequested) -> Result:
    return state, ()


def _cancel_power(state: DrainState, _event: CancelRequested) -> Result:
    raise IllegalEvent(f"{state.operation}: the power is being switched off: too late to cancel; use undrain")


def _resumed(state: DrainState, event: Resumed) -> Result:
    """Try what is left, as if it were new; a parked child has to end first."""
    commands: list[SagaCommand] = []
    state = replace(state, phase=Phase.MOVING, rounds=0, reasons=(), remedy="")
    if state.off_asked:
        return _probe_power(state)
    for uuid, task in state.guests.items():
        if task.task is not Task.STUCK:
            continue
        if task.parked:
            state = _set(state, uuid, replace(task, task=Task.MOVING))
            commands.append(ResumeChild(child=task.child))
            continue
        clean = replace(task, tries=0, failed_on=())
        state, choose = _choose(_set(state, uuid, clean), uuid, task.name)
        commands.append(choose)
    if not commands:
        return _survey(state)
    return state, tuple(commands)


def _follow(state: DrainState, uuid: str, task: GuestTask) -> StartMove:
    """The same child again: the executor finds it journalled, or journals it now, and reports its end."""
    return StartMove(child=task.child, guest=uuid, source=state.request.host, target=task.target)


def _recovered(state: DrainState, _event: Recovered) -> Result:
    """Ask again for everything that was in flight; every question is safe to repeat."""
    if state.phase in (Phase.POWER_OFF, Phase.POWER_PROBE):
        return _probe_power(state)
    if state.phase is Phase.POWER_CHECK:
        return state, (CheckPowerOff(host=state.request.host),)
    if state.phase is Phase.POWER_READ:
        return _read(state, 1, 0.0)
    if state.phase is Phase.SURVEY:
        return _survey(state)
    commands: list[SagaCommand] = []
    for uuid, task in state.guests.items():
        if task.task is Task.MOVING:
            commands.append(_follow(state, uuid, task))
            if state.cancelled:
                commands.append(CancelChild(child=task.child))
        elif task.task is Task.CHOOSING:
            commands.append(Choose(guest=uuid, source=state.request.host, exclude=task.failed_on))
        elif task.task is Task.STOPPING:
            state, stop = _stop(state, uuid, task.name)
            commands.append(stop)
    if not commands:
        return _settle(state)
    return state, tuple(commands)


def _recovered_parked(state: DrainState, _event: Recovered) -> Result:
    """A child may have ended while nobody was there to tell: ask for the ends of all that are parked."""
    return state, tuple(_follow(state, uuid, task) for uuid, task in state.guests.items() if task.parked)


def _parked_child_ended(state: DrainState, event: ChildEnded) -> Result:
    """A parked child resolved itself (its host returned): take the drain up again."""
    noted, _ = _note_child(state, event)
    return (state, ()) if noted == state else _resumed(noted, Resumed(by="child-ended"))


def _note_child(state: DrainState, event: ChildEnded) -> Result:
    """The same while the host is being asked what it still has: that answer decides what is next."""
    uuid, task = of_child(state.operation, state.guests, event.child)
    if event.state is OperationState.PARKED or not task.parked:
        return state, ()
    if event.state is OperationState.DONE:
        after = replace(task, task=Task.MOVED, target=event.target, reason="", parked=False)
    else:
        after = replace(task, reason=event.reason, parked=False)
    return _set(state, uuid, after), ()


def _also(hosts: tuple[str, ...], host: str) -> tuple[str, ...]:
    return hosts if not host or host in hosts else (*hosts, host)


Handler = Callable[[DrainState, "Event"], Result]


def _rows() -> dict[tuple[Phase, type], Handler]:
    table: dict[tuple[Phase, type], object] = {
        (Phase.SURVEY, Surveyed): _surveyed,
        (Phase.SURVEY, ChildEnded): _note_child,
        (Phase.POWER_CHECK, PowerChecked): _power_checked,
        (Phase.POWER_OFF, PowerActed): _power_acted,
        (Phase.POWER_READ, PowerRead): _power_read,
        (Phase.POWER_PROBE, PowerRead): _power_probed,
        (Phase.POWER_PROBE, CancelRequested): _cancel_power,
        (Phase.CANCELLING, CancelRequested): _cancel_again,
        (Phase.POWER_OFF, CancelRequested): _cancel_power,
        (Phase.POWER_READ, CancelRequested): _cancel_power,
        (Phase.PARKED, CancelRequested): _cancel,
        (Phase.PARKED, Resumed): _resumed,
        (Phase.PARKED, Recovered): _recovered_parked,
        (Phase.PARKED, ChildEnded): _parked_child_ended,
    }
    for phase in (Phase.MOVING, Phase.CANCELLING):
        table[phase, ChildEnded] = _child_ended
        table[phase, Chosen] = _chosen
        table[phase, StopAnswered] = _stop_answered
    for phase in (Phase.MOVING, Phase.SURVEY, Phase.POWER_CHECK):
        table[phase, CancelRequested] = _cancel
    for phase in Phase:
        if not phase.ended and phase is not Phase.PARKED:
            table[phase, Recovered] = _recovered
    return table  # type: ignore[return-value]  # each handler takes exactly the event type of its key


TABLE: Mapping[tuple[Phase, type], Handler] = _rows()

__all__ = ["COMMIT_POINT", "TABLE", "DrainState", "GuestTask", "Phase", "Task", "begin", "step"]
