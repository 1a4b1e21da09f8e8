"""When volumes are looked at, and who waits for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from agents.attempts.runner import touched_kinds
from agents.protocol import Attempt, Command, MigrateDomain, OpenWindow, Outcome, ShutdownDomain
from agents.volume_inventory import VolumeInventory
from agents.volumes import VolumeLooks
from storage.words import DrbdVolume, Handover, Health, IscsiVolume, Side, Volume
from tests.agents.conftest import StartWorld
from tests.agents.fakes import FakeDriver, FakeHypervisor, running

R0 = DrbdVolume(resource="r0", volume_nr=0, minor=0, nodes=("h1", "h2"))
LUN = IscsiVolume(portal="10.0.0.5:3260", iqn="iqn.2026-11.org.lab:t1", lun=0, device="/dev/disk/by-id/x")
HANDOVER = Handover(operation="o", domain_uuid="u", side=Side.SOURCE, peer_node="h2")


def attempt(command: Command) -> Attempt:
    return Attempt(operation="o", step="s", attempt=1, epoch=1, command=command)


def test_what_a_command_touches() -> None:
    drivers = {"drbd": FakeDriver(), "iscsi": FakeDriver()}
    window = OpenWindow(handover=HANDOVER, volumes=(R0,))
    assert touched_kinds(attempt(window), drivers) == {"drbd"}
    assert touched_kinds(attempt(ShutdownDomain(uuid="u")), drivers) == {"drbd", "iscsi"}
    migrate = MigrateDomain(uuid="u", target_uri="qemu+tcp://h2/system", target_address="tcp://h2")
    assert not touched_kinds(attempt(migrate), drivers)


async def test_after_a_command_only_what_it_touched_is_looked_at() -> None:
    drbd, iscsi = FakeDriver(held=(R0,)), FakeDriver()
    known = VolumeInventory(VolumeLooks({"drbd": drbd, "iscsi": iscsi}, deadline_s=1.0), every_s=60.0)
    used: tuple[Volume, ...] = (LUN,)
    await known.look(used)
    assert [report.volume for report in known.reports] == [R0, LUN]
    drbd.open_windows.add(R0.name)
    known.touch({"drbd"})
    assert known.covered < known.touches
    await known.look(used)
    assert known.covered == known.touches
    assert [report.dual_primary_allowed for report in known.reports] == [True, False]
    assert (len(drbd.calls), len(iscsi.calls)) == (2, 1)


async def test_a_volume_that_is_gone_leaves_the_report() -> None:
    drbd = FakeDriver(held=(R0,))
    known = VolumeInventory(VolumeLooks({"drbd": drbd}, deadline_s=1.0), every_s=60.0)
    await known.look(())
    drbd.held = ()
    known.touch({"drbd"})
    await known.look(())
    assert known.reports == ()


async def test_a_report_after_a_storage_command_knows_what_it_did(start: StartWorld) -> None:
    """I6, I12: roles and flags of before the command are not told after it."""
    async with start(driver=FakeDriver(held=(R0,))) as world:
        ended = await world.client.submit(attempt(OpenWindow(handover=HANDOVER, volumes=(R0,))), 5.0)
        assert ended.outcome is Outcome.DONE
        assert (await world.client.report()).volumes[0].dual_primary_allowed


async def test_what_is_said_of_guests_does_not_wait_for_storage_tools(start: StartWorld) -> None:
    hypervisor = FakeHypervisor(running("u1"))
    async with start(hypervisor, FakeDriver(held=(R0,))) as world:
        world.driver.block = asyncio.Event()
        await asyncio.sleep(0.4)  # a look at all volumes has begun, and hangs
        del hypervisor.domains["u1"]
        async with asyncio.timeout(1.0):
            assert not (await world.client.report()).domains


async def test_a_volume_that_was_not_looked_at_for_long_is_unknown() -> None:
    """I19: its kind hangs, or its loop; the last good report must not be told for ever."""
    known = VolumeInventory(VolumeLooks({"drbd": FakeDriver(held=(R0,))}, deadline_s=1.0), every_s=0.1)
    await known.look(())
    assert known.reports[0].health is Health.OK
    (seen,) = known._seen.values()
    known._seen = {R0.name: replace(seen, began_s=seen.began_s - 31)}
    assert known.reports[0].health is Health.UNKNOWN
    assert known.reports[0].dual_primary_allowed


async def test_i12_a_demanded_look_begins_after_the_question(start: StartWorld) -> None:
    driver = FakeDriver(held=(R0,))
    async with start(driver=driver, storage_s=60.0) as world:
        assert not (await world.client.report()).volumes[0].dual_primary_allowed
        driver.open_windows.add(R0.name)  # by hand: no command of ours tells of it
        assert not (await world.client.report()).volumes[0].dual_primary_allowed
        assert (await world.client.report(storage=True)).volumes[0].dual_primary_allowed


async def test_i12_a_demanded_look_that_hangs_is_told_and_knows_nothing() -> None:
    driver = FakeDriver(held=(R0,))
    known = VolumeInventory(VolumeLooks({"drbd": driver}, deadline_s=60.0), every_s=60.0)
    await known.look(())
    asked_s = asyncio.get_running_loop().time()
    driver.block = asyncio.Event()
    known.demand()
    looking = asyncio.create_task(known.look(()))
    await asyncio.sleep(0.05)
    assert known.whole_s < asked_s
    assert known.reports[0].health is Health.OK  # seconds old, for who does not mind
    assert known.since(asked_s)[0].health is Health.UNKNOWN
    driver.block.set()
    await looking
    assert known.whole_s >= asked_s
    assert known.since(asked_s)[0].health is Health.OK
