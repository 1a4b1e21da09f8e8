"""An event loop in virtual time: sleeping costs nothing, order is deterministic, a deadlock is an error.

It knows processes: whatever is scheduled from within a `Life` belongs to it, and once that life is over
none of it runs any more, not even a `finally`. That is what kill -9 does, between any two callbacks.
No threads and no sockets: what would run in an executor without a loop of its own runs at once, inline.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

EPSILON_S = 1e-9
UNWIND_ROUNDS = 30
MANY_CANCELLED = 100  # timers; deadlines that were met stay in the heap until their time


class Deadlock(Exception):  # noqa: N818 - what it is
    """Nothing is scheduled and nothing can happen any more: some wait has no end."""


@dataclass(eq=False)
class Life:
    """One process from its start to its death. `steps_left`: callbacks until `on_last_step` is called."""

    name: str
    dead: bool = False
    stalled: bool = False  # SIGSTOP, a swapping host: nothing runs, and nothing is lost
    steps_left: int | None = None
    on_last_step: Callable[[], None] = lambda: None
    context: Context = field(default_factory=Context)
    at_death: list[Callable[[], None]] = field(default_factory=list)
    frozen: list[asyncio.Handle] = field(default_factory=list)  # what would have run since its end

    def __post_init__(self) -> None:
        self.context.run(LIFE.set, self)

    def spawn(self, work: Coroutine[Any, Any, T], name: str = "") -> asyncio.Task[T]:
        """Run `work` inside this process. A dead process runs nothing."""
        loop = asyncio.get_running_loop()
        return loop.create_task(work, name=name or self.name, context=self.context)

    def end(self) -> None:
        """From now on nothing of it runs. Safe to repeat."""
        if not self.dead:
            self.dead = True
            for tell in self.at_death:
                tell()

    def thaw(self, loop: VirtualLoop) -> None:
        """Go on where it stood: after a stall, or to be unwound when the run is over."""
        self.dead = self.stalled = False
        loop._ready.extend(self.frozen)
        self.frozen.clear()

    def step(self) -> None:
        """One of its callbacks has run."""
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left <= 0:
                self.steps_left = None
                self.on_last_step()


LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


class NumberedTask(asyncio.Task[Any]):
    """Its hash is its number, not its address: asyncio's sets of tasks have the same order in every run."""

    number: int

    def __new__(cls, *_: Any, loop: VirtualLoop, **__: Any) -> NumberedTask:
        task = super().__new__(cls)
        loop.tasks += 1
        task.number = loop.tasks
        return task

    def __hash__(self) -> int:
        return self.number


class OrderedTimer(asyncio.TimerHandle):
    """Of two timers for one instant the older one is first."""

    __slots__ = ("order",)
    order: int
    _when: float
    _scheduled: bool

    def __lt__(self, other: OrderedTimer) -> bool:  # type: ignore[override]  # a heap of these only
        if self._when != other._when:
            return self._when < other._when
        return self.order < other.order


class VirtualLoop(asyncio.SelectorEventLoop):
    """Replaces the heart of asyncio's loop (BaseEventLoop._run_once of Python 3.11) and keeps the rest."""

    _ready: Any
    _scheduled: Any
    _stopping: bool
    _timer_cancelled_count: int

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.tasks = self.timers = 0
        super().__init__()
        self.set_task_factory(lambda loop, work, **more: NumberedTask(work, loop=loop, **more))

    def time(self) -> float:
        return self.now_s

    def call_at(  # type: ignore[override]  # typeshed's signature is variadic
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = OrderedTimer(when, callback, args, self, context)
        self.timers += 1
        timer.order = self.timers
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector: there is nobody to wake."""

    def run_in_executor(  # type: ignore[override]  # typeshed's signature is variadic
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Without an executor (asyncio.to_thread): at once. A given one must not use threads."""
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # handed over, as a thread would
            future.set_exception(error)
        return future

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        if self._timer_cancelled_count > MANY_CANCELLED and 2 * self._timer_cancelled_count > len(scheduled):
            scheduled[:] = [handle for handle in scheduled if not handle._cancelled]
            heapq.heapify(scheduled)
            self._timer_cancelled_count = 0
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready and not self._stopping:
            if not scheduled:
                raise Deadlock("every task waits, and no timer runs")
            self.now_s = max(self.now_s, scheduled[0]._when)
        end_s = self.now_s + EPSILON_S
        while scheduled and scheduled[0]._when <= end_s:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            life = handle._context.get(LIFE)
            if life is None:
                handle._run()
            elif life.dead or life.stalled:
                life.frozen.append(handle)
            else:
                handle._run()
                life.step()


async def unwind(lives: Iterable[Life]) -> None:
    """End every other task of the loop, those of dead processes too. For the end of a run."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    for life in lives:
        life.thaw(loop)
    here = asyncio.current_task()
    for _ in range(UNWIND_ROUNDS):
        left = [task for task in asyncio.all_tasks() if task is not here]
        if not left:
            return
        for task in left:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]


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
