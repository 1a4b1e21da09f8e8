"""The one place where a subprocess is started: argv list, deadline, kill on expiry, bounded output.

A tool that talks to the kernel (drbdsetup, iscsiadm) can hang in uninterruptible sleep, where even SIGKILL
waits. The caller gets its answer at the deadline all the same: `Unknown`, because what the kernel did is not
known. While such a survivor hangs, the same command line is not started again: one stuck resource costs a
process per question about it, however often it is asked. Different ones are bounded by `MAX_STUCK` (I20).
Secrets never stand in argv (I17): give them through `env` or `input`, neither of which is ever logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from storage.errors import Refused, Retryable, Unknown

MAX_OUTPUT_BYTES = 4 * 1024 * 1024
MAX_STUCK = 64
_KILL_GRACE_S = 0.5
_PIPE_GRACE_S = 1.0
_STDOUT, _STDERR = 1, 2


@dataclass(frozen=True, slots=True)
class Completed:
    """What an ended tool said. `truncated`: it said more than `MAX_OUTPUT_BYTES`, the rest was dropped."""

    argv: tuple[str, ...]
    rc: int
    stdout: str = field(repr=False)  # `drbdsetup show` prints shared secrets: keep it out of tracebacks
    stderr: str
    truncated: bool = False

    @property
    def said(self) -> str:
        """The error text in one line, for a reason shown to the operator; stderr only (I17)."""
        text = " ".join(self.stderr.split())
        return text[:400] if text else f"exit code {self.rc}"


class Runner(Protocol):
    """Runs a tool to its end. Tests hand drivers a scripted one."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Raise Unknown at the deadline, Refused when it is not installed; any exit code is a result."""
        ...


class Spawn(Protocol):
    """Starts a process. Tests hand in one whose processes never end, as in uninterruptible sleep."""

    def __call__(
        self, argv: Sequence[str], *, has_input: bool, env: Mapping[str, str] | None
    ) -> Awaitable[tuple[asyncio.SubprocessTransport, Output]]:
        """Raise Refused when it is not installed or not executable."""
        ...


class Tools:
    """The Runner. It remembers the tools that outlived SIGKILL, by command line."""

    def __init__(self, spawn: Spawn | None = None) -> None:
        self._spawn: Spawn = spawn or start
        self._stuck: dict[asyncio.SubprocessTransport, tuple[str, ...]] = {}

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run `argv` in its own process group; `env` is added to this process's environment with LC_ALL=C.

        Raises Refused (not installed or not executable), Retryable (the same one, or too many, hang already)
        and Unknown (not ended after `deadline_s`; its group was sent SIGKILL).
        """
        self._stuck = {tool: words for tool, words in self._stuck.items() if tool.get_returncode() is None}
        reason = reason_not_to_start(tuple(argv), tuple(self._stuck.values()))
        if reason:
            raise Retryable(reason)
        transport, output = await self._spawn(argv, has_input=input is not None, env=env)
        try:
            async with asyncio.timeout(deadline_s):
                _feed(transport, input)
                await output.exited.wait()
            # A daemon started by the tool may keep the pipes open: the tool itself has ended, so go on.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PIPE_GRACE_S):
                    await output.closed.wait()
        except TimeoutError:
            raise Unknown(f"{' '.join(argv)} did not end within {deadline_s:g} s and was killed") from None
        finally:
            if not await _end(transport, output):
                self._stuck[transport] = tuple(argv)
        rc = transport.get_returncode()
        assert rc is not None
        return Completed(tuple(argv), rc, output.text(_STDOUT), output.text(_STDERR), output.dropped)


def reason_not_to_start(argv: tuple[str, ...], stuck: Sequence[tuple[str, ...]]) -> str | None:
    """Pure: why this command line must wait for tools that hang in the kernel; None when it need not."""
    if argv in stuck:
        return f"an earlier {' '.join(argv)} still hangs in the kernel, so it is not started again: see dmesg"
    different = len(set(stuck))
    if different >= MAX_STUCK:
        return f"{different} different storage tools hang in the kernel; no other is started: see dmesg"
    return None


async def start(
    argv: Sequence[str], *, has_input: bool, env: Mapping[str, str] | None
) -> tuple[asyncio.SubprocessTransport, Output]:
    try:
        return await asyncio.get_running_loop().subprocess_exec(
            Output,
            *argv,
            stdin=asyncio.subprocess.PIPE if has_input else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
        )
    except FileNotFoundError:
        raise Refused(f"{argv[0]} is not installed on this host") from None
    except OSError as error:
        raise Refused(f"{argv[0]} cannot be started on this host: {error.strerror}") from error
    except ValueError as error:  # a null byte in an argument
        raise Refused(f"{argv[0]} cannot be started on this host: {error}") from error


class Output(asyncio.SubprocessProtocol):
    """Collects both streams up to the bound and drains the rest, so that no tool blocks on a full pipe."""

    def __init__(self) -> None:
        self.exited = asyncio.Event()
        self.closed = asyncio.Event()
        self.dropped = False
        self._data = {_STDOUT: bytearray(), _STDERR: bytearray()}
        self._open = {_STDOUT, _STDERR}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        room = MAX_OUTPUT_BYTES - len(self._data[fd])
        self._data[fd] += data[:room]
        self.dropped = self.dropped or len(data) > room

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.closed.set()

    def process_exited(self) -> None:
        self.exited.set()

    def text(self, fd: int) -> str:
        """What a stream said; bytes that are no UTF-8 stay visible."""
        return self._data[fd].decode("utf-8", "backslashreplace")


def _feed(transport: asyncio.SubprocessTransport, data: bytes | None) -> None:
    """A tool may end without reading its input: then its exit code tells, not the broken pipe."""
    pipe = transport.get_pipe_transport(0)
    if data is not None and isinstance(pipe, asyncio.WriteTransport):
        pipe.write(data)
        pipe.write_eof()


async def _end(transport: asyncio.SubprocessTransport, output: Output) -> bool:
    """Kill the group if it still runs, and close our ends of the pipes whatever holds the others.

    False when it is still there: it sleeps in the kernel, where no signal reaches it.
    """
    if transport.get_returncode() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_GRACE_S):
                await output.exited.wait()
    has_ended = transport.get_returncode() is not None
    transport.close()
    return has_ended


run = Tools()
"""The Runner of this process: every driver shares it, so that the bound holds for all of them together."""
