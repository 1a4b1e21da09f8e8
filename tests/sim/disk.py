"""The disks of the simulated machines: databases that outlive their process, that take time, fail, hang.

Real SQLite, in memory, one connection per path, handed out again to the next life. What a database function
does is one callback of the loop, so a process dies before it or after it, never within.
"""

from __future__ import annotations

import asyncio
import io
import random
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any, Literal, TextIO

Fault = Literal["", "full", "io", "late", "hang"]
WRITTEN_SHARE = 0.5  # of the calls that hang: they have written before
_WORDS = {"full": "database or disk is full", "io": "disk I/O error", "late": "disk I/O error"}


TIDYING = ("INSERT INTO dropping", "INSERT OR REPLACE INTO ended")


class Database(sqlite3.Connection):
    """Lives on a Disk. Closing it gives up the process's handle only.

    "late": fsync failed, and all of the transaction is in the log all the same. SQLite rolls it back and
    writes the next one over it; but if the process dies before that, the next start finds it committed.
    """

    disk: Disk
    path: str
    late: list[tuple[str, Any]]
    _written: list[tuple[str, Any]]

    @property
    def tidies(self) -> bool:
        """Does its transaction forget or condense operations of the journal?"""
        return any(sql.startswith(TIDYING) for sql, _ in self._written)

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        word = sql[:6].upper()
        if word == "BEGIN ":
            self._written = []
        elif word in ("INSERT", "UPDATE", "DELETE"):
            self._written.append((sql, parameters))
        if word != "COMMIT":
            return super().execute(sql, parameters)
        self.disk.before_commit(self.path)
        if self.disk.fault in _WORDS:
            self.late = self._written if self.disk.fault == "late" else []
            raise sqlite3.OperationalError(_WORDS[self.disk.fault])
        cursor = super().execute(sql)
        self.late = []
        self.disk.after_commit(self.path, self)
        return cursor

    def executemany(self, sql: str, parameters: Iterable[Any]) -> sqlite3.Cursor:  # type: ignore[override]
        cursor = self.cursor()
        for each in parameters:
            cursor = self.execute(sql, each)
        return cursor

    def recover(self) -> None:
        """What SQLite does when a new process opens the file."""
        if self.in_transaction:
            super().execute("ROLLBACK")
        for sql, parameters in self.late:
            super().execute(sql, parameters)
        if self.late:
            self.late = []
            self.disk.after_commit(self.path, self)

    def close(self) -> None:
        """Its owner has gone; the next one rolls back what was left open, as recovery does."""


class Disk:
    """Of one machine. `fault`: every COMMIT fails, or nothing that is asked of it has an end until it heals.
    Hooks are told of commits, with the database's path."""

    def __init__(self) -> None:
        self._fault: Fault = ""
        self._hung: list[tuple[Callable[[], None], Context]] = []
        self.hung_since_s = float("inf")  # a call has no end since then
        self.before_commit: Callable[[str], None] = lambda _path: None
        self.after_commit: Callable[[str, sqlite3.Connection], None] = lambda _path, _database: None
        self._databases: dict[str, Database] = {}

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        if fault != "hang":
            going_on, self._hung = self._hung, []
            self.hung_since_s = float("inf")
            for what, context in going_on:
                asyncio.get_running_loop().call_soon(what, context=context)

    def hang(self, what: Callable[[], None]) -> None:
        """It goes on once the disk answers, unless its process is dead by then."""
        self._hung.append((what, copy_context()))
        self.hung_since_s = min(self.hung_since_s, asyncio.get_running_loop().time())

    def connect(self, path: Path) -> sqlite3.Connection:
        """See agents.ledger.Connect, migrd.journal.Connect."""
        name = str(path)
        found = self._databases.get(name)
        if found is None:
            found = sqlite3.connect(
                ":memory:", isolation_level=None, check_same_thread=False, factory=Database
            )
            found.disk, found.path, found.late, found._written = self, name, [], []
            self._databases[name] = found
        found.recover()
        return found

    def connect_again(self, path: Path) -> Database:
        """For an observer: the same connection, in whatever transaction it is."""
        return self._databases[str(path)]

    @staticmethod
    def lock(_path: Path) -> TextIO:
        """One daemon at a time is the harness's affair: the kernel frees the lock of a dead one."""
        return io.StringIO()

    def erase(self) -> None:
        """The run is over."""
        for database in self._databases.values():
            sqlite3.Connection.close(database)
        self._databases.clear()


class DiskExecutor(Executor):
    """One worker without a thread: a function runs after the write's latency, its result comes later still.

    Its timers belong to the process that asked: a process that is killed meanwhile writes nothing. While the
    disk hangs a function does not begin, or has done its work and does not return: nobody can tell which.
    """

    def __init__(self, rng: random.Random, latency_s: float, disk: Disk) -> None:
        self._rng = rng
        self._latency_s = latency_s
        self._disk = disk
        self._free_s = 0.0
        self._hangs = False  # the worker is in a function that has no end yet

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        loop = asyncio.get_running_loop()
        future: Future[Any] = Future()
        begins_s = max(loop.time(), self._free_s)
        written_s = begins_s + self._latency_s * (0.2 + self._rng.random())
        self._free_s = told_s = written_s + self._latency_s * 0.2

        def work() -> None:
            if self._hangs:
                self._disk.hang(work)
                return
            if not future.set_running_or_notify_cancel():
                return  # as a real executor: what has been cancelled does not begin, what has begun is not
            if self._disk.fault != "hang":
                loop.call_at(told_s, tell, *done())
                return
            self._hangs = True
            written = done() if self._rng.random() < WRITTEN_SHARE else None
            self._disk.hang(lambda: go_on(written))

        def go_on(written: tuple[Any, Exception | None] | None) -> None:
            self._hangs = False
            tell(*(written or done()))

        def done() -> tuple[Any, Exception | None]:
            try:
                return fn(*args, **kwargs), None
            except Exception as error:  # handed over, as a thread would
                return None, error

        def tell(result: Any, error: Exception | None) -> None:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        loop.call_at(written_s, work)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """There is nothing to join."""
