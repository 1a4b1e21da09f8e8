"""Every mistake of a document at once, each with its path: of single fields, and of fields taken together.

Fields are judged by the constraints of their types. What two fields say together is checked in a
`__post_init__`, which raises `MistakesError`; Python runs that only once every field is good by itself, so
one wrong type would hide it. `every_mistake` therefore leaves out what was wrong and looks again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

Path = tuple[str, ...]

MAX_LOOKS = 50  # each but the last leaves out one value at least (I20)
MAX_DURATION_S = 7 * 86400.0

Seconds = Annotated[float, Field(gt=0, le=MAX_DURATION_S, allow_inf_nan=False)]
"""A duration in a configuration: above 0, at most a week, never nan."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """`where`: the path below what complains. `others`: keys beside `where` that have a part in it."""

    where: Path
    message: str
    others: tuple[Path, ...] = ()


class MistakesError(ValueError):
    """What the fields say together makes no sense; everything at once."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(_line(each.where, each.message) for each in self.mistakes))


def raise_all(mistakes: Iterable[Mistake]) -> None:
    """Raise MistakesError, or return when there is no mistake."""
    found = tuple(mistakes)
    if found:
        raise MistakesError(found)


def problems_of(error: ValidationError) -> list[str]:
    """One "path: message" per mistake, without the input: a config or request may hold a secret (I17)."""
    return [_line(each.where, each.message) for each in _found(error)]


def every_mistake(adapter: TypeAdapter[Any], document: object, error: ValidationError) -> list[str]:
    """`problems_of`, and what shows only once the values named there are left out.

    `document`: the JSON that `error` is about; it is not changed. What leaving out causes is not reported.
    """
    rest = json.loads(json.dumps(document))
    left_out: set[Path] = set()
    lines: dict[str, None] = {}
    for _ in range(MAX_LOOKS):
        found = _found(error)
        lines |= dict.fromkeys(_line(m.where, m.message) for m in found if not _caused(m, left_out))
        gone = {_leave_out(rest, each.where[:-1] if each.missing else each.where) for each in found} - {()}
        if not gone:
            break
        left_out |= gone
        try:
            adapter.validate_json(json.dumps(rest), strict=True, extra="forbid")
        except ValidationError as again:
            error = again
        else:
            break
    return list(lines)


@dataclass(frozen=True, slots=True)
class _Found:
    where: Path
    message: str
    others: tuple[Path, ...] = ()
    missing: bool = False


def _found(error: ValidationError) -> list[_Found]:
    found = []
    for item in error.errors(include_url=False, include_input=False):
        place = tuple(str(part) for part in item["loc"] if part != "[key]")
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, MistakesError):
            for each in cause.mistakes:
                others = tuple((*place, *other) for other in each.others)
                found.append(_Found((*place, *each.where), each.message, others))
        else:
            message = _message(item["type"], item["msg"])
            found.append(_Found(place, message, missing=item["type"] in _MISSING))
    return found


_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")


def _message(kind: str, message: str) -> str:
    match kind:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return "unknown key"
        case _ if kind in _MISSING:
            return "required, but missing"
        case _:
            return message.removeprefix("Value error, ")


def _line(where: Path, message: str) -> str:
    return f"{'.'.join(where) or '(document)'}: {message}"


def _caused(found: _Found, left_out: Iterable[Path]) -> bool:
    """Does it speak of something that was left out, or of what held it?"""
    return any(
        gone[: len(path)] == path or path[: len(gone)] == gone
        for path in (found.where, *found.others)
        for gone in left_out
    )


def _leave_out(document: object, where: Path) -> Path:
    """Remove the value, or (in a list) the nearest key that holds it; the path removed, () for none."""
    holder: object = document
    nearest: tuple[dict[str, object], Path] | None = None
    for depth, part in enumerate(where, start=1):
        if not isinstance(holder, dict) or part not in holder:
            break
        nearest = (holder, where[:depth])
        holder = holder[part]
    if nearest is None:
        return ()
    del nearest[0][nearest[1][-1]]
    return nearest[1]
