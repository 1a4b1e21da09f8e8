"""The undrain saga: power on if needed, wait until the host is whole again, then move guests back. Pure.

Only what that drain moved, and still is where the drain put it, comes back; a guest that does not fit yet
waits until another move has ended. The host is usable (and so a target) only after its replicas are current.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from migrd.operations import OperationState
from migrd.sagas.children import of_child, park_remedy
from migrd.sagas.commands import (
    CancelChild,
    CheckHost,
    Choose,
    IllegalEvent,
    ReadPower,
    ResumeChild,
    SagaCommand,
    SetPower,
    StartMove,
)
from migrd.sagas.events import (
    CANCELLED,
    CancelRequested,
    ChildEnded,
    Chosen,
    Event,
    HostChecked,
    PowerActed,
    PowerRead,
    Recovered,
    Resumed,
    UndrainRequested,
)

READ_EVERY_S = 2.0
MAX_READS = 30  # one minute for the power to come on
CHECK_EVERY_S = 1.0
MAX_CHECKS = 1800  # half an hour for boot, agent, and DRBD's resync
MAX_TRIES = 3
MAX_WAITS = 3  # askings for a place, with back-off, before only a move that ends brings another one
RETRY_AFTER_S = 2.0


class Back(StrEnum):
    WAITING = "waiting"  # does not fit yet
    CHOOSING = "choosing"
    MOVING = "moving"
    BACK = "back"
    SKIPPED = "skipped"  # no longer where the drain put it
    STUCK = "stuck"

    @property
    def open(self) -> bool:
        return self in (Back.CHOOSING, Back.MOVING)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackTask:
    name: str
    now_on: str
    task: Back = Back.CHOOSING
    child: str = ""
    tries: int = 0
    waits: int = 0
    reason: str = ""
    parked: bool = False


class Phase(StrEnum):
    POWER_ON = "power-on"
    POWER_READ = "power-read"
    WAIT_HOST = "wait-host"
    RESTORE = "restore"
    PARKED = "parked"
    DONE = "done"
    UNDONE = "undone"

    @property
    def ended(self) -> bool:
        return self in (Phase.DONE, Phase.UNDONE)


COMMIT_POINT = Phase.RESTORE
"""Before it a cancel leaves the host out of use; from it on, it takes guests, and stays so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UndrainState:
    operation: str
    request: UndrainRequested
    phase: Phase
    usable: bool = False  # the host takes guests again
    guests: Mapping[str, BackTask] = field(default_factory=dict)
    children: int = 0
    cancelled: bool = False
    reasons: tuple[str, ...] = ()
    remedy: str = ""


Result = tuple[UndrainState, tuple[SagaCommand, ...]]


def begin(operation: str, request: UndrainRequested) -> Result:
    """The first row. Tasks for what has to come back are made once the host is usable."""
    state = UndrainState(operation=operation, request=request, phase=Phase.WAIT_HOST)
    return _from_the_start(state)


def step(state: UndrainState, event: Event) -> Result:
    """Apply one event. Raises IllegalEvent and changes nothing when the table has no such row."""
    handler = TABLE.get((state.phase, type(event)))
    if handler is None:
        raise IllegalEvent(f"{state.operation}: {type(event).__name__} while {state.phase}")
    return handler(state, event)


def _from_the_start(state: UndrainState) -> Result:
    state = replace(state, reasons=(), remedy="")
    if state.usable:
        return _restore(state)
    if state.request.power_on:
        return replace(state, phase=Phase.POWER_ON), (SetPower(host=state.request.host, action="on"),)
    return _check(state, 1, 0.0)


def _check(state: UndrainState, number: int, after_s: float) -> Result:
    check = CheckHost(host=state.request.host, number=number, after_s=after_s)
    return replace(state, phase=Phase.WAIT_HOST), (check,)


def _power_acted(state: UndrainState, event: PowerActed) -> Result:
    if state.cancelled:
        return _cancelled_at_power(state)
    state = replace(state, phase=Phase.POWER_READ, reasons=(event.reason,) if event.reason else ())
    return state, (ReadPower(host=state.request.host),)


def _power_read(state: UndrainState, event: PowerRead) -> Result:
    if event.status == "on":
        return _check(replace(state, reasons=()), 1, 0.0)
    if event.number < MAX_READS:
        again = ReadPower(host=state.request.host, number=event.number + 1, after_s=READ_EVERY_S)
        return state, (again,)
    return _park(state, (*state.reasons, f"power of {state.request.host} is {event.status}, not on"))


