"""Looks at volumes: bounded, in parallel, and never twice at once at one that hangs.

A look keeps one of `PARALLEL` slots for at most `HOLD_S`: volumes that hang slow the others down once, and
stall them never. What goes on without a slot is bounded by the number of volumes and by `LATE_MAX` (I20).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from agents.attempts.storage_steps import Drivers, driver_of
from storage.errors import OutcomeError, Retryable
from storage.words import DrbdVolume, Health, Role, Volume, VolumeReport

log = structlog.get_logger()

PARALLEL = 8
HOLD_S = 2.0
LATE_MAX = 64


@dataclass(frozen=True, slots=True)
class Look:
    """A look at one volume that has not ended. `began_s` is the event loop's clock."""

    task: asyncio.Task[VolumeReport]
    began_s: float


class VolumeLooks:
    """Asks drivers about volumes. `inspect` and `reach` never raise: what is not known is said so."""

    def __init__(self, drivers: Drivers, *, deadline_s: float, hold_s: float = HOLD_S) -> None:
        self._drivers = drivers
        self._deadline_s = deadline_s
        self._hold_s = hold_s
        self._slots = asyncio.Semaphore(PARALLEL)
        self._late = 0  # looks that go on without a slot
        self._looking: dict[str, Look] = {}

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of volumes that this host can look at."""
        return frozenset(self._drivers)

    async def held(self, kinds: Collection[str]) -> tuple[tuple[Volume, ...], Mapping[str, tuple[str, ...]]]:
        """Every volume of these kinds that the drivers know of on this host, and the problems met by kind."""
        volumes: list[Volume] = []
        problems: dict[str, tuple[str, ...]] = {}
        for kind, driver in self._drivers.items():
            if kind not in kinds:
                continue
            problems[kind] = ()
            try:
                async with asyncio.timeout(self._deadline_s):
                    volumes.extend(await driver.volumes())
            except OutcomeError as error:
                problems[kind] = tuple(f"{kind}: {reason}" for reason in error.reasons)
            except TimeoutError:
                problems[kind] = (f"{kind}: no answer in {self._deadline_s:g} s",)
            except Exception as error:
                problems[kind] = (f"{kind}: {_bug(error)}",)
        return tuple(volumes), problems

    async def inspect(self, volumes: Iterable[Volume]) -> tuple[VolumeReport, ...]:
        """One report per volume, by name; UNKNOWN for one that does not answer in time.

        Every look began after the question: an older one may have seen the flag before it was cleared.
        """
        unique = {volume.name: volume for volume in volumes}
        found = await asyncio.gather(*(self._inspect(volume) for volume in unique.values()))
        return tuple(sorted(found, key=lambda report: report.volume.name))

    async def reach(self, volume: Volume) -> tuple[str, ...]:
        """Why this host could not open the volume; empty when it could."""
        try:
            async with asyncio.timeout(self._deadline_s), self._slot():
                return await driver_of(self._drivers, volume).reach(volume)
        except OutcomeError as error:
            return tuple(error.reasons)
        except TimeoutError:
            return (f"{volume.name}: no answer in {self._deadline_s:g} s",)
        except Exception as error:
            return (f"{volume.name}: {_bug(error)}",)

    async def _inspect(self, volume: Volume) -> VolumeReport:
        asked_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._deadline_s):
                look = self._look_at(volume)
                while look.began_s < asked_s:
                    hangs_s = asked_s - look.began_s
                    if hangs_s > self._deadline_s:
                        return unknown(volume, f"a look that began {hangs_s:.0f} s ago has not ended")
                    await asyncio.wait({look.task})
                    look = self._look_at(volume)
                return await asyncio.shield(look.task)
        except TimeoutError:
            return unknown(volume, f"no answer in {self._deadline_s:g} s")
        except OutcomeError as error:
            return unknown(volume, *error.reasons)
        except Exception as error:
            return unknown(volume, _bug(error))

    def _look_at(self, volume: Volume) -> Look:
        """The look that goes on, else a new one: never two at once."""
        look = self._looking.get(volume.name)
        if look is None or look.task.done():
            task = asyncio.create_task(self._look(volume), name=f"inspect {volume.name}")
            look = self._looking[volume.name] = Look(task, asyncio.get_running_loop().time())
            task.add_done_callback(lambda task: self._ended(volume.name, task))
        return look

    def _ended(self, name: str, task: asyncio.Task[VolumeReport]) -> None:
        if name in self._looking and self._looking[name].task is task:
            del self._looking[name]
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it any more: keep asyncio from complaining

    async def _look(self, volume: Volume) -> VolumeReport:
        driver = driver_of(self._drivers, volume)
        async with self._slot():
            return await driver.inspect(volume)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """A slot that is lost after `hold_s`. Raises Retryable when too many go on without one."""
        if self._late >= LATE_MAX:
            raise Retryable(f"{self._late} looks at volumes hang on this host")
        await self._slots.acquire()
        is_late = False

        def go_on_without() -> None:
            nonlocal is_late
            is_late = True
            self._late += 1
            self._slots.release()

        timer = asyncio.get_running_loop().call_later(self._hold_s, go_on_without)
        try:
            yield
        finally:
            timer.cancel()
            if is_late:
                self._late -= 1
            else:
                self._slots.release()


def _bug(error: Exception) -> str:
    """A bug in a driver must not end the agent: its kind is told (I17), the log has the rest."""
    log.error("a storage driver failed by a bug", exc_info=error)
    return f"internal error ({type(error).__name__}); the agent's log has the traceback"


def unknown(volume: Volume, *problems: str) -> VolumeReport:
    """Nothing is known of the volume, never safe (I19): its window may be open, its copy the last one."""
    replicated = isinstance(volume, DrbdVolume)
    return VolumeReport(
        volume=volume,
        role=Role.UNKNOWN,
        health=Health.UNKNOWN,
        identity=None,
        size_bytes=None,
        dual_primary_allowed=replicated,
        sole_current_copy=replicated,
        problems=problems,
    )
