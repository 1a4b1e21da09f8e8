"""Switching emptied hosts off, and bringing them back."""

from __future__ import annotations

import asyncio

import pytest

from agents.protocol import Outcome
from migrd.control import DrainRequest, MigrateRequest, UndrainRequest
from migrd.model import HostState
from migrd.operations import OperationState
from migrd.sagas.drain import MAX_ASKS
from storage.errors import Refused
from storage.words import Health
from tests.core.fake_world import GIB, World
from tests.core.harness import Cluster3
from tests.core.stories import drain, mixed_world, places
from tests.core.vloop import run


def test_power_goes_off_only_after_the_last_guest_and_comes_back_with_what_was_moved() -> None:
    """I12 is checked by the BMC at the moment of the cut; undrain moves back only what the drain moved."""

    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            ended = await drain(cluster, power_off=True)
            assert ended.state is OperationState.DONE
            assert not world.machines["h1"].powered
            assert cluster.controller.cluster().hosts["h1"].state is HostState.OFF
            moved_by_hand = await cluster.controller.migrate("web1", MigrateRequest())
            assert (await cluster.until(moved_by_hand.id)).state is OperationState.DONE
            back = await cluster.controller.undrain("h1", UndrainRequest(restore=True))
            restored = await cluster.until(back.id)
            assert restored.state is OperationState.DONE
            now = places(world)
            assert now.pop("web1") != ["h1"]
            assert all(where == ["h1"] for where in now.values())
            assert cluster.controller.cluster().hosts["h1"].state is HostState.ONLINE
            cluster.assert_clean()

    run(story())


def test_a_sole_copy_on_the_host_keeps_its_power_on() -> None:
    """I12, I10: another guest's replica there is the only current one: parked, nothing switched."""

    async def story() -> None:
        world = mixed_world()
        world.add_drbd("far", "h2", "h1")
        async with Cluster3(world) as cluster:
            world.machines["h2"].held["drbd:r5/0"].health = Health.DEGRADED
            parked = await drain(cluster, power_off=True)
            assert parked.state is OperationState.PARKED
            assert "drbd:r5/0" in parked.reason
            assert world.off_commands == []
            world.machines["h2"].held["drbd:r5/0"].health = Health.OK
            await cluster.controller.resume(parked.id)
            assert (await cluster.until(parked.id, parked=False)).state is OperationState.DONE
            cluster.assert_clean()

    run(story())


def test_the_verdict_before_a_power_off_looks_at_the_volumes_anew() -> None:
    """I12: the volumes in a fresh report may be seconds old; a replica has become the only one meanwhile."""

    async def story() -> None:
        world = mixed_world()
        world.add_drbd("far", "h2", "h1")
        async with Cluster3(world) as cluster:
            for name, agent in cluster.agents.items():
                held = world.machines[name].held.values()
                agent.seen_volumes = tuple(world.volume(name, each.volume) for each in held)
            world.machines["h2"].held["drbd:r5/0"].health = Health.DEGRADED
            reasons = (await cluster.controller._engine.placement.check_power_off("h1")).reasons
            assert any("drbd:r5/0" in reason for reason in reasons)

    run(story())


def test_a_bmc_that_does_not_answer_is_never_off() -> None:
    """I3: no status = off, no "off"."""

    async def story() -> None:
        world = mixed_world()
        world.bmc_dead.add("h1")
        async with Cluster3(world) as cluster:
            parked = await drain(cluster, power_off=True)
            assert parked.state is OperationState.PARKED
            assert "unknown: timeout" in parked.reason
            assert cluster.controller.cluster().hosts["h1"].state is HostState.DRAINING
            world.bmc_dead.clear()
            await cluster.controller.resume(parked.id)
            assert (await cluster.until(parked.id, parked=False)).state is OperationState.DONE
            assert not world.machines["h1"].powered
            cluster.assert_clean()

    run(story())


def test_power_off_of_a_host_with_guests_is_refused_with_all_reasons() -> None:
    async def story() -> None:
        async with Cluster3(mixed_world()) as cluster:
            with pytest.raises(Refused) as refused:
                await cluster.controller.power("h1", "off")
            assert "guest db1 is running" in str(refused.value)
            assert "guest web2 is running" in str(refused.value)
            assert cluster.world.off_commands == []

    run(story())


def test_what_the_bmc_and_the_guests_say_against_a_power_off_comes_together() -> None:
    """I12 is told even where there is no BMC, and while another operation holds the host."""

    async def story() -> None:
        world = mixed_world()
        world.no_bmc.add("h1")
        async with Cluster3(world) as cluster:
            world.copy_s = 50.0
            held = await cluster.controller.drain("h1", DrainRequest())
            await asyncio.sleep(5.0)
            with pytest.raises(Refused) as refused:
                await cluster.controller.power("h1", "off")
            for word in (
                f"held by {held.id}",
                "h1 has no BMC",
                "guest db1 is running",
                "guest web2 is running",
            ):
                assert word in str(refused.value)

    run(story())


