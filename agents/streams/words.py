"""What is known of a migration's TCP connection, and when its other end is given up. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

UNANSWERED_MIN = 2  # a single one may be lost on a busy network


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One established TCP connection of a process. Endpoints as ss(8) writes them: 10.0.1.11:47630."""

    pid: int
    fd: int
    local: str
    remote: str
    waiting_bytes: int  # sent and not acknowledged, or not sent yet
    unanswered: int  # retransmissions or window probes in a row without an answer
    unheard_s: float  # since the other end's kernel last acknowledged anything


def is_dead(stream: Stream, unheard_s: float) -> bool:
    """Did the other end's kernel answer nothing for so long, though it was asked to?

    A program there that only does not read is another matter: its kernel answers every probe.
    """
    asked = stream.waiting_bytes > 0 and stream.unanswered >= UNANSWERED_MIN
    return asked and stream.unheard_s >= unheard_s


class Streams(Protocol):
    """The TCP connections of QEMU processes. `agents.streams.sockets.Sockets` is the real one."""

    async def to_host(self, uuid: str, host: str, besides: Collection[str]) -> tuple[Stream, ...]:
        """Connections of the guest's QEMU to `host` (a name or address), without those to `besides`.

        `besides`: endpoints, e.g. 10.0.0.5:3260. Raises storage.errors when they cannot be seen.
        """
        ...

    async def cut(self, stream: Stream) -> None:
        """Break it off: its process sees an error. One that is gone is no error. Raises storage.errors."""
        ...
