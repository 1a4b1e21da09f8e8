"""An address of the configuration that cannot be listened on: one line, for agent and daemon alike."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any


class ListenError(Exception):
    """Another program has the address, this host has no such address, or it may not be used.

    Not a mistake that trying again cannot mend: who holds the port may end, the network may come up.
    """

    def __init__(self, key: str, address: str, error: OSError) -> None:
        # asyncio's own words repeat the address; a name that does not resolve has a number of its own kind.
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.strerror or str(error)
        super().__init__(f"{key}: cannot listen on {address}: {why}")


@contextlib.contextmanager
def told_with(key: str, address: str) -> Iterator[None]:
    """Inside, an OSError is about `address`, the value of `key` in the configuration."""
    try:
        yield
    except OSError as error:
        raise ListenError(key, address, error) from error


def tell_end(log: Any, who: str, group: BaseExceptionGroup[BaseException]) -> None:
    """Called while `group` is handled: what ended `who`, in one line of a structlog logger if it can be."""
    taken = only_listen_error(group)
    if taken is None:
        log.exception("a background loop died")
    else:
        log.error(f"{who} cannot run", error=str(taken))


def only_listen_error(group: BaseExceptionGroup[BaseException]) -> ListenError | None:
    """Pure: what ended a TaskGroup, if it was this and nothing else. The loops in it did not die then."""
    match group.exceptions:
        case [ListenError() as error]:
            return error
        case [BaseExceptionGroup() as inner]:
            return only_listen_error(inner)
        case _:
            return None