def _host_checked(state: UndrainState, event: HostChecked) -> Result:
    if event.reasons:
        if event.number >= MAX_CHECKS:
            return _park(state, event.reasons)
        return _check(replace(state, reasons=event.reasons), event.number + 1, CHECK_EVERY_S)
    return _restore(replace(state, usable=True, reasons=()))


# -- moving back ----------------------------------------------------------------------------------


def _restore(state: UndrainState) -> Result:
    """Ask for every guest that has to come back; a guest given up before gets new tries."""
    if not state.guests:
        state = replace(
            state,
            guests={g.guest: BackTask(name=g.name, now_on=g.now_on) for g in state.request.restore},
        )
    state = replace(state, phase=COMMIT_POINT)
    commands: list[SagaCommand] = []
    for uuid, task in state.guests.items():
        if task.parked:
            state = _set(state, uuid, replace(task, task=Back.MOVING))
            commands.append(ResumeChild(child=task.child))
        elif task.task not in (Back.BACK, Back.SKIPPED):
            state = _set(state, uuid, replace(task, task=Back.CHOOSING, tries=0, waits=0))
            commands.append(_choose(state, uuid, 0.0))
    return _settle(state, commands)


def _choose(state: UndrainState, uuid: str, after_s: float) -> Choose:
    now_on = state.guests[uuid].now_on
    return Choose(guest=uuid, source=now_on, to=state.request.host, after_s=after_s)


def _follow(state: UndrainState, uuid: str, task: BackTask) -> StartMove:
    return StartMove(child=task.child, guest=uuid, source=task.now_on, target=state.request.host)


def _settle(state: UndrainState, commands: list[SagaCommand]) -> Result:
    """Ends when nothing is in flight; what still waits then cannot fit."""
    if commands or any(task.task.open for task in state.guests.values()):
        return state, tuple(commands)
    if state.cancelled:
        return replace(state, phase=Phase.UNDONE, reasons=(CANCELLED,)), ()
    left = tuple(
        f"{t.name} stays on {t.now_on}: {t.reason}"
        for t in state.guests.values()
        if t.task in (Back.STUCK, Back.WAITING)
    )
    if left:
        return _park(state, left)
    return replace(state, phase=Phase.DONE, reasons=()), ()


def _chosen(state: UndrainState, event: Chosen) -> Result:
    task = state.guests.get(event.guest)
    if task is None or task.task is not Back.CHOOSING:
        raise IllegalEvent(f"{state.operation}: nobody asked for {event.guest}")
    if event.gone:
        return _settle(_set(state, event.guest, replace(task, task=Back.SKIPPED)), [])
    if state.cancelled or not event.target:
        reason = "; ".join(event.reasons)
        if not state.cancelled and task.waits < MAX_WAITS:  # most of what refuses a guest passes by itself
            again = replace(task, waits=task.waits + 1, reason=reason)
            after_s = RETRY_AFTER_S * 2**task.waits
            return _set(state, event.guest, again), (_choose(state, event.guest, after_s),)
        return _settle(_set(state, event.guest, replace(task, task=Back.WAITING, reason=reason)), [])
    number = state.children + 1
    moving = replace(
        task, task=Back.MOVING, child=f"{state.operation}.{number}", tries=task.tries + 1, parked=False
    )
    state = _set(replace(state, children=number), event.guest, moving)
    after_s = 0.0 if moving.tries == 1 else RETRY_AFTER_S * 2 ** (moving.tries - 2)
    return state, (replace(_follow(state, event.guest, moving), after_s=after_s),)


def _child_ended(state: UndrainState, event: ChildEnded) -> Result:
    uuid, task = of_child(state.operation, state.guests, event.child)
    resolved = task.parked and event.state is not OperationState.PARKED  # it went on by itself
    if task.task is not Back.MOVING and not resolved:
        raise IllegalEvent(f"{state.operation}: {event.child} has ended before")
    commands: list[SagaCommand] = []
    if event.state is OperationState.DONE:
        state = _set(state, uuid, replace(task, task=Back.BACK, reason="", parked=False))
        for waiting, other in state.guests.items():  # room may have come free where they go
            if other.task is Back.WAITING and not state.cancelled:
                state = _set(state, waiting, replace(other, task=Back.CHOOSING))
                commands.append(_choose(state, waiting, 0.0))
    elif event.state is OperationState.PARKED:
        reason = f"{event.child} is parked: {event.reason}"
        state = _set(state, uuid, replace(task, task=Back.STUCK, reason=reason, parked=True))
    elif task.tries < MAX_TRIES and not (state.cancelled or event.cancelled):
        again = replace(task, task=Back.CHOOSING, reason=event.reason, parked=False)
        state = _set(state, uuid, again)
        commands.append(_choose(state, uuid, RETRY_AFTER_S * 2 ** max(task.tries - 1, 0)))
    else:
        state = _set(state, uuid, replace(task, task=Back.STUCK, reason=event.reason, parked=False))
    return _settle(state, commands)


