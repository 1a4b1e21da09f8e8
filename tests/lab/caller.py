"""Asks daemon and agents over TLS without starting a program: with a certificate, a token, or neither."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from pathlib import Path


class Caller:
    """`ca` is the authority that it trusts, `own` its certificate, with the key beside it."""

    def __init__(self, ca: Path, own: Path | None = None) -> None:
        self.tls = ssl.create_default_context(cafile=str(ca))
        if own is not None:
            self.tls.load_cert_chain(own, own.with_suffix(".key"))

    def get(self, url: str, token: str | None = None) -> tuple[int, str]:
        """Status and body, also of a refusal; OSError if there is no answer."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(url, headers=headers)
        try:
            with urllib.request.urlopen(request, context=self.tls, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()
