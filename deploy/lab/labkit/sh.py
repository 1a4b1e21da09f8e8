"""The one place where the lab runs a program and waits for it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RC_DEADLINE = 124  # the same number as timeout(1)
RC_NOT_FOUND = 127  # the same number as a shell


class LabError(Exception):
    """Something the user of the lab must know; its text is printed on stderr, exit code 1."""


class LabRefusedError(LabError):
    """A precondition does not hold and nothing was touched; exit code 3."""


@dataclass(frozen=True)
class Completed:
    """A program that has ended. Undecodable bytes in the output are replaced."""

    rc: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """True for exit code 0."""
        return self.rc == 0


def run(
    argv: Sequence[str],
    *,
    input: bytes | None = None,
    deadline_s: float = 60,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run argv to its end, at most `deadline_s` seconds; never raises for a program that fails.

    rc 124: deadline passed, the program was killed. rc 127: no such program.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=deadline_s,
            env=None if env is None else dict(env),
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return Completed(
            RC_DEADLINE, _text(late.stdout), _text(late.stderr) + f"killed after {deadline_s} s\n"
        )
    except FileNotFoundError as missing:
        return Completed(RC_NOT_FOUND, "", f"{missing}\n")
    return Completed(done.returncode, _text(done.stdout), _text(done.stderr))


def must(argv: Sequence[str], *, input: bytes | None = None, deadline_s: float = 60) -> str:
    """Like `run`, for programs that have to succeed: returns stdout, raises LabError otherwise."""
    done = run(argv, input=input, deadline_s=deadline_s)
    if not done.ok:
        raise LabError(f"{' '.join(argv)}: exit {done.rc}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _text(data: bytes | str | None) -> str:
    if data is None:
        return ""
    return data if isinstance(data, str) else data.decode(errors="replace")
