"""A real aiohttp server on loopback over a scripted Control, and a client that holds the token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest

from migrd.api.app import build_app
from migrd.api.context import Api, Limits
from migrd.api.listen import Listen
from migrd.api.server import serving
from tests.api.scripted import ScriptedControl

TOKEN = "a-token-of-the-tests-0123456789"


@dataclass
class Seen:
    """What the surface told its observer."""

    requests: list[tuple[str, str, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    open_streams: list[int] = field(default_factory=list)

    def request(self, method: str, route: str, status: int, duration_s: float) -> None:
        assert duration_s >= 0
        self.requests.append((method, route, status))

    def auth_failure(self, reason: str) -> None:
        self.failures.append(reason)

    def streams(self, open_now: int) -> None:
        self.open_streams.append(open_now)


@dataclass
class Surface:
    control: ScriptedControl
    seen: Seen
    http: aiohttp.ClientSession
    url: str

    async def get(self, path: str, status: int = 200) -> dict[str, object]:
        return await self.call("GET", path, status)

    async def post(self, path: str, body: object = None, status: int = 202) -> dict[str, object]:
        return await self.call("POST", path, status, json=body)

    async def call(self, method: str, path: str, status: int, **more: object) -> dict[str, object]:
        async with self.http.request(method, self.url + path, **more) as answer:  # type: ignore[arg-type]
            assert answer.status == status, await answer.text()
            kind = "application/json" if status < 400 or path == "/readyz" else "application/problem+json"
            assert answer.content_type == kind
            document = await answer.json(content_type=kind)
            assert isinstance(document, dict)
            return document


@pytest.fixture
def limits() -> Limits:
    return Limits(streams=2, keep_alive_s=0.1, write_s=5.0)


@pytest.fixture
async def surface(limits: Limits) -> AsyncIterator[Surface]:
    control, seen = ScriptedControl(), Seen()
    api = Api(
        control=control,
        token=TOKEN.encode(),
        observer=seen,
        exposition=lambda: b"migrd_up 1\n",
        version="1.2.3",
        limits=limits,
    )
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        serving(build_app(api), Listen(host="127.0.0.1"), None) as url,
        aiohttp.ClientSession(headers=headers) as http,
    ):
        yield Surface(control, seen, http, url)
