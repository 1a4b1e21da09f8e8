"""Looks at volumes that hang, break, or answer an older question."""

from __future__ import annotations

import asyncio

from agents.volumes import LATE_MAX, PARALLEL, VolumeLooks
from storage.words import DrbdVolume, Health, Volume, VolumeReport
from tests.agents.fakes import FakeDriver


def volumes(first: int, count: int) -> list[DrbdVolume]:
    return [
        DrbdVolume(resource=f"r{number}", volume_nr=0, minor=number, nodes=("h1", "h2"))
        for number in range(first, first + count)
    ]


class Hangs(FakeDriver):
    """Never answers for some volumes."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        self.asked: list[str] = []

    async def inspect(self, volume: Volume) -> VolumeReport:
        self.asked.append(volume.name)
        if volume.name in self.names:
            await asyncio.Event().wait()
        return await super().inspect(volume)


async def test_i20_hung_volumes_do_not_stall_the_others() -> None:
    """As many as there are slots, and more: the others are still seen, at once from the second time on."""
    hung, well = volumes(0, PARALLEL * 2), volumes(100, 4)
    driver = Hangs(*(volume.name for volume in hung))
    looks = VolumeLooks({"drbd": driver}, deadline_s=2.0, hold_s=0.1)
    found = {report.volume: report.health for report in await looks.inspect((*hung, *well))}
    assert found == {**dict.fromkeys(hung, Health.UNKNOWN), **dict.fromkeys(well, Health.OK)}
    async with asyncio.timeout(1.0):
        assert [report.health for report in await looks.inspect(well)] == [Health.OK] * len(well)
    assert max(driver.asked.count(volume.name) for volume in hung) == 1


async def test_i20_what_hangs_is_bounded() -> None:
    hung = volumes(0, LATE_MAX + PARALLEL + 1)
    driver = Hangs(*(volume.name for volume in hung))
    looks = VolumeLooks({"drbd": driver}, deadline_s=0.5, hold_s=0.02)
    await looks.inspect(hung)
    (report,) = await looks.inspect(volumes(1000, 1))
    assert "looks at volumes hang on this host" in report.problems[0]
