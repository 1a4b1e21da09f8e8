"""The one subprocess function, with real processes."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from storage.errors import Refused, Unknown
from storage.run import MAX_OUTPUT_BYTES, run


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


async def test_missing_tool_is_refused():
    with pytest.raises(Refused, match="no-such-tool is not installed"):
        await run(["no-such-tool"], deadline_s=5)
