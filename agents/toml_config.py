"""Read a TOML file into a frozen dataclass and report every mistake at once, each with its path.

Types are checked strictly: `port = "7443"` is a mistake, not a number. Unknown keys are mistakes too, so
that a misspelt option is never silently the default. Used by the agent and by the daemon.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from agents.mistakes import every_mistake

T = TypeVar("T")

MAX_CONFIG_BYTES = 1 << 20


class ConfigError(Exception):
    """A configuration that cannot be used. `errors` holds one "path: message" per mistake."""

    def __init__(self, file: Path, errors: list[str]) -> None:
        super().__init__("\n".join(f"{file}: {error}" for error in errors))
        self.file = file
        self.errors = errors


def load(path: Path, cls: type[T]) -> T:
    """Read `path` (TOML) as `cls`. Raises ConfigError with every mistake; touches nothing else."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(path, [f"(file): cannot be read: {error.strerror or error}"]) from None
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(path, [f"(file): larger than {MAX_CONFIG_BYTES} bytes"])
    try:
        document = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(path, [f"(file): not valid TOML: {error}"]) from None
    return parse(document, cls, file=path)


def raw(path: Path) -> Mapping[str, object]:
    """The parsed file, unchecked; empty when it cannot be parsed, which `load` reports."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}


def table(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    """A table of an unchecked document; empty when it is something else."""
    found = document.get(key)
    return found if isinstance(found, dict) else {}


def parse(document: dict[str, object], cls: type[T], *, file: Path = Path("(memory)")) -> T:
    """Check an already parsed TOML document against `cls`. Raises ConfigError with every mistake."""
    # JSON in between: strict mode then still takes a list for a tuple and a string for a Path.
    text = json.dumps(document, default=str)
    adapter = TypeAdapter(cls)
    try:
        return adapter.validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        raise ConfigError(file, every_mistake(adapter, json.loads(text), error)) from None