def test_undrain_tells_all_that_is_against_it() -> None:
    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            await drain(cluster, power_off=True)
            world.bmc_dead.add("h1")
            held = await cluster.controller.power("h1", "on")
            world.no_bmc.add("h1")
            with pytest.raises(Refused) as refused:
                await cluster.controller.undrain("h1", UndrainRequest())
            assert len(refused.value.reasons) == 2
            for word in (f"held by {held.id}", "off and has no BMC"):
                assert word in str(refused.value)

    run(story())


def test_power_verb_off_and_on_of_an_empty_host() -> None:
    async def story() -> None:
        world = World()
        world.add_iscsi("web", "h1")
        async with Cluster3(world) as cluster:
            off = await cluster.controller.power("h3", "off")
            assert (await cluster.until(off.id)).state is OperationState.DONE
            assert cluster.controller.cluster().hosts["h3"].state is HostState.OFF
            back = await cluster.controller.undrain("h3", UndrainRequest())
            assert (await cluster.until(back.id)).state is OperationState.DONE
            assert cluster.controller.cluster().hosts["h3"].state is HostState.ONLINE
            assert world.machines["h3"].powered

    run(story())


def test_a_host_is_usable_only_after_its_replicas_are_current_again() -> None:
    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            await drain(cluster, power_off=True)
            world.machines["h1"].held["drbd:r1/0"].health = Health.SYNCING
            back = await cluster.controller.undrain("h1", UndrainRequest(restore=True))
            await asyncio.sleep(60.0)
            waiting = cluster.controller.operation(back.id)
            assert waiting.state is OperationState.RUNNING
            assert "syncing" in waiting.reason
            assert cluster.controller.cluster().hosts["h1"].state is HostState.OFF
            world.machines["h1"].held["drbd:r1/0"].health = Health.OK
            assert (await cluster.until(back.id)).state is OperationState.DONE
            assert all(where == ["h1"] for where in places(world).values())
            cluster.assert_clean()

    run(story())


def test_a_host_whose_resources_are_not_up_yet_is_not_whole() -> None:
    """Early after boot the agent answers before DRBD is up: none reported is not "all fine"."""

    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            await drain(cluster, power_off=True)
            held = world.machines["h1"].held
            late = held.pop("drbd:r1/0")
            back = await cluster.controller.undrain("h1", UndrainRequest(restore=True))
            await asyncio.sleep(60.0)
            waiting = cluster.controller.operation(back.id)
            assert waiting.state is OperationState.RUNNING
            assert "does not report its copy of drbd:r1/0" in waiting.reason
            held["drbd:r1/0"] = late
            assert (await cluster.until(back.id)).state is OperationState.DONE
            cluster.assert_clean()

    run(story())


def test_restore_of_guests_that_no_longer_fit_parks_with_the_reason_and_resumes() -> None:
    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            await drain(cluster)
            world.machines["h1"].memory_bytes = 2 * GIB
            back = await cluster.controller.undrain("h1", UndrainRequest(restore=True))
            parked = await cluster.until(back.id)
            assert parked.state is OperationState.PARKED
            assert "memory" in parked.reason
            assert sum(where == ["h1"] for where in places(world).values()) in (1, 2)
            world.machines["h1"].memory_bytes = 64 * GIB
            await cluster.controller.resume(back.id)
            assert (await cluster.until(back.id, parked=False)).state is OperationState.DONE
            assert all(where == ["h1"] for where in places(world).values())
            cluster.assert_clean()

    run(story())


def test_a_drained_host_that_was_switched_off_by_hand_is_powered_on_to_be_restored() -> None:
    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            assert (await drain(cluster)).state is OperationState.DONE
            world.cut("h1")
            await asyncio.sleep(60)
            assert cluster.controller.cluster().hosts["h1"].observed is not HostState.ONLINE
            back = await cluster.controller.undrain("h1", UndrainRequest(restore=True))
            assert (await cluster.until(back.id)).state is OperationState.DONE
            assert world.machines["h1"].powered
            assert all(where == ["h1"] for where in places(world).values())
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("copy_s", [0.02, 100.0])
@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1])
def test_a_move_that_is_still_preparing_keeps_the_power_of_its_target_on(
    after_s: float, copy_s: float
) -> None:
    """I12: no report shows it yet, and its guest may be there by the time the BMC acts (seen at 0.1 s).

    The drain waits for a short move, moves its guest on and switches off; for a long one it parks.
    """

    async def story() -> None:
        world = World()
        world.add_iscsi("web", "h1")
        world.copy_s = copy_s
        async with Cluster3(world) as cluster:
            moving = await cluster.controller.migrate("web", MigrateRequest(to="h2"))
            await asyncio.sleep(after_s)
            with pytest.raises(Refused, match=f"{moving.id} moves web from h1 to h2"):
                await cluster.controller.power("h2", "off")
            drained = await drain(cluster, host="h2", power_off=True)
            assert (drained.state is OperationState.PARKED) == (copy_s > 60)
            if drained.state is OperationState.PARKED:
                assert "web" in drained.reason
                assert "on h2" in drained.reason
                assert (await cluster.until(moving.id)).state is OperationState.DONE
                await cluster.controller.resume(drained.id)
            assert (await cluster.until(drained.id, parked=False)).state is OperationState.DONE
            assert world.where("web") in (["h1"], ["h3"])
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1])
def test_a_drain_is_not_over_while_a_guest_is_on_its_way_to_the_host(after_s: float) -> None:
    """CloudStack #2493: maintenance declared while guests remain. The move shows in no report yet."""

    async def story() -> None:
        world = World()
        world.add_iscsi("web", "h1")
        async with Cluster3(world) as cluster:
            await cluster.controller.migrate("web", MigrateRequest(to="h2"))
            await asyncio.sleep(after_s)
            drained = await drain(cluster, host="h2")
            assert drained.state is OperationState.DONE
            assert world.where("web") in (["h1"], ["h3"])
            cluster.assert_clean()

    run(story())


