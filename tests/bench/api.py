"""Asks the daemon for work and waits for its end, without the start-up time of migrctl."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

POLL_S = 0.25  # seldom, because it is work for the daemon: how long it took is read from the operation itself
ENDED = ("done", "undone", "failed", "parked")


class Api:
    """One keep-alive HTTPS connection to migrd, which runs on this machine and shares its clock."""

    def __init__(self, env: Mapping[str, str]) -> None:
        parts = urlsplit(env["MIGRD_URL"])
        assert parts.hostname is not None
        context = ssl.create_default_context(cafile=env["MIGRD_CA"])
        self._connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, context=context, timeout=30
        )
        token = Path(env["MIGRD_TOKEN_FILE"]).read_text().strip()
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        self._connection.request(method, path, json.dumps(body) if body is not None else None, self._headers)
        answer = self._connection.getresponse()
        document = json.loads(answer.read())
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status}: {document}")
        return document

    def work(self, path: str, body: Mapping[str, object], *, deadline_s: float = 600) -> dict[str, Any]:
        """Ask for work and wait until it has ended; raises unless it is done.

        `asked_s` is added: when it was asked for, before any planning, by the clock of the operation's times.
        """
        asked_s = time.time()
        operation: dict[str, Any] = self.ask("POST", path, body)
        end = time.monotonic() + deadline_s
        while operation["state"] not in ENDED and time.monotonic() < end:
            time.sleep(POLL_S)
            operation = self.ask("GET", f"/v1/operations/{operation['id']}")
        if operation["state"] != "done":
            raise RuntimeError(f"{path}: {operation['state']}: {operation['reason']}")
        return {**operation, "asked_s": asked_s}
