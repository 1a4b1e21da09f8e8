"""Who uses a guest's storage on this host, from /proc alone: no libvirt that could hang is asked (I11)."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from storage.calls import Lane, NoSlot, TimedOut
from storage.errors import Unknown

SCAN_DEADLINE_S = 10.0
SCAN_SLOTS = 4
DYING_S = 5.0
PAUSE_FIRST_S = 0.02
PAUSE_LAST_S = 0.25
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class User:
    """A process that has a block device open. `domain_uuid` when it is a QEMU that was given -uuid."""

    pid: int
    command: str
    domain_uuid: str | None

    def __str__(self) -> str:
        guest = f" of domain {self.domain_uuid}" if self.domain_uuid else ""
        return f"process {self.pid} ({self.command}){guest}"


class Openers(Protocol):
    """Which processes have the block device `rdev` (os.makedev) open; raises Unknown if unsure."""

    async def __call__(self, rdev: int) -> tuple[User, ...]: ...


def domain_uuid(cmdline: bytes) -> str | None:
    """The UUID a QEMU process was started with (`-uuid UUID`, as libvirt does); None for anything else.

    A wrapper or a shell that merely mentions the UUID is no QEMU: the program's own name must say so.
    """
    words = cmdline.split(b"\0")
    program = os.path.basename(words[0])
    if not (program.startswith(b"qemu") or program == b"kvm"):
        return None
    for option, value in itertools.pairwise(words):
        if option in (b"-uuid", b"--uuid"):
            return value.decode("ascii", "replace").lower()
    return None


def _processes(proc: Path) -> Iterator[Path]:
    return (entry for entry in proc.iterdir() if entry.name.isdecimal())


def _read(path: Path) -> bytes:
    """Empty for a process that ended meanwhile (ENOENT, ESRCH); other errors mean we cannot tell."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_dying_qemu(stat_line: str) -> bool:
    """Is this a QEMU that has lost its memory (no command line) but may still hold its files open?

    exit(2) frees the memory first and closes files later; IO stuck in the kernel can stretch the gap. Only a
    zombie whose other threads have ended has closed everything. Fields: proc(5), /proc/PID/stat.
    """
    name, _, rest = stat_line.partition("(")[2].rpartition(")")
    fields = rest.split()
    if not name.startswith(("qemu", "kvm")) or name.startswith("kvm-") or len(fields) < 18:
        return False
    state, threads = fields[0], fields[17]
    return not (state in ("Z", "X") and threads in ("0", "1"))


class QemuProcesses:
    """`InUse` over /proc. A dying QEMU has no command line left to say whose it was: wait a little.

    Most are gone in milliseconds, and every migration ends with one: so the pauses start short and grow.
    """

    def __init__(
        self, *, proc: Path = Path("/proc"), dying_s: float = DYING_S, deadline_s: float = SCAN_DEADLINE_S
    ) -> None:
        self._proc = proc
        self._dying_s = dying_s
        self._deadline_s = deadline_s
        self._lane = Lane("proc-qemu", SCAN_SLOTS)

    async def __call__(self, domain_uuid: str) -> bool:
        """Raises Unknown if /proc cannot be read or a nameless QEMU does not finish dying."""
        paused_s, pause_s = 0.0, PAUSE_FIRST_S
        while True:
            found, dying = await _scan(self._lane, lambda: self._look(domain_uuid.lower()), self._deadline_s)
            if found or not dying:
                return found
            if paused_s >= self._dying_s:
                break
            await asyncio.sleep(pause_s)
            paused_s, pause_s = paused_s + pause_s, min(pause_s * 2, PAUSE_LAST_S)
        raise Unknown(
            "a QEMU process on this host is exiting but still holds its files; whose it was is not known"
        )

    def _look(self, uuid: str) -> tuple[bool, bool]:
        dying = False
        for entry in _processes(self._proc):
            words = _read(entry / "cmdline")
            if domain_uuid(words) == uuid:
                return True, dying
            if not words:
                dying = dying or is_dying_qemu(_read(entry / "stat").decode("utf-8", "replace"))
        return False, dying


class DeviceUsers:
    """`Openers` over /proc/PID/fd."""

    def __init__(self, *, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._lane = Lane("proc-fd", SCAN_SLOTS)

    async def __call__(self, rdev: int) -> tuple[User, ...]:
        """Raises Unknown if /proc cannot be read or does not answer in time."""
        return await _scan(self._lane, lambda: tuple(self._look(rdev)), SCAN_DEADLINE_S)

    def _look(self, rdev: int) -> Iterator[User]:
        for entry in _processes(self._proc):
            if any(_is_device(fd, rdev) for fd in _descriptors(entry)):
                words = _read(entry / "cmdline")
                name = os.path.basename(words.split(b"\0")[0]).decode("utf-8", "replace")
                yield User(int(entry.name), name or "?", domain_uuid(words))


def _descriptors(process: Path) -> list[Path]:
    try:
        return list((process / "fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_device(fd: Path, rdev: int) -> bool:
    try:
        # Only what was opened below /dev is looked at: stat on a file of a dead NFS server would hang.
        if not os.readlink(fd).startswith("/dev/"):
            return False
        found = fd.stat()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.S_ISBLK(found.st_mode) and found.st_rdev == rdev


async def _scan(lane: Lane, look: Callable[[], _T], deadline_s: float) -> _T:
    """A read of /proc/PID can block on the process's own locks, and then keeps its thread."""
    try:
        return await lane.call(look, deadline_s=deadline_s)
    except TimedOut:
        raise Unknown(f"/proc did not answer within {deadline_s:g} s") from None
    except NoSlot:
        raise Unknown(f"{SCAN_SLOTS} earlier reads of /proc still hang: see dmesg") from None
    except OSError as error:
        raise Unknown(f"/proc cannot be read: {error}") from error
