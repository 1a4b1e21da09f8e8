"""I7: while a guest migrates, its replication is watched; a break aborts the move and costs nothing."""

from __future__ import annotations

import asyncio

import pytest

from agents.attempts.mirror import BLIND_LOOKS_MAX, Sight, judge
from agents.hypervisor.words import Job
from agents.protocol import Attempt, AttemptReport, DomainState, MigrateDomain, MigrationProgress, Outcome
from agents.wire import read
from storage.errors import Retryable, Unknown
from storage.words import DrbdVolume, Handover, IscsiVolume, Side, Volume
from tests.agents.conftest import StartWorld, World
from tests.agents.fakes import FakeHypervisor, running

R0 = DrbdVolume(resource="r0", volume_nr=0, minor=0, nodes=("h1", "h2"))
LUN = IscsiVolume(portal="10.0.0.5:3260", iqn="iqn.2026-11.org.lab:t1", lun=0, device="/dev/disk/by-path/x")
HANDOVER = Handover(operation="op", domain_uuid="u", side=Side.SOURCE, peer_node="h2")


def move(*volumes: Volume) -> Attempt:
    command = MigrateDomain(
        uuid="u",
        target_uri="qemu+tls://h2/system",
        target_address="tcp://10.0.1.12",
        volumes=volumes,
        handover=HANDOVER,
    )
    return Attempt(operation="op", step="migrate", attempt=1, epoch=1, command=command)


def slow() -> FakeHypervisor:
    """A copy that takes far longer than the tests wait."""
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.migration_steps, hypervisor.step_s = 400, 0.02
    return hypervisor


async def end_of(world: World) -> AttemptReport:
    report = await world.client.wait("op", "migrate", 1, 20.0)
    assert report.outcome is not Outcome.RUNNING
    return report


@pytest.mark.parametrize(
    ("sights", "aborts"),
    [
        ([Sight()] * 9, False),
        ([Sight(apart=("r0 is not connected",))], True),
        ([Sight(), Sight(apart=("4 KiB are out of sync",), blind=("r1: no answer",))], True),
        ([Sight(blind=("no answer",))] * (BLIND_LOOKS_MAX - 1), False),
        ([Sight(blind=("no answer",))] * BLIND_LOOKS_MAX, True),
        ([Sight(blind=("no answer",)), Sight(blind=("no answer",)), Sight()] * 4, False),
    ],
)
def test_one_broken_look_aborts_and_blind_ones_only_in_a_row(sights: list[Sight], aborts: bool) -> None:
    blind, reasons = 0, ()
    for sight in sights:
        assert not reasons
        blind, reasons = judge(sight, blind)
    assert bool(reasons) is aborts


async def test_i7_a_link_that_breaks_during_the_copy_aborts_the_migration(start: StartWorld) -> None:
    async with start(slow()) as world:
        await world.client.submit(move(R0))
        await asyncio.sleep(0.3)
        assert "abort u" not in world.hypervisor.calls
        world.driver.apart = ("DRBD resource r0 is not connected to h2 (Connecting)",)
        report = await end_of(world)
        assert report.outcome is Outcome.UNKNOWN
        assert report.reasons[:2] == (
            "aborted: the target's copy may miss writes (I7)",
            world.driver.apart[0],
        )
        assert world.hypervisor.domains["u"].facts.state is DomainState.RUNNING


async def test_i7_a_replication_that_stays_out_of_sight_aborts_the_migration(start: StartWorld) -> None:
    async with start(slow()) as world:
        await world.client.submit(move(R0))
        await asyncio.sleep(0.2)
        world.driver.fail[("apart", "drbd:r0/0")] = Unknown("drbdsetup did not end")
        report = await end_of(world)
        assert "could not be seen 3 times in a row" in report.reasons[1]
        assert "drbdsetup did not end" in report.reasons


async def test_i7_a_look_that_hangs_holds_up_neither_progress_nor_an_abort(start: StartWorld) -> None:
    async with start(slow()) as world:
        await world.client.submit(move(R0))
        await asyncio.sleep(0.2)
        world.driver.block = asyncio.Event()
        await asyncio.sleep(0.3)
        before = (await world.client.wait("op", "migrate", 1, 0)).result.progress
        await asyncio.sleep(0.4)
        after = (await world.client.wait("op", "migrate", 1, 0)).result.progress
        assert before is not None
        assert after is not None
        assert after.memory_processed_bytes > before.memory_processed_bytes
        await world.client.abort("op", "migrate", 1, epoch=1)
        assert (await end_of(world)).reasons[0] == "aborted on request"


