"""What is known of this host's volumes: all of them now and then, and right after a command those it touched.

A loop of its own, because the tools it asks can take seconds: what the host says of its guests, and a drain
that asks what is left, must not wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from agents.volumes import VolumeLooks, unknown
from storage.words import Volume, VolumeReport

STALE_S = 30.0  # beyond two rounds: a look bounds each of its waits well below that


@dataclass(frozen=True, slots=True)
class Seen:
    """A report, and when the look that it comes from began (event loop's clock)."""

    report: VolumeReport
    began_s: float


class VolumeInventory:
    """`reports` and `problems` are those of the last look; `run()` must run beside it.

    `whole_s` is when the last look at all volumes began that has ended.

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
        self._seen: dict[str, Seen] = {}
        self.whole_s = float("-inf")
        self.touches = 0
        self.covered = 0

    @property
    def problems(self) -> tuple[str, ...]:
        """What kept whole drivers from answering."""
        return tuple(problem for kind in sorted(self._problems) for problem in self._problems[kind])

    @property
    def reports(self) -> tuple[VolumeReport, ...]:
        """What was seen last of each volume, by name; UNKNOWN when that is too old to say anything (I19)."""
        limit_s = 2 * self._every_s + STALE_S
        return self._since(_now_s() - limit_s, f"it was not looked at for {limit_s:g} s")

    def since(self, asked_s: float) -> tuple[VolumeReport, ...]:
        """As `reports`, and UNKNOWN too when the look began before the question."""
        return self._since(asked_s, "it could not be looked at anew")

    def _since(self, at_s: float, otherwise: str) -> tuple[VolumeReport, ...]:
        found = (self._seen[name] for name in sorted(self._seen))
        return tuple(
            seen.report if seen.began_s >= at_s else unknown(seen.report.volume, otherwise) for seen in found
        )

    def demand(self) -> None:
        """Look at all volumes as soon as the present look has ended."""
        self._due_s = 0.0
        self._wake.set()

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
        began_s, touches, kinds = _now_s(), self.touches, frozenset(self._touched)
        self._touched.clear()
        self._wake.clear()
        whole = _now_s() >= self._due_s
        if whole:
            self._due_s = _now_s() + self._every_s
            kinds = self._volumes.kinds
        held, problems = await self._volumes.held(kinds)
        found = await self._volumes.inspect((*held, *(volume for volume in used if volume.kind in kinds)))
        kept = {} if whole else {n: s for n, s in self._seen.items() if s.report.volume.kind not in kinds}
        self._seen = {**kept, **{report.volume.name: Seen(report, began_s) for report in found}}
        if whole:
            self.whole_s = began_s
        self._problems = {**({} if whole else self._problems), **problems}
        self.covered = touches


def _now_s() -> float:
    return asyncio.get_running_loop().time()
