"""From a saga's state to what people see: operations, steps, and what is decided about hosts. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from agents.protocol import MigrationProgress
from migrd import saga
from migrd.cold_steps import cold_steps
from migrd.model import HostState
from migrd.operations import Operation, OperationKind, OperationState, StepView, StepWord
from migrd.saga import SagaState
from migrd.sagas import power, undrain
from migrd.sagas.cold_state import ColdStage, ColdState
from migrd.sagas.drain import DrainState, GuestTask, Task
from migrd.sagas.drain import Phase as DrainPhase
from migrd.sagas.events import HostAdded, HostRemoved
from migrd.sagas.migrate_state import BACK, FINISH, FORWARD, MigrateState, Stage
from migrd.sagas.power import PowerState
from migrd.sagas.roster import RosterState
from migrd.sagas.undrain import Back, UndrainState

_PATH = (Stage.PRECHECK, *FORWARD, Stage.SETTLE, *FINISH, Stage.VERIFY)
_BACK_PATH = (*BACK, Stage.VERIFY_BACK)


@dataclass(slots=True, kw_only=True)
class Record:
    """One operation in memory: its saga's state, and times that are for people only (wall clock)."""

    id: str
    state: SagaState
    requested_at_s: float
    seq: int  # of its first row: the order of operations
    parent: str = ""
    children: list[str] = field(default_factory=list)
    progress: MigrationProgress | None = None
    started_at_s: float | None = None
    first_call_at_s: float | None = None
    ended_at_s: float | None = None
    condensed: bool = False  # its folded state is in the journal

    def note(self, at_s: float) -> None:
        """Called after every journalled event."""
        if not saga.pending(self.state) and self.started_at_s is None:
            self.started_at_s = at_s
        if (
            self.first_call_at_s is None
            and isinstance(self.state, MigrateState)
            and self.state.issued(Stage.MIGRATE)
        ):
            self.first_call_at_s = at_s
        if saga.ended(self.state) and self.ended_at_s is None:
            self.ended_at_s = at_s


def operation_state(state: SagaState) -> OperationState:
    """The one word of an operation."""
    if saga.parked(state):
        return OperationState.PARKED
    match state:
        case MigrateState() | ColdState():
            return _move_state(state)
        case DrainState() | UndrainState():
            if state.phase.ended:
                return OperationState(state.phase.value)
            return OperationState.CANCELLING if state.cancelled else OperationState.RUNNING
        case PowerState():
            return OperationState(state.phase.value) if state.phase.ended else OperationState.RUNNING
        case RosterState():
            return OperationState.DONE
        case _:
            assert_never(state)


def _move_state(state: saga.MoveState) -> OperationState:
    match state.stage:
        case Stage.PENDING | ColdStage.PENDING:
            return OperationState.PENDING
        case Stage.DONE | ColdStage.DONE:
            return OperationState.DONE
        case Stage.UNDONE | ColdStage.UNDONE:
            return OperationState.UNDONE
        case _:
            turned = state.cancelled or state.going_back
            return OperationState.CANCELLING if turned else OperationState.RUNNING


