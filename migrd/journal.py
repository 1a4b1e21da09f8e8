"""The journal: an append-only SQLite file. What is not in it did not get decided.

WAL with synchronous=FULL: a row is on the disk when `append` returns (sqlite.org/pragma.html), and the
executor acts only after that. Rows are never changed: triggers refuse it. One thread writes, so that an
fsync never holds up the event loop; rows that arrive meanwhile share the next transaction. Secrets never
reach it: events carry names of volumes and hosts, and none of the commands takes a password (I17).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from migrd.ports import JournalReadOnly, Row
from migrd.sagas.events import EVENT, Event

SCHEMA = 1
MAX_BYTES = 4 << 30
BUSY_TIMEOUT_S = 5.0

_CREATE = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    operation TEXT NOT NULL,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    at_s REAL NOT NULL
);
CREATE TRIGGER IF NOT EXISTS event_no_update BEFORE UPDATE ON event
    BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER IF NOT EXISTS event_no_delete BEFORE DELETE ON event
    BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
"""


class JournalError(Exception):
    """The journal cannot be used at all; the message says why and what to do. The daemon must not start."""


Connect = Callable[[Path], sqlite3.Connection]
"""Opens the database: autocommit, usable from the executor's thread. Raises sqlite3.Error, OSError."""


def connect_file(path: Path) -> sqlite3.Connection:
    """The database in a file."""
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


@dataclass(slots=True)
class _Pending:
    operation: str
    kind: str
    payload: str
    event: Event
    at_s: float
    done: asyncio.Future[Row]


class Journal:
    """Use `await Journal.open(path)`; `close()` at the end. Implements `migrd.ports.JournalPort`."""

    def __init__(self, database: sqlite3.Connection, lock: TextIO, thread: Executor, epoch: int):
        self._database = database
        self._lock = lock
        self._thread = thread
        self._epoch = epoch
        self._pending: list[_Pending] = []
        self._flusher: asyncio.Task[None] | None = None
        self._read_only = ""

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        max_bytes: int = MAX_BYTES,
        executor: Executor | None = None,
        connect: Connect = connect_file,
        lock_file: Callable[[Path], TextIO] | None = None,
    ) -> Journal:
        """Lock the file, count this start (the epoch, durable before anything else), be ready.

        `max_bytes`: the file grows no further; then the journal is read-only. `executor` (one worker, owned
        by the journal from here on), `connect` and `lock_file` are the seams for a disk of the simulator.
        Raises JournalError.
        """
        thread = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        loop = asyncio.get_running_loop()
        try:
            lock = await loop.run_in_executor(thread, lock_file or _take_lock, path)
            try:
                database, epoch = await loop.run_in_executor(thread, _open, path, max_bytes, connect)
            except BaseException:
                lock.close()
                raise
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(database, lock, thread, epoch)

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def read_only(self) -> str:
        return self._read_only

    async def load(self) -> Sequence[Row]:
        """Every row, oldest first. Raises JournalError for a row that this version cannot read."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def append(self, operation: str, event: Event, at_s: float) -> Row:
        """Durable when it returns. Raises JournalReadOnly; then nothing was written."""
        payload = EVENT.dump_json(event).decode()
        done: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(operation, event.kind, payload, event, at_s, done))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush(), name="journal flush")
        return await done

    async def probe(self) -> None:
        """Try to write, to learn whether a read-only journal can be written again."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._touch)
            self._read_only = ""
        except sqlite3.Error as error:
            self._read_only = _why(error)

    async def close(self) -> None:
        """Finish what is being written, and let another daemon have the file."""
        if self._flusher is not None:
            await self._flusher
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown(wait=True)
        self._lock.close()

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch, self._pending = self._pending, []
            try:
                first = await loop.run_in_executor(self._thread, self._write, batch)
            except sqlite3.Error as error:
                self._read_only = _why(error)
                for item in batch:
                    if not item.done.done():
                        item.done.set_exception(JournalReadOnly(self._read_only))
                continue
            self._read_only = ""
            for seq, item in zip(first, batch, strict=True):
                if not item.done.done():
                    item.done.set_result(
                        Row(seq=seq, operation=item.operation, event=item.event, at_s=item.at_s)
                    )

    # -- in the journal's thread ------------------------------------------------------------------

    def _write(self, batch: Sequence[_Pending]) -> list[int]:
        """All of the batch, or nothing."""
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            numbers = []
            for item in batch:
                cursor = database.execute(
                    "INSERT INTO event (operation, kind, payload, at_s) VALUES (?, ?, ?, ?)",
                    (item.operation, item.kind, item.payload, item.at_s),
                )
                assert cursor.lastrowid is not None
                numbers.append(cursor.lastrowid)
            database.execute("COMMIT")
        except sqlite3.Error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        return numbers

    def _touch(self) -> None:
        """As large as a row, so that it fails while rows would."""
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT OR REPLACE INTO meta VALUES ('probe', ?)", ("x" * 8192,))
            database.execute("INSERT OR REPLACE INTO meta VALUES ('probe', '')")
            database.execute("COMMIT")
        except sqlite3.Error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _load(self) -> list[Row]:
        rows = []
        for seq, operation, kind, payload, at_s in self._database.execute(
            "SELECT seq, operation, kind, payload, at_s FROM event ORDER BY seq"
        ):
            rows.append(Row(seq=seq, operation=operation, event=_decode(seq, kind, payload), at_s=at_s))
        return rows


def _decode(seq: int, kind: str, payload: str) -> Event:
    try:
        event = EVENT.validate_json(payload)
    except ValidationError as error:
        first = json.loads(error.json(include_url=False, include_input=False))[0]["msg"]
        raise JournalError(
            f"journal row {seq} of kind {kind!r} cannot be read: {first}; a newer migrd may have written it: "
            "start that version, or restore the journal from before"
        ) from None
    if event.kind != kind:
        raise JournalError(f"journal row {seq} says {kind!r} and holds {event.kind!r}: it has been altered")
    return event


def _take_lock(path: Path) -> TextIO:
    """One daemon per journal. flock ends with the process, whatever ends it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(f"{path}.lock", "a+", encoding="ascii")  # noqa: SIM115 - held for the process's life
    except OSError as error:
        raise JournalError(f"{path}: cannot be opened: {error.strerror or error}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read(20).strip() or "unknown"
        lock.close()
        raise JournalError(f"{path} is in use by another migrd (pid {holder}): only one may run") from None
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _open(path: Path, max_bytes: int, connect: Connect) -> tuple[sqlite3.Connection, int]:
    try:
        database = connect(path)
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise JournalError(
                f"{path} has schema {version}, this migrd knows {SCHEMA}: start the newer migrd"
            )
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        page_bytes = database.execute("PRAGMA page_size").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {max(max_bytes // page_bytes, 1)}")
        database.executescript(_CREATE)
        database.execute(f"PRAGMA user_version = {SCHEMA}")
        return database, _count_start(database)
    except sqlite3.Error as error:
        raise JournalError(f"{path}: {error}: free space, or restore the journal from a backup") from None


def _count_start(database: sqlite3.Connection) -> int:
    """The epoch: one more at every start, so that agents refuse what an earlier daemon still sends (I4)."""
    database.execute("BEGIN IMMEDIATE")
    found = database.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
    epoch = int(found[0]) + 1 if found else 1
    database.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (str(epoch),))
    database.execute("COMMIT")
    return epoch


def _why(error: sqlite3.Error) -> str:
    return f"the journal cannot be written: {error}"
