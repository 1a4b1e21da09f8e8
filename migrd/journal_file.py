"""The journal's SQLite file: everything that runs in the journal's one thread, and the offline verbs.

Schema 2. `event` is append-only by triggers; the one exception is an operation that the same transaction has
named in `dropping` (docs/adr/0020-journal-compaction.md). Every row carries a checksum, because SQLite has
none for its pages. `ended` holds the folded state of ended operations: a cache, the rows stay the truth.
`life` names every start of a daemon, so that agents can tell its attempts from those of any other.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sqlite3
import zlib
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from migrd import condensed
from migrd.journal_wal import good_bytes
from migrd.ports import JournalError, JournalReadOnly, Row
from migrd.projection import Record
from migrd.sagas.events import EVENT, Event

SCHEMA = 2
MAX_BYTES = 4 << 30
MAX_WAL_BYTES = 8 << 20  # a larger -wal file is cut back when it has been moved into the main file
BUSY_TIMEOUT_S = 5.0
TRIAL_BYTES = 8192  # larger than most rows, so that a trial fails while rows would

_CREATE = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS event (seq INTEGER PRIMARY KEY AUTOINCREMENT, operation TEXT NOT NULL,"
    " kind TEXT NOT NULL, payload TEXT NOT NULL, at_s REAL NOT NULL)",
    "ALTER TABLE event ADD COLUMN crc INTEGER",  # NULL: written by schema 1
    "CREATE INDEX event_operation ON event (operation)",
    "CREATE TABLE life (number INTEGER PRIMARY KEY, since_seq INTEGER NOT NULL, id TEXT NOT NULL)",
    "CREATE TABLE ended (operation TEXT PRIMARY KEY, format INTEGER NOT NULL, body TEXT NOT NULL,"
    " crc INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE dropping (operation TEXT PRIMARY KEY) WITHOUT ROWID",
    "DROP TRIGGER IF EXISTS event_no_delete",
    "CREATE TRIGGER event_no_delete BEFORE DELETE ON event"
    " WHEN NOT EXISTS (SELECT 1 FROM dropping WHERE operation = OLD.operation)"
    " BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS event_no_update BEFORE UPDATE ON event"
    " BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END",
)
"""From nothing, or from schema 1. In one transaction, so a crash leaves the one or the other."""


Connect = Callable[[Path], sqlite3.Connection]
"""Opens the database: autocommit, usable from the executor's thread. Raises sqlite3.Error, OSError."""

NewLife = Callable[[], str]


