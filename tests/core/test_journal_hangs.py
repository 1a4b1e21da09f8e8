"""I20: a disk that hangs under the journal is noticed, nobody hears what is not known, no row comes twice."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from migrd.journal import Journal
from migrd.ports import JournalError, JournalReadOnly, Row
from migrd.projection import Record
from migrd.sagas.events import PowerRead, PowerRequested
from migrd.sagas.power import Phase, PowerState

DEADLINE_S = 0.5
AT_ONCE_S = 0.4
A, B, C = (PowerRead(status=word) for word in "abc")

Hang = Literal["", "before", "after", "fails", "reads", "opens"]


class HangingDisk:
    """`hangs`: a COMMIT before or after its work, or until it fails; every look at the rows; being opened."""

    def __init__(self) -> None:
        self.hangs: Hang = ""
        self.reached = threading.Event()
        self._answers = threading.Event()

    def answer(self) -> None:
        self.hangs = ""
        self._answers.set()

    def connect(self, path: Path) -> sqlite3.Connection:
        if self.hangs == "opens":
            self._hang()
        return sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, factory=self._connection()
        )

    def _connection(self) -> type[sqlite3.Connection]:
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
                hangs = disk.hangs
                if hangs == "reads" and (" FROM event ORDER" in sql or " FROM ended" in sql):
                    disk._hang()
                if sql != "COMMIT":
                    return super().execute(sql, parameters)
                if hangs in ("before", "fails"):
                    disk._hang()
                if hangs == "fails":
                    raise sqlite3.OperationalError("disk I/O error")
                cursor = super().execute(sql, parameters)
                if hangs == "after":
                    disk._hang()
                return cursor

        return Connection

    def _hang(self) -> None:
        self.reached.set()
        self._answers.wait(30)


@pytest.fixture
def disk() -> Iterator[HangingDisk]:
    made = HangingDisk()
    yield made
    made.answer()


async def opened(path: Path, disk: HangingDisk) -> Journal:
    return await Journal.open(path, deadline_s=DEADLINE_S, start_deadline_s=DEADLINE_S, connect=disk.connect)


def append(journal: Journal, event: PowerRead) -> asyncio.Task[Row]:
    return asyncio.create_task(journal.append("op-000001", event, 1.0))


async def past_the_deadline(journal: Journal) -> None:
    for _ in range(int(10 * DEADLINE_S / 0.01)):
        if journal.read_only:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody notices")


async def refused_at_once(call: Awaitable[object]) -> None:
    began_s = time.monotonic()
    with pytest.raises(JournalReadOnly, match=r"has not answered for 0\.5 s: see dmesg"):
        await call
    assert time.monotonic() - began_s < AT_ONCE_S


async def events(journal: Journal) -> list[object]:
    return [row.event for row in await journal.load()]


def ended(operation: str) -> Record:
    state = PowerState(operation=operation, request=PowerRequested(host="h1", action="on"), phase=Phase.DONE)
    return Record(id=operation, state=state, requested_at_s=1.0, seq=1, ended_at_s=2.0)


@pytest.mark.parametrize("hang", ["before", "after"])
async def test_i20_a_disk_that_hangs_is_told_and_its_row_comes_once(
    tmp_path: Path, disk: HangingDisk, hang: Hang
) -> None:
    """Everybody is refused at once but the one whose row nobody knows of: he waits, and hears what became."""
    journal = await opened(tmp_path / "journal", disk)
    disk.hangs = hang
    writing = append(journal, A)
    await past_the_deadline(journal)
    for _ in range(2):
        await refused_at_once(journal.append("op-000001", B, 1.0))
        await refused_at_once(journal.condense([ended("op-000002")]))
        await refused_at_once(journal.drop(["op-000002"]))
        async with asyncio.timeout(AT_ONCE_S):
            await journal.probe()
        assert "has not answered" in journal.read_only
    await asyncio.sleep(2 * DEADLINE_S)
    assert not writing.done()
    disk.answer()
    assert (await writing).seq == 1
    await refused_at_once(journal.append("op-000001", B, 1.0))  # it answers again: no proof of what it holds
    await journal.probe()
    assert journal.read_only == ""
    assert (await journal.append("op-000001", C, 1.0)).seq == 2
    assert await events(journal) == [A, C]
    await journal.close()
    again = await Journal.open(tmp_path / "journal")
    assert await events(again) == [A, C]
    await again.close()


async def test_i20_a_write_that_fails_after_it_hung_may_be_made_again(
    tmp_path: Path, disk: HangingDisk
) -> None:
    journal = await opened(tmp_path / "journal", disk)
    disk.hangs = "fails"
    writing = append(journal, A)
    await past_the_deadline(journal)
    assert not writing.done()
    disk.answer()
    with pytest.raises(JournalReadOnly, match="disk I/O error"):
        await writing
    assert "disk I/O error" in journal.read_only
    await journal.probe()
    assert (await journal.append("op-000001", A, 1.0)).seq == 1
    assert await events(journal) == [A]
    await journal.close()


async def test_i20_what_waits_for_its_turn_behind_a_call_that_hangs_never_happens(
    tmp_path: Path, disk: HangingDisk
) -> None:
    """So it may be told at once, and asked for again."""
    journal = await opened(tmp_path / "journal", disk)
    disk.hangs = "before"
    writing = append(journal, A)
    await asyncio.to_thread(disk.reached.wait)
    waiting = [append(journal, B), asyncio.create_task(journal.condense([ended("op-000002")]))]
    await past_the_deadline(journal)
    for each in waiting:
        await refused_at_once(each)
    assert not writing.done()
    disk.answer()
    await writing
    await journal.probe()
    assert await events(journal) == [A]
    assert await journal.ended() == []
    await journal.close()


async def test_nothing_is_written_behind_a_write_that_failed(tmp_path: Path, disk: HangingDisk) -> None:
    """Not even what waited for its turn by then: first a probe shows what the file says."""
    journal = await opened(tmp_path / "journal", disk)
    disk.hangs = "fails"
    failing = asyncio.create_task(journal.condense([ended("op-000002")]))
    await asyncio.to_thread(disk.reached.wait)
    waiting = append(journal, A)
    await asyncio.sleep(0)
    disk.answer()
    for each in (failing, waiting):
        with pytest.raises(JournalReadOnly, match="disk I/O error"):
            await each
    assert await events(journal) == []
    await journal.close()


async def test_i20_who_drops_is_told_when_it_is_known(tmp_path: Path, disk: HangingDisk) -> None:
    """Told too early he would keep in memory what the file has forgotten."""
    journal = await opened(tmp_path / "journal", disk)
    await journal.append("op-000001", A, 1.0)
    disk.hangs = "after"
    dropping = asyncio.create_task(journal.drop(["op-000001"]))
    await past_the_deadline(journal)
    assert not dropping.done()
    disk.answer()
    await dropping
    assert await events(journal) == []
    await journal.close()


async def test_i20_a_probe_that_hangs_lets_its_caller_go_on(
    tmp_path: Path, disk: HangingDisk, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the loop that tells metric and log. That the probe has failed in the end is nobody's bug."""
    journal = await opened(tmp_path / "journal", disk)
    disk.hangs = "fails"
    async with asyncio.timeout(3 * DEADLINE_S):
        await journal.probe()
    await refused_at_once(journal.append("op-000001", A, 1.0))
    disk.answer()
    async with asyncio.timeout(5):
        while journal.read_only:
            await asyncio.sleep(0.01)
            await journal.probe()
    await journal.append("op-000001", A, 1.0)
    await journal.close()
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_i20_a_call_hangs_on_when_its_caller_has_gone(tmp_path: Path, disk: HangingDisk) -> None:
    journal = await opened(tmp_path / "journal", disk)
    disk.hangs = "before"
    condensing = asyncio.create_task(journal.condense([ended("op-000002")]))
    await past_the_deadline(journal)
    condensing.cancel()
    await asyncio.sleep(0.01)
    async with asyncio.timeout(AT_ONCE_S):
        await journal.probe()
    assert "has not answered" in journal.read_only
    disk.answer()
    await journal.close()


