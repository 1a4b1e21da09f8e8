"""What the handlers need: one frozen value in the application, no globals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from migrd.control import Control


class ApiObserver(Protocol):
    """Hooks for metrics. Labels stay bounded: `route` is a path template, never a path."""

    def request(self, method: str, route: str, status: int, duration_s: float) -> None: ...

    def auth_failure(self, reason: str) -> None:
        """`reason`: 'missing' (no bearer token) or 'wrong'."""
        ...

    def streams(self, open_now: int) -> None:
        """How many event streams are open."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the surface (I20)."""

    body_bytes: int = 1 << 20
    streams: int = 64
    keep_alive_s: float = 15.0
    write_s: float = 30.0  # a subscriber that takes no byte for that long is dropped
    operations: int = 1000  # most that one answer lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """`token`: the bearer token, secret. `exposition`: the body of /metrics."""

    control: Control
    token: bytes = field(repr=False)
    observer: ApiObserver
    exposition: Callable[[], bytes]
    version: str
    limits: Limits = Limits()


API = web.AppKey("api", Api)
DESCRIPTION = web.AppKey("description", bytes)
"""The body of /v1/openapi.json."""
