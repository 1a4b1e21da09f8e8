"""The journal: an append-only SQLite file. What is not in it did not get decided.

WAL with synchronous=FULL: a row is on the disk when `append` returns (sqlite.org/pragma.html), and the
executor acts only after that. Rows are never changed: triggers refuse it; whole operations that have ended
go by `drop` alone. One thread works on the file (`migrd.journal_file`), so that an fsync never holds up the
event loop; rows that arrive meanwhile share the next transaction. Secrets never reach it: events carry names
of volumes and hosts, and none of the commands takes a password (I17).
"""

from __future__ import annotations

import asyncio
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

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
from migrd.ports import JournalReadOnly, Row
from migrd.projection import Record
from migrd.sagas.events import Event

T = TypeVar("T")


@dataclass(slots=True)
class _Pending:
    entry: Entry
    done: asyncio.Future[Row]


class Journal:
    """Use `await Journal.open(path)`; `close()` at the end. Implements `migrd.ports.JournalPort`."""

    def __init__(self, file: JournalFile, lock: TextIO, thread: Executor):
        self._file = file
        self._lock = lock
        self._thread = thread
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
        lock_file: Callable[[Path], TextIO] = take_lock,
        life: NewLife = new_life,
    ) -> Journal:
        """Lock the file, count this start (the epoch, durable before anything else), be ready.

        `max_bytes`: the file grows no further; then the journal is read-only. `executor` (one worker, owned
        by the journal from here on), `connect`, `lock_file` and `life` (a random name) are the seams for a
        disk of the simulator. Raises JournalError.
        """
        thread = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")

        def opened() -> tuple[JournalFile, TextIO]:
            lock = lock_file(path)
            try:
                return JournalFile.open(path, max_bytes=max_bytes, life=life(), connect=connect), lock
            except BaseException:
                lock.close()
                raise

        try:
            file, lock = await asyncio.get_running_loop().run_in_executor(thread, opened)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(file, lock, thread)

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
        return await self._run(self._file.ended)

    async def load(self, skip: Container[str] = ()) -> Sequence[Row]:
        """Every row, oldest first, but those of operations in `skip`. Raises JournalError for a row that
        this version cannot read, or that is not as it was written; rows that are skipped are checked too."""
        return await self._run(lambda: self._file.rows(skip))

    async def append(self, operation: str, event: Event, at_s: float) -> Row:
        """Durable when it returns. Raises JournalReadOnly; then the file is as if it had never been asked.

        Except when machine or daemon die before the next probe: a row whose sync failed may then be found.
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
        doubted = bool(self._read_only)

        def drop() -> None:
            if doubted:
                self._file.verify()
            self._file.drop(operations)

        await self._write(drop, even_if_read_only=True)

    async def probe(self) -> None:
        """Try to write, to learn whether a read-only journal can be written again. Never raises."""
        try:
            await self._run(self._file.trial)
            self._read_only = ""
        except (sqlite3.Error, JournalReadOnly) as error:
            self._read_only = _why(error)

    async def close(self) -> None:
        """Finish what is being written, and let another daemon have the file."""
        if self._flusher is not None:
            await self._flusher
        await self._run(self._file.close)
        self._thread.shutdown(wait=True)
        self._lock.close()

    async def _flush(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            entries = [item.entry for item in batch]
            try:
                numbers = await self._write(lambda entries=entries: self._file.append(entries))  # type: ignore[misc]
            except JournalReadOnly as error:
                for item in batch:
                    if not item.done.done():
                        item.done.set_exception(JournalReadOnly(str(error)))
                continue
            for seq, item in zip(numbers, batch, strict=True):
                if not item.done.done():
                    one = item.entry
                    item.done.set_result(
                        Row(seq=seq, operation=one.operation, event=one.event, at_s=one.at_s)
                    )

    async def _write(self, function: Callable[[], T], *, even_if_read_only: bool = False) -> T:
        """After a failure nothing more is written until a probe has shown what the file says."""
        if self._read_only and not even_if_read_only:
            raise JournalReadOnly(self._read_only)
        try:
            return await self._run(function)
        except sqlite3.Error as error:
            self._read_only = _why(error)
            raise JournalReadOnly(self._read_only) from None

    async def _run(self, function: Callable[[], T]) -> T:
        """In the journal's thread; the one place that goes there."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _why(error: Exception) -> str:
    return f"the journal cannot be written: {error}"
