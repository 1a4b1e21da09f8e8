"""Blocking calls in threads: bounded, each with a deadline, and never able to stop the event loop.

A call into libvirt cannot be interrupted. When its deadline passes, the caller gets `TimedOut` and goes on;
the thread stays until the call returns, and keeps its slot until then. So a hung libvirtd costs at most
`slots` threads per lane, and later callers get `NoSlot` instead of waiting for ever (I20). Threads are
daemon threads: a hung call does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_numbers = itertools.count(1)


class TimedOut(Exception):  # noqa: N818
    """The deadline passed while the call ran: whether it had its effect is not known."""


class NoSlot(Exception):  # noqa: N818
    """All slots were taken until the deadline: the call was never made."""


class Lane:
    """A number of slots for blocking calls. Belongs to one event loop."""

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self._slots = asyncio.Semaphore(slots)
        self._late = 0

    @property
    def late(self) -> int:
        """Calls past their deadline that have not returned."""
        return self._late

    async def call(self, function: Callable[[], T], *, deadline_s: float) -> T:
        """Run `function` in a thread and return its result or raise its exception.

        Raises NoSlot or TimedOut. When the caller is cancelled the call runs on, and keeps its slot.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + deadline_s
        try:
            async with asyncio.timeout_at(ends):
                await self._slots.acquire()
        except TimeoutError:
            raise NoSlot(f"no free slot for a {self.name} call in {deadline_s:g} s") from None
        future: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(lambda _: self._slots.release())
        _start(function, future, loop, self.name)
        try:
            async with asyncio.timeout_at(ends):
                return await asyncio.shield(future)
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()  # the function's own TimeoutError, or it ended in this instant
            self._late += 1
            future.add_done_callback(self._came_late)
            raise TimedOut(f"{self.name} call did not return in {deadline_s:g} s") from None
        except asyncio.CancelledError:
            future.add_done_callback(_seen)
            raise

    def _came_late(self, future: asyncio.Future[Any]) -> None:
        self._late -= 1
        _seen(future)


def _seen(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # nobody waits for it: keep asyncio from logging it as never retrieved


def _start(
    function: Callable[[], T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop, name: str
) -> None:
    def hand_over(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = context.run(function)
        except BaseException as caught:
            error = caught
        try:
            loop.call_soon_threadsafe(hand_over, result, error)
        except RuntimeError:
            return  # the loop has ended: nobody is left to be told

    context = contextvars.copy_context()
    threading.Thread(target=work, name=f"{name}-{next(_numbers)}", daemon=True).start()
