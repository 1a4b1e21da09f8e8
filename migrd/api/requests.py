"""Reading what a client sent: body and query, with every mistake at once."""

from __future__ import annotations

import json
from typing import TypeVar

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from agents.mistakes import every_mistake, problems_of
from migrd.api.answer import adapter
from migrd.api.problems import BAD_FIELDS, BAD_JSON, BAD_REQUEST, ProblemError

T = TypeVar("T")


async def body_of(request: web.Request, cls: type[T]) -> T:
    """The JSON body as `cls`; an empty body means all defaults.

    Raises ProblemError 400 (no JSON), 422 (unknown fields, wrong types: `reasons` has each with its path);
    aiohttp raises 413 beyond the size limit.
    """
    text = (await request.read()).strip() or b"{}"
    known: TypeAdapter[T] = adapter(cls)  # type: ignore[arg-type] # a class is hashable
    try:
        return known.validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        if any(item["type"] == "json_invalid" for item in error.errors(include_input=False)):
            raise ProblemError(400, BAD_JSON, "the body is not JSON", *problems_of(error)) from None
        problems = every_mistake(known, json.loads(text), error)
        raise ProblemError(422, BAD_FIELDS, f"{len(problems)} mistake(s) in the body", *problems) from None


def query_of(request: web.Request, allowed: frozenset[str]) -> dict[str, str]:
    """The query parameters. Raises ProblemError 400 for one that does not exist or comes twice."""
    unknown = sorted(set(request.query) - allowed)
    twice = sorted({key for key in request.query if len(request.query.getall(key)) > 1})
    reasons = [f"{key}: unknown query parameter" for key in unknown] + [
        f"{key}: given twice" for key in twice
    ]
    if reasons:
        raise ProblemError(400, BAD_REQUEST, f"{len(reasons)} mistake(s) in the query", *reasons)
    return dict(request.query)


def flag(query: dict[str, str], key: str) -> bool:
    """A boolean parameter: `?key`, `?key=true`, `?key=1`, or false, 0. Raises ProblemError 400."""
    match query.get(key):
        case None | "false" | "0":
            return False
        case "" | "true" | "1":
            return True
        case _:
            raise ProblemError(400, BAD_REQUEST, f"{key} is true or false", f"{key}: true or false")


def number(text: str | None, key: str, *, default: int, low: int, high: int) -> int:
    """A bounded whole number. Raises ProblemError 400."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and low <= int(text) <= high):
        reason = f"{key}: a whole number from {low} to {high}"
        raise ProblemError(400, BAD_REQUEST, reason, reason)
    return int(text)
