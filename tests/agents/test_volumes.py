"""Looks at volumes that hang, break, or answer an older question."""

from __future__ import annotations

import asyncio

import structlog

from agents.volumes import LATE_MAX, PARALLEL, VolumeLooks, unknown
from storage.words import DrbdVolume, Health, IscsiVolume, Volume, VolumeReport
from tests.agents.conftest import StartWorld
from tests.agents.fakes import FakeDriver, FakeHypervisor, running


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


class Broken(FakeDriver):
    """A bug in every method that looks."""

    async def volumes(self) -> tuple[Volume, ...]:
        raise ValueError("password=hunter2")

    async def reach(self, volume: Volume) -> tuple[str, ...]:
        raise ValueError("password=hunter2")

    async def inspect(self, volume: Volume) -> VolumeReport:
        raise ValueError("password=hunter2")


async def test_i19_a_bug_in_a_driver_is_unknown_and_logged_and_ends_nothing() -> None:
    (volume,) = volumes(0, 1)
    looks = VolumeLooks({"drbd": Broken()}, deadline_s=5.0)
    with structlog.testing.capture_logs() as lines:
        (report,) = await looks.inspect([volume])
        held, by_kind = await looks.held(looks.kinds)
        reasons = await looks.reach(volume)
    assert (report.health, report.identity, held) == (Health.UNKNOWN, None, ())
    for text in (*report.problems, *by_kind["drbd"], *reasons):
        assert "internal error (ValueError)" in text
        assert "hunter2" not in text
    assert [type(line["exc_info"]) for line in lines] == [ValueError] * 3


async def test_an_agent_outlives_a_bug_in_its_drivers(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u")), Broken()) as world:
        for _ in range(3):
            report = await world.client.report()
            await asyncio.sleep(0.3)
        assert [domain.uuid for domain in report.domains] == ["u"]
        assert any("internal error (ValueError)" in problem for problem in report.problems)


class Slow(FakeDriver):
    """Reads the flag at once and answers when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = asyncio.Event()
        self.reads = 0

    async def inspect(self, volume: Volume) -> VolumeReport:
        self.reads += 1
        report = await super().inspect(volume)
        await self.answer.wait()
        return report


async def test_i6_an_observe_does_not_join_a_look_that_began_before_the_question() -> None:
    """The inventory looked while the window was open; it is closed; the verification asks."""
    (volume,) = volumes(0, 1)
    driver = Slow()
    driver.open_windows.add(volume.name)
    looks = VolumeLooks({"drbd": driver}, deadline_s=5.0)
    inventory = asyncio.create_task(looks.inspect([volume]))
    await asyncio.sleep(0.05)
    driver.open_windows.clear()
    verifications = [asyncio.create_task(looks.inspect([volume])) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert driver.reads == 1  # never two at once
    driver.answer.set()
    assert (await inventory)[0].dual_primary_allowed
    for verification in verifications:
        assert not (await verification)[0].dual_primary_allowed
    assert driver.reads == 2


async def test_a_look_past_its_deadline_is_answered_for_at_once() -> None:
    (volume,) = volumes(0, 1)
    driver = Slow()
    looks = VolumeLooks({"drbd": driver}, deadline_s=0.2)
    assert (await looks.inspect([volume]))[0].health is Health.UNKNOWN
    await asyncio.sleep(0.1)
    async with asyncio.timeout(0.1):
        (report,) = await looks.inspect([volume])
    assert "has not ended" in report.problems[0]
    assert driver.reads == 1
    driver.answer.set()
    await asyncio.sleep(0.05)
    assert (await looks.inspect([volume]))[0].health is Health.OK


def test_i6_i19_what_is_not_known_of_a_replica_counts_against_it() -> None:
    """A verification that could not look must not take the window for closed."""
    (volume,) = volumes(0, 1)
    report = unknown(volume, "no answer")
    assert report.dual_primary_allowed
    assert report.sole_current_copy
    lun = IscsiVolume(portal="10.0.0.5:3260", iqn="iqn.2026-11.org.lab:t1", lun=0, device="/dev/disk/by-id/x")
    assert not unknown(lun, "no answer").dual_primary_allowed
