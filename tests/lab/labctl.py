"""Drives the lab and migrctl the way a person does: through their commands, never through their modules."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.lab.caller import Caller

T = TypeVar("T")
REPO = Path(__file__).resolve().parents[2]
LAB = REPO / "deploy" / "lab" / "lab"
BIN = REPO / ".venv" / "bin"
# Longer than any verb's own deadline, so that its own words are seen: `guest add` makes a disk, waits 120 s
# for the start and 150 s for the first record.
VERB_DEADLINE_S = 420.0


@dataclass(frozen=True)
class Done:
    rc: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(
    argv: Sequence[str | Path], *, deadline_s: float, env: dict[str, str] | None = None, text: str = ""
) -> Done:
    done = subprocess.run(
        [str(a) for a in argv],
        input=text,
        capture_output=True,
        text=True,
        timeout=deadline_s,
        env={**os.environ, **(env or {})},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass
class LabCtl:
    """One instance of the lab; `env` is what `lab env` says migrctl needs."""

    name: str
    env: dict[str, str] = field(default_factory=dict)
    up_said: str = ""  # the progress that `up` reported

    def try_lab(self, *args: str, deadline_s: float = VERB_DEADLINE_S) -> Done:
        return run([LAB, "--lab", self.name, *args], deadline_s=deadline_s)

    def lab(self, *args: str, deadline_s: float = VERB_DEADLINE_S) -> Any:
        """Run a verb with `-o json`; fails the test with the lab's own words if it fails."""
        done = self.try_lab(*args, "-o", "json", deadline_s=deadline_s)
        assert done.rc == 0, f"lab {' '.join(args)}: exit {done.rc}\n{done.err}\n{done.out}"
        return done.json if done.out.strip() else None

    def said(self, *args: str) -> str:
        """Run a verb that has to succeed; its progress (stderr)."""
        done = self.try_lab(*args)
        assert done.rc == 0, f"lab {' '.join(args)}: exit {done.rc}\n{done.err}\n{done.out}"
        return done.err

    def sh(self, host: str, *argv: str, deadline_s: float = 60) -> Done:
        return self.try_lab("exec", host, "--", *argv, deadline_s=deadline_s)

    def feed(self, host: str, text: str, *argv: str) -> Done:
        """Like `sh`, with text on the command's standard input."""
        return run([LAB, "--lab", self.name, "exec", "-i", host, "--", *argv], deadline_s=60, text=text)

    def spawn(self, host: str, *argv: str) -> subprocess.Popen[str]:
        """Like `sh`, and goes on by itself; reads nothing."""
        return subprocess.Popen(
            [str(LAB), "--lab", self.name, "exec", host, "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def migrctl(self, *args: str, deadline_s: float = 300) -> Done:
        return run([BIN / "migrctl", "-o", "json", *args], deadline_s=deadline_s, env=self.env)

    def poll(self, path: str) -> Any:
        """The document that migrctl would print, for what is looked at again and again: each start of
        migrctl takes a third of a second of a processor that the labs' hosts are waiting for.

        Raises OSError while the daemon does not answer.
        """
        token = Path(self.env["MIGRD_TOKEN_FILE"]).read_text().strip()
        status, said = Caller(Path(self.env["MIGRD_CA"])).get(f"{self.env['MIGRD_URL']}{path}", token)
        assert status == 200, said
        return json.loads(said)

    def spawn_migrctl(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            # In the background of a shell without job control, pytest and its children ignore Ctrl-C.
            ["env", "--default-signal=INT", str(BIN / "migrctl"), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.env},
        )

    def operation(self, operation_id: str) -> dict[str, Any]:
        done = self.migrctl("op", "show", operation_id)
        assert done.rc == 0, done.err
        found: dict[str, Any] = done.json
        return found


def until(what: str, probe: Callable[[], T | None], *, deadline_s: float, every_s: float = 0.5) -> T:
    """Poll until the probe gives something true; the failure says what was waited for and last seen."""
    end = time.monotonic() + deadline_s
    last: T | None = None
    while time.monotonic() < end:
        last = probe()
        if last:
            return last
        time.sleep(every_s)
    raise AssertionError(f"{what}: not within {deadline_s} s, last seen {last!r}")