async def test_i20_the_event_loop_goes_on_while_the_disk_hangs(tmp_path: Path, disk: HangingDisk) -> None:
    journal = await opened(tmp_path / "journal", disk)
    disk.hangs = "before"
    writing = append(journal, A)
    longest_s, last_s = 0.0, time.monotonic()
    for _ in range(70):
        await asyncio.sleep(0.01)
        longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
    assert journal.read_only
    assert longest_s < AT_ONCE_S
    disk.answer()
    await writing
    await journal.close()


async def test_i20_a_start_on_a_disk_that_hangs_says_so(tmp_path: Path, disk: HangingDisk) -> None:
    path = tmp_path / "journal"
    disk.hangs = "opens"
    with pytest.raises(JournalError, match="journal cannot be opened: the disk has not answered"):
        await opened(path, disk)


@pytest.mark.parametrize("read", [Journal.ended, Journal.load])
async def test_i20_a_recovery_on_a_disk_that_hangs_says_so(
    tmp_path: Path, disk: HangingDisk, read: Any
) -> None:
    journal = await opened(tmp_path / "journal", disk)
    disk.hangs = "reads"
    with pytest.raises(JournalError, match="cannot be read: the disk has not answered"):
        await read(journal)
    with pytest.raises(JournalError, match="has not answered"):
        await read(journal)


