"""Mutual TLS between daemon and agents: contexts from files, and the names in a peer's certificate."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: own certificate (with its chain), own key, and the authority that signs the other side."""

    cert: Path
    key: Path
    ca: Path


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For the agent: a client without a certificate of our authority gets no byte of HTTP.

    Raises OSError (unreadable) or ssl.SSLError (not PEM, key does not match).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _load(context, files)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For the daemon: proves itself, and checks the agent's certificate against the host name in the URL.

    Raises OSError (unreadable) or ssl.SSLError (not PEM, key does not match).
    """
    return _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files)


def _load(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    return context


def certificate_names(certificate: Mapping[str, object] | None) -> frozenset[str]:
    """Common name and DNS/URI/IP names of a verified certificate, as SSLObject.getpeercert() gives it."""
    if not certificate:
        return frozenset()
    subject = cast("Sequence[Sequence[tuple[str, str]]]", certificate.get("subject", ()))
    alternative = cast("Sequence[tuple[str, str]]", certificate.get("subjectAltName", ()))
    names = {value for rdn in subject for key, value in rdn if key == "commonName"}
    names |= {value for kind, value in alternative if kind in ("DNS", "URI", "IP Address")}
    return frozenset(names)


def on_refused_handshake(context: ssl.SSLContext, tell: Callable[[str, str], None]) -> None:
    """Call `tell(reason, detail)` for every client whose handshake fails.

    `reason` is a word from a small set, `detail` what OpenSSL has to say ("certificate is not yet valid").

    A server sees a missing or wrong client certificate only here: asyncio ends such a connection before
    any protocol object hears of it. `sslobject_class` is ssl's documented way to watch (SSLContext, 3.7).
    """

    class WatchedSSLObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise  # not an error: the next packet is not here yet
            except ssl.SSLError as error:
                tell(_reason(error), getattr(error, "verify_message", None) or str(error))
                raise

    context.sslobject_class = WatchedSSLObject


def _reason(error: ssl.SSLError) -> str:
    match error.reason:
        case "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return "no-certificate"
        case "CERTIFICATE_VERIFY_FAILED":
            return "bad-certificate"
        case "HTTP_REQUEST" | "WRONG_VERSION_NUMBER" | "UNKNOWN_PROTOCOL":
            return "not-tls"
        case _:
            return "other"
