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
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote

import aiohttp

from agents import problems
from agents.problems import Problem
from agents.protocol import (
    Abort,
    Attempt,
    AttemptReport,
    Event,
    HostReport,
    Observation,
    Observe,
    Preflight,
    PreflightReport,
)
from agents.wire import BadDocument, dump, read
from storage.errors import Failed, OutcomeError, Refused, Retryable, Unknown

T = TypeVar("T")

MAX_WAIT_S = 30.0
MAX_REPLY_BYTES = 64 << 20
MAX_EVENT_BYTES = 16 << 20
SUBMIT_TRIES = 2


class StaleEpoch(Failed):
    """The agent has obeyed a newer epoch (I4): this daemon is no longer the master of this host.

    `highest`: that epoch; 0 when an older agent does not say.
    """

    def __init__(self, *reasons: str, highest: int = 0) -> None:
        super().__init__(*reasons)
        self.highest = highest


class AttemptNotSeen(Unknown):
    """The agent has no record of the attempt: never submitted, or long ended and pruned. Observe."""


class AgentClient:
    """One agent. `url` is https://host:7443; its host name must be in the agent's certificate.

    `context` comes from agents.tls.client_context and may be shared by all clients. Use it as an
    `async with`, or call `close()`. Requests may run concurrently.
    """

    def __init__(
        self,
        name: str,
        url: str,
        context: ssl.SSLContext,
        *,
        connect_timeout_s: float = 3.0,
        request_timeout_s: float = 20.0,
        silence_timeout_s: float = 5.0,
    ) -> None:
        self.name = name
        self._url = url.rstrip("/")
        self._context = context
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._silence_timeout_s = silence_timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AgentClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. A later call opens them again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def report(self) -> HostReport:
        """Everything the host knows of itself. Raises Retryable, Refused."""
        return await self._call("GET", "/v1/report", None, HostReport)

    async def preflight(self, question: Preflight) -> PreflightReport:
        """Could this host take these CPUs and volumes? Raises Retryable, Refused."""
        return await self._call("POST", "/v1/preflight", dump(question), PreflightReport)

    async def observe(self, question: Observe) -> Observation:
        """Reality of one guest on this host. Raises Retryable, Refused."""
        return await self._call("POST", "/v1/observe", dump(question), Observation)

    async def submit(self, attempt: Attempt) -> AttemptReport:
        """Begin an attempt, or learn of the one begun before under the same id; does not wait for its end.

        Raises Retryable (not begun), Refused, StaleEpoch, Unknown.
        """
        body = dump(attempt)
        for tries in range(1, SUBMIT_TRIES + 1):
            try:
                return await self._call("POST", "/v1/attempts", body, AttemptReport, changes=True)
            except Unknown:  # the agent knows whether it saw the first one: the same id is begun once
                if tries == SUBMIT_TRIES:
                    raise
        raise AssertionError("unreachable")

    async def wait(
        self, operation: str, step: str, attempt: int, wait_s: float = MAX_WAIT_S
    ) -> AttemptReport:
        """The attempt as it stands; returns when it ended or after `wait_s` (at most 30), still RUNNING.

        Raises Retryable, Refused, AttemptNotSeen.
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

    async def events(self) -> AsyncIterator[Event]:
        """The agent's event stream, heartbeats included, until it breaks: then it raises Retryable.

        The stream is silent for at most a heartbeat; more than `silence_timeout_s` counts as broken. After
        a gap in `seq` or a new `stream` read `report()`. Lines of kinds unknown here are skipped (I19).
        """
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._connect_timeout_s, sock_read=self._silence_timeout_s
        )
        try:
            async with self._open().get(
                self._url + "/v1/events", timeout=timeout, read_bufsize=1 << 18
            ) as response:
                if response.status != 200:
                    raise self._refusal(response.status, await response.read(), changes=False)
                async for line in _lines(response.content):
                    try:
                        yield read(Event, line)
                    except BadDocument:
                        continue
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._lost(error, changes=False) from None
        raise Retryable(f"{self.name}: the agent ended its event stream")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._context, limit=32)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

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
        timeout = aiohttp.ClientTimeout(
            total=self._request_timeout_s + extra_s, sock_connect=self._connect_timeout_s
        )
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with self._open().request(
                method, self._url + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                status, text = response.status, await _body(response)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._lost(error, changes=changes) from None
        if status not in (200, 202):
            raise self._refusal(status, text, changes=changes)
        try:
            return read(answer, text)
        except BadDocument as error:
            kind = Unknown if changes else Retryable
            raise kind(f"{self.name}: unreadable answer to {method} {path}: {error}") from None

    def _lost(self, error: BaseException, *, changes: bool) -> OutcomeError:
        """What a transport error means. Certain only if it came before the request was sent."""
        text = f"{self.name}: {str(error) or type(error).__name__}"
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
            return Refused(f"{text} (check the certificates of agent and daemon)")
        if isinstance(error, aiohttp.ServerDisconnectedError):
            # TLS 1.3: the verdict on our certificate comes after our handshake, as a closed connection.
            text += (
                " without an answer; if that is always so, check that it accepts this daemon's certificate"
            )
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return Retryable(text)
        return Unknown(f"{text} (the reply was lost)") if changes else Retryable(text)

    def _refusal(self, status: int, body: bytes, *, changes: bool) -> OutcomeError:
        """What a problem document means."""
        try:
            problem = read(Problem, body)
        except BadDocument:
            problem = Problem(type="", title=f"HTTP {status} without a problem document", status=status)
        first = f"{self.name}: {problem.detail or problem.title}"
        match problem.type:
            case problems.STALE_EPOCH:
                return StaleEpoch(first, highest=problem.epoch)
            case problems.UNKNOWN_ATTEMPT:
                return AttemptNotSeen(first)
            case problems.TOO_MANY | problems.UNAVAILABLE | problems.DOMAIN_BUSY:
                return Retryable(first)
        if 400 <= status < 500:
            return Refused(first, *problem.errors)
        return Unknown(first) if changes else Retryable(first)


def _attempt_path(operation: str, step: str, attempt: int) -> str:
    return f"/v1/attempts/{quote(operation, safe='')}/{quote(step, safe='')}/{attempt}"


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            raise aiohttp.ClientPayloadError("the answer is too long")
    return bytes(body)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length up to MAX_EVENT_BYTES (StreamReader.readline has a smaller limit)."""
    rest = bytearray()
    async for chunk in stream.iter_any():
        rest += chunk
        if len(rest) > MAX_EVENT_BYTES:
            raise aiohttp.ClientPayloadError("an event line is too long")
        *whole, last = rest.split(b"\n")
        rest = bytearray(last)
        for line in whole:
            if line.strip():
                yield bytes(line)
