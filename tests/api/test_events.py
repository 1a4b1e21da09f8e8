"""The event stream: resumable, kept alive, bounded, and ended with the daemon."""

from __future__ import annotations

import asyncio
import json

import aiohttp

from migrd.operations import ClusterEvent, OperationState
from tests.api.conftest import Surface
from tests.api.scripted import drain


def happened(seq: int, message: str) -> ClusterEvent:
    return ClusterEvent(seq=seq, at_s=1.5, kind="alert", message=message)


async def block(answer: aiohttp.ClientResponse) -> list[str]:
    """The next block of the stream that is not a comment."""
    while True:
        lines = []
        while line := (await asyncio.wait_for(answer.content.readline(), 5)).decode().rstrip("\n"):
            lines.append(line)
        if lines and not all(line.startswith(":") for line in lines):
            return lines


async def test_events_arrive_as_they_happen(surface: Surface) -> None:
    async with surface.http.get(surface.url + "/v1/events") as answer:
        assert answer.content_type == "text/event-stream"
        operation = drain("op-1", OperationState.RUNNING)
        surface.control.live.put_nowait(
            ClusterEvent(seq=7, at_s=1.5, kind="operation", message="two\nlines", operation=operation)
        )
        first, second, third = await block(answer)
        assert (first, second) == ("id: 7", "event: operation")
        event = json.loads(third.removeprefix("data: "))
        assert event["message"] == "two\nlines"
        assert event["operation"]["id"] == "op-1"


async def test_a_subscriber_resumes_where_it_stopped(surface: Surface) -> None:
    surface.control.kept = [happened(1, "a"), happened(2, "b"), happened(3, "c")]
    for where in ({"headers": {"Last-Event-ID": "1"}}, {"params": {"after": "1"}}):
        async with surface.http.get(surface.url + "/v1/events", **where) as answer:  # type: ignore[arg-type]
            assert [(await block(answer))[0], (await block(answer))[0]] == ["id: 2", "id: 3"]


async def test_a_wrong_last_event_id_is_refused(surface: Surface) -> None:
    headers = {"Last-Event-ID": "x"}
    assert (await surface.call("GET", "/v1/events", 400, headers=headers))["type"] == "bad-request"


async def test_silence_is_kept_alive_without_losing_the_next_event(surface: Surface) -> None:
    async with surface.http.get(surface.url + "/v1/events") as answer:
        alive = 0
        while alive < 3:
            line = await asyncio.wait_for(answer.content.readline(), 5)
            alive += line == b": keep-alive\n"
        surface.control.live.put_nowait(happened(9, "after silence"))
        assert (await block(answer))[0] == "id: 9"


async def test_streams_are_bounded_and_a_place_becomes_free_again(surface: Surface) -> None:
    url = surface.url + "/v1/events"
    async with surface.http.get(url) as one, surface.http.get(url) as two:
        assert (one.status, two.status) == (200, 200)
        problem = await surface.get("/v1/events", 503)
        assert problem["type"] == "unavailable"
    async with asyncio.timeout(5):  # the server learns of it at its next keep-alive
        while surface.control.subscribers:  # noqa: ASYNC110 - it is the scripted one's counter, not an event
            await asyncio.sleep(0.02)
    async with surface.http.get(url) as again:
        assert again.status == 200
    assert max(surface.seen.open_streams) == 2
