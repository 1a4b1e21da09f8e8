"""Sees the TCP connections of QEMU and libvirtd with ss(8), breaks one off, or holds one open.

Two ways to break one off, because neither works everywhere: SOCK_DESTROY (`ss -K`, sock_diag(7)) needs a
kernel with CONFIG_INET_DIAG_DESTROY (Debian's has it, its User Mode Linux has not); pidfd_getfd(2) and
shutdown(2) need what ptrace(2) needs, which an AppArmor profile can forbid. Holding one needs that, too.

Reads of /proc and of names are calls in threads, with deadlines: a QEMU that is stuck can hold them up (I20).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import stat
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from agents.streams import ss
from agents.streams.words import Ends, Stream
from storage.calls import Lane, NoSlot, TimedOut
from storage.errors import Failed, Unknown
from storage.run import Runner
from storage.users import domain_uuid

SS_DEADLINE_S = 5.0
CALL_DEADLINE_S = 2.0
PIDFD_GETFD = 438  # the number is the same on every architecture
TCP_ESTABLISHED = 1  # linux/tcp_states.h

T = TypeVar("T")


class Sockets:
    """Implements agents.streams.words.Streams."""

    def __init__(self, run: Runner, *, proc: Path = Path("/proc")) -> None:
        self._run = run
        self._proc = proc
        self._lane = Lane("sockets", 4)
        self._holds = Lane("held sockets", 4)  # of its own: names that are not answered are no reason

    async def addresses(self, host: str) -> frozenset[str]:
        """See Streams."""
        try:
            return await self._call(lambda: _addresses(host))
        except OSError as error:
            raise Unknown(f"{host or 'a host without a name'} has no address: {error}") from None

    async def to(self, uuid: str, addresses: Collection[str], besides: Collection[str]) -> tuple[Stream, ...]:
        """See Streams."""
        there = [
            stream
            for stream in await self._all()
            if ss.host_of(stream.remote) in addresses and stream.remote not in besides
        ]
        owners = await self._call(lambda: self._owners({stream.pid for stream in there}))
        return tuple(stream for stream in there if owners.get(stream.pid) == uuid.lower())

    async def into(self, port: int) -> tuple[Stream, ...]:
        """See Streams."""
        seen = await self._all("sport", "=", f":{port}")
        return tuple(each for each in seen if ss.port_of(each.local) == port and each.pid != os.getpid())

    async def hold(self, stream: Stream) -> HeldSocket | None:
        """See Streams."""
        try:
            return await self._holds.call(lambda: _hold(stream), deadline_s=CALL_DEADLINE_S)
        except (TimedOut, NoSlot) as error:
            raise Unknown(str(error)) from None
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ESRCH):
                return None
            raise Failed(f"the connection of {stream.remote} could not be held: {error}") from None

    async def cut(self, stream: Stream) -> bool:
        """See Streams."""
        words = ["ss", "-tKH", "src", stream.local, "dst", stream.remote]
        await self._run(words, deadline_s=SS_DEADLINE_S)
        if not await self._is_there(stream):
            return True
        try:
            return await self._call(lambda: _shut_down(stream))
        except OSError as error:
            raise Failed(f"the connection to {stream.remote} could not be cut: {error}") from None

    async def _all(self, *which: str) -> tuple[Stream, ...]:
        done = await self._run(["ss", "-tnHOpio", *which], deadline_s=SS_DEADLINE_S)
        if done.rc != 0:
            raise Unknown(f"ss failed: {done.stderr.strip()[:200]}")
        if done.truncated:
            raise Unknown("ss said more than could be read")
        return ss.parse(done.stdout)

    async def _is_there(self, stream: Stream) -> bool:
        return any((each.pid, each.ends) == (stream.pid, stream.ends) for each in await self._all())

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            return await self._lane.call(function, deadline_s=CALL_DEADLINE_S)
        except (TimedOut, NoSlot) as error:
            raise Unknown(str(error)) from None

    def _owners(self, pids: Iterable[int]) -> dict[int, str | None]:
        """Guests by the pid of their QEMU."""
        found: dict[int, str | None] = {}
        for pid in pids:
            with contextlib.suppress(OSError):
                found[pid] = domain_uuid((self._proc / str(pid) / "cmdline").read_bytes())
        return found


def host_in(uri: str) -> str:
    """tcp://10.0.1.12:49152 -> 10.0.1.12; empty when the URI names no host."""
    return urlsplit(uri).hostname or ""


def _addresses(host: str) -> frozenset[str]:
    if not host:
        raise OSError("it is not given")
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return frozenset(str(address[0]).partition("%")[0] for *_, address in found)


class HeldSocket:
    """Implements agents.streams.words.Held, over a pidfd (pidfd_open(2)) and a duplicate."""

    def __init__(self, pidfd: int, same: socket.socket) -> None:
        self._pidfd = pidfd
        self._same = same

    def open_there(self) -> bool:
        """See Held. tcpi_state is the first byte of struct tcp_info (tcp(7))."""
        return self._same.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_ESTABLISHED

    def owner_lives(self) -> bool:
        """See Held. A pidfd can be read once its process has ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def let_go(self) -> None:
        """See Held."""
        self._same.close()
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def __del__(self) -> None:
        """Of a call that came to its end after its deadline, and whose result nobody takes."""
        self.let_go()


def _hold(stream: Stream) -> HeldSocket | None:
    pidfd = _pidfd(stream)
    if pidfd is None:
        return None
    try:
        same = _duplicate(pidfd, stream)
    except BaseException:
        os.close(pidfd)
        raise
    if same is None:
        os.close(pidfd)
        return None
    return HeldSocket(pidfd, same)


def _shut_down(stream: Stream) -> bool:
    """shutdown(2) on a duplicate of the process's own descriptor: whoever waits in it wakes with EPIPE.

    False: its number stands for something else by now.
    """
    pidfd = _pidfd(stream)
    if pidfd is None:
        return False
    try:
        same = _duplicate(pidfd, stream)
    finally:
        os.close(pidfd)
    if same is None:
        return False
    with same:
        same.shutdown(socket.SHUT_RDWR)
        return True


def _pidfd(stream: Stream) -> int | None:
    try:
        return os.pidfd_open(stream.pid)
    except ProcessLookupError:
        return None


def _duplicate(pidfd: int, stream: Stream) -> socket.socket | None:
    """The process's own socket. None: its number stands for something else by now.

    What it stands for is closed at once, whatever it is: of a disk it would keep the disk in use. The flags
    of the descriptor are shared with the process: never make it blocking or not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(PIDFD_GETFD, pidfd, stream.fd, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    same = socket.socket(fileno=fd)
    if _ends(same) != tuple(ss.without_zone(end) for end in stream.ends):
        same.close()
        return None
    return same


def _ends(connection: socket.socket) -> Ends | None:
    try:
        return _endpoint(connection.getsockname()), _endpoint(connection.getpeername())
    except OSError:
        return None  # not connected


def _endpoint(address: tuple[object, ...] | str | bytes) -> str:
    if isinstance(address, str | bytes) or len(address) < 2:
        return ""  # of another family
    return ss.endpoint_of(str(address[0]), str(address[1]))
