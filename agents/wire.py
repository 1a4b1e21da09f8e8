"""JSON at the edge: the dataclasses of agents.protocol to bytes and back.

Two ways of reading, on purpose. `read` is for reports, outcomes and events: it ignores fields it does not
know, because agents and daemon are upgraded one by one (I19). `read_request` is for commands and questions:
a field that this agent does not know could carry a condition it would then not honour, so it is an error.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from agents.mistakes import problems_of

T = TypeVar("T")

MAX_BODY_BYTES = 1 << 20
"""Largest request body an agent reads."""


class BadDocument(Exception):  # noqa: N818 - carries a verdict per field
    """Not JSON, or not the expected document. `errors` holds one "path: message" per mistake."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


_adapters: dict[object, TypeAdapter[Any]] = {}


def _adapter(cls: Any) -> TypeAdapter[Any]:
    """Building an adapter costs milliseconds, and there are only as many as there are words."""
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def dump(value: object) -> bytes:
    """JSON of a protocol dataclass, on one line."""
    return bytes(_adapter(type(value)).dump_json(value))


def read(cls: type[T], data: bytes | str) -> T:
    """Read what an agent said; unknown fields are ignored. Raises BadDocument."""
    return _read(cls, data, extra_forbidden=False)


def read_request(cls: type[T], data: bytes | str) -> T:
    """Read what a daemon asks; unknown fields and wrong types are errors. Raises BadDocument."""
    return _read(cls, data, extra_forbidden=True)


def _read(cls: type[T], data: bytes | str, *, extra_forbidden: bool) -> T:
    try:
        value: T = _adapter(cls).validate_json(
            data, strict=extra_forbidden, extra="forbid" if extra_forbidden else "ignore"
        )
    except ValidationError as error:
        raise BadDocument(problems_of(error)) from None
    return value
