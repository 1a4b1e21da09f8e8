"""The agent's memory of attempts and of the highest epoch it obeyed. SQLite, WAL, synchronous FULL.

Invariants: an attempt is on disk before it begins, so the same (operation, step, attempt) is never begun
twice, whatever dies in between; the highest epoch survives a restart (I4). One thread owns the connection.
Ended attempts are pruned by age and number; running ones never. What a daemon asked for before it had come is
never begun: the daemon has gone on, believing so.

Every call has a deadline (I20): a disk that hangs makes the ledger unusable, not its callers wait for ever.
While a call hangs, no other is queued behind it. An attempt whose record came too late was not begun, and the
record is ended as RETRYABLE before anything else is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from agents.order import may_be_overtaken, overtaken
from agents.protocol import Attempt, AttemptReport, Outcome
from agents.wire import BadDocument, dump, read

T = TypeVar("T")

SCHEMA_VERSION = 1
PRUNE_EVERY = 100
DEADLINE_S = 10.0  # above SQLite's own busy timeout, below the daemon's request timeout
NEVER_BEGUN = "never begun: the ledger of this host did not take the record in time"
DISOWNED = "never begun: the daemon asked for it before it had come"
_NO_BODY = b""  # of a row that stands for an attempt that had not come
_SCHEMA = """
create table if not exists epoch (one integer primary key check (one = 1), highest integer not null);
create table if not exists attempts (
    operation text not null, step text not null, attempt integer not null,
    epoch integer not null, body blob not null, outcome text not null, report blob not null,
    began_s real not null, ended_s real,
    primary key (operation, step, attempt)
) without rowid;
create index if not exists ended on attempts (ended_s) where ended_s is not null;
"""


class StaleEpochError(Exception):
    """A newer daemon has spoken (I4)."""

    def __init__(self, epoch: int, highest: int) -> None:
        super().__init__(f"epoch {epoch} is stale: this agent obeys epoch {highest}")
        self.highest = highest


class DifferentCommandError(Exception):
    """The id was used before for another command, or the operation has gone on: a later attempt of the same
    step has begun, or a step that takes this one back."""


class LedgerError(Exception):
    """The ledger cannot be written (disk full, IO error): nothing may begin."""


@contextlib.contextmanager
def only_user(folder: Path) -> Iterator[None]:
    """One agent per ledger: a second one would take the attempts of the first for those of a dead one (I4).

    flock(2) ends with the process, whatever ends it. Raises LedgerError, OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / "lock", "a", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LedgerError(f"{folder} is in use by another migrd-agent: only one may run") from None
        yield


@dataclass(frozen=True, slots=True)
class Admission:
    """`fresh`: begin it now. Otherwise `report` is what is known of the first one."""

    fresh: bool
    report: AttemptReport


Connect = Callable[[Path], sqlite3.Connection]
"""Opens the database: autocommit, usable from the executor's thread. Raises sqlite3.Error, OSError."""