def operation(record: Record) -> Operation:
    """The projection that API, events and metrics carry."""
    state = record.state
    common = {
        "id": record.id,
        "state": operation_state(state),
        "parent": record.parent,
        "children": tuple(record.children),
        "reason": "; ".join(state.reasons),
        "remedy": "" if saga.ended(state) and not isinstance(state, PowerState) else state.remedy,
        "requested_at_s": record.requested_at_s,
        "started_at_s": record.started_at_s,
        "ended_at_s": record.ended_at_s,
    }
    match state:
        case MigrateState():
            request = state.request
            return Operation(
                **common,  # type: ignore[arg-type]  # a dict of mixed types
                kind=OperationKind.MIGRATE,
                subject=request.name,
                guest=request.guest,
                source=request.source,
                target=request.target,
                request={"guest": request.name, "to": request.asked_target},
                steps=_migrate_steps(state),
                progress=record.progress,
                downtime_ms=state.downtime_ms,
                first_call_at_s=record.first_call_at_s,
            )
        case ColdState():
            wanted = state.request
            return Operation(
                **common,  # type: ignore[arg-type]
                kind=OperationKind.MIGRATE,
                subject=wanted.name,
                guest=wanted.guest,
                source=wanted.source,
                target=wanted.target,
                request={"guest": wanted.name, "to": wanted.asked_target, "cold": True},
                steps=cold_steps(state),
            )
        case DrainState():
            asked = state.request
            return Operation(
                **common,  # type: ignore[arg-type]
                kind=OperationKind.DRAIN,
                subject=asked.host,
                source=asked.host,
                request={"power_off": asked.power_off, "allow_stop": list(asked.allow_stop)},
                steps=_drain_steps(state),
                first_call_at_s=record.first_call_at_s,
            )
        case UndrainState():
            return Operation(
                **common,  # type: ignore[arg-type]
                kind=OperationKind.UNDRAIN,
                subject=state.request.host,
                target=state.request.host,
                request={"drain": state.request.drain, "restore": [g.name for g in state.request.restore]},
                steps=_undrain_steps(state),
                first_call_at_s=record.first_call_at_s,
            )
        case PowerState():
            return Operation(
                **common,  # type: ignore[arg-type]
                kind=OperationKind.POWER,
                subject=state.request.host,
                request={"action": state.request.action},
                steps=_power_steps(state),
            )
        case RosterState():
            return Operation(
                **common,  # type: ignore[arg-type]
                kind=OperationKind.HOST,
                subject=state.request.host,
                request=_roster_request(state.request),
            )
        case _:
            assert_never(state)


def _roster_request(request: HostAdded | HostRemoved) -> dict[str, object]:
    if isinstance(request, HostAdded):
        return {"action": "add", "agent": request.config.agent, "bmc": request.config.bmc is not None}
    return {"action": "remove"}


# -- steps ----------------------------------------------------------------------------------------


def _migrate_steps(state: MigrateState) -> tuple[StepView, ...]:
    here = state.parked_in if state.stage is Stage.PARKED else state.stage
    steps = [_forward_step(state, stage, here) for stage in _PATH]
    if state.going_back:
        steps += [_back_step(state, stage, here) for stage in _BACK_PATH]
    return tuple(steps)


def _forward_step(state: MigrateState, stage: Stage, here: Stage | None) -> StepView:
    attempt = state.attempts.get(stage, 0)
    position = _PATH.index(stage)
    word: StepWord
    if state.stage is Stage.DONE:
        word = "done" if attempt or stage in (Stage.PRECHECK, Stage.SETTLE, Stage.VERIFY) else "skipped"
    elif here is stage:
        word = "failed" if state.stage is Stage.PARKED else "running"
    elif here in _PATH and _PATH.index(here) > position:
        word = "done" if attempt or stage in (Stage.PRECHECK, Stage.SETTLE) else "skipped"
    elif here is Stage.RECONCILE and stage in (
        state.back_to,
        Stage.SETTLE if state.issued(Stage.MIGRATE) else None,
    ):
        word = "running"
    elif attempt:
        word = "undone" if state.going_back else "done"
    elif here is Stage.UNDONE and stage is Stage.PRECHECK and not state.attempts:
        word = "failed"
    else:
        began = stage is Stage.PRECHECK and here is not Stage.PENDING
        word = "done" if began else "skipped" if state.stage.ended or state.going_back else "waiting"
    reasons = state.trouble if word in ("running", "failed") else ()
    return StepView(name=stage.value, state=word, attempt=attempt, reasons=reasons)


def _back_step(state: MigrateState, stage: Stage, here: Stage | None) -> StepView:
    attempt = state.attempts.get(stage, 0)
    word: StepWord
    if here is stage:
        word = "failed" if state.stage is Stage.PARKED else "running"
    elif state.stage is Stage.UNDONE:
        word = "done" if attempt or stage is Stage.VERIFY_BACK else "skipped"
    else:
        word = "done" if attempt else "waiting"
    return StepView(name=stage.value, state=word, attempt=attempt)


_TASK_WORD: dict[Task, StepWord] = {
    Task.MOVING: "running",
    Task.CHOOSING: "running",
    Task.STOPPING: "running",
    Task.MOVED: "done",
    Task.STOPPED: "done",
    Task.STUCK: "failed",
}
_BACK_WORD: dict[Back, StepWord] = {
    Back.WAITING: "waiting",
    Back.CHOOSING: "running",
    Back.MOVING: "running",
    Back.BACK: "done",
    Back.SKIPPED: "skipped",
    Back.STUCK: "failed",
}


