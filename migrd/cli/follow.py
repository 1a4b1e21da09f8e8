"""`events --follow`: what happens now, over any number of connections; with -o json one array in the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

from pydantic import TypeAdapter, ValidationError

from migrd.cli import render
from migrd.cli.errors import CliError
from migrd.cli.exits import Exit
from migrd.cli.session import Session, last_words
from migrd.operations import ClusterEvent

STREAM_SILENCE_S = 45.0  # the daemon sends a comment every 15 s
RECONNECT_PAUSE_S = 1.0

_EVENT = TypeAdapter(ClusterEvent)


class _Array:
    """One JSON array on stdout, item by item. Begun once the daemon has accepted the stream."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._items = 0
        self.begun = False

    def begin(self) -> None:
        if self._wanted and not self.begun:
            self.begun = True
            self._write("[")

    def add(self, item: object) -> None:
        self._items += 1
        self._write(("\n" if self._items == 1 else ",\n") + json.dumps(item, ensure_ascii=False))

    def end(self) -> None:
        last_words()
        self._write("\n]\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def follow(here: Session) -> int:
    """Until Ctrl-C (done), or until the daemon is away for too long. Raises CliError.

    An error is the one JSON document only if the array has not begun; else the array is, and it is closed.
    """
    array = _Array(here.as_json)
    try:
        for item in _stream(here, array.begin):
            if here.as_json:
                array.add(item)
                continue
            try:
                here.out.print(render.event(_EVENT.validate_python(item)))
            except ValidationError:  # a newer daemon's word
                here.err.print("an event that this migrctl does not understand")
    except KeyboardInterrupt:
        array.begin()
        if array.begun:
            array.end()
        return Exit.DONE
    except CliError as error:
        if array.begun:
            array.end()
            error.document_shown = True
        raise
    return Exit.DONE


def _stream(here: Session, opened: Callable[[], None]) -> Iterator[dict[str, object]]:
    """Gives up after `reconnect_s` without a connection."""
    last, lost_at = "", None
    while True:
        try:
            for text in here.client.events(last, STREAM_SILENCE_S, opened):
                lost_at = None
                try:
                    item = json.loads(text)
                    last = str(item["seq"])
                except (ValueError, KeyError, TypeError):
                    here.err.print("an event that this migrctl does not understand")
                    continue
                yield item
        except CliError as error:
            if error.code is not Exit.UNREACHABLE:
                raise
            if lost_at is None:
                lost_at = time.monotonic()
                here.err.print(f"{error.detail}; asking again for {here.reconnect_s:g} s")
            elif time.monotonic() - lost_at > here.reconnect_s:
                raise
        time.sleep(RECONNECT_PAUSE_S)
