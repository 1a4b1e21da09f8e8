"""HTTP over mTLS to one agent, every wait bounded: the real way under `agents.client.AgentClient`."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator

import aiohttp

from agents.answers import lost, refusal
from storage.errors import OutcomeError, Refused, Retryable

MAX_REPLY_BYTES = 64 << 20
MAX_EVENT_BYTES = 16 << 20
KEEPALIVE_S = 60.0  # below the agent's 75: the next operation need not begin with a TLS handshake


class HttpTransport:
    """Implements `agents.client.Transport`. Opens its connections with the first call."""

    def __init__(
        self,
        name: str,
        url: str,
        context: ssl.SSLContext,
        *,
        connect_timeout_s: float,
        request_timeout_s: float,
        silence_timeout_s: float,
    ) -> None:
        self._name = name
        self._url = url.rstrip("/")
        self._context = context
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._silence_timeout_s = silence_timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """See Transport."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(
        self, method: str, target: str, body: bytes | None, *, changes: bool, extra_s: float
    ) -> tuple[int, bytes]:
        """See Transport."""
        timeout = aiohttp.ClientTimeout(
            total=self._request_timeout_s + extra_s, sock_connect=self._connect_timeout_s
        )
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with self._open().request(
                method, self._url + target, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                return response.status, await _body(response)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._lost(error, changes=changes) from None

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """See Transport."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._connect_timeout_s, sock_read=self._silence_timeout_s
        )
        try:
            async with self._open().get(
                self._url + "/v1/events", timeout=timeout, read_bufsize=1 << 18
            ) as response:
                if response.status != 200:
                    raise refusal(self._name, response.status, await response.read(), changes=False)
                async for line in _lines(response.content):
                    yield line
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._lost(error, changes=False) from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._context, limit=32, keepalive_timeout=KEEPALIVE_S)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    def _lost(self, error: BaseException, *, changes: bool) -> OutcomeError:
        """What a transport error means. Certain only if it came before the request was sent."""
        text = f"{self._name}: {str(error) or type(error).__name__}"
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
            return Refused(f"{text} (check the certificates of agent and daemon)")
        if isinstance(error, aiohttp.ServerDisconnectedError):
            # TLS 1.3: the verdict on our certificate comes after our handshake, as a closed connection.
            text += (
                " without an answer; if that is always so, check that it accepts this daemon's certificate"
            )
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return Retryable(text)
        return lost(text, changes=changes)


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
