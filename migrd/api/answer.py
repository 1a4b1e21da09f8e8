"""A handler's answer before it is JSON: the route's table says which type a status carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    value: object
    headers: Mapping[str, str] = field(default_factory=dict)


@lru_cache(maxsize=128)
def adapter(cls: Any) -> TypeAdapter[Any]:
    """Building an adapter costs milliseconds; there are only as many as there are words."""
    return TypeAdapter(cls)
