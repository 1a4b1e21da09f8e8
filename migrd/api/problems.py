"""Every answer that is not what was asked for: an RFC 9457 problem document with all reasons.

`type` is one of the words below (a relative URI reference, as agents use them). `reasons` holds one
sentence per reason, or one "path: message" per mistake of a body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from aiohttp import web
from pydantic import TypeAdapter

from migrd.control import NotFound
from migrd.ports import JournalReadOnly
from storage.errors import OutcomeError, Refused, Retryable, Unknown

CONTENT_TYPE = "application/problem+json"

BAD_JSON = "bad-json"  # 400: the body is no JSON
BAD_REQUEST = "bad-request"  # 400: a header or query parameter is wrong, or the body cannot be decoded; 417
UNAUTHORIZED = "unauthorized"  # 401: no token, or not the right one
NOT_FOUND = "not-found"  # 404: no such path, host, guest, volume or operation
METHOD_NOT_ALLOWED = "method-not-allowed"  # 405
REFUSED = "refused"  # 409: a precondition does not hold; nothing was touched
AMBIGUOUS = "ambiguous"  # 409: the name fits several guests; `reasons` lists the uuids
TOO_LARGE = "too-large"  # 413: body over 1 MiB
BAD_FIELDS = "bad-fields"  # 422: unknown fields or wrong types
FAILED = "failed"  # 500: it was tried and did not work
INTERNAL = "internal"  # 500: a bug; the log has the traceback
READ_ONLY = "journal-read-only"  # 503: nothing new is begun until the journal can be written again
UNAVAILABLE = "unavailable"  # 503: not now; the same request may work later

RETRY_AFTER_S = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """RFC 9457, section 3.1; `reasons` is an extension member (section 3.2)."""

    type: str
    title: str
    status: int
    detail: str = ""
    instance: str = ""  # the path that was asked for
    reasons: tuple[str, ...] = ()


class ProblemError(Exception):
    """Raised by handlers; the outermost middleware turns it into the answer."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *reasons: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(
            type=kind, title=HTTPStatus(status).phrase, status=status, detail=detail, reasons=reasons
        )
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    problem: Problem
    headers: Mapping[str, str] = field(default_factory=dict)


def verdict_of(error: Exception) -> Verdict | None:  # noqa: PLR0911 - one line per kind
    """The problem that an exception means; None for one that nobody foresaw (a bug)."""
    match error:
        case ProblemError():
            return Verdict(problem=error.problem, headers=error.headers)
        case NotFound():
            return _verdict(404, NOT_FOUND, str(error), *error.reasons)
        case Refused():
            return _verdict(409, REFUSED, _first(error), *error.reasons)
        case JournalReadOnly():
            detail = (
                f"nothing new is begun: {error}; what runs is watched, and goes on once rows can be written"
            )
            return _verdict(503, READ_ONLY, detail, str(error), retry_after_s=RETRY_AFTER_S)
        case Retryable():
            return _verdict(503, UNAVAILABLE, _first(error), *error.reasons, retry_after_s=RETRY_AFTER_S)
        case Unknown():
            return _verdict(500, FAILED, f"the outcome is not known: {error}", *error.reasons)
        case OutcomeError():
            return _verdict(500, FAILED, _first(error), *error.reasons)
        case web.HTTPException():
            return _of_aiohttp(error)
        case web.RequestPayloadError():
            reason = f"the body cannot be decoded: {error or 'Content-Encoding or framing is wrong'}"
            return _verdict(400, BAD_REQUEST, reason, reason)
        case _:
            return None


def internal() -> Verdict:
    """For a bug. Says nothing of the inside: the log has it."""
    return _verdict(500, INTERNAL, "internal error; the daemon's log has the details")


def response(verdict: Verdict, instance: str) -> web.Response:
    """The HTTP answer for a verdict."""
    shown = Problem(
        type=verdict.problem.type,
        title=verdict.problem.title,
        status=verdict.problem.status,
        detail=verdict.problem.detail,
        instance=instance,
        reasons=verdict.problem.reasons,
    )
    return web.Response(
        body=_ADAPTER.dump_json(shown),
        status=shown.status,
        content_type=CONTENT_TYPE,
        headers=dict(verdict.headers),
    )


def _of_aiohttp(error: web.HTTPException) -> Verdict:
    match error:
        case web.HTTPNotFound():
            return _verdict(404, NOT_FOUND, "no such path; /v1/openapi.json lists all")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            verdict = _verdict(405, METHOD_NOT_ALLOWED, f"{error.method} does not exist here; {allowed} does")
            return Verdict(problem=verdict.problem, headers={"Allow": allowed})
        case web.HTTPRequestEntityTooLarge():
            return _verdict(413, TOO_LARGE, "the body is larger than 1 MiB")
        case web.HTTPExpectationFailed():
            return _verdict(417, BAD_REQUEST, "Expect: 100-continue is all that can be expected here")
        case _:
            return _verdict(error.status, BAD_REQUEST, error.reason or "")


def _verdict(status: int, kind: str, detail: str, *reasons: str, retry_after_s: int | None = None) -> Verdict:
    problem = Problem(
        type=kind, title=HTTPStatus(status).phrase, status=status, detail=detail, reasons=reasons
    )
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Verdict(problem=problem, headers=headers)


def _first(error: OutcomeError) -> str:
    """A one-line summary; every reason stands in `reasons`."""
    if not error.reasons:
        return type(error).__name__.lower()
    more = len(error.reasons) - 1
    return error.reasons[0] + (f" (and {more} more)" if more else "")


_ADAPTER = TypeAdapter(Problem)
