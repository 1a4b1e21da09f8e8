"""An event loop in virtual time: sleeping costs nothing, order is deterministic, a deadlock is an error."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(Exception):  # noqa: N818 - what it is
    """Nothing is scheduled and nothing can happen any more: some wait has no end."""


class _Selector(selectors.SelectSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Deadlock("every task waits, and no timer runs")
            self.loop.now_s += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now_s = 1000.0
        selector = _Selector()
        super().__init__(selector)
        selector.loop = self
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self.now_s


def run(story: Coroutine[Any, Any, T], *, at_most_s: float = 100_000.0) -> T:
    """Run one story to its end; `at_most_s` of virtual time, so that a story that never ends fails."""

    async def bounded() -> T:
        async with asyncio.timeout(at_most_s):
            return await story

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(bounded())


class LoopClock:
    """migrd.ports.Clock over the running loop's time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return 1_700_000_000.0 + asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
