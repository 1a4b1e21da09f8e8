"""I17: what the log of a real process holds after an error passed through a function with a secret."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging
import structlog
from agents.log import set_up

def log_in():
    password = "hunter2"
    raise ValueError("no")

set_up("info")
try:
    log_in()
except ValueError:
    structlog.get_logger().exception("a bug")
    logging.getLogger("asyncio").exception("a bug of a library")
"""


def test_i17_a_traceback_names_its_frames_and_holds_no_local_variable() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert "hunter2" not in done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["a bug", "a bug of a library"]
    for line in lines:
        (error,) = line["exception"]
        assert (error["exc_type"], error["frames"][-1]["name"]) == ("ValueError", "log_in")
