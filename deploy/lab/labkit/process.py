"""Long-running processes of a lab: started in their own session, found again after any crash, ended for sure.

Every such process is recorded (pid and start time, so that a pid used again is not mistaken for it) and
carries MIGRD_LAB_OWNED=DIRECTORY/ROLE in its environment, with the directory of its instance: instances of
one name below two roots have nothing to do with each other. The record answers "is it running" at once, also
in the instant of an exec when /proc shows no environment; the mark finds what a crash left without a record.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.layout import ROOT
from labkit.sh import LabError

MARK = "MIGRD_LAB_OWNED"
HELPER_ROLE = "helper"  # what a verb of the lab runs and waits for
SSH_ROLE = "ssh-"  # and the host's address: the shared connections that ssh leaves behind (ControlPersist)
_KILL_DEADLINE_S = 10.0
_POLL_S = 0.02


@dataclass(frozen=True)
class Owned:
    """A process of a lab: the leader of its session."""

    pid: int
    role: str


def spawn(
    argv: Sequence[str], *, lab: str, role: str, log: Path, env: Mapping[str, str] | None = None
) -> int:
    """Start argv detached (own session, no terminal, output to `log`); returns its pid."""
    environment = {**os.environ, **(env or {}), MARK: mark(lab, role)}
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            cwd="/",
        )
    # The lab ends long before the process does: nobody here will wait for it, init reaps it.
    child.returncode = 0
    record = _record(lab, role)
    record.parent.mkdir(exist_ok=True)
    record.write_text(f"{child.pid} {start_time(child.pid)}\n")
    return child.pid


def mark(lab: str, role: str) -> str:
    """The value of MARK."""
    return f"{ROOT / lab}/{role}"


def owned(lab: str) -> list[Owned]:
    """Every live session leader that the lab has started, with or without a record."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        role = _role(entry, lab)
        if role is not None and "/" not in role and _session(int(entry.name)) == int(entry.name):
            found.append(Owned(int(entry.name), role))
    return found


def mark_helpers(lab: str) -> None:
    """Whatever this process runs from now on carries the lab's mark."""
    os.environ[MARK] = mark(lab, HELPER_ROLE)


def kill_helpers(lab: str) -> list[int]:
    """End what a verb that was killed left running (mke2fs, ssh ...); returns the pids.

    It would go on making things while they are taken away.
    """
    found = [int(entry.name) for entry in Path("/proc").iterdir() if _is_helper(entry, lab)]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def _is_helper(entry: Path, lab: str) -> bool:
    if not entry.name.isdigit() or int(entry.name) == os.getpid():
        return False
    return _role(entry, lab) == HELPER_ROLE and start_time(int(entry.name)) is not None


def find(lab: str, role: str) -> int | None:
    """Pid of the live process with this role, by its record; None if it has ended or never was."""
    try:
        pid, started = _record(lab, role).read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    alive = start_time(int(pid)) == int(started)
    return int(pid) if alive else None


def with_role(lab: str, role: str) -> list[int]:
    """Pids of every live process with this role, recorded or not."""
    return [process.pid for process in owned(lab) if process.role == role]


def kill_session(leader: int) -> None:
    """SIGKILL every process of the leader's session and wait for the end; raises LabError if some stay.

    The leader goes first: it would otherwise see its children die and could react.
    """
    deadline = time.monotonic() + _KILL_DEADLINE_S
    while time.monotonic() < deadline:
        members = [pid for pid in _pids() if _session(pid) == leader]
        if not members:
            return
        for pid in sorted(members, key=lambda pid: pid != leader):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended between the look and the kill, which is what is wanted
        _reap(leader)
        time.sleep(_POLL_S)
    raise LabError(f"processes of session {leader} survive SIGKILL (uninterruptible sleep?)")


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # not our child: another run of the lab started it, so init reaps it


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _role(entry: Path, lab: str) -> str | None:
    try:
        environment = (entry / "environ").read_bytes()
        title = (entry / "cmdline").read_bytes()
    except OSError:
        return None  # ended in the meantime
    ssh = parse_ssh_title(title.decode(errors="replace"), lab)
    if ssh is not None:
        return ssh  # what is left of its environment says that a verb started it
    prefix = f"{MARK}={mark(lab, '')}".encode()
    for item in environment.split(b"\0"):
        if item.startswith(prefix):
            return item[len(prefix) :].decode()
    return None


def parse_ssh_title(title: str, lab: str) -> str | None:
    """Role of a shared ssh connection of the lab, else None. ssh writes its title over its environment."""
    socket_dir = f"ssh: {ROOT / lab}/ssh/"
    if not title.startswith(socket_dir):
        return None
    return SSH_ROLE + title.removeprefix(socket_dir).partition(".sock")[0]


def _record(lab: str, role: str) -> Path:
    return ROOT / lab / "pids" / role


def _session(pid: int) -> int | None:
    """Session of a live process; None for one that has ended (zombies included)."""
    stat = _stat(pid)
    return None if stat is None else parse_session(stat)


def start_time(pid: int) -> int | None:
    """When a live process began, in clock ticks since boot; None for one that has ended."""
    stat = _stat(pid)
    return None if stat is None else parse_start(stat)


def _stat(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None


def parse_session(stat: str) -> int | None:
    """Session id out of /proc/PID/stat (proc(5)); None for a zombie."""
    return _field(stat, 6)


def parse_start(stat: str) -> int | None:
    """Start time (clock ticks since boot) out of /proc/PID/stat; None for a zombie."""
    return _field(stat, 22)


def _field(stat: str, number: int) -> int | None:
    """Field `number` as proc(5) counts them. The name in () is field 2 and may hold blanks and brackets."""
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[number - 3])
