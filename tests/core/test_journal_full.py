"""Disks that are full or fail: the journal is read-only, says why, believes nothing, goes on with room."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrd.condensed import dump
from migrd.journal import Journal
from migrd.ports import JournalError, JournalReadOnly
from migrd.projection import Record
from migrd.sagas.events import PowerRead, PowerRequested
from migrd.sagas.power import Phase, PowerState

REQUEST = PowerRequested(host="h1", action="on")


async def fill(journal: Journal, operation: str = "op-000001") -> tuple[int, str]:
    """Append until it refuses: how many went in, and why no more."""
    for written in range(100_000):
        try:
            await journal.append(operation, PowerRead(status="x" * 1000), 1.0)
        except JournalReadOnly as error:
            return written, str(error)
    raise AssertionError("it never filled up")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    where = tmp_path / "small"
    where.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", where], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


async def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    """Refused while there is no room, by itself again once there is; nothing acknowledged is lost."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (300 << 10))
    path = small_disk / "journal"
    journal = await Journal.open(path)
    written, why = await fill(journal)
    assert written > 30
    assert "full" in why
    for _ in range(3):
        with pytest.raises(JournalReadOnly, match="full"):
            await journal.append("op-000001", PowerRead(status="y"), 2.0)
        await journal.probe()
        assert "full" in journal.read_only
    assert len(await journal.load()) == written  # it can still be read
    with pytest.raises(JournalError, match="in use"):
        await Journal.open(path)
    ballast.unlink()
    await journal.probe()
    assert journal.read_only == ""
    row = await journal.append("op-000001", PowerRead(status="z"), 3.0)
    assert row.seq == written + 1
    await journal.close()
    again = await Journal.open(path)
    assert len(await again.load()) == written + 1
    await again.close()


def fill_up(ballast: Path) -> None:
    filled = subprocess.run(
        ["dd", "if=/dev/zero", f"of={ballast}", "bs=4k"], capture_output=True, check=False
    )
    assert b"No space left" in filled.stderr


async def test_a_daemon_that_starts_on_a_full_disk_says_what_to_do(small_disk: Path) -> None:
    path = small_disk / "journal"
    await (await Journal.open(path)).close()
    fill_up(small_disk / "ballast")
    with pytest.raises(JournalError, match="free space"):
        await Journal.open(path)
    (small_disk / "ballast").unlink()
    await (await Journal.open(path)).close()


async def test_forgetting_what_has_ended_makes_room_in_a_full_file(tmp_path: Path) -> None:
    """At the size limit only `drop` helps, so it is tried while the journal is read-only."""
    journal = await Journal.open(tmp_path / "journal", max_bytes=256 << 10)
    for n in range(3):
        for _ in range(40):
            await journal.append(f"op-00000{n}", PowerRead(status="x" * 1000), 1.0)
    written, _ = await fill(journal, "op-000009")
    await journal.probe()
    assert "full" in journal.read_only
    await journal.drop(["op-000000", "op-000001"])
    assert "full" in journal.read_only  # until it has been shown that rows can be written
    await journal.probe()
    assert journal.read_only == ""
    await journal.append("op-000009", PowerRead(status="x" * 1000), 1.0)
    rows = await journal.load()
    assert [row.operation for row in rows] == ["op-000002"] * 40 + ["op-000009"] * (written + 1)
    await journal.close()


SCRIPT = """
import asyncio, sys
from pathlib import Path
from migrd.journal import Journal
from migrd.ports import JournalReadOnly
from migrd.sagas.events import PowerRead
async def main():
    journal = await Journal.open(Path(sys.argv[1]))
    for line in sys.stdin:
        word = line.strip()
        try:
            if word == "probe":
                await journal.probe()
                print(journal.read_only or "writable", flush=True)
            else:
                row = await journal.append("op-000001", PowerRead(status=word), 0.0)
                print(f"row {row.seq}", flush=True)
        except JournalReadOnly as error:
            print(error, flush=True)
asyncio.run(main())
"""