def _drain_steps(state: DrainState) -> tuple[StepView, ...]:
    steps = [
        StepView(
            name=_task_name(task),
            state=_TASK_WORD[task.task],
            attempt=task.tries,
            reasons=(task.reason,) if task.reason else (),
        )
        for task in state.guests.values()
    ]
    if state.request.power_off:
        working = (
            DrainPhase.POWER_PROBE,
            DrainPhase.POWER_CHECK,
            DrainPhase.POWER_OFF,
            DrainPhase.POWER_READ,
        )
        word: StepWord = "done" if state.off else "running" if state.phase in working else "waiting"
        steps.append(StepView(name="power-off", state=word))
    return tuple(steps)


def _task_name(task: GuestTask) -> str:
    stop = task.task in (Task.STOPPING, Task.STOPPED)
    return f"{'stop' if stop else 'move'} {task.name}"


def _undrain_steps(state: UndrainState) -> tuple[StepView, ...]:
    steps = []
    if state.request.power_on:
        on: StepWord = (
            "running" if state.phase in (undrain.Phase.POWER_ON, undrain.Phase.POWER_READ) else "done"
        )
        steps.append(StepView(name="power-on", state=on))
    ready: StepWord = "done" if state.usable else "running" if not state.phase.ended else "failed"
    steps.append(StepView(name="host-ready", state=ready, reasons=() if state.usable else state.reasons))
    for task in state.guests.values():
        reasons = (task.reason,) if task.reason else ()
        word = _BACK_WORD[task.task]
        steps.append(StepView(name=f"restore {task.name}", state=word, attempt=task.tries, reasons=reasons))
    return tuple(steps)


def _power_steps(state: PowerState) -> tuple[StepView, ...]:
    names = ("check", "act", "read") if state.request.action == "off" else ("act", "read")
    steps = []
    passed = True
    for name in names:
        word: StepWord = "done" if passed else "waiting"
        if state.phase.value == name:
            word, passed = "running", False
        steps.append(StepView(name=name, state="failed" if state.phase is power.Phase.FAILED else word))
    return tuple(steps)


# -- hosts ----------------------------------------------------------------------------------------


def administrative(records: Iterable[Record]) -> dict[str, HostState]:
    """What was decided about hosts, by the operations in the order they began.

    A drain holds its host from its first row until it is undone; after it ended, until an undrain has
    found the host whole again. A power-off holds it while it lasts.
    """
    found: dict[str, HostState] = {}
    for record in records:
        state = record.state
        match state:
            case DrainState():
                _after_drain(found, state)
            case UndrainState():
                if state.usable:
                    found.pop(state.request.host, None)
            case RosterState(request=HostRemoved(host=host)):
                found.pop(host, None)
            case PowerState() if state.phase is power.Phase.DONE:
                _after_power(found, state)
            case PowerState() if state.request.action == "off" and state.phase is power.Phase.FAILED:
                found[state.request.host] = HostState.DRAINED  # it may still go off: an undrain looks
            case PowerState() if state.request.action == "off" and not state.phase.ended:
                # From its first row on: else a guest is sent there between the check and the cut (I12).
                found.setdefault(state.request.host, HostState.DRAINING)
            case _:
                pass
    return {host: state for host, state in found.items() if state is not HostState.ONLINE}


def _after_drain(found: dict[str, HostState], state: DrainState) -> None:
    host = state.request.host
    if state.phase is DrainPhase.UNDONE and state.off_asked:
        found[host] = HostState.DRAINED  # the power may still go: only an undrain finds it whole again
    elif state.phase is DrainPhase.UNDONE:
        found.pop(host, None)
    elif state.phase is DrainPhase.DONE:
        found[host] = HostState.OFF if state.off else HostState.DRAINED
    else:
        found[host] = HostState.DRAINING


def _after_power(found: dict[str, HostState], state: PowerState) -> None:
    """Switched on again, a host stays out of use until an undrain has found it whole."""
    host = state.request.host
    if state.request.action == "off":
        found[host] = HostState.OFF
    elif found.get(host) is HostState.OFF:
        found[host] = HostState.DRAINED
