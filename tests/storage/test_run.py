"""The one subprocess function, with real processes."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from storage.drbd.argv import status_84
from storage.errors import Refused, Retryable, Unknown
from storage.run import MAX_OUTPUT_BYTES, MAX_STUCK, Output, Tools, reason_not_to_start, run, start


async def test_result_of_a_tool_that_ends():
    done = await run(["sh", "-c", "cat; echo bad >&2; exit 3"], deadline_s=20, input=b"in")
    assert (done.rc, done.stdout, done.stderr, done.said, done.truncated) == (3, "in", "bad\n", "bad", False)


async def test_secrets_go_by_environment_and_language_is_fixed():
    done = await run(["sh", "-c", "echo $SECRET $LC_ALL"], deadline_s=20, env={"SECRET": "hush"})
    assert done.stdout == "hush C\n"
    assert "hush" not in repr(done)


async def test_deadline_kills_the_whole_group_and_says_unknown(tmp_path: Path):
    file = tmp_path / "pid"
    with pytest.raises(Unknown, match="did not end within"):
        await run(["sh", "-c", f"sleep 300 & echo $! > {file}; wait"], deadline_s=2)
    child = int(file.read_text())
    for _ in range(100):
        if not _alive(child):
            break
        await asyncio.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_cancelling_the_caller_kills_the_tool(tmp_path: Path):
    file = tmp_path / "pid"
    task = asyncio.create_task(run(["sh", "-c", f"echo $$ > {file}; exec sleep 300"], deadline_s=60))
    for _ in range(400):
        if file.exists() and file.read_text().strip():
            break
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _alive(int(file.read_text()))


async def test_output_is_bounded():
    done = await run(["head", "-c", str(MAX_OUTPUT_BYTES + 9), "/dev/zero"], deadline_s=60)
    assert done.truncated
    assert len(done.stdout) == MAX_OUTPUT_BYTES


async def test_a_daemon_that_keeps_the_pipes_open_does_not_hold_us_up():
    start = time.monotonic()
    done = await run(["sh", "-c", "sleep 120 & echo $!"], deadline_s=60)
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.rc == 0
    assert time.monotonic() - start < 30


async def test_an_argument_that_no_program_can_be_given_is_refused():
    with pytest.raises(Refused, match="null byte"):
        await run(["true", "a\0b"], deadline_s=5)


async def test_missing_tool_is_refused():
    with pytest.raises(Refused, match="no-such-tool is not installed"):
        await run(["no-such-tool"], deadline_s=5)


class Unkillable(asyncio.SubprocessTransport):
    """A process in uninterruptible sleep: killed, closed, and still there."""

    def __init__(self) -> None:
        super().__init__()
        self.rc: int | None = None

    def get_pid(self):
        return 2**22 + 1  # above pid_max: nobody is killed in its place

    def get_returncode(self):
        return self.rc

    def get_pipe_transport(self, fd):
        return None

    def close(self):
        pass


class Kernel:
    """`spawn`: tools that ask about a stuck resource never end; the others are real."""

    def __init__(self, *stuck: str) -> None:
        self.stuck, self.hanging = stuck, []

    async def __call__(self, argv, *, has_input, env):
        if not set(argv) & set(self.stuck):
            return await start(argv, has_input=has_input, env=env)
        self.hanging.append(Unkillable())
        return self.hanging[-1], Output()


async def test_i20_a_stuck_resource_does_not_stall_another():
    """Asked about for hours, it costs one process per question, and every other tool still runs."""
    kernel = Kernel("r0")
    tools = Tools(kernel)
    with pytest.raises(Unknown, match="did not end"):
        await tools(status_84("r0"), deadline_s=0.01)
    for _ in range(10 * MAX_STUCK):
        with pytest.raises(Retryable, match="still hangs in the kernel"):
            await tools(status_84("r0"), deadline_s=0.01)
    assert len(kernel.hanging) == 1
    assert (await tools(["echo", "r1"], deadline_s=20)).stdout == "r1\n"
    kernel.hanging[0].rc = -9  # it woke up and died
    with pytest.raises(Unknown):
        await tools(status_84("r0"), deadline_s=0.01)


def test_i20_different_stuck_tools_are_bounded():
    stuck = [("drbdsetup", "events2", f"r{number}") for number in range(MAX_STUCK)]
    assert reason_not_to_start(("echo",), stuck[1:] * 2) is None
    reason = reason_not_to_start(("echo",), stuck)
    assert reason is not None
    assert f"{MAX_STUCK} different storage tools hang" in reason
