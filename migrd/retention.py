"""Which ended operations may be forgotten: pure, over the records of all operations.

Invariant: whatever the core decides is the same with and without what is forgotten, and also after any first
part of it (a crash in the middle): `migrd.projection.administrative` and `last_drain` of every host, the
number of the next operation, and everything about operations that are open (tests/core/test_retention.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from migrd import saga
from migrd.projection import Record
from migrd.sagas import power
from migrd.sagas.drain import DrainState
from migrd.sagas.drain import Phase as DrainPhase
from migrd.sagas.events import HostAdded, HostRemoved
from migrd.sagas.power import PowerState
from migrd.sagas.roster import RosterState
from migrd.sagas.undrain import UndrainState

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """[journal]: ended operations that are kept. What a later decision needs is kept beyond both bounds."""

    operations: int = 2000  # the newest, children counted
    days: float = 90.0  # since their end

    def __post_init__(self) -> None:
        if self.operations < 1:
            raise ValueError("operations must be at least 1")
        if self.days <= 0:
            raise ValueError("days must be above 0")


def to_drop(records: Sequence[Record], now_s: float, keep: Keep) -> tuple[str, ...]:
    """Ids, oldest first, to be dropped in this order. `records`: all, in the order they began.

    `now_s`: wall clock. A clock that jumps costs history at most, never a decision.
    """
    ended = [record for record in records if saga.ended(record.state)]
    oldest_s = now_s - keep.days * DAY_S
    aged = takewhile(lambda r: (r.ended_at_s or r.requested_at_s) < oldest_s, ended)
    # Always the first ones, whatever the clock said: an undrain must not go before the drain it took back.
    old = ended[: max(len(ended) - keep.operations, sum(1 for _ in aged), 0)]
    if not old:
        return ()
    needed = _needed(records)
    return tuple(record.id for record in old if record.id not in needed)


def _needed(records: Sequence[Record]) -> set[str]:
    """Ended operations that a later decision asks for."""
    open_ids = {r.id for r in records if not saga.ended(r.state)}
    needed = {r.id for r in records if r.parent in open_ids}  # a parent follows its children after a restart
    needed |= {r.parent for r in records if r.id in open_ids}
    if (newest := max(records, key=lambda r: number(r.id), default=None)) is not None:
        needed.add(newest.id)  # the next number is one more
    by_host: dict[str, list[Record]] = {}
    for record in records:
        if isinstance(record.state, DrainState | UndrainState | PowerState | RosterState):
            by_host.setdefault(record.state.request.host, []).append(record)
    needed |= {record.id for record in _latest_words(records).values() if _adds(record)}
    for about in by_host.values():
        if any(r.id in open_ids for r in about):
            needed |= {r.id for r in about}  # what it ends in is not known; there is one at a time
        else:
            needed |= {r.id for r in _decisive(about)}
    return needed


def _latest_words(records: Sequence[Record]) -> dict[str, Record]:
    """What an operator said last about each host that is not in migrd.toml."""
    return {record.state.request.host: record for record in records if isinstance(record.state, RosterState)}


def _adds(record: Record) -> bool:
    return isinstance(record.state, RosterState) and isinstance(record.state.request, HostAdded)


def number(operation: str) -> int:
    """Of "op-000042": 42; 0 for a child, whose number its parent counts."""
    return int(operation[3:]) if operation[3:].isdigit() else 0


def _decisive(about: Sequence[Record]) -> Iterable[Record]:
    """At most three ended operations that decide what is known of their one host.

    The last drain that no undrain has taken back; the last operation that said outright what the host is;
    and, if that was "off", the first "on" after it.
    """
    drain, setter, on = None, None, None
    for record in about:
        state = record.state
        match state:
            case DrainState():
                drain = record if state.phase is DrainPhase.DONE else drain
                setter, on = record, None
            case RosterState(request=HostRemoved()):
                drain, setter, on = None, None, None  # what was decided about it is void
            case UndrainState() if state.usable:
                drain, setter, on = None, None, None  # in use, as if nothing had ever been decided
            case PowerState(phase=power.Phase.DONE | power.Phase.FAILED) if state.request.action == "off":
                setter, on = record, None
            case PowerState(phase=power.Phase.DONE):
                on = on or record
            case _:
                pass
    return [record for record in (drain, setter, on) if record is not None]


def last_drain(records: Iterable[Record], host: str) -> DrainState | None:
    """The drain that an undrain takes back: the newest one that ended, unless taken back or void already."""
    found: DrainState | None = None
    for record in records:
        state = record.state
        if isinstance(state, saga.MoveState) or state.request.host != host:
            continue
        match state:
            case DrainState(phase=DrainPhase.DONE):
                found = state
            case UndrainState(usable=True) | RosterState(request=HostRemoved()):
                found = None
            case _:
                pass
    return found