def connect_file(path: Path) -> sqlite3.Connection:
    """The database in a file."""
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row to be written."""

    operation: str
    event: Event
    at_s: float


def new_life() -> str:
    """Unlike that of any other start of any daemon."""
    return secrets.token_hex(4)


class JournalFile:
    """Blocking; one thread at a time. Raises sqlite3.Error where nothing else is said."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path
        self._last_seq = _last_seq(database)
        self.epoch = int(_meta(database, "epoch", "0"))
        self.lives: list[tuple[int, str]] = database.execute(
            "SELECT since_seq, id FROM life ORDER BY number"
        ).fetchall()

    @classmethod
    def open(cls, path: Path, *, max_bytes: int, life: str, connect: Connect) -> JournalFile:
        """Check the file, make durable what it says, count this start. Raises JournalError."""
        try:
            database = _connect(path, max_bytes, connect)
            try:
                _check(database, path)
                _upgrade(database)
                _settle(database)
                _count_start(database, life)
                return cls(database, path)
            except BaseException:
                database.close()
                raise
        except sqlite3.Error as error:
            raise JournalError(f"{path}: {error}: {_remedy(path, error)}") from None

    def close(self) -> None:
        self._database.close()

    # -- writing ----------------------------------------------------------------------------------

    def append(self, batch: Sequence[Entry]) -> list[int]:
        """All of the batch, synced, or nothing; their numbers."""
        first = self._last_seq + 1
        with _Transaction(self._database):
            for seq, item in enumerate(batch, start=first):
                payload = EVENT.dump_json(item.event).decode()
                row = (seq, item.operation, item.event.kind, payload, item.at_s)
                self._database.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)", (*row, row_crc(*row)))
        self._last_seq += len(batch)
        return list(range(first, self._last_seq + 1))

    def verify(self) -> None:
        """After a write that failed: prove that the file says what was acknowledged.

        Nothing that a failed fsync may have left behind in the page cache is believed. The checkpoint writes
        every acknowledged row anew, from SQLite's own account of what was committed, syncs it, and throws
        away what the failed write left in the -wal file. Raises JournalReadOnly when that cannot be shown.
        """
        _settle(self._database)
        if (found := _last_seq(self._database)) != self._last_seq:
            raise JournalReadOnly(
                f"row {self._last_seq} was acknowledged and the file ends with {found}: restart migrd"
            )

    def trial(self) -> None:
        """`verify`, and prove that rows can be written."""
        self.verify()
        with _Transaction(self._database):
            self._database.execute("INSERT OR REPLACE INTO meta VALUES ('probe', ?)", ("x" * TRIAL_BYTES,))
            self._database.execute("INSERT OR REPLACE INTO meta VALUES ('probe', '')")

    def condense(self, records: Iterable[Record]) -> None:
        """Keep the folded state of operations that have ended: the next start need not fold them."""
        with _Transaction(self._database):
            for record in records:
                body = condensed.dump(record)
                self._database.execute(
                    "INSERT OR REPLACE INTO ended VALUES (?, ?, ?, ?)",
                    (record.id, condensed.form(), body, zlib.crc32(body.encode())),
                )

    def drop(self, operations: Sequence[str]) -> None:
        """Forget whole operations, all of these or none. The only way in which a row ever goes."""
        named = [(operation,) for operation in operations]
        with _Transaction(self._database):
            self._database.executemany("INSERT INTO dropping VALUES (?)", named)
            self._database.executemany("DELETE FROM event WHERE operation = ?", named)
            self._database.executemany("DELETE FROM ended WHERE operation = ?", named)
            self._database.execute("DELETE FROM dropping")

    # -- reading ----------------------------------------------------------------------------------

    def ended(self) -> list[Record]:
        """Operations whose end was condensed in a form that this version reads. Raises JournalError."""
        found = []
        try:
            for operation, form, body, crc in self._database.execute(
                "SELECT operation, format, body, crc FROM ended"
            ):
                if crc != zlib.crc32(body.encode()):
                    raise self._damaged(f"what it keeps of {operation} does not fit its checksum")
                try:
                    found.append(condensed.read(body))
                except ValidationError:
                    if form == condensed.form():
                        raise
        except (sqlite3.Error, ValidationError) as error:
            raise self._damaged(str(error)) from None
        return found

    def rows(self, skip: Container[str]) -> list[Row]:
        """Rows of operations that are not in `skip`, oldest first; all are checked. Raises JournalError."""
        rows = []
        checked_from = next((since for since, life in self.lives if life), 1)
        try:
            for *row, crc in self._database.execute(
                "SELECT seq, operation, kind, payload, at_s, crc FROM event ORDER BY seq"
            ):
                seq, operation, kind, payload, at_s = row
                if crc != row_crc(*row) and not (crc is None and seq < checked_from):
                    raise self._damaged(f"row {seq} of {operation} does not fit its checksum")
                if operation not in skip:
                    event = self._event(seq, kind, payload)
                    rows.append(Row(seq=seq, operation=operation, event=event, at_s=at_s))
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from None
        return rows

    def _event(self, seq: int, kind: str, payload: str) -> Event:
        try:
            event = EVENT.validate_json(payload)
        except ValidationError as error:
            first = json.loads(error.json(include_url=False, include_input=False))[0]["msg"]
            raise JournalError(
                f"{self._path}: row {seq} of kind {kind!r} cannot be read: {first}; a newer migrd may have "
                f"written it: start that version, or {restore(self._path)}"
            ) from None
        if event.kind != kind:
            raise self._damaged(f"row {seq} says {kind!r} and holds {event.kind!r}: it has been altered")
        return event

    def _damaged(self, what: str) -> JournalError:
        return JournalError(f"{self._path} is damaged: {what}: {restore(self._path)}")


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT; rolled back on any error, also one of COMMIT itself."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:  # SQLite itself rolls back on a full disk
                self._database.execute("ROLLBACK")


def raise_epoch(path: Path, epoch: int) -> None:
    """Let the next start count from `epoch`. Raises JournalError: a daemon runs, or it is not a raise."""
    lock = take_lock(path)
    try:
        try:
            database = _connect(path, MAX_BYTES, connect_file)
        except sqlite3.Error as error:
            raise JournalError(f"{path}: {error}: {_remedy(path, error)}") from None
        try:
            _check(database, path)
            _upgrade(database)
            found = int(_meta(database, "epoch", "0"))
            if epoch <= found:
                raise JournalError(f"{path} is at epoch {found} already: it can only be raised")
            with _Transaction(database):
                database.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (str(epoch),))
            _settle(database)
        except sqlite3.Error as error:
            raise JournalError(f"{path}: {error}: {_remedy(path, error)}") from None
        finally:
            database.close()
    finally:
        lock.close()


