"""The real migrctl as a subprocess, against a real server on loopback over a scripted Control."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from migrd.api.app import build_app
from migrd.api.context import Api, Limits
from migrd.api.listen import Listen
from migrd.api.server import serving
from migrd.metrics import Metrics
from tests.api.scripted import ScriptedControl

TOKEN = "a-token-of-the-tests-0123456789"
MIGRCTL = str(Path(sys.executable).with_name("migrctl"))
DEADLINE_S = 60.0  # only ever reached by a hang; a busy machine takes seconds to start a program


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout is exactly one JSON document."""
        return json.loads(self.out)


@dataclass
class Cli:
    control: ScriptedControl
    api: Api
    environment: dict[str, str]
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    port: int = 0

    async def up(self) -> None:
        """Start serving, on the same port again after `down`."""
        address = Listen(host="127.0.0.1", port=self.port)
        url = await self.stack.enter_async_context(serving(build_app(self.api), address, None))
        self.port = int(url.rpartition(":")[2])
        self.environment["MIGRD_URL"] = url

    async def down(self) -> None:
        await self.stack.aclose()
        self.stack = AsyncExitStack()

    async def start(self, *words: str, **environment: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            MIGRCTL,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**self.environment, **environment},
        )

    async def run(self, *words: str, **environment: str) -> Ended:
        return await end(await self.start(*words, **environment))

    async def run_without(self, closed: str, *words: str) -> Ended:
        """Nobody reads what it writes to `closed`, stdout or stderr: the pipe has no other end."""
        other = {"stdout": "stderr", "stderr": "stdout"}[closed]
        ours, theirs = os.pipe()
        os.close(ours)
        try:
            process = await asyncio.create_subprocess_exec(
                MIGRCTL, *words, env=self.environment, **{closed: theirs, other: asyncio.subprocess.PIPE}
            )
        finally:
            os.close(theirs)
        return await end(process)

    async def run_each(self, commands: Iterable[str | Sequence[str]]) -> list[Ended]:
        """All of them, a few at a time: the results in order, what they asked for in any."""
        slots = asyncio.Semaphore(3)

        async def one(command: str | Sequence[str]) -> Ended:
            async with slots:
                return await self.run(*(command.split() if isinstance(command, str) else command))

        return await asyncio.gather(*(one(command) for command in commands))

    async def on_terminal(self, *words: str, interrupt_at: str = "") -> Ended:
        """Run on a pseudo terminal; Ctrl-C is typed once `interrupt_at` has been shown."""
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            MIGRCTL,
            *words,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**self.environment, "TERM": "xterm-256color", "COLUMNS": "140"},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        shown = b""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while chunk := await asyncio.get_running_loop().run_in_executor(None, _read, ours):
                    shown += chunk
                    if interrupt_at and interrupt_at in shown.decode(errors="replace"):
                        interrupt_at = ""
                        os.write(ours, b"\x03")
                code = await process.wait()
        finally:
            os.close(ours)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return Ended(code, shown.decode(errors="replace"), "")


def _take_terminal() -> None:
    """Make the pseudo terminal the controlling one, so that a typed Ctrl-C becomes SIGINT."""
    import fcntl  # noqa: PLC0415 - between fork and exec
    import termios  # noqa: PLC0415

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # the other side is closed
        return b""


async def end(process: asyncio.subprocess.Process, interrupt: bool = False) -> Ended:
    if interrupt:
        process.send_signal(signal.SIGINT)
    try:
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode is not None
    return Ended(process.returncode, (out or b"").decode(), (err or b"").decode())


@pytest.fixture
async def cli(tmp_path: Path) -> AsyncIterator[Cli]:
    control = ScriptedControl()
    metrics = Metrics("1.2.3")
    api = Api(
        control=control,
        token=TOKEN.encode(),
        observer=metrics,
        exposition=metrics.exposition,
        version="1.2.3",
        limits=Limits(keep_alive_s=0.2),
    )
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(Path(__file__).parents[2]),  # the code beside these tests, not what is installed
        "MIGRD_TOKEN_FILE": str(token),
        "TZ": "UTC",
        "HOME": str(tmp_path),
    }
    made = Cli(control, api, environment)
    await made.up()
    try:
        yield made
    finally:
        await made.down()
