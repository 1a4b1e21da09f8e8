"""The journal: an append-only SQLite file. What is not in it did not get decided.

WAL with synchronous=FULL: a row is on the disk when `append` returns (sqlite.org/pragma.html), and the
executor acts only after that. Rows are never changed: triggers refuse it; whole operations that have ended
go by `drop` alone. One thread works on the file (`migrd.journal_file`), so that an fsync never holds up the
event loop; rows that arrive meanwhile share the next transaction. Secrets never reach it: events carry names
of volumes and hosts, and none of the commands takes a password (I17).

A disk that hangs is noticed (I20): a call that has not ended after its deadline makes the journal read-only.
Nothing is queued behind it: whoever waits for his turn, or comes later, is refused at once, and what he
wanted never began. Whether the rows of the call itself become durable nobody knows before it has ended, so
whoever asked for them is told then, and not before: refused too early, the executor would write the same
event again, and a journal that has it twice cannot be followed. docs/SAFETY.md has the argument.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import structlog

from migrd.journal_file import (
    MAX_BYTES,
    Connect,
    Entry,
    JournalFile,
    NewLife,
    connect_file,
    new_life,
    take_lock,
)
from migrd.journal_thread import JournalThread
from migrd.ports import JournalError, JournalReadOnly, Row
from migrd.projection import Record
from migrd.sagas.events import Event

T = TypeVar("T")

log = structlog.get_logger("migrd.journal")

DEADLINE_S = 10.0  # above SQLite's own busy timeout, and above what 50 operations take to be dropped
START_DEADLINE_S = 60.0  # every page and every row is read at a start; below systemd's TimeoutStartSec


@dataclass(slots=True)
class _Pending:
    entry: Entry
    done: asyncio.Future[Row]


class Journal:
    """Use `await Journal.open(path)`; `close()` at the end. Implements `migrd.ports.JournalPort`."""

    def __init__(
        self,
        file: JournalFile,
        lock: TextIO,
        thread: Executor,
        *,
        deadline_s: float = DEADLINE_S,
        start_deadline_s: float = START_DEADLINE_S,
    ) -> None:
        self._file = file
        self._lock = lock
        self._thread = thread
        self._deadline_s = deadline_s
        self._start_deadline_s = start_deadline_s
        self._turn = asyncio.Lock()
        self._work: asyncio.Future[Any] | None = None  # what the thread was given last
        self._pending: list[_Pending] = []
        self._flusher: asyncio.Task[None] | None = None
        self._read_only = ""

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        max_bytes: int = MAX_BYTES,
        deadline_s: float = DEADLINE_S,
        start_deadline_s: float = START_DEADLINE_S,
        executor: Executor | None = None,
        connect: Connect = connect_file,
        lock_file: Callable[[Path], TextIO] = take_lock,
        life: NewLife = new_life,
    ) -> Journal:
        """Lock the file, count this start (the epoch, durable before anything else), be ready.

        `max_bytes`: the file grows no further; then the journal is read-only. `deadline_s`: of each call,
        `start_deadline_s`: of those that read all there is. `executor` (one worker, owned by the journal from
        here on), `connect`, `lock_file` and `life` (a random name) are the seams for a disk of the simulator.
        Raises JournalError.
        """
        thread = executor or JournalThread()

        def opened() -> tuple[JournalFile, TextIO]:
            lock = lock_file(path)
            try:
                return JournalFile.open(path, max_bytes=max_bytes, life=life(), connect=connect), lock
            except BaseException:
                lock.close()
                raise

        try:
            work = asyncio.get_running_loop().run_in_executor(thread, opened)
            if not await _ended(work, start_deadline_s):
                raise JournalError(f"{path} cannot be opened: {_hung(start_deadline_s)}")  # noqa: TRY301 - one way out
            file, lock = work.result()
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(file, lock, thread, deadline_s=deadline_s, start_deadline_s=start_deadline_s)

    @property
    def epoch(self) -> int:
        return self._file.epoch

    @property
    def read_only(self) -> str:
        return self._read_only

    def life(self, seq: int) -> str:
        """See JournalPort."""
        lives = self._file.lives
        return lives[max(bisect_right(lives, seq, key=lambda one: one[0]) - 1, 0)][1]

    async def ended(self) -> Sequence[Record]:
        """See JournalPort. Raises JournalError."""
        return await self._read(self._file.ended)

    async def load(self, skip: Container[str] = ()) -> Sequence[Row]:
        """Every row, oldest first, but those of operations in `skip`. Raises JournalError for a row that
        this version cannot read, or that is not as it was written; rows that are skipped are checked too."""
        return await self._read(lambda: self._file.rows(skip))

    async def append(self, operation: str, event: Event, at_s: float) -> Row:
        """Durable when it returns. Raises JournalReadOnly; then the file is as if it had never been asked.

        Except when machine or daemon die before the next probe: a row whose sync failed may then be found.
        While the call that writes the row hangs there is no answer; see the module.
        """
        if self._read_only:
            raise JournalReadOnly(self._read_only)
        done: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(Entry(operation=operation, event=event, at_s=at_s), done))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush(), name="journal flush")
        return await done

    async def condense(self, records: Sequence[Record]) -> None:
        """See JournalPort. Raises JournalReadOnly."""
        await self._write(lambda: self._file.condense(records))

    async def drop(self, operations: Sequence[str]) -> None:
        """See JournalPort. Also tried while the journal is read-only: it may be what makes room."""

        def drop() -> None:
            if self._read_only:  # in its turn: what came before it may have failed
                self._file.verify()
            self._file.drop(operations)

        await self._write(drop, even_if_read_only=True)

    async def probe(self) -> None:
        """Try to write, to learn whether a read-only journal can be written again. Never raises."""
        try:
            work = await self._call(self._file.trial, self._deadline_s)
        except JournalReadOnly:
            return  # an earlier call still hangs
        if not work.done():
            return
        try:
            work.result()
        except (sqlite3.Error, JournalReadOnly) as error:
            self._refuse(_why(error))
        else:
            self._read_only = ""

    async def close(self) -> None:
        """Finish what is being written, and let another daemon have the file.

        A call that hangs is left behind, and with it the lock: the file is ours until the process has ended.
        """
        unfinished = [one for one in (self._flusher, self._work) if one is not None]
        if unfinished:
            await asyncio.wait(unfinished, timeout=self._deadline_s)
        with contextlib.suppress(JournalReadOnly):  # an earlier call still hangs
            work = await self._call(self._file.close, self._deadline_s)
            if work.done():
                work.result()
                self._thread.shutdown(wait=True)
                self._lock.close()
                return
        log.warning("journal-not-closed", why=self._read_only)
        self._thread.shutdown(wait=False)

    async def _flush(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            entries = [item.entry for item in batch]
            try:
                numbers = await self._write(lambda entries=entries: self._file.append(entries))  # type: ignore[misc]
            except JournalReadOnly as error:
                _refuse_all(batch, str(error))
                continue
            for seq, item in zip(numbers, batch, strict=True):
                if not item.done.done():
                    one = item.entry
                    item.done.set_result(
                        Row(seq=seq, operation=one.operation, event=one.event, at_s=one.at_s)
                    )

    async def _write(self, function: Callable[[], T], *, even_if_read_only: bool = False) -> T:
        """Returns or raises when `function` has ended, however long it hangs: only then is its effect known.

        After a failure nothing more is written until a probe has shown what the file says.
        """
        try:
            work = await self._call(function, self._deadline_s, even_if_read_only=even_if_read_only)
            if not work.done():  # not `await work`: whoever waits may be cancelled, what hangs goes on
                await asyncio.wait({work})
            return work.result()
        except sqlite3.Error as error:
            self._refuse(_why(error))
            raise JournalReadOnly(self._read_only) from None

    async def _read(self, function: Callable[[], T]) -> T:
        """At a start: who cannot read does not begin. Raises JournalError."""
        try:
            work = await self._call(function, self._start_deadline_s)
        except JournalReadOnly as error:
            raise JournalError(str(error)) from None
        if not work.done():
            raise JournalError(f"the journal cannot be read: {_hung(self._start_deadline_s)}")
        return work.result()

    async def _call(
        self, function: Callable[[], T], deadline_s: float, *, even_if_read_only: bool = True
    ) -> asyncio.Future[T]:
        """In the journal's thread; the one place that goes there. What it returns has ended, or hangs.

        Raises JournalReadOnly: then `function` never begins.
        """
        async with self._turn:
            hangs = self._work is not None and not self._work.done()
            if hangs or (self._read_only and not even_if_read_only):
                raise JournalReadOnly(self._read_only or "the journal is being closed")
            work = asyncio.get_running_loop().run_in_executor(self._thread, function)
            self._work = work
            if not await _ended(work, deadline_s):
                self._refuse(f"the journal cannot be written: {_hung(deadline_s)}")
        return work

    def _refuse(self, why: str) -> None:
        """Read-only from here on. What has not reached the thread never will."""
        self._read_only = why
        waiting, self._pending = self._pending, []
        _refuse_all(waiting, why)


def _refuse_all(items: Sequence[_Pending], why: str) -> None:
    for item in items:
        if not item.done.done():
            item.done.set_exception(JournalReadOnly(why))


async def _ended(work: asyncio.Future[Any], deadline_s: float) -> bool:
    """Wait so long; it goes on whatever becomes of the waiting."""
    work.add_done_callback(_heard)
    await asyncio.wait({work}, timeout=deadline_s)
    return work.done()


def _heard(work: asyncio.Future[Any]) -> None:
    if not work.cancelled():
        work.exception()  # perhaps nobody waits for it: keep asyncio from logging it as never retrieved


def _hung(deadline_s: float) -> str:
    return f"the disk has not answered for {deadline_s:g} s: see dmesg"


def _why(error: Exception) -> str:
    return f"the journal cannot be written: {error}"