def connect_file(path: Path) -> sqlite3.Connection:
    """The database in a file that only its owner reads."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=True, timeout=5.0)
    path.chmod(0o600)
    return database


class Ledger:
    """Open it with `Ledger.open`; every method may be called concurrently, from one event loop."""

    def __init__(
        self,
        database: sqlite3.Connection,
        thread: Executor,
        *,
        keep_rows: int,
        keep_days: float,
        deadline_s: float = DEADLINE_S,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._thread = thread
        self._wall = wall
        self._keep_rows = keep_rows
        self._keep_s = keep_days * 86400
        self._admitted = 0
        self._deadline_s = deadline_s
        self._hanging: Future[None] | None = None
        self.highest_epoch = 0

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        keep_rows: int = 20_000,
        keep_days: float = 30.0,
        deadline_s: float = DEADLINE_S,
        executor: Executor | None = None,
        connect: Connect = connect_file,
        wall: Callable[[], float] = time.time,
    ) -> Ledger:
        """Open or create the ledger. Raises LedgerError when it cannot be used or is of a newer version.

        `executor` (one worker, owned by the ledger from here on), `connect` and the wall clock are the seams
        for a disk of the simulator.
        """
        thread = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline_s):
                database = await loop.run_in_executor(thread, _open, path, connect)
        except (sqlite3.Error, OSError) as error:  # TimeoutError is an OSError
            thread.shutdown(wait=False)
            raise LedgerError(f"{path}: {error or 'the disk does not answer'}") from error
        ledger = cls(
            database, thread, keep_rows=keep_rows, keep_days=keep_days, deadline_s=deadline_s, wall=wall
        )
        ledger.highest_epoch = await ledger._run(ledger._read_epoch)
        await ledger._run(ledger._prune)
        return ledger

    async def close(self) -> None:
        """Close; what was answered is on disk already. A call that hangs is left behind."""
        with contextlib.suppress(LedgerError):
            await self._run(self._database.close)
        self._thread.shutdown(wait=False)

    async def admit(self, attempt: Attempt) -> Admission:
        """Record that `attempt` begins now, or find the one that began before.

        Raises StaleEpochError, DifferentCommandError, LedgerError; then nothing was recorded.
        """
        key = (attempt.operation, attempt.step, attempt.attempt)
        too_late = _report(key, Outcome.RETRYABLE, NEVER_BEGUN)
        admission = await self._run(
            lambda: self._admit(attempt), too_late=lambda: self._transaction(lambda: self._finish(too_late))
        )
        self.highest_epoch = max(self.highest_epoch, attempt.epoch)
        return admission

    async def obey(self, epoch: int) -> None:
        """Raise StaleEpochError for a stale epoch, else remember a higher one. Raises LedgerError."""
        await self._run(lambda: self._transaction(lambda: self._obey(epoch)))
        self.highest_epoch = max(self.highest_epoch, epoch)

    async def finish(self, report: AttemptReport) -> None:
        """Record how an attempt ended; the first outcome stays. Raises LedgerError."""
        await self._run(lambda: self._transaction(lambda: self._finish(report)))

    async def find(self, operation: str, step: str, attempt: int) -> AttemptReport | None:
        """What is recorded of an attempt. Raises LedgerError."""
        return await self._run(lambda: self._find(operation, step, attempt))

    async def disown(self, operation: str, step: str, attempt: int) -> AttemptReport | None:
        """What is recorded of an attempt; or None, and should it still come it is not begun.

        Raises LedgerError: then nothing is known of it.
        """
        return await self._run(lambda: self._transaction(lambda: self._disown(operation, step, attempt)))

    async def running(self) -> list[Attempt]:
        """Attempts without an end: after a start, those that ran when the agent died. Raises LedgerError."""
        return await self._run(self._running)

    # -- inside the thread -----------------------------------------------------------------------

    async def _run(self, function: Callable[[], T], *, too_late: Callable[[], None] = lambda: None) -> T:
        """`too_late` runs right behind a `function` that ended after its deadline, before any other call."""
        if self._hanging is not None and not self._hanging.done():
            raise LedgerError("the ledger cannot be used: an earlier call still hangs: see dmesg")
        work = self._thread.submit(function)
        try:
            try:
                async with asyncio.timeout(self._deadline_s):
                    return await asyncio.shield(asyncio.wrap_future(work))
            except TimeoutError:
                if work.done():  # the event loop was late, not the disk: what was done counts
                    return work.result()
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger cannot be used: {error}") from error
        # A call that has not begun never will; the one that hangs may still have its effect.
        if not work.cancel() and (self._hanging is None or self._hanging.done()):
            self._hanging = self._thread.submit(too_late)
        raise LedgerError(f"the ledger cannot be used: no answer in {self._deadline_s:g} s")

    def _transaction(self, function: Callable[[], T]) -> T:
        self._database.execute("begin immediate")
        try:
            result = function()
            self._database.execute("commit")
        except BaseException:
            if self._database.in_transaction:  # SQLite itself rolls back on a full disk
                self._database.execute("rollback")
            raise
        return result

    def _admit(self, attempt: Attempt) -> Admission:
        self._admitted += 1
        if self._admitted % PRUNE_EVERY == 0:
            self._prune()
        return self._transaction(lambda: self._record(attempt))

    def _record(self, attempt: Attempt) -> Admission:
        self._obey(attempt.epoch)
        key = (attempt.operation, attempt.step, attempt.attempt)
        row = self._database.execute(
            "select body, report from attempts where operation = ? and step = ? and attempt = ?", key
        ).fetchone()
        if row is not None:
            if row[0] != _NO_BODY and read(Attempt, row[0]).command != attempt.command:
                raise DifferentCommandError(f"attempt {'/'.join(map(str, key))} was for another command")
            return Admission(fresh=False, report=read(AttemptReport, row[1]))
        newest = self._database.execute(
            "select max(attempt) from attempts where operation = ? and step = ?", key[:2]
        ).fetchone()[0]
        if newest is not None and newest > attempt.attempt:
            # Held back on its way, or in the socket of an agent that stood still: the daemon has gone on.
            raise DifferentCommandError(f"attempt {'/'.join(map(str, key))} comes after attempt {newest}")
        self._check_order(attempt)
        report = _report(key, Outcome.RUNNING)
        self._database.execute(
            "insert into attempts values (?, ?, ?, ?, ?, ?, ?, ?, null)",
            (*key, attempt.epoch, dump(attempt), report.outcome.value, dump(report), self._wall()),
        )
        return Admission(fresh=True, report=report)

    def _check_order(self, attempt: Attempt) -> None:
        if not may_be_overtaken(attempt.command):
            return
        name = f"{attempt.operation}/{attempt.step}/{attempt.attempt}"
        rows = self._database.execute(
            "select body from attempts where operation = ? and body != ?", (attempt.operation, _NO_BODY)
        )
        for (body,) in rows:
            try:
                done = read(Attempt, body)
            except BadDocument as error:  # of a newer agent: what it was cannot be known (I19)
                raise DifferentCommandError(
                    f"attempt {name} comes after one that is not understood"
                ) from error
            if overtaken(attempt.command, done.command):
                raise DifferentCommandError(f"attempt {name} comes after {done.step}/{done.attempt}")

    def _disown(self, operation: str, step: str, attempt: int) -> AttemptReport | None:
        found = self._find(operation, step, attempt)
        if found is None:
            key, now_s = (operation, step, attempt), self._wall()
            report = _report(key, Outcome.RETRYABLE, DISOWNED)
            outcome = report.outcome.value
            self._database.execute(
                "insert or ignore into attempts values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*key, self._read_epoch(), _NO_BODY, outcome, dump(report), now_s, now_s),
            )
        return found

    def _obey(self, epoch: int) -> None:
        highest = self._read_epoch()
        if epoch < highest:
            raise StaleEpochError(epoch, highest)
        if epoch > highest:
            self._database.execute("insert or replace into epoch values (1, ?)", (epoch,))

    def _finish(self, report: AttemptReport) -> None:
        self._database.execute(
            "update attempts set outcome = ?, report = ?, ended_s = ?"
            " where operation = ? and step = ? and attempt = ? and ended_s is null",
            (report.outcome.value, dump(report), self._wall(), report.operation, report.step, report.attempt),
        )

    def _find(self, operation: str, step: str, attempt: int) -> AttemptReport | None:
        row = self._database.execute(
            "select report from attempts where operation = ? and step = ? and attempt = ? and body != ?",
            (operation, step, attempt, _NO_BODY),
        ).fetchone()
        return None if row is None else read(AttemptReport, row[0])

    def _running(self) -> list[Attempt]:
        rows = self._database.execute("select body from attempts where ended_s is null order by began_s")
        return [read(Attempt, row[0]) for row in rows]

    def _read_epoch(self) -> int:
        row = self._database.execute("select highest from epoch").fetchone()
        return 0 if row is None else int(row[0])

    def _prune(self) -> None:
        self._transaction(self._delete_old)

    def _delete_old(self) -> None:
        self._database.execute("delete from attempts where ended_s < ?", (self._wall() - self._keep_s,))
        self._database.execute(
            "delete from attempts where ended_s < (select ended_s from attempts where ended_s is not null"
            " order by ended_s desc limit 1 offset ?)",
            (self._keep_rows - 1,),
        )


def _report(key: tuple[str, str, int], outcome: Outcome, *reasons: str) -> AttemptReport:
    operation, step, attempt = key
    return AttemptReport(operation=operation, step=step, attempt=attempt, outcome=outcome, reasons=reasons)


def _open(path: Path, connect: Connect) -> sqlite3.Connection:
    database = connect(path)
    version = database.execute("pragma user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        database.close()
        raise sqlite3.DatabaseError(f"written by a newer agent (schema {version})")
    database.execute("pragma journal_mode = wal")
    database.execute("pragma synchronous = full")
    database.executescript(_SCHEMA)
    database.execute(f"pragma user_version = {SCHEMA_VERSION}")
    return database
