"""Problem documents (RFC 9457): what an agent answers when it does not do what it was asked."""

from __future__ import annotations

from dataclasses import dataclass

CONTENT_TYPE = "application/problem+json"

BAD_REQUEST = "bad-request"  # 400: not JSON, not the document, unknown fields: `errors` names each
FORBIDDEN = "forbidden"  # 403: a valid certificate, but not one of allowed_clients
UNKNOWN_ATTEMPT = "unknown-attempt"  # 404: never seen here, or forgotten (pruned)
NOT_FOUND = "not-found"  # 404: no such path
METHOD_NOT_ALLOWED = "method-not-allowed"  # 405
STALE_EPOCH = "stale-epoch"  # 409: a newer daemon has spoken (I4)
DIFFERENT_COMMAND = "different-command"  # 409: this attempt id was used for another command
DOMAIN_BUSY = "domain-busy"  # 409: another attempt runs on this domain; nothing was begun
TOO_LARGE = "too-large"  # 413: body over MAX_BODY_BYTES
TOO_MANY = "too-many"  # 429: attempt or subscriber limit; nothing was begun
INTERNAL = "internal"  # 500: a bug; the log has the traceback
UNAVAILABLE = "unavailable"  # 503: libvirt or the ledger cannot be used now; nothing was begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`type` is one of the words above (a relative URI reference), `status` the HTTP status."""

    type: str
    title: str
    status: int
    detail: str = ""
    errors: tuple[str, ...] = ()
    epoch: int = 0  # stale-epoch: the one that is obeyed
