"""GET /v1/events: server-sent events (WHATWG HTML, section 9.2), resumable and bounded.

Each event's id is its sequence number, its name the kind, its data one ClusterEvent as JSON. A comment
line every `keep_alive_s` keeps proxies from closing the stream and finds clients that are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from aiohttp import web
from pydantic import TypeAdapter

from migrd.api.answer import Answer
from migrd.api.context import Api
from migrd.api.problems import UNAVAILABLE, ProblemError
from migrd.api.requests import flag, number, query_of
from migrd.api.words import EventList
from migrd.operations import ClusterEvent

MAX_SEQ = 10**17
MAX_KEPT = 1000
KEPT_PAUSE_S = 0.05


class Streams:
    """The open event streams of one application: how many, and how to end them on shutdown."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Counts the calling task as one stream while it is inside."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def close(self, _app: web.Application) -> None:
        """End every stream: a client reconnects with its Last-Event-ID."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


STREAMS = web.AppKey("streams", Streams)
_ADAPTER = TypeAdapter(ClusterEvent)


def encode(event: ClusterEvent) -> bytes:
    """One event on the wire. JSON has no raw newline, so one data line is enough."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, event.kind.encode(), _ADAPTER.dump_json(event))


async def stream_events(request: web.Request, api: Api) -> Answer | web.StreamResponse:
    """Until the client goes, is too slow, or the daemon stops. Refused (503) beyond the stream limit.

    With follow=false: what is kept, at once, as one document.
    """
    query = query_of(request, frozenset({"after", "follow", "limit"}))
    word = request.headers.get("Last-Event-ID", query.get("after"))
    after = None if word is None else number(word, "Last-Event-ID or after", default=0, low=0, high=MAX_SEQ)
    if "follow" in query and not flag(query, "follow"):
        limit = number(query.get("limit"), "limit", default=MAX_KEPT, low=1, high=MAX_KEPT)
        return Answer(status=200, value=EventList(events=await _kept(api, after or 0, limit)))
    streams = request.app[STREAMS]
    if len(streams) >= api.limits.streams:
        reason = f"{api.limits.streams} event streams are open already"
        raise ProblemError(503, UNAVAILABLE, reason, reason, headers={"Retry-After": "10"})
    with streams.one():
        api.observer.streams(len(streams))
        try:
            return await _serve(request, api, after)
        finally:
            api.observer.streams(len(streams) - 1)


async def _kept(api: Api, after: int, limit: int) -> tuple[ClusterEvent, ...]:
    """The newest `limit` events that Control still has: they come without a pause."""
    newest: deque[ClusterEvent] = deque(maxlen=limit)
    async with contextlib.aclosing(_with_pauses(api.control.events(after), KEPT_PAUSE_S)) as found:
        async for event in found:
            if event is None:
                break
            newest.append(event)
    return tuple(newest)


async def _serve(request: web.Request, api: Api, after: int | None) -> web.StreamResponse:
    answer = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
    )
    found = _with_pauses(api.control.events(after), api.limits.keep_alive_s)
    with contextlib.suppress(ConnectionError, TimeoutError):  # the client is gone or takes no bytes
        async with contextlib.aclosing(found):
            await answer.prepare(request)
            await _send(answer, b": migrd events\n\n", api)
            async for event in found:
                await _send(answer, b": keep-alive\n\n" if event is None else encode(event), api)
    return answer


async def _send(answer: web.StreamResponse, data: bytes, api: Api) -> None:
    await asyncio.wait_for(answer.write(data), api.limits.write_s)


async def _with_pauses(
    events: AsyncIterator[ClusterEvent], pause_s: float
) -> AsyncGenerator[ClusterEvent | None, None]:
    """The events, and None whenever `pause_s` passed without one.

    The pending __anext__ is kept over a pause: cancelling it would end an async generator.
    """
    coming: asyncio.Task[ClusterEvent] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({coming}, timeout=pause_s)
            if not done:
                yield None
                continue
            ready, coming = coming, None
            try:
                event = ready.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        if coming is not None:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await coming
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
