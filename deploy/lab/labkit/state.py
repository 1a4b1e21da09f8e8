"""What an instance remembers between two calls of the lab: one JSON file, changed under a lock.

Everything else (is a host on, is a tap in its bridge) is asked of the machine, never remembered.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labkit import layout as names
from labkit.disk import Disk
from labkit.layout import Layout
from labkit.sh import LabError, LabRefusedError

STATE_FILE = "state.json"


@dataclass
class Lab:
    """An instance: its layout, its secrets, the disks that were made. `extra` belongs to other modules."""

    layout: Layout
    chap: dict[str, str] = field(default_factory=dict)  # CHAP user (host or guest name) -> secret
    # host -> slot of the UML block device ("0".."15") -> image file; a power cycle attaches the same ones
    ubd: dict[str, dict[str, str]] = field(default_factory=dict)
    # host -> DRBD resources that were removed while it was off, for it to forget at its next boot
    gone: dict[str, list[str]] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)  # guest -> disk
    numbers: dict[str, int] = field(default_factory=dict)  # guest -> small number (DRBD minor and port)
    extra: dict[str, Any] = field(default_factory=dict)  # one key per module, JSON only

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.layout.name

    def to_json(self) -> dict[str, Any]:
        """The state file's content."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Lab:
        """Inverse of `to_json`."""
        layout = dict(row["layout"])
        layout["hosts"] = tuple(layout["hosts"])
        disks = {guest: Disk.from_json(disk) for guest, disk in row["disks"].items()}
        return cls(
            layout=Layout(**layout),
            chap=row["chap"],
            ubd=row["ubd"],
            gone=row.get("gone", {}),
            disks=disks,
            numbers=row["numbers"],
            extra=row["extra"],
        )


def new_secret() -> str:
    """A CHAP secret or BMC password. 16 characters: IPMI 2.0 allows no more in its first form."""
    return secrets.token_hex(8)


def state_path(name: str) -> Path:
    """Where the instance's state is kept (mode 0600: it holds CHAP secrets)."""
    return names.ROOT / name / STATE_FILE


def exists(name: str) -> bool:
    """True if the instance is up, or half up after a crash of `up`."""
    return (names.ROOT / name).exists()


def load(name: str) -> Lab:
    """Read an instance. Raises LabRefusedError if there is none."""
    try:
        row = json.loads(state_path(name).read_text())
    except FileNotFoundError:
        raise LabRefusedError(f"lab {name!r} is not up: run `lab --lab {name} up` first") from None
    except json.JSONDecodeError as bad:
        raise LabError(f"{state_path(name)} is damaged ({bad}): run `lab --lab {name} down`") from bad
    return Lab.from_json(row)


def save(lab: Lab) -> None:
    """Write the whole state, atomically. Callers that change an existing instance use `edit`."""
    path = state_path(lab.name)
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        json.dump(lab.to_json(), out, indent=1)
    fresh.replace(path)


@contextmanager
def edit(name: str) -> Iterator[Lab]:
    """Read, change and write the state while no other lab process can; not written if the body raises."""
    load(name)  # refused here, nothing is made: not even a lock
    with locked(name):
        lab = load(name)
        yield lab
        save(lab)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of one instance. It lies beside the instance's directory, so `down` may hold it too.

    Where there is no instance when the lock is given back, its file goes too, and the directory of all
    instances if nothing else is in it: whoever waited for that file looks for the new one.
    """
    with _lock(name):
        try:
            yield
        finally:
            if not exists(name):
                lock_path(name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # others are there
                    names.ROOT.rmdir()


@contextmanager
def _lock(name: str) -> Iterator[None]:
    path = lock_path(name)
    while True:
        try:
            names.ROOT.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except (FileNotFoundError, FileExistsError):
            continue  # somebody gave the last lock back, and the directory with it, in this instant
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_at(path, lock.fileno()):
                continue
            yield
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def lock_path(name: str) -> Path:
    """Where an instance's lock lies; "slots" is the lock of the slots."""
    return names.ROOT / f".{name}.lock"


@contextmanager
def slots_locked() -> Iterator[None]:
    """Hold the lock under which slots are handed out."""
    with locked("slots"):
        yield


def free_slot() -> int:
    """First slot that no instance uses; call under `slots_locked`. LabRefusedError if there is none."""
    taken = set()
    for path in names.ROOT.glob(f"*/{STATE_FILE}"):
        with contextlib.suppress(LabRefusedError):  # it was taken down in this instant
            taken.add(load(path.parent.name).layout.slot)
    for slot in range(names.MAX_SLOTS):
        if slot not in taken:
            return slot
    raise LabRefusedError(f"all {names.MAX_SLOTS} lab slots are taken: take one down (`lab --lab NAME down`)")