@pytest.mark.parametrize("cause", ["replication", "request"])
async def test_i7_no_abort_waits_for_a_libvirt_that_is_slow_to_tell_of_the_job(
    start: StartWorld, cause: str
) -> None:
    """Simulator, seed 302183374846: the switch-over was faster than that answer."""
    hypervisor = slow()
    async with start(hypervisor) as world:
        await world.client.submit(move(R0))
        await asyncio.sleep(0.2)
        hypervisor.job_told = asyncio.Event()
        await asyncio.sleep(0.2)
        if cause == "replication":
            world.driver.apart = ("r0 is not connected",)
        else:
            await world.client.abort("op", "migrate", 1, epoch=1)
        await asyncio.sleep(0.5)
        assert "abort u" in hypervisor.calls
        hypervisor.job_told.set()
        assert (await end_of(world)).outcome is Outcome.UNKNOWN


async def test_i7_nothing_is_sent_while_the_replication_is_broken_or_out_of_sight(start: StartWorld) -> None:
    async with start(slow()) as world:
        world.driver.apart = ("r0: 4 KiB are out of sync with h2",)
        await world.client.submit(move(R0))
        report = await end_of(world)
        assert (report.outcome, report.reasons) == (Outcome.REFUSED, world.driver.apart)
        assert world.hypervisor.calls == []
    async with start(slow()) as world:
        world.driver.fail[("apart", "drbd:r0/0")] = Retryable("cut")
        await world.client.submit(
            Attempt(operation="op", step="migrate", attempt=2, epoch=1, command=move(R0).command)
        )
        report = await world.client.wait("op", "migrate", 2, 20.0)
        assert report.outcome is Outcome.RETRYABLE
        assert world.hypervisor.calls == []


async def test_i7_a_copy_that_has_not_begun_when_the_replication_breaks_never_does(start: StartWorld) -> None:
    """Simulator, seed 276890224113: libvirt was slow, and the abort found no job to end."""
    hypervisor = slow()
    hypervisor.begins_after_s = 1.0
    async with start(hypervisor) as world:
        await world.client.submit(move(R0))
        await asyncio.sleep(0.2)
        world.driver.apart = ("r0 is not connected",)
        report = await end_of(world)
        assert report.outcome is Outcome.UNKNOWN
        assert "aborted before it began" in report.reasons
        assert await hypervisor.job("u") is None


async def test_a_bug_in_the_look_counts_as_blind(start: StartWorld) -> None:
    async with start(slow()) as world:
        await world.client.submit(move(R0))
        await asyncio.sleep(0.2)
        world.driver.fail[("apart", "drbd:r0/0")] = ZeroDivisionError("bug")
        assert "drbd:r0/0: internal error (ZeroDivisionError)" in (await end_of(world)).reasons


async def test_only_replicated_volumes_are_watched(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u"))) as world:
        world.driver.apart = ("never asked",)
        await world.client.submit(move(LUN))
        assert (await end_of(world)).outcome is Outcome.DONE


async def test_i7_an_adopted_migration_is_watched_too(start: StartWorld) -> None:
    async with start(slow()) as world:
        await world.client.submit(move(R0))
        await asyncio.sleep(0.2)
    reborn = FakeHypervisor(running("u", job=True))
    reborn.set_job("u", Job(outgoing=True, progress=MigrationProgress()))
    async with start(reborn) as world:
        world.driver.apart = ("r0 is not connected",)
        for _ in range(100):
            if "abort u" in reborn.calls:
                break
            await asyncio.sleep(0.05)
        assert "abort u" in reborn.calls
        reborn.set_job("u", None)
        assert (await end_of(world)).outcome is Outcome.UNKNOWN


def test_a_row_from_before_the_watch_still_parses() -> None:
    row = b'{"uuid":"u","target_uri":"a","target_address":"b","kind":"migrate-domain"}'
    found = read(MigrateDomain, row)
    assert (found.volumes, found.handover) == ((), None)
