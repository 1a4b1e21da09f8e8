"""An ended operation as one text: its folded state and its times. Pure.

A cache for the next start: `form()` changes with every change of the classes. What another version wrote is
read if this one can (a field that is new has its default), for an end is an end: its rows, folded by other
tables, could lead elsewhere. What cannot be read is folded anew from the rows.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from migrd import saga
from migrd.projection import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    kind: str
    id: str
    seq: int
    parent: str
    requested_at_s: float
    started_at_s: float | None
    first_call_at_s: float | None
    ended_at_s: float | None


_HEAD = TypeAdapter(_Head)
_STATES: dict[str, TypeAdapter[Any]] = {cls.__name__: TypeAdapter(cls) for cls in get_args(saga.SagaState)}


@cache
def form() -> int:
    """A number that stands for the very shape of the classes (of their JSON schemas)."""
    shapes = [adapter.json_schema() for adapter in (_HEAD, *_STATES.values())]
    return zlib.crc32(json.dumps(shapes, sort_keys=True).encode())


def dump(record: Record) -> str:
    """For `read`. Children are not in it: they are the operations that name it as their parent."""
    assert saga.ended(record.state), f"{record.id} is open: only its rows tell what it does next"
    kind = type(record.state).__name__
    head = _Head(
        kind=kind,
        id=record.id,
        seq=record.seq,
        parent=record.parent,
        requested_at_s=record.requested_at_s,
        started_at_s=record.started_at_s,
        first_call_at_s=record.first_call_at_s,
        ended_at_s=record.ended_at_s,
    )
    return f"{_HEAD.dump_json(head).decode()}\n{_STATES[kind].dump_json(record.state).decode()}"


def read(body: str) -> Record:
    """What `dump` has written. Raises pydantic.ValidationError; also for what another version wrote."""
    first, _, second = body.partition("\n")
    head = _HEAD.validate_json(first)
    if head.kind not in _STATES:
        raise ValidationError.from_exception_data(f"no state is called {head.kind}", [])
    return Record(
        id=head.id,
        state=_STATES[head.kind].validate_json(second),
        requested_at_s=head.requested_at_s,
        seq=head.seq,
        parent=head.parent,
        started_at_s=head.started_at_s,
        first_call_at_s=head.first_call_at_s,
        ended_at_s=head.ended_at_s,
        condensed=True,
    )
