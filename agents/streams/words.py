"""What is known of a migration's TCP connection, and when its other end is given up. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

UNANSWERED_MIN = 2  # a single one may be lost on a busy network

Ends = tuple[str, str]
"""The local and the remote endpoint of a connection."""


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

    @property
    def ends(self) -> Ends:
        return self.local, self.remote


def asked_in_vain(before: Mapping[Ends, float], seen: Iterable[Stream], now_s: float) -> dict[Ends, float]:
    """Connections whose other end is being asked and answers nothing -> since when that has been seen.

    `before`: the answer of the look before. A program there that only does not read is another matter: its
    kernel answers every probe. An acknowledgement between two looks begins the time anew.
    """
    found = {}
    for stream in seen:
        if stream.waiting_bytes > 0 and stream.unanswered >= UNANSWERED_MIN:
            since_s = before.get(stream.ends, now_s)
            found[stream.ends] = since_s if stream.unheard_s >= now_s - since_s else now_s
    return found


class Held(Protocol):
    """A duplicate of another process's connection: open until it is let go of, whatever that process does."""

    def open_there(self) -> bool:
        """Has the peer neither closed nor reset it?"""
        ...

    def owner_lives(self) -> bool:
        """Does the process still exist that it was taken from?"""
        ...

    def let_go(self) -> None:
        """Once. With the process dead, the kernel closes the connection now."""
        ...


class Streams(Protocol):
    """The TCP connections of QEMU and libvirtd. `agents.streams.sockets.Sockets` is the real one."""

    async def addresses(self, host: str) -> frozenset[str]:
        """Of a name, or the address itself. Raises storage.errors."""
        ...

    async def to(self, uuid: str, addresses: Collection[str], besides: Collection[str]) -> tuple[Stream, ...]:
        """Connections of the guest's QEMU to any of `addresses`, without those to `besides`.

        `besides`: endpoints, e.g. 10.0.0.5:3260. Raises storage.errors when they cannot be seen.
        """
        ...

    async def into(self, port: int) -> tuple[Stream, ...]:
        """Connections that other processes of this host have accepted on this port. Raises storage.errors."""
        ...

    async def hold(self, stream: Stream) -> Held | None:
        """Keep it open, beside its process. None: it is gone already. Raises storage.errors."""
        ...

    async def cut(self, stream: Stream) -> bool:
        """Break it off: its process sees an error. False: it was gone already. Raises storage.errors."""
        ...
