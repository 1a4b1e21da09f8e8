"""Looks at volumes: bounded, in parallel, and never twice at once at one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from agents.attempts.storage_steps import Drivers, driver_of
from storage.errors import OutcomeError
from storage.words import Health, Role, Volume, VolumeReport

PARALLEL = 8


class VolumeLooks:
    """Asks drivers about volumes. `inspect` and `reach` never raise: what is not known is said so."""

    def __init__(self, drivers: Drivers, *, deadline_s: float) -> None:
        self._drivers = drivers
        self._deadline_s = deadline_s
        self._slots = asyncio.Semaphore(PARALLEL)
        self._hanging: dict[str, asyncio.Task[VolumeReport]] = {}

    async def held(self) -> tuple[tuple[Volume, ...], tuple[str, ...]]:
        """Every volume the drivers know of on this host, and the problems met."""
        volumes: list[Volume] = []
        problems: list[str] = []
        for kind, driver in self._drivers.items():
            try:
                async with asyncio.timeout(self._deadline_s):
                    volumes.extend(await driver.volumes())
            except OutcomeError as error:
                problems.extend(f"{kind}: {reason}" for reason in error.reasons)
            except TimeoutError:
                problems.append(f"{kind}: no answer in {self._deadline_s:g} s")
        return tuple(volumes), tuple(problems)

    async def inspect(self, volumes: Iterable[Volume]) -> tuple[VolumeReport, ...]:
        """One report per volume, by name; UNKNOWN for one that does not answer in time."""
        unique = {volume.name: volume for volume in volumes}
        found = await asyncio.gather(*(self._inspect(volume) for volume in unique.values()))
        return tuple(sorted(found, key=lambda report: report.volume.name))

    async def reach(self, volume: Volume) -> tuple[str, ...]:
        """Why this host could not open the volume; empty when it could."""
        try:
            async with asyncio.timeout(self._deadline_s), self._slots:
                return await driver_of(self._drivers, volume).reach(volume)
        except OutcomeError as error:
            return tuple(error.reasons)
        except TimeoutError:
            return (f"{volume.name}: no answer in {self._deadline_s:g} s",)

    async def _inspect(self, volume: Volume) -> VolumeReport:
        task = self._hanging.get(volume.name)
        if task is None:
            task = asyncio.create_task(self._look(volume), name=f"inspect {volume.name}")
            self._hanging[volume.name] = task
            task.add_done_callback(lambda ended: self._ended(volume.name, ended))
        try:
            async with asyncio.timeout(self._deadline_s):
                return await asyncio.shield(task)
        except TimeoutError:
            return unknown(volume, f"no answer in {self._deadline_s:g} s")
        except OutcomeError as error:
            return unknown(volume, *error.reasons)

    def _ended(self, name: str, task: asyncio.Task[VolumeReport]) -> None:
        """Its error is taken note of here too: everyone who asked may have given up by now."""
        self._hanging.pop(name, None)
        if not task.cancelled():
            task.exception()

    async def _look(self, volume: Volume) -> VolumeReport:
        driver = driver_of(self._drivers, volume)
        async with self._slots:
            return await driver.inspect(volume)


def unknown(volume: Volume, *problems: str) -> VolumeReport:
    """Nothing is known of the volume, which is never safe (I19)."""
    return VolumeReport(
        volume=volume,
        role=Role.UNKNOWN,
        health=Health.UNKNOWN,
        identity=None,
        size_bytes=None,
        problems=problems,
    )
