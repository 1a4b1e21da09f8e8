"""Sees QEMU's TCP connections with ss(8), and breaks one off.

Two ways, because neither works everywhere: SOCK_DESTROY (`ss -K`, sock_diag(7)) needs a kernel with
CONFIG_INET_DIAG_DESTROY (Debian's has it, its User Mode Linux has not); pidfd_getfd(2) and shutdown(2) need
what ptrace(2) needs, which an AppArmor profile of the QEMU can forbid.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from agents.streams import ss
from agents.streams.words import Stream
from storage.calls import Lane, NoSlot, TimedOut
from storage.errors import Failed, Unknown
from storage.run import Runner
from storage.users import domain_uuid

SS_DEADLINE_S = 5.0
RESOLVE_DEADLINE_S = 2.0
FD_DEADLINE_S = 2.0
PIDFD_GETFD = 438  # the number is the same on every architecture


class Sockets:
    """Implements agents.streams.words.Streams."""

    def __init__(self, run: Runner, *, proc: Path = Path("/proc")) -> None:
        self._run = run
        self._proc = proc
        self._lane = Lane("sockets", 2)

    async def to_host(self, uuid: str, host: str, besides: Collection[str]) -> tuple[Stream, ...]:
        """See Streams."""
        addresses = await _addresses(host)
        return tuple(
            stream
            for stream in await self._all()
            if ss.host_of(stream.remote) in addresses
            and stream.remote not in besides
            and self._uuid_of(stream.pid) == uuid.lower()
        )

    async def cut(self, stream: Stream) -> None:
        """See Streams."""
        words = ["ss", "-tKH", "src", stream.local, "dst", stream.remote]
        await self._run(words, deadline_s=SS_DEADLINE_S)
        if not await self._is_there(stream):
            return
        try:
            await self._lane.call(lambda: _shut_down(stream), deadline_s=FD_DEADLINE_S)
        except (TimedOut, NoSlot, OSError) as error:
            raise Failed(f"the connection to {stream.remote} could not be cut: {error}") from None

    async def _all(self) -> tuple[Stream, ...]:
        done = await self._run(["ss", "-tnHOpio"], deadline_s=SS_DEADLINE_S)
        if done.rc != 0:
            raise Unknown(f"ss failed: {done.stderr.strip()[:200]}")
        return ss.parse(done.stdout)

    async def _is_there(self, stream: Stream) -> bool:
        ends = {(each.pid, each.local, each.remote) for each in await self._all()}
        return (stream.pid, stream.local, stream.remote) in ends

    def _uuid_of(self, pid: int) -> str | None:
        with contextlib.suppress(OSError):
            return domain_uuid((self._proc / str(pid) / "cmdline").read_bytes())
        return None


def host_in(uri: str) -> str:
    """tcp://10.0.1.12:49152 -> 10.0.1.12; empty when the URI names no host."""
    return urlsplit(uri).hostname or ""


async def _addresses(host: str) -> set[str]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_DEADLINE_S):
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        raise Unknown(f"{host} has no address: {error}") from None
    return {str(address[0]).partition("%")[0] for *_, address in found}


def _shut_down(stream: Stream) -> None:
    """shutdown(2) on a duplicate of the process's own descriptor: whoever waits in it wakes with EPIPE."""
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(stream.pid)
        try:
            fd = libc.syscall(PIDFD_GETFD, pidfd, stream.fd, 0)
            if fd < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            with socket.socket(fileno=fd) as same:
                # The number may have been used again since ss looked.
                if _ends(same) == (stream.local, stream.remote):
                    same.shutdown(socket.SHUT_RDWR)
        finally:
            os.close(pidfd)


def _ends(connection: socket.socket) -> tuple[str, str] | None:
    try:
        return _endpoint(connection.getsockname()), _endpoint(connection.getpeername())
    except OSError:
        return None  # not connected, or not of the internet


def _endpoint(address: tuple[object, ...] | str) -> str:
    if isinstance(address, str) or len(address) < 2:
        return ""
    host = str(address[0])
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
