"""The real journal on a real disk: durable, append-only, alone, and honest about a full disk."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from migrd.journal import Journal
from migrd.journal_file import row_crc
from migrd.ports import JournalError, JournalReadOnly
from migrd.sagas.events import EVENT, Admitted, CancelRequested, PowerRead, PowerRequested

REQUEST = PowerRequested(host="h1", action="on")


async def test_rows_come_back_in_order_and_every_start_counts(tmp_path: Path) -> None:
    """I4: the epoch grows with every start, also after one that wrote nothing."""
    path = tmp_path / "journal"
    first = await Journal.open(path)
    assert first.epoch == 1
    await first.append("op-000001", REQUEST, 1.0)
    rows = await asyncio.gather(
        *(first.append("op-000001", PowerRead(status=str(n)), 2.0) for n in range(50))
    )
    assert [row.seq for row in rows] == list(range(2, 52))
    await first.close()
    await (await Journal.open(path)).close()
    third = await Journal.open(path)
    assert third.epoch == 3
    loaded = await third.load()
    assert [row.event for row in loaded] == [REQUEST, *(PowerRead(status=str(n)) for n in range(50))]
    await third.close()


async def test_only_one_daemon_may_open_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = await Journal.open(path)
    with pytest.raises(JournalError, match=f"in use by another migrd .pid {os.getpid()}."):
        await Journal.open(path)
    await journal.close()
    await (await Journal.open(path)).close()


async def test_rows_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = await Journal.open(path)
    await journal.append("op-000001", REQUEST, 1.0)
    await journal.close()
    database = sqlite3.connect(path)
    for change in ("UPDATE event SET payload = '{}'", "DELETE FROM event"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(change)
    database.close()


@pytest.mark.parametrize(
    ("kind", "payload", "told"),
    [
        ("teleported", '{"kind": "teleported"}', "newer migrd"),
        ("admitted", '{"kind": "admitted"', "cannot be read"),
        ("admitted", '{"kind": "cancel-requested"}', "altered"),
        ("admitted", '{"kind": "admitted" }', "checksum"),
    ],
)
async def test_a_row_that_is_not_understood_fails_loudly(
    tmp_path: Path, kind: str, payload: str, told: str
) -> None:
    path = tmp_path / "journal"
    await (await Journal.open(path)).close()
    database = sqlite3.connect(path)
    crc = 0 if told == "checksum" else row_crc(1, "op", kind, payload, 0.0)
    database.execute("INSERT INTO event VALUES (1, 'op', ?, ?, 0, ?)", (kind, payload, crc))
    database.commit()
    database.close()
    journal = await Journal.open(path)
    with pytest.raises(JournalError, match=told):
        await journal.load()
    await journal.close()


async def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    await (await Journal.open(path)).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.commit()
    database.close()
    with pytest.raises(JournalError, match="schema 99"):
        await Journal.open(path)


async def test_a_full_disk_makes_it_read_only_until_there_is_room(tmp_path: Path) -> None:
    """SQLite's own "database or disk is full", by its page limit; a write that failed left nothing behind."""
    path = tmp_path / "journal"
    journal = await Journal.open(path, max_bytes=128 << 10)
    written = 0
    why = ""
    for _ in range(1000):
        try:
            await journal.append("op-000001", PowerRead(status="x" * 1000), 1.0)
        except JournalReadOnly as error:
            why = str(error)
            break
        written += 1
    assert "full" in why
    assert "full" in journal.read_only
    await journal.probe()
    assert "full" in journal.read_only
    assert len(await journal.load()) == written
    await journal.close()
    roomy = await Journal.open(path)
    assert roomy.read_only == ""
    await roomy.append("op-000001", CancelRequested(), 2.0)
    assert len(await roomy.load()) == written + 1
    await roomy.close()


async def test_a_slow_disk_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    """Another process holds SQLite's write lock for a second; timers go on meanwhile."""
    path = tmp_path / "journal"
    journal = await Journal.open(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(journal.append("op-000001", REQUEST, 1.0))
    longest_s, last_s = 0.0, time.monotonic()
    for _ in range(50):
        await asyncio.sleep(0.01)
        longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
    assert not writing.done()
    other.execute("ROLLBACK")
    await writing
    other.close()
    await journal.close()
    assert longest_s < 0.3


WRITER = """
import asyncio, sys
from pathlib import Path
from migrd.journal import Journal
from migrd.sagas.events import PowerRead
async def main():
    journal = await Journal.open(Path(sys.argv[1]))
    number = 0
    while True:
        await journal.append("op-000001", PowerRead(status=str(number)), 0.0)
        print(number, flush=True)
        number += 1
asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_said_to_be_written(tmp_path: Path) -> None:
    """I16: whatever `append` returned for is there after the kill, in order, and the lock is free."""
    path = tmp_path / "journal"
    for _ in range(3):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(40)]
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.read().splitlines()
        writer.wait()
        promised = [int(line) for line in said if line.strip().isdigit()]

        async def read() -> list[str]:
            journal = await Journal.open(path)
            rows = [row.event.status for row in await journal.load()]  # type: ignore[union-attr]
            await journal.close()
            return rows

        found = asyncio.run(read())
        assert found[: len(promised)] == [str(number) for number in promised]
        assert len(found) <= len(promised) + 1
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def test_events_are_small() -> None:
    """A row without volumes stays below a page: group commits stay cheap."""
    assert len(EVENT.dump_json(Admitted())) < 100