def take_lock(path: Path) -> TextIO:
    """One daemon per journal. flock ends with the process, whatever ends it. Raises JournalError."""
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
    try:
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    except OSError as error:
        lock.close()
        raise JournalError(f"{path}.lock: {error.strerror}: free space on {path.parent}") from None
    return lock


def row_crc(seq: int, operation: str, kind: str, payload: str, at_s: float) -> int:
    """Over all that the row says."""
    return zlib.crc32(f"{seq}\0{operation}\0{kind}\0{payload}\0{float(at_s)!r}".encode())


def _connect(path: Path, max_bytes: int, connect: Connect) -> sqlite3.Connection:
    """The one place where the file is opened. Raises JournalError, sqlite3.Error."""
    wal = Path(f"{path}-wal")
    try:
        good = good_bytes(wal)
    except OSError as error:
        raise JournalError(f"{wal}: cannot be read: {error.strerror or error}") from None
    if good is not None:
        raise JournalError(
            f"{wal} is damaged: rows that were acknowledged cannot be read. {restore(path)}. To go on with "
            "the rows before the damage: look at the hosts for what may have been under way since, keep a "
            f"copy, then truncate --size {good} {wal}"
        )
    database = connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
    page_bytes = database.execute("PRAGMA page_size").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {max(max_bytes // page_bytes, 1)}")
    return database


def _check(database: sqlite3.Connection, path: Path) -> None:
    """Is it ours, and sound? Raises JournalError before anything is written."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA:
        raise JournalError(f"{path} has schema {version}, this migrd knows {SCHEMA}: start the newer migrd")
    if (found := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise JournalError(f"{path} is damaged: {found}: {restore(path)}")


def _upgrade(database: sqlite3.Connection) -> None:
    if database.execute("PRAGMA user_version").fetchone()[0] == SCHEMA:
        return
    with _Transaction(database):
        for statement in _CREATE:
            database.execute(statement)
        if _last_seq(database):  # attempts of schema 1 carry no life
            database.execute("INSERT INTO life VALUES (0, 0, '')")
        database.execute(f"PRAGMA user_version = {SCHEMA}")


def _settle(database: sqlite3.Connection) -> None:
    """Bring what is committed into the main file and sync it. Raises sqlite3.Error, also when kept from it.

    fsync may have failed once and lost pages that the page cache still shows (wiki.postgresql.org/wiki/
    Fsync_Errors): what is written anew and then synced without error does not depend on them.
    """
    busy, _, _ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise sqlite3.OperationalError("another process is reading the journal")


def _count_start(database: sqlite3.Connection, life: str) -> None:
    """The epoch: one more at every start, so that agents refuse what an earlier daemon still sends (I4).

    Lives that no row was written in name no attempt: they go, so that the table is bounded by the rows.
    """
    with _Transaction(database):
        epoch = int(_meta(database, "epoch", "0")) + 1
        database.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (str(epoch),))
        oldest = database.execute("SELECT min(seq) FROM event").fetchone()[0] or 0
        since = _last_seq(database) + 1
        database.execute(
            "DELETE FROM life WHERE since_seq = ? OR"
            " (SELECT min(later.since_seq) FROM life AS later WHERE later.number > life.number) <= ?",
            (since, oldest),
        )
        database.execute(
            "INSERT INTO life SELECT coalesce(max(number), 0) + 1, ?, ? FROM life", (since, life)
        )


def _last_seq(database: sqlite3.Connection) -> int:
    """Of the newest row ever written: numbers of dropped rows are not used again."""
    found = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
    return int(found[0]) if found else 0


def _meta(database: sqlite3.Connection, key: str, default: str) -> str:
    found = database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(found[0]) if found else default


def restore(path: Path) -> str:
    """What to do about a journal that cannot be followed."""
    return (
        f"stop migrd, move {path}, {path.name}-wal and {path.name}-shm away together, put a backup in their "
        "place (or none: an empty journal knows of no open operation and no drained host), start migrd, and "
        "do what /readyz says about the epoch"
    )


def _remedy(path: Path, error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the rest tells where in SQLite
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return (
                f"free space on the file system of {path.parent}; if it has room, see whether its disk fails"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return restore(path)
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return f"{path.parent} and the files in it must be writable by the user that runs migrd"
        case _:
            return f"if nothing else helps, {restore(path)}"
