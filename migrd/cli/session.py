"""What every command needs: the client, where to write, and whether for people or for programs."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console, RenderableType

from migrd.cli.client import ApiClient
from migrd.cli.errors import CliError
from migrd.cli.exits import Exit

DEFAULT_URL = "https://localhost:7440"
DEFAULT_TOKEN_FILE = Path("/etc/migrd/token")
DEFAULT_CA = Path("/etc/migrd/ca.pem")
PIPE_WIDTH = 500  # columns when nobody looks: names, uuids and reasons stay whole


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


Host = Annotated[str, typer.Argument(metavar="HOST")]
Vm = Annotated[str, typer.Argument(metavar="VM", help="Name or uuid.")]
OpId = Annotated[str, typer.Argument(metavar="ID", help="As in `migrctl ops`.")]
VolumeName = Annotated[str, typer.Argument(metavar="VOLUME", help="As in `migrctl volumes`.")]
Output = Annotated[
    Format | None, typer.Option("-o", "--output", help="json: exactly one JSON document on stdout.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options in front of the command."""

    url: str
    token_file: Path | None
    ca: Path | None
    output: Format
    reconnect_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    client: ApiClient
    as_json: bool
    out: Console
    err: Console
    reconnect_s: float

    @property
    def talk(self) -> Console:
        """Where progress goes: with -o json never to stdout."""
        return self.err if self.as_json else self.out

    def show(self, document: Any, *renderables: RenderableType) -> None:
        """The result: `document` for programs, `renderables` for people."""
        if self.as_json:
            print_json(document)
        else:
            for renderable in renderables:
                self.out.print(renderable)


def session(context: typer.Context, output: Format | None) -> Session:
    """Raises CliError (usage) when the token cannot be read."""
    settings: Settings = context.obj
    return Session(
        client=ApiClient(
            url=settings.url.rstrip("/"), token=_token(settings.token_file), ca=_ca(settings.ca)
        ),
        as_json=(output or settings.output) is Format.JSON,
        out=console(stderr=False),
        err=console(stderr=True),
        reconnect_s=settings.reconnect_s,
    )


def leave(stream: TextIO) -> None:
    """Its reader (head, less) has enough. Python must not complain again when it closes the stream."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Console(Console):
    """On stderr nobody need read: what goes to stdout, and the exit code, stay as they are."""

    def on_broken_pipe(self) -> None:
        if not self.stderr:
            raise BrokenPipeError
        leave(sys.stderr)


def console(*, stderr: bool) -> Console:
    """Names are shown as they are: no markup, no emoji, no guessing of colours in them."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal or "COLUMNS" in os.environ else PIPE_WIDTH
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=width, soft_wrap=False)


def last_words() -> None:
    """The end is being written: Ctrl-C changes nothing any more, and must not cut the document in two."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def print_json(document: Any) -> None:
    """One document and nothing else on stdout. Nothing may be printed there after it."""
    last_words()
    text = json.dumps(document, indent=2, ensure_ascii=False)
    # A byte of MIGRD_URL that is no UTF-8 is a lone surrogate: JSON has an escape for it, and no other form.
    sys.stdout.write(text.encode(errors="backslashreplace").decode() + "\n")
    sys.stdout.flush()


def _token(file: Path | None) -> str:
    path = file or DEFAULT_TOKEN_FILE
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        detail = f"the token file {path} cannot be read: {why}"
        raise CliError(Exit.USAGE, detail, hint="--token-file FILE or MIGRD_TOKEN_FILE") from None
    if not token or not token.isascii() or not token.isprintable():
        raise CliError(Exit.USAGE, f"the token file {path} holds no token")
    return token


def _ca(ca: Path | None) -> Path | None:
    if ca is None and DEFAULT_CA.is_file():
        return DEFAULT_CA
    return ca
