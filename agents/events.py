"""The event hub: what changed, to every daemon that listens. Bounded; a slow listener cannot hold it up.

An event is serialised once. A subscriber that lags `queue_max` events behind is dropped: its connection
ends, and when it comes back it gets a new hello and reads the whole report.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable

from agents.protocol import AttemptReport, DomainReport, Event, HostReport
from agents.wire import dump


class TooManySubscribers(Exception):  # noqa: N818
    """The limit of event streams is reached."""


class Subscription:
    """One listener. Iterate it for lines; it ends when the listener was dropped or the hub closed."""

    def __init__(self, queue_max: int, on_drop: Callable[[], None]) -> None:
        self._queue_max = queue_max
        self._on_drop = on_drop
        self._lines: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self.ended = False

    def put(self, line: bytes) -> bool:
        """Queue a line; False when the listener is too far behind and was dropped."""
        if len(self._lines) >= self._queue_max:
            self.end()
            self._on_drop()
            return False
        self._lines.append(line)
        self._wake.set()
        return True

    def end(self) -> None:
        """No more lines."""
        self.ended = True
        self._lines.clear()
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self.ended:
            self._wake.clear()
            while self._lines:
                yield self._lines.popleft()
            if not self.ended:
                await self._wake.wait()


class Hub:
    """Numbers events and hands them to subscribers. Belongs to one event loop."""

    def __init__(self, *, queue_max: int = 1024, subscribers_max: int = 16, stream: str = "") -> None:
        self.stream = stream or secrets.token_hex(8)  # new for every start
        self.dropped = 0
        self._queue_max = queue_max
        self._subscribers_max = subscribers_max
        self._subscribers: dict[Subscription, None] = {}  # in order of arrival
        self._seq = 0

    @property
    def subscribers(self) -> int:
        """Listeners now."""
        return len(self._subscribers)

    def heartbeat(self) -> None:
        """Tell that this agent's event loop lives."""
        self._publish(self._next("heartbeat"))

    def domain(self, report: DomainReport) -> None:
        """A domain is new or changed."""
        self._publish(self._next("domain", domain=report))

    def domain_gone(self, uuid: str) -> None:
        """A domain is neither running nor defined here any more."""
        self._publish(self._next("domain", domain_gone=uuid))

    def report(self, report: HostReport) -> None:
        """Something about the host itself changed."""
        self._publish(self._next("report", report=report))

    def volume(self) -> None:
        """A volume changed: read the report."""
        self._publish(self._next("volume"))

    def attempt(self, report: AttemptReport) -> None:
        """An attempt ended."""
        self._publish(self._next("attempt", attempt=report))

    def subscribe(self, on_drop: Callable[[], None], report: HostReport | None) -> Subscription:
        """A new listener; its first line is a hello, with the latest report if there is one.

        Raises TooManySubscribers. `on_drop` is called when it is dropped for lagging.
        """
        if len(self._subscribers) >= self._subscribers_max:
            raise TooManySubscribers(f"there are {self._subscribers_max} event streams already")
        subscription = Subscription(self._queue_max, on_drop)
        # The hello repeats the current number: it is this listener's own, not an event of the stream.
        subscription.put(_line(Event(stream=self.stream, seq=self._seq, kind="hello", report=report)))
        self._subscribers[subscription] = None
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a listener. Safe to repeat."""
        subscription.end()
        self._subscribers.pop(subscription, None)

    def close(self) -> None:
        """End every stream, so that a planned exit is seen at once and not after a silence."""
        for subscription in tuple(self._subscribers):
            self.unsubscribe(subscription)

    def _next(
        self,
        kind: str,
        *,
        domain: DomainReport | None = None,
        domain_gone: str | None = None,
        report: HostReport | None = None,
        attempt: AttemptReport | None = None,
    ) -> Event:
        self._seq += 1
        return Event(
            stream=self.stream,
            seq=self._seq,
            kind=kind,  # type: ignore[arg-type]  # one of Event's words, from the methods above
            domain=domain,
            domain_gone=domain_gone,
            report=report,
            attempt=attempt,
        )

    def _publish(self, event: Event) -> None:
        if not self._subscribers:
            return
        line = _line(event)
        for subscription in tuple(self._subscribers):
            if not subscription.put(line):
                self.dropped += 1
                self._subscribers.pop(subscription, None)


def _line(event: Event) -> bytes:
    return dump(event) + b"\n"
