"""What is known of this host's volumes: all of them now and then, and right after a command those it touched.

A loop of its own, because the tools it asks can take seconds: what the host says of its guests, and a drain
that asks what is left, must not wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable

from agents.volumes import VolumeLooks
from storage.words import Volume, VolumeReport


class VolumeInventory:
    """`reports` and `problems` are those of the last look; `run()` must run beside it.

    `touches` counts the commands that may have changed volumes, `covered` how many of them the last look had
    behind it when it began: a report with `covered` as high as `touches` was tells of all of them.
    """

    def __init__(self, volumes: VolumeLooks, *, every_s: float) -> None:
        self._volumes = volumes
        self._every_s = every_s
        self._wake = asyncio.Event()
        self._due_s = 0.0
        self._touched: set[str] = set()
        self._problems: dict[str, tuple[str, ...]] = {}
        self.reports: tuple[VolumeReport, ...] = ()
        self.touches = 0
        self.covered = 0

    @property
    def problems(self) -> tuple[str, ...]:
        """What kept whole drivers from answering."""
        return tuple(problem for kind in sorted(self._problems) for problem in self._problems[kind])

    def touch(self, kinds: Collection[str]) -> None:
        """Volumes of these kinds may have changed: look at them now."""
        if kinds:
            self._touched.update(kinds)
            self.touches += 1
            self._wake.set()

    async def run(self, used: Callable[[], Iterable[Volume]], looked: Callable[[], None]) -> None:
        """Look at all every `every_s`, at what was touched at once. `used`: the guests' volumes."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._due_s - _now_s())):
                    await self._wake.wait()
            await self.look(used())
            looked()

    async def look(self, used: Iterable[Volume]) -> None:
        """One look at whatever is due."""
        touches, kinds = self.touches, frozenset(self._touched)
        self._touched.clear()
        self._wake.clear()
        whole = _now_s() >= self._due_s
        if whole:
            self._due_s = _now_s() + self._every_s
            kinds = self._volumes.kinds
        held, problems = await self._volumes.held(kinds)
        found = await self._volumes.inspect((*held, *(volume for volume in used if volume.kind in kinds)))
        kept = () if whole else (report for report in self.reports if report.volume.kind not in kinds)
        reports = {report.volume.name: report for report in (*kept, *found)}
        self.reports = tuple(reports[name] for name in sorted(reports))
        self._problems = {**({} if whole else self._problems), **problems}
        self.covered = touches


def _now_s() -> float:
    return asyncio.get_running_loop().time()
