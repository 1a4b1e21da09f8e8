"""The thin shell around the sagas: one runner per operation, journal first, then act.

A runner takes events one at a time: look up the table, journal the event, take over the state, carry out
the commands. Commands run as tasks of that runner, so nothing outlives its operation. Everything decided is
in `migrd.saga`; everything outside is behind `migrd.ports`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Protocol

import structlog

from agents.protocol import MigrationProgress
from migrd import saga
from migrd.acts import Superseded
from migrd.ports import Clock, JournalPort, JournalReadOnly, Row
from migrd.projection import Record
from migrd.sagas.commands import (
    Abort,
    Call,
    CancelChild,
    Follow,
    IllegalEvent,
    ResumeChild,
    SagaCommand,
    StartMove,
)
from migrd.sagas.events import CancelRequested, Event, HandingOver, Resumed
from storage.errors import Refused, Unknown

log = structlog.get_logger("migrd.executor")

MAX_QUEUED = 10_000  # events per operation: of commands in flight, of people, one word of progress
JOURNAL_RETRY_S = 2.0
ANSWER_S = 15.0  # a person waits no longer: above the journal's deadline, below migrctl's request timeout


class Doer(Protocol):
    """Carries out one command; returns its event, or None for a command that has none."""

    async def do(
        self, operation: str, command: SagaCommand, on_progress: Callable[[MigrationProgress], None]
    ) -> Event | None: ...


class Runner:
    """One operation, from its first row (or from recovery) to its end."""

    def __init__(
        self,
        record: Record,
        commands: tuple[SagaCommand, ...],
        *,
        journal: JournalPort,
        doer: Doer,
        clock: Clock,
        changed: Callable[[Record, Row | None], None],
    ) -> None:
        self.record = record
        self._first = commands
        self._journal = journal
        self._doer = doer
        self._clock = clock
        self._changed = changed
        self._queue: asyncio.Queue[tuple[Event, asyncio.Future[None] | None]] = asyncio.Queue(MAX_QUEUED)
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._asked: set[asyncio.Future[None]] = set()  # wishes that a person waits for

    async def run(self) -> None:
        """Returns at the operation's end. Raises Superseded when a newer daemon is master."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._issue(self._first)
            while not saga.ended(self.record.state):
                event, done = await self._queue.get()
                await self._take(event, done)
            self._close()

    def post(self, event: Event) -> None:
        """Hand over an event that nobody waits for. One that comes too late is dropped with the operation."""
        if saga.ended(self.record.state):
            return
        self._queue.put_nowait((event, None))

    async def ask(self, event: Event) -> None:
        """Hand over a person's wish and wait until it is taken. Raises Refused, JournalReadOnly.

        Raises Unknown after ANSWER_S: it is being written to a disk that hangs, or waits behind what is.
        """
        if saga.ended(self.record.state):
            raise Refused(f"{self.record.id} has ended")
        if self._journal.read_only:  # it may stand still on an answer that cannot be written: do not queue up
            raise JournalReadOnly(self._journal.read_only)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.add(done)
        done.add_done_callback(self._asked.discard)
        self._queue.put_nowait((event, done))
        try:
            async with asyncio.timeout(ANSWER_S):
                await done
        except TimeoutError:
            raise Unknown(
                f"the journal does not answer, and {self.record.id} may still take it: look with "
                f"migrctl op show {self.record.id}"
            ) from None

    def abandon(self, why: str) -> None:
        """The runner's task has ended, in whatever way: nobody may wait for it any more."""
        for done in list(self._asked):
            if not done.done():
                done.set_exception(Refused(f"{self.record.id}: {why}"))

    async def _take(self, event: Event, done: asyncio.Future[None] | None) -> None:
        try:
            after, commands = saga.step(self.record.state, event)
        except IllegalEvent as error:
            # A late answer to a question that is no longer open, or a wish that makes no sense now.
            log.info("event-not-taken", operation=self.record.id, event_kind=event.kind, why=str(error))
            if done is not None and not done.done():
                done.set_exception(Refused(str(error)))
            return
        row = None
        if not saga.only_waits(self.record.state, after):
            try:
                row = await self._write(event, wait=done is None)
            except JournalReadOnly as error:
                if done is not None and not done.done():
                    done.set_exception(error)
                return
        self.record.state = after
        self.record.note(row.at_s if row is not None else self._clock.wall())
        self._changed(self.record, row)
        self._issue(commands)
        if done is not None and not done.done():
            done.set_result(None)

    async def _write(self, event: Event, *, wait: bool) -> Row:
        """Durable, or not at all. While the journal is read-only the operation stands still.

        A person is told at once (`wait` False); an answer from the world is kept until it can be written.
        """
        while True:
            try:
                return await self._journal.append(self.record.id, event, self._clock.wall())
            except JournalReadOnly as error:
                if not wait:
                    raise
                log.warning("journal-read-only", operation=self.record.id, why=str(error))
            await self._clock.sleep(JOURNAL_RETRY_S)

    def _issue(self, commands: tuple[SagaCommand, ...]) -> None:
        assert self._tasks is not None
        for command in commands:
            task = self._tasks.create_task(self._do(command), name=f"{self.record.id} {_name(command)}")
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _do(self, command: SagaCommand) -> None:
        after_s = getattr(command, "after_s", 0.0)
        if after_s > 0:
            await self._clock.sleep(after_s)
        event = await self._doer.do(self.record.id, command, self._progress)
        if event is not None:
            self.post(event)

    def _progress(self, progress: MigrationProgress) -> None:
        self.record.progress = progress
        if progress.handing_over_s > 0 and self._queue.empty():  # else there is more to do than to look again
            self.post(HandingOver(paused_s=progress.handing_over_s))
        self._changed(self.record, None)

    def _close(self) -> None:
        """The operation has ended: nothing of it goes on, and nobody is left waiting for it."""
        for task in list(self._running):
            if not task.get_name().endswith(_LAST_WORDS):
                task.cancel()
        while not self._queue.empty():
            _, done = self._queue.get_nowait()
            if done is not None and not done.done():
                done.set_exception(Refused(f"{self.record.id} has ended"))


_LAST_WORDS = (CancelChild.__name__, Abort.__name__)
"""Commands that are carried out even if the operation ends with them."""


def _name(command: SagaCommand) -> str:
    return type(command).__name__


def is_wish(event: Event) -> bool:
    """Comes from a person, who waits for the answer."""
    return isinstance(event, CancelRequested | Resumed)


Spawn = Callable[[Coroutine[None, None, None]], None]

__all__ = [
    "Call",
    "Doer",
    "Follow",
    "ResumeChild",
    "Runner",
    "Spawn",
    "StartMove",
    "Superseded",
    "is_wish",
]
