"""AgentClient: the daemon's way to one agent, over mTLS, every wait bounded.

What it raises is storage.errors and nothing else, so that a caller knows what to do next:

- Retryable: the request did not reach the agent, or it was a read, or the agent said that nothing was begun.
- Refused: the agent understood and declined (bad document, certificate, unknown name).
- StaleEpoch (a Failed): a newer daemon has spoken; this one must stop commanding (I4).
- Unknown: a command was sent and its fate is not known. `submit` may be repeated with the same
  (operation, step, attempt): the agent then answers with the first outcome.
- AttemptNotSeen (an Unknown): the agent has no record of that attempt.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Protocol, TypeVar
from urllib.parse import quote

from agents.answers import AttemptNotSeen, StaleEpoch, refusal
from agents.http_transport import HttpTransport
from agents.protocol import (
    Abort,
    Attempt,
    AttemptReport,
    DestroySource,
    Event,
    HostReport,
    Observation,
    Observe,
    Preflight,
    PreflightReport,
)
from agents.wire import BadDocument, dump, read
from storage.errors import Refused, Retryable, Unknown

T = TypeVar("T")

MAX_WAIT_S = 30.0


class Transport(Protocol):
    """Carries questions to one agent. HttpTransport is the real one; the simulator has its own."""

    async def call(
        self, method: str, target: str, body: bytes | None, *, changes: bool, extra_s: float
    ) -> tuple[int, bytes]:
        """Status and body of the answer; `target` is path and query. Ends by a deadline plus `extra_s`.

        Raises Retryable: not sent. Unknown (`changes`) or Retryable: sent, and no answer. Refused.
        """
        ...

    def lines(self) -> AsyncGenerator[bytes, None]:
        """The event stream, line by line. Ends with the stream, or raises storage.errors."""
        ...

    async def close(self) -> None:
        """Close all connections. A later call opens them again."""
        ...


class AgentClient:
    """One agent. Use it as an `async with`, or call `close()`. Requests may run concurrently."""

    def __init__(self, name: str, transport: Transport) -> None:
        self.name = name
        self._transport = transport

    @classmethod
    def https(
        cls,
        name: str,
        url: str,
        context: ssl.SSLContext,
        *,
        connect_timeout_s: float = 3.0,
        request_timeout_s: float = 20.0,
        silence_timeout_s: float = 5.0,
    ) -> AgentClient:
        """The real one. `url` is https://host:7443; its host name must be in the agent's certificate.

        `context` comes from agents.tls.client_context and may be shared by all clients.
        """
        transport = HttpTransport(
            name,
            url,
            context,
            connect_timeout_s=connect_timeout_s,
            request_timeout_s=request_timeout_s,
            silence_timeout_s=silence_timeout_s,
        )
        return cls(name, transport)

    async def __aenter__(self) -> AgentClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. A later call opens them again."""
        await self._transport.close()

    async def report(self, *, storage: bool = False) -> HostReport:
        """Everything the host knows of itself; `storage`: all volumes are looked at anew for it.

        An agent too old to know the wish answers with older volumes. Raises Retryable, Refused.
        """
        return await self._call("GET", "/v1/report?storage=1" if storage else "/v1/report", None, HostReport)

    async def preflight(self, question: Preflight) -> PreflightReport:
        """Could this host take these CPUs and volumes? Raises Retryable, Refused."""
        return await self._call("POST", "/v1/preflight", dump(question), PreflightReport)

    async def observe(self, question: Observe) -> Observation:
        """Reality of one guest on this host. Raises Retryable, Refused."""
        return await self._call("POST", "/v1/observe", dump(question), Observation)

    async def submit(self, attempt: Attempt, wait_s: float = 0.0) -> AttemptReport:
        """Begin an attempt, or learn of the one begun before under the same id.

        Waits up to `wait_s` (at most 30) for its end: a short step then costs one round trip. An agent too
        old to know the wish answers at once. Raises Retryable (not begun), Refused, StaleEpoch, Unknown.
        """
        body = dump(attempt)
        wait_s = min(max(wait_s, 0.0), MAX_WAIT_S)
        path = f"/v1/attempts?wait_s={wait_s:g}" if wait_s > 0 else "/v1/attempts"

        async def send() -> AttemptReport:
            return await self._call("POST", path, body, AttemptReport, changes=True, extra_s=wait_s)

        try:
            return await send()
        except Unknown:  # the agent knows whether it saw the first one: the same id is begun once
            try:
                return await send()
            except (Retryable, Refused) as error:  # of the second; the first may run all the same
                raise Unknown(*error.reasons) from None

    async def wait(
        self, operation: str, step: str, attempt: int, wait_s: float = MAX_WAIT_S
    ) -> AttemptReport:
        """The attempt as it stands; returns when it ended or after `wait_s` (at most 30), still RUNNING.

        Raises Retryable, Refused, AttemptNotSeen; after the last one the agent does not begin it any more.
        """
        wait_s = min(max(wait_s, 0.0), MAX_WAIT_S)
        path = f"{_attempt_path(operation, step, attempt)}?wait_s={wait_s:g}"
        return await self._call("GET", path, None, AttemptReport, extra_s=wait_s)

    async def abort(self, operation: str, step: str, attempt: int, *, epoch: int) -> AttemptReport:
        """Ask a running attempt to stop; the report may still be RUNNING, and it may still end DONE.

        Safe to repeat, so a lost reply is Retryable. Raises Retryable, Refused, StaleEpoch, AttemptNotSeen.
        """
        path = f"{_attempt_path(operation, step, attempt)}/abort"
        return await self._call("POST", path, dump(Abort(epoch=epoch)), AttemptReport)

    async def destroy_source(self, operation: str, step: str, attempt: int, *, epoch: int) -> AttemptReport:
        """The guest of this running migration runs on the target: its QEMU on the source is to end.

        Safe to repeat. An agent too old to know it refuses. Raises as `abort` does.
        """
        path = f"{_attempt_path(operation, step, attempt)}/destroy-source"
        return await self._call("POST", path, dump(DestroySource(epoch=epoch)), AttemptReport)

    async def events(self) -> AsyncIterator[Event]:
        """The agent's event stream, heartbeats included, until it breaks: then it raises Retryable.

        The stream is silent for at most a heartbeat; more than `silence_timeout_s` counts as broken. After
        a gap in `seq` or a new `stream` read `report()`. Lines of kinds unknown here are skipped (I19).
        """
        async with aclosing(self._transport.lines()) as lines:
            async for line in lines:
                try:
                    event = read(Event, line)
                except BadDocument:
                    continue
                yield event
        raise Retryable(f"{self.name}: the agent ended its event stream")

    async def _call(
        self,
        method: str,
        path: str,
        body: bytes | None,
        answer: type[T],
        *,
        changes: bool = False,
        extra_s: float = 0.0,
    ) -> T:
        status, text = await self._transport.call(method, path, body, changes=changes, extra_s=extra_s)
        if status not in (200, 202):
            raise refusal(self.name, status, text, changes=changes)
        try:
            return read(answer, text)
        except BadDocument as error:
            kind = Unknown if changes else Retryable
            raise kind(f"{self.name}: unreadable answer to {method} {path}: {error}") from None


def _attempt_path(operation: str, step: str, attempt: int) -> str:
    return f"/v1/attempts/{quote(operation, safe='')}/{quote(step, safe='')}/{attempt}"


__all__ = ["AgentClient", "AttemptNotSeen", "StaleEpoch", "Transport"]