def _set(state: UndrainState, uuid: str, task: BackTask) -> UndrainState:
    return replace(state, guests={**state.guests, uuid: task})


def _park(state: UndrainState, reasons: tuple[str, ...]) -> Result:
    return replace(state, phase=Phase.PARKED, reasons=reasons, remedy=park_remedy(state.operation)), ()


# -- operator and daemon --------------------------------------------------------------------------


def _cancel(state: UndrainState, _event: CancelRequested) -> Result:
    """Stops what has not begun. A usable host stays usable, guests that are back stay back."""
    cancels = tuple(
        CancelChild(child=t.child) for t in state.guests.values() if t.task is Back.MOVING or t.parked
    )
    settled, commands = _settle(replace(state, cancelled=True), [])
    return settled, (*cancels, *commands)


def _cancel_power(state: UndrainState, _event: CancelRequested) -> Result:
    """Taken note of: the BMC's answer comes first, and nothing is asked of the host after it."""
    return replace(state, cancelled=True), ()


def _cancelled_at_power(state: UndrainState) -> Result:
    on = f"{state.request.host} may have been switched on; it takes no guests"
    return replace(state, phase=Phase.UNDONE, reasons=(CANCELLED, on)), ()


def _resumed(state: UndrainState, _event: Resumed) -> Result:
    return _from_the_start(state)


def _parked_child_ended(state: UndrainState, event: ChildEnded) -> Result:
    uuid, task = of_child(state.operation, state.guests, event.child)
    if event.state is OperationState.PARKED or not task.parked:
        return state, ()
    done = event.state is OperationState.DONE
    after = replace(task, task=Back.BACK if done else Back.STUCK, reason=event.reason, parked=False)
    return _from_the_start(_set(state, uuid, after))


def _recovered(state: UndrainState, _event: Recovered) -> Result:
    """Everything asked here is safe to ask again; "on" for a host that is on does nothing."""
    if state.phase is Phase.POWER_ON and state.cancelled:
        return _cancelled_at_power(state)
    if state.phase is not Phase.RESTORE:
        return _from_the_start(state)
    commands: list[SagaCommand] = []
    for uuid, task in state.guests.items():
        if task.task is Back.MOVING:
            commands.append(_follow(state, uuid, task))
            if state.cancelled:
                commands.append(CancelChild(child=task.child))
        elif task.task is Back.CHOOSING:
            commands.append(_choose(state, uuid, 0.0))
    return _settle(state, commands)


def _recovered_parked(state: UndrainState, _event: Recovered) -> Result:
    """A child may have ended while nobody was there to tell: ask for the ends of all that are parked."""
    return state, tuple(_follow(state, uuid, task) for uuid, task in state.guests.items() if task.parked)


Handler = Callable[[UndrainState, "Event"], Result]


def _rows() -> dict[tuple[Phase, type], Handler]:
    table: dict[tuple[Phase, type], object] = {
        (Phase.POWER_ON, PowerActed): _power_acted,
        (Phase.POWER_ON, CancelRequested): _cancel_power,
        (Phase.POWER_READ, PowerRead): _power_read,
        (Phase.WAIT_HOST, HostChecked): _host_checked,
        (Phase.RESTORE, Chosen): _chosen,
        (Phase.RESTORE, ChildEnded): _child_ended,
        (Phase.PARKED, ChildEnded): _parked_child_ended,
        (Phase.PARKED, Resumed): _resumed,
        (Phase.PARKED, Recovered): _recovered_parked,
    }
    for phase in (Phase.POWER_ON, Phase.POWER_READ, Phase.WAIT_HOST, Phase.RESTORE):
        table[phase, Recovered] = _recovered
    for phase in (Phase.POWER_READ, Phase.WAIT_HOST, Phase.RESTORE, Phase.PARKED):
        table[phase, CancelRequested] = _cancel
    return table  # type: ignore[return-value]  # each handler takes exactly the event type of its key


TABLE: Mapping[tuple[Phase, type], Handler] = _rows()

__all__ = ["COMMIT_POINT", "TABLE", "Back", "BackTask", "Phase", "UndrainState", "begin", "step"]
