"""The power saga: one host on or off by an operator's word, "off" only behind I12 and I3. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from migrd.sagas.commands import CheckPowerOff, IllegalEvent, ReadPower, SagaCommand, SetPower
from migrd.sagas.events import (
    CANCELLED,
    CancelRequested,
    Event,
    PowerActed,
    PowerChecked,
    PowerRead,
    PowerRequested,
    Recovered,
)

READ_EVERY_S = 2.0
MAX_READS = 15


class Phase(StrEnum):
    CHECK = "check"
    PROBE = "probe"  # "off" may have been asked for before a crash
    ACT = "act"
    READ = "read"
    DONE = "done"
    UNDONE = "undone"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (Phase.DONE, Phase.UNDONE, Phase.FAILED)


COMMIT_POINT = Phase.ACT
"""Before it a cancel ends the operation with nothing done; from it on, the BMC may act at any moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerState:
    operation: str
    request: PowerRequested
    phase: Phase
    reasons: tuple[str, ...] = ()
    remedy: str = ""


Result = tuple[PowerState, tuple[SagaCommand, ...]]


def begin(operation: str, request: PowerRequested) -> Result:
    """The first row: off is checked first, on is harmless."""
    return _from_the_start(PowerState(operation=operation, request=request, phase=Phase.CHECK))


def step(state: PowerState, event: Event) -> Result:
    """Apply one event. Raises IllegalEvent and changes nothing when the table has no such row."""
    handler = TABLE.get((state.phase, type(event)))
    if handler is None:
        raise IllegalEvent(f"{state.operation}: {type(event).__name__} while {state.phase}")
    return handler(state, event)


def _from_the_start(state: PowerState) -> Result:
    host = state.request.host
    if state.request.action == "off":
        return replace(state, phase=Phase.CHECK), (CheckPowerOff(host=host),)
    return replace(state, phase=COMMIT_POINT), (SetPower(host=host, action="on"),)


def _checked(state: PowerState, event: PowerChecked) -> Result:
    if event.reasons:
        return replace(state, phase=Phase.UNDONE, reasons=event.reasons), ()
    return replace(state, phase=COMMIT_POINT), (SetPower(host=state.request.host, action="off"),)


def _acted(state: PowerState, event: PowerActed) -> Result:
    """Whatever the BMC said, only a separate status tells (I3)."""
    state = replace(state, phase=Phase.READ, reasons=(event.reason,) if event.reason else ())
    if not event.asked:
        return state, (ReadPower(host=state.request.host, number=MAX_READS, stays_on=True),)
    return state, (ReadPower(host=state.request.host),)


def _read(state: PowerState, event: PowerRead) -> Result:
    host, action = state.request.host, state.request.action
    if event.status == action:
        return replace(state, phase=Phase.DONE, reasons=()), ()
    if event.number < MAX_READS:
        number = event.number + 1
        last = action == "off" and number >= MAX_READS
        return state, (ReadPower(host=host, number=number, after_s=READ_EVERY_S, stays_on=last),)
    reasons = (*state.reasons, f"power of {host} is {event.status}, not {action}")
    remedy = f"migrctl host power {host} status" + (
        f", then migrctl undrain {host}" if action == "off" else ""
    )
    return replace(state, phase=Phase.FAILED, reasons=reasons, remedy=remedy), ()


def _recovered(state: PowerState, _event: Recovered) -> Result:
    """What was checked before the crash is stale: from the start (I12)."""
    return _from_the_start(state)


def _recovered_act(state: PowerState, _event: Recovered) -> Result:
    read = ReadPower(host=state.request.host, stays_on=state.request.action == "off")
    return replace(state, phase=Phase.PROBE), (read,)


def _probed(state: PowerState, event: PowerRead) -> Result:
    if event.status == state.request.action:
        return replace(state, phase=Phase.DONE, reasons=()), ()
    return _from_the_start(state)


def _read_again(state: PowerState, _event: Recovered) -> Result:
    return state, (ReadPower(host=state.request.host),)


def _cancel(state: PowerState, _event: CancelRequested) -> Result:
    return replace(state, phase=Phase.UNDONE, reasons=(CANCELLED,)), ()


Handler = Callable[[PowerState, "Event"], Result]

_TABLE: dict[tuple[Phase, type], object] = {
    (Phase.CHECK, PowerChecked): _checked,
    (Phase.CHECK, CancelRequested): _cancel,
    (Phase.CHECK, Recovered): _recovered,
    (Phase.ACT, PowerActed): _acted,
    (Phase.ACT, Recovered): _recovered_act,
    (Phase.PROBE, PowerRead): _probed,
    (Phase.PROBE, Recovered): _recovered_act,
    (Phase.READ, PowerRead): _read,
    (Phase.READ, Recovered): _read_again,
}
TABLE: Mapping[tuple[Phase, type], Handler] = _TABLE  # type: ignore[assignment]  # event type as in its key