async def test_i20_closing_does_not_wait_for_a_call_that_hangs_and_keeps_the_file(
    tmp_path: Path, disk: HangingDisk
) -> None:
    """What hangs may still be written: no other daemon may have the file before this process has ended."""
    journal = await opened(tmp_path / "journal", disk)
    disk.hangs = "before"
    writing = append(journal, A)
    condensing = asyncio.create_task(journal.condense([ended("op-000002")]))
    await asyncio.sleep(0)
    for each in (writing, condensing):
        each.cancel()
    async with asyncio.timeout(5 * DEADLINE_S):
        await journal.close()
    with pytest.raises(JournalError, match="in use"):
        await Journal.open(tmp_path / "journal")


async def test_closing_finishes_a_write_whose_caller_has_gone(tmp_path: Path, disk: HangingDisk) -> None:
    """As every shutdown in the middle of a write: the file is closed and free, and the row is there."""
    journal = await opened(tmp_path / "journal", disk)
    disk.hangs = "before"
    condensing = asyncio.create_task(journal.condense([ended("op-000002")]))
    await asyncio.to_thread(disk.reached.wait)
    condensing.cancel()
    closing = asyncio.create_task(journal.close())
    await asyncio.sleep(0.05)
    disk.answer()
    await closing
    again = await Journal.open(tmp_path / "journal")
    assert [each.id for each in await again.ended()] == ["op-000002"]
    await again.close()


SCRIPT = """
import asyncio, sys
from pathlib import Path
from migrd.journal import Journal
from tests.core.test_journal_hangs import A, HangingDisk, append, past_the_deadline
async def main():
    disk = HangingDisk()
    journal = await Journal.open(Path(sys.argv[1]), deadline_s=0.3, connect=disk.connect)
    disk.hangs = "before"
    writing = append(journal, A)
    await past_the_deadline(journal)
    await journal.close()
asyncio.run(main())
"""


def test_i20_a_process_ends_although_its_disk_hangs(tmp_path: Path) -> None:
    """Within seconds: systemd's next start says what is wrong."""
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "journal"], check=True, timeout=25)
    assert time.monotonic() - began_s < 15
