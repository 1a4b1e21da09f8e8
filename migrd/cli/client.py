"""The API as migrctl uses it: blocking requests with deadlines, and one event stream.

http.client, not a bigger library: a command makes a handful of requests, must start fast, and must never
send its token through a proxy or after a redirect.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from pydantic import TypeAdapter, ValidationError

from migrd.api.listen import Listen
from migrd.cli.errors import CliError, Interrupted, Unreachable
from migrd.cli.exits import Exit

T = TypeVar("T")

REQUEST_S = 30.0
MAX_ANSWER_BYTES = 256 << 20
MAX_LINE_BYTES = 16 << 20
READ_ONLY = "journal-read-only"  # migrd.api.problems has it too, and would load all of aiohttp


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """`value` for showing, `document` exactly as the daemon sent it (newer fields included) for -o json."""

    value: T
    document: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiClient:
    """`url`: https://HOST:PORT, http:// on loopback only, or unix:/PATH. `ca` None = the system's."""

    url: str
    token: str = field(repr=False)
    ca: Path | None = None

    def get(self, cls: type[T], path: str, query: Mapping[str, str] | None = None) -> Reply[T]:
        """Raises CliError: Unreachable, refused, ..."""
        return self._ask(cls, "GET", path + (f"?{urlencode(query)}" if query else ""), None, changes=False)

    def post(self, cls: type[T], path: str, body: Mapping[str, object], *, changes: bool = True) -> Reply[T]:
        """`changes` False: a dry run. Raises CliError: Unreachable, Interrupted, refused with reasons, ..."""
        return self._ask(cls, "POST", path, json.dumps(body).encode(), changes=changes)

    def delete(self, cls: type[T], path: str) -> Reply[T]:
        """Raises CliError: Unreachable, Interrupted, refused with reasons, ..."""
        return self._ask(cls, "DELETE", path, None, changes=True)

    def events(
        self, last_event_id: str, silence_s: float, opened: Callable[[], None] = lambda: None
    ) -> Iterator[bytes]:
        """The `data` of each server-sent event, until the stream breaks (Unreachable).

        `opened` is called once the daemon has accepted. `silence_s`: longer without a byte counts as
        broken; the daemon sends a comment every 15 s.
        """
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        connection = self._connection(silence_s)
        try:
            answer = self._send(connection, "GET", "/v1/events", None, headers)
            if answer.status != 200:
                raise _refusal(answer.status, answer.read(MAX_ANSWER_BYTES))
            opened()
            while line := answer.readline(MAX_LINE_BYTES):
                if line.startswith(b"data: "):
                    yield line[6:]
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(self.url, _why(error), sent=True, changes=False) from None
        finally:
            connection.close()
        raise Unreachable(self.url, "it ended the event stream", sent=True, changes=False)

    def _ask(self, cls: type[T], method: str, path: str, body: bytes | None, *, changes: bool) -> Reply[T]:
        connection = self._connection(REQUEST_S)
        sent = False
        try:
            try:
                connection.connect()
                sent = True
                answer = self._send(connection, method, path, body, {})
                status, text = answer.status, answer.read(MAX_ANSWER_BYTES)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(self.url, _why(error), sent=sent, changes=changes) from None
        except KeyboardInterrupt:
            raise Interrupted(accepted=sent and changes) from None
        if status not in (200, 202):
            raise _refusal(status, text)
        try:
            # Unknown fields are ignored: a daemon may be newer than this program.
            return Reply(TypeAdapter(cls).validate_json(text), json.loads(text))
        except ValidationError:
            detail = f"{self.url} answered {method} {path} with something this migrctl does not understand"
            raise CliError(Exit.FAILED, detail, hint="do migrctl and migrd have the same version?") from None

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        more = {"Content-Type": "application/json"} if body is not None else {}
        authorization = {"Authorization": f"Bearer {self.token}"}
        connection.request(method, path, body=body, headers={**authorization, **more, **headers})
        return connection.getresponse()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self.url.startswith("unix:"):
            return _UnixConnection(self.url.removeprefix("unix:"), timeout_s)
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname or "", parts.port
            host.encode("idna")
        except ValueError as error:  # UnicodeError too: a name that could never be looked up
            raise CliError(Exit.USAGE, f"--url {self.url}: {error}") from None
        if parts.scheme not in ("http", "https") or not host or parts.path not in ("", "/"):
            hint = "for example https://localhost:7440 or unix:/run/migrd/api.sock"
            raise CliError(Exit.USAGE, f"--url {self.url}: not https://HOST:PORT", hint=hint)
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._tls())
        if not Listen(host=host).local:
            detail = f"--url {self.url}: the token is not sent in plain text over a network"
            raise CliError(Exit.USAGE, detail, hint="use https://")
        return http.client.HTTPConnection(host, port, timeout=timeout_s)

    def _tls(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            detail = f"--ca {self.ca}: {getattr(error, 'strerror', None) or error}"
            raise CliError(Exit.USAGE, detail, hint="--ca or MIGRD_CA: the ca.pem of make-certs") from None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def segment(word: str) -> str:
    """A name as one path segment, whatever it contains."""
    return quote(word, safe="")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted: {error.verify_message} (--ca or MIGRD_CA names the authority)"
        )
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _refusal(status: int, text: bytes) -> CliError:
    """A problem document as an error with the right exit code."""
    try:
        document = json.loads(text)
    except ValueError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    detail = str(document.get("detail") or document.get("title") or f"HTTP {status}")
    listed = document.get("reasons")
    reasons = tuple(str(reason) for reason in listed) if isinstance(listed, list) else ()
    match status:
        case 401:
            hint = "--token-file or MIGRD_TOKEN_FILE: the token_file of the daemon's configuration"
            return CliError(Exit.REFUSED, detail, (), hint, document)
        case 404 | 409:
            return CliError(Exit.REFUSED, detail, reasons, "", document)
        case 400 | 405 | 413 | 422:
            return CliError(Exit.USAGE, detail, reasons, "", document)
        case 503 if document.get("type") == READ_ONLY:
            hint = (
                "free space in the daemon's [state] dir, or see to its disk; it takes up work again by itself"
            )
            return CliError(Exit.REFUSED, detail, reasons, hint, document)
        case 503:
            return CliError(Exit.FAILED, detail, reasons, "try again in a moment", document)
        case _:
            return CliError(Exit.FAILED, detail, reasons, "`journalctl -u migrd` has the details", document)
