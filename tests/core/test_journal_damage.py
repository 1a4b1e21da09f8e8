"""A torn tail loses nothing that was acknowledged; damage is told, never read past."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from migrd.journal import Journal
from migrd.journal_file import row_crc
from migrd.ports import JournalError
from migrd.sagas.events import EVENT, PowerRead, PowerRequested
from tests.core.test_journal import WRITER

PAGE = 4096
HEADER, FRAME = 32, 24


async def statuses(path: Path) -> list[str]:
    journal = await Journal.open(path)
    rows = [row.event.status for row in await journal.load()]  # type: ignore[union-attr]
    await journal.close()
    return rows


class Writer:
    """A process that appends rows as fast as it can, and says in a file which ones were acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal"
        self._said = folder / "said"
        with self._said.open("w") as said:
            self.process = subprocess.Popen([sys.executable, "-c", WRITER, str(self.path)], stdout=said)

    def said(self) -> int:
        """How many; the last line may be half written."""
        return self._said.read_text().count("\n")

    def until(self, rows: int) -> None:
        while self.said() < rows:
            assert self.process.poll() is None
            time.sleep(0.005)


def copy(path: Path, folder: Path) -> Path:
    """Main file and -wal, as a power cut would leave them; the -shm does not outlive one."""
    folder.mkdir()
    for suffix in ("", "-wal"):
        if Path(f"{path}{suffix}").exists():
            shutil.copy(f"{path}{suffix}", f"{folder / 'journal'}{suffix}")
    return folder / "journal"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A journal whose daemon was killed: rows 0, 1, 2 ... one per transaction, all in the -wal file."""
    writer = Writer(tmp_path)
    writer.until(40)
    writer.process.send_signal(signal.SIGKILL)
    writer.process.wait()
    return writer.path


def commits(wal: bytes) -> list[int]:
    """Byte offset of the end of each transaction; the first one counts the start."""
    step = FRAME + PAGE
    starts = range(HEADER, len(wal) - step + 1, step)
    return [start + step for start in starts if struct.unpack_from(">I", wal, start + 4)[0]]


def test_a_copy_taken_at_any_moment_holds_all_that_was_acknowledged(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    random.seed(7)
    try:
        for number in range(8):
            writer.until(writer.said() + random.randint(1, 60))
            writer.process.send_signal(signal.SIGSTOP)
            promised = writer.said()
            there = copy(writer.path, tmp_path / f"copy{number}")
            writer.process.send_signal(signal.SIGCONT)
            found = asyncio.run(statuses(there))
            assert found == [str(n) for n in range(len(found))]
            assert promised <= len(found) <= promised + 1
    finally:
        writer.process.kill()
        writer.process.wait()


def test_a_tail_cut_anywhere_loses_only_what_comes_after_the_cut(tmp_path: Path, written: Path) -> None:
    wal = Path(f"{written}-wal").read_bytes()
    ends = commits(wal)
    random.seed(11)
    cuts = [end + shift for end in random.sample(ends, 6) for shift in (-1, 0, 1, FRAME, PAGE)]
    for number, cut in enumerate([0, 10, HEADER, *cuts]):
        there = copy(written, tmp_path / f"cut{number}")
        Path(f"{there}-wal").write_bytes(wal[:cut])
        whole = sum(1 for end in ends if end <= cut)
        assert asyncio.run(statuses(there)) == [str(n) for n in range(max(whole - 1, 0))]


def test_a_garbled_last_transaction_is_as_if_it_had_not_been_written(tmp_path: Path, written: Path) -> None:
    wal = Path(f"{written}-wal").read_bytes()
    ends = commits(wal)
    random.seed(13)
    for number in range(12):
        at = random.randrange(ends[-2], ends[-1])
        there = copy(written, tmp_path / f"garbled{number}")
        Path(f"{there}-wal").write_bytes(wal[:at] + bytes([wal[at] ^ 0x10]) + wal[at + 1 : ends[-1]])
        assert asyncio.run(statuses(there)) == [str(n) for n in range(len(ends) - 2)]


def test_damage_before_the_last_transaction_is_refused_and_the_way_on_works(
    tmp_path: Path, written: Path
) -> None:
    """SQLite alone would begin here as if the acknowledged rows after the damage had never been."""
    wal = Path(f"{written}-wal").read_bytes()
    ends = commits(wal)
    random.seed(17)
    for number in range(12):
        at = random.randrange(HEADER, ends[-2])
        there = copy(written, tmp_path / f"damaged{number}")
        Path(f"{there}-wal").write_bytes(wal[:at] + bytes([wal[at] ^ 0x10]) + wal[at + 1 : ends[-1]])
        for _ in range(2):  # the first refusal must not have tidied the evidence away
            with pytest.raises(JournalError, match="truncate --size") as refused:
                asyncio.run(statuses(there))
        argv = str(refused.value).rsplit("then ", 1)[1].split()
        subprocess.run(argv, check=True)
        whole = sum(1 for end in ends if end <= at)
        assert asyncio.run(statuses(there)) == [str(n) for n in range(max(whole - 1, 0))]


async def test_a_garbled_row_is_refused_whatever_it_has_become(tmp_path: Path) -> None:
    """Also when it is still good JSON: "h1" must not become "h9" by a bit that tipped over."""
    path = tmp_path / "journal"
    journal = await Journal.open(path)
    await journal.append("op-000001", PowerRequested(host="h1-here", action="off"), 1.0)
    await journal.close()
    path.write_bytes(path.read_bytes().replace(b"h1-here", b"h9-here"))
    journal = await Journal.open(path)
    with pytest.raises(JournalError, match=r"row 1 of op-000001 does not fit .*backup"):
        await journal.load()
    await journal.close()


async def test_garbled_pages_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = await Journal.open(path)
    for n in range(300):
        await journal.append("op-000001", PowerRead(status=f"{n}" * 40), 1.0)
    await journal.close()
    good = path.read_bytes()
    random.seed(19)
    for offset in (0, 40, *range(PAGE, len(good) - PAGE, PAGE * 3)):
        path.write_bytes(good[:offset] + random.randbytes(600) + good[offset + 600 :])
        with pytest.raises(JournalError, match="backup") as refused:
            await read_all(path)
        assert str(path) in str(refused.value)


async def read_all(path: Path) -> None:
    journal = await Journal.open(path)
    try:
        await journal.load()
        await journal.ended()
    finally:
        await journal.close()


async def test_a_journal_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    """Its rows have no checksum and its attempts no life; both begin with the first row that is new."""
    path = tmp_path / "journal"
    old = sqlite3.connect(path, isolation_level=None)
    old.executescript(
        "PRAGMA journal_mode = WAL;"
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE event (seq INTEGER PRIMARY KEY AUTOINCREMENT, operation TEXT NOT NULL,"
        " kind TEXT NOT NULL, payload TEXT NOT NULL, at_s REAL NOT NULL);"
        "CREATE TRIGGER event_no_update BEFORE UPDATE ON event"
        " BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;"
        "CREATE TRIGGER event_no_delete BEFORE DELETE ON event"
        " BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;"
        "INSERT INTO meta VALUES ('epoch', '4'); PRAGMA user_version = 1;"
    )
    request = PowerRequested(host="h1", action="on")
    for at_s in (1.0, 2.0):
        old.execute(
            "INSERT INTO event (operation, kind, payload, at_s) VALUES ('op-000001', ?, ?, ?)",
            (request.kind, EVENT.dump_json(request).decode(), at_s),
        )
    old.close()
    journal = await Journal.open(path)
    assert journal.epoch == 5
    row = await journal.append("op-000002", request, 3.0)
    assert row.seq == 3
    assert [found.at_s for found in await journal.load()] == [1.0, 2.0, 3.0]
    assert [journal.life(seq) == "" for seq in (1, 2, 3, 4)] == [True, True, False, False]
    await journal.close()
    database = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        database.execute("DELETE FROM event")
    payload = EVENT.dump_json(request).decode()
    database.execute("INSERT INTO event VALUES (4, 'op-000002', ?, ?, 4.0, NULL)", (request.kind, payload))
    database.commit()
    database.close()
    journal = await Journal.open(path)
    with pytest.raises(JournalError, match="row 4"):  # a new row without its checksum was not written by us
        await journal.load()
    await journal.close()
    assert row_crc(4, "op-000002", request.kind, payload, 4) == row_crc(
        4, "op-000002", request.kind, payload, 4.0
    )