class Daemon:
    """A process with a journal, on a disk whose fsync fails when told so."""

    def __init__(self, folder: Path) -> None:
        library = folder / "failing_sync.so"
        source = Path(__file__).with_name("failing_sync.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        self.path = folder / "journal"
        self._switch = folder / "fail"
        environment = {**os.environ, "LD_PRELOAD": str(library), "FAIL_SYNC": str(self._switch)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, self.path],
            env=environment,
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def say(self, word: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        return self.process.stdout.readline().strip()

    def fail(self, how: str) -> None:
        if how:
            self._switch.write_text(how)
        else:
            self._switch.unlink()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    made = Daemon(tmp_path)
    yield made
    made.kill()


def statuses(path: Path) -> list[str]:
    async def read() -> list[str]:
        journal = await Journal.open(path)
        rows = [row.event.status for row in await journal.load()]  # type: ignore[union-attr]
        await journal.close()
        return rows

    return asyncio.run(read())


@pytest.mark.parametrize("how", ["EIO", "ENOSPC"])
def test_after_a_failed_fsync_the_page_cache_is_not_believed(
    daemon: Daemon, how: str, tmp_path: Path
) -> None:
    """No retry of fsync: what was acknowledged is written anew and synced, then a trial, then new rows."""
    assert daemon.say("a") == "row 1"
    daemon.fail(how)
    assert "cannot be written" in daemon.say("b")
    assert "cannot be written" in daemon.say("b")
    assert "cannot be written" in daemon.say("probe")
    daemon.fail("")
    assert "cannot be written" in daemon.say("b")  # a disk that works again is no proof of what it holds
    assert daemon.say("probe") == "writable"
    # Everything acknowledged has reached the main file by a sync that succeeded; the -wal is a new one.
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(daemon.path, alone / "journal")
    assert statuses(alone / "journal") == ["a"]
    assert daemon.say("b") == "row 2"
    daemon.kill()
    assert statuses(daemon.path) == ["a", "b"]  # once, though it was tried three times


@pytest.mark.parametrize("how", ["EIO", "ENOSPC"])
def test_killed_while_its_disk_fails(daemon: Daemon, how: str) -> None:
    """The row that was refused may be there or not; what was acknowledged is. The next start goes on."""
    assert daemon.say("a") == "row 1"
    daemon.fail(how)
    assert "cannot be written" in daemon.say("b")
    daemon.kill()
    daemon.fail("")
    assert statuses(daemon.path) in (["a"], ["a", "b"])


def ended(operation: str, seq: int) -> Record:
    state = PowerState(operation=operation, request=REQUEST, phase=Phase.DONE)
    return Record(id=operation, state=state, requested_at_s=1.0, seq=seq, ended_at_s=2.0)


def size_bytes(path: Path) -> int:
    return sum(Path(f"{path}{suffix}").stat().st_size for suffix in ("", "-wal"))


async def test_the_file_stays_bounded_however_many_operations_there_were(tmp_path: Path) -> None:
    """500 operations of eight rows, 100 kept: the file is as large as after the first 250."""
    path = tmp_path / "journal"
    journal = await Journal.open(path)
    sizes = []
    for n in range(500):
        name = f"op-{n:06d}"
        rows = await asyncio.gather(
            *(journal.append(name, PowerRead(status="x" * 300), 1.0) for _ in range(8))
        )
        await journal.condense([ended(name, rows[0].seq)])
        if n % 50 == 49:
            await journal.drop([f"op-{old:06d}" for old in range(max(n - 149, 0), n - 99)])
            sizes.append(size_bytes(path))
    assert max(sizes) <= 1.2 * max(sizes[:5])
    assert max(sizes) < 8 << 20
    assert len(await journal.load()) == 100 * 8
    assert len(await journal.ended()) == 100
    await journal.close()
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM dropping").fetchone() == (0,)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        database.execute("DELETE FROM event")
    database.close()
    assert len(dump(ended("op", 1))) < 500


COMPACTOR = """
import asyncio, sys
from pathlib import Path
from migrd.journal import Journal
from tests.core.test_journal_full import PowerRead, ended
async def main():
    journal = await Journal.open(Path(sys.argv[1]))
    for n in range(10**6):
        name = f"op-{n:06d}"
        for part in range(3):
            row = await journal.append(name, PowerRead(status=f"{n}.{part}"), 0.0)
        await journal.condense([ended(name, row.seq)])
        if n >= 10 and n % 5 == 4:
            print(f"drop {n - 14}", flush=True)
            await journal.drop([f"op-{old:06d}" for old in range(n - 14, n - 9)])
        print(f"kept {n}", flush=True)
asyncio.run(main())
"""


def test_kill_9_in_the_middle_of_compaction_loses_nothing(tmp_path: Path) -> None:
    """An operation is there whole or gone whole; gone are only those whose dropping had begun, in order."""
    for number in range(4):
        path = tmp_path / f"journal{number}"
        compactor = subprocess.Popen(
            [sys.executable, "-c", COMPACTOR, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert compactor.stdout is not None
        said = []
        for line in compactor.stdout:
            said.append(line.strip())
            if line.startswith("drop") and len(said) > 30 + 7 * number:
                break
        compactor.kill()
        said += compactor.communicate()[0].splitlines()
        kept = max(int(line[5:]) for line in said if line.startswith("kept"))
        dropping = max(int(line[5:]) for line in said if line.startswith("drop"))

        async def read(path: Path = path) -> tuple[dict[str, int], set[str]]:
            journal = await Journal.open(path)
            counts: dict[str, int] = {}
            for row in await journal.load():
                counts[row.operation] = counts.get(row.operation, 0) + 1
            condensed = {record.id for record in await journal.ended()}
            await journal.close()
            return counts, condensed

        counts, condensed = asyncio.run(read())
        first = min(int(name[3:]) for name in counts)
        assert first in (dropping, dropping + 5)
        for n in range(first, kept + 1):
            assert counts[f"op-{n:06d}"] == 3
            assert f"op-{n:06d}" in condensed
        assert all(int(name[3:]) >= first for name in condensed)