def test_replicas_leave_in_good_order_before_the_power_goes() -> None:
    """I5: a primary whose peer just vanishes holds its guest's writes back, 7 s were seen in the lab."""

    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            ended = await drain(cluster, power_off=True)
            assert ended.state is OperationState.DONE
            left, lost = world.trace.index("h1: disconnect-replicas"), world.trace.index("h1 loses power")
            assert left < lost
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("by", ["drain", "power"])
def test_a_host_whose_replicas_do_not_leave_keeps_its_power_and_gets_them_back(by: str) -> None:
    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            assert (await drain(cluster)).state is OperationState.DONE
            cluster.agents["h1"].script["disconnect-replicas"] = [Outcome.FAILED] * (1 + MAX_ASKS)
            if by == "drain":
                back = await cluster.controller.undrain("h1", UndrainRequest())
                await cluster.until(back.id)
                ended = await drain(cluster, power_off=True)
                assert ended.state is OperationState.PARKED
            else:
                started = await cluster.controller.power("h1", "off")
                ended = await cluster.until(started.id)
                assert ended.state is OperationState.FAILED
            assert "disconnect-replicas was told to end failed" in ended.reason
            assert world.off_commands == []
            assert world.trace[-1] == "h1: connect-replicas"

    run(story())


def test_replicas_that_leave_at_the_second_try_are_no_reason_to_wake_anyone() -> None:
    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            cluster.agents["h1"].script["disconnect-replicas"] = [Outcome.FAILED]
            assert (await drain(cluster, power_off=True)).state is OperationState.DONE
            assert not world.machines["h1"].powered
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("by", ["drain", "power"])
def test_a_copy_that_is_lost_while_the_replicas_leave_keeps_the_power_on(by: str) -> None:
    """I12: that may take a minute, and the check before it knows nothing of it."""

    async def story() -> None:
        world = mixed_world()
        world.add_drbd("far", "h2", "h1")
        async with Cluster3(world) as cluster:
            if by == "power":
                assert (await drain(cluster)).state is OperationState.DONE
            there = world.machines["h2"].held["drbd:r5/0"]

            def lose() -> None:
                there.health = Health.DEGRADED

            cluster.agents["h1"].before["disconnect-replicas"] = lose
            if by == "drain":
                ended = await drain(cluster, power_off=True)
                assert ended.state is OperationState.PARKED
            else:
                ended = await cluster.until((await cluster.controller.power("h1", "off")).id)
                assert ended.state is OperationState.FAILED
            assert "drbd:r5/0 is not known to have a current copy elsewhere" in ended.reason
            assert world.off_commands == []
            assert world.away == set()
            there.health = Health.OK
            if by == "drain":
                await cluster.controller.resume(ended.id)
                ended = await cluster.until(ended.id, parked=False)
            else:
                ended = await cluster.until((await cluster.controller.power("h1", "off")).id)
            assert ended.state is OperationState.DONE
            cluster.assert_clean()

    run(story())


def test_a_bmc_that_does_nothing_leaves_the_replicas_connected_in_the_end() -> None:
    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            assert (await drain(cluster)).state is OperationState.DONE
            world.bmc_dead.add("h1")
            started = await cluster.controller.power("h1", "off")
            assert (await cluster.until(started.id)).state is OperationState.FAILED
            assert world.away == set()

    run(story())


def test_a_host_that_is_being_switched_off_gets_no_guest() -> None:
    """I12: from the first row of the power operation on, not only once the power is gone."""

    async def story() -> None:
        world = World()
        world.add_iscsi("web", "h1")
        async with Cluster3(world) as cluster:
            off = await cluster.controller.power("h2", "off")
            with pytest.raises(Refused, match="h2"):
                await cluster.controller.migrate("web", MigrateRequest(to="h2"))
            assert (await cluster.until(off.id)).state is OperationState.DONE
            assert world.where("web") == ["h1"]
            cluster.assert_clean()

    run(story())
