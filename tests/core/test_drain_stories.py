"""Emptying hosts: what is moved, what is not, and what else happens meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from agents.protocol import DomainState, Outcome
from migrd.control import DrainRequest, MigrateRequest, NotFound, UndrainRequest
from migrd.engine import Settings
from migrd.metrics import Metrics
from migrd.model import HostState
from migrd.operations import OperationState
from migrd.ports import JournalReadOnly
from migrd.slots import Caps
from storage.errors import Refused
from storage.words import Health, Role
from tests.core.fake_world import Domain, World
from tests.core.harness import Cluster3
from tests.core.stories import drain, mixed_world, places
from tests.core.vloop import run


def test_a_drain_empties_the_host_and_no_guest_notices() -> None:
    async def story() -> None:
        async with Cluster3(mixed_world()) as cluster:
            ended = await drain(cluster)
            assert ended.state is OperationState.DONE
            assert len(ended.children) == 4
            assert ended.first_call_at_s is not None
            assert ended.first_call_at_s - ended.requested_at_s < 1.0
            now = places(cluster.world)
            assert (now["db1"], now["db2"]) == (["h2"], ["h3"])
            assert all(where != ["h1"] for where in now.values())
            assert cluster.controller.cluster().hosts["h1"].state is HostState.DRAINED
            cluster.assert_clean()

    run(story())


def test_no_more_moves_at_once_than_the_caps_allow() -> None:
    async def story() -> int:
        world = World(("h1", "h2", "h3", "h4"))
        for number in range(8):
            world.add_iscsi(f"g{number}", "h1")
        most = 0
        async with Cluster3(world, Settings(caps=Caps(per_source=2, per_target=2))) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            for _ in range(400):
                await asyncio.sleep(0.1)
                most = max(most, sum(d.job for d in world.machines["h1"].domains.values()))
            assert cluster.controller.operation(started.id).state is OperationState.DONE
            cluster.assert_clean()
        return most

    assert run(story()) == 2


def test_every_blocker_is_told_at_once_and_nothing_is_touched() -> None:
    async def story() -> None:
        world = mixed_world()
        world.guests[next(iter(world.guests))].blockers = ("It has a USB device.",)
        world.machines["h3"].held["drbd:r2/0"].health = Health.SYNCING
        async with Cluster3(world) as cluster:
            with pytest.raises(Refused) as refused:
                await cluster.controller.drain("h1", DrainRequest())
            told = str(refused.value)
            assert "db1" in told
            assert "USB" in told
            assert "db2" in told
            assert "syncing" in told
            assert cluster.journal.rows == []
            assert cluster.controller.cluster().hosts["h1"].state is HostState.ONLINE

    run(story())


def test_an_unknown_host_and_a_drain_of_a_draining_host() -> None:
    async def story() -> None:
        async with Cluster3(mixed_world()) as cluster:
            with pytest.raises(NotFound):
                await cluster.controller.drain("h9", DrainRequest())
            first = await cluster.controller.drain("h1", DrainRequest())
            with pytest.raises(Refused) as refused:
                await cluster.controller.drain("h1", DrainRequest())
            assert first.id in str(refused.value)
            with pytest.raises(Refused) as undrained:
                await cluster.controller.undrain("h1", UndrainRequest())
            assert first.id in str(undrained.value)
            await cluster.until(first.id)
            with pytest.raises(Refused, match="drained already"):
                await cluster.controller.drain("h1", DrainRequest())
            cluster.assert_clean()

    run(story())


def test_undrain_of_a_host_that_is_not_drained_is_refused() -> None:
    async def story() -> None:
        async with Cluster3(mixed_world()) as cluster:
            with pytest.raises(Refused, match="not drained"):
                await cluster.controller.undrain("h1", UndrainRequest())

    run(story())


def test_a_guest_that_fails_on_one_target_is_tried_on_another() -> None:
    """First failure does not cancel the drain; the failed target is left out."""

    async def story() -> None:
        world = World()
        world.add_iscsi("web", "h1")
        world.add_iscsi("other", "h1")
        async with Cluster3(world) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            cluster.agents["h1"].script["migrate"] = [Outcome.FAILED]
            ended = await cluster.until(started.id)
            assert ended.state is OperationState.DONE
            children = [cluster.controller.operation(child) for child in ended.children]
            failed = next(child for child in children if child.state is OperationState.UNDONE)
            again = [c for c in children if c.guest == failed.guest and c.state is OperationState.DONE]
            assert [c.target for c in again] != [failed.target]
            cluster.assert_clean()

    run(story())


def test_a_guest_that_never_moves_is_reported_and_all_others_are_moved() -> None:
    async def story() -> None:
        world = mixed_world()
        stuck = next(spec for spec in world.guests.values() if spec.name == "db1")
        async with Cluster3(world) as cluster:

            async def keep_failing() -> None:
                while True:
                    world.migration_error[stuck.uuid] = "guest CPU is not supported"
                    await asyncio.sleep(0.05)

            failing = asyncio.ensure_future(keep_failing())
            parked = await drain(cluster)
            assert parked.state is OperationState.PARKED
            assert "db1" in parked.reason
            assert "CPU is not supported" in parked.reason
            assert "migrctl op resume" in parked.remedy
            now = places(world)
            assert now.pop("db1") == ["h1"]
            assert all(where != ["h1"] for where in now.values())
            assert cluster.controller.cluster().hosts["h1"].state is HostState.DRAINING
            cluster.assert_clean()
            failing.cancel()
            world.migration_error.clear()
            await cluster.controller.resume(parked.id)
            ended = await cluster.until(parked.id, parked=False)
            assert ended.state is OperationState.DONE
            assert places(world)["db1"] == ["h2"]
            cluster.assert_clean()

    run(story())


def test_cancel_leaves_moved_guests_moved_and_gives_the_host_back() -> None:
    async def story() -> None:
        world = World()
        for number in range(6):
            world.add_iscsi(f"g{number}", "h1")
        async with Cluster3(world) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            await asyncio.sleep(4.0)
            await cluster.controller.cancel(started.id)
            ended = await cluster.until(started.id)
            assert ended.state is OperationState.UNDONE
            now = [world.where(f"g{n}") for n in range(6)]
            assert now.count(["h1"]) in range(1, 6)
            assert cluster.controller.cluster().hosts["h1"].state is HostState.ONLINE
            cluster.assert_clean()
            children = [cluster.controller.operation(child) for child in ended.children]
            assert all(child.state.ended for child in children)

    run(story())


def test_a_guest_is_stopped_only_with_consent_by_name() -> None:
    """I5: the one that was named is shut down because it cannot move; the other one blocks the drain."""

    async def story() -> None:
        world = mixed_world()
        for spec in world.guests.values():
            if spec.name in ("web1", "web2"):
                spec.blockers = ("It has a USB device.",)
        async with Cluster3(world) as cluster:
            with pytest.raises(Refused) as refused:
                await cluster.controller.drain("h1", DrainRequest(allow_stop=("web1",)))
            assert "web2" in str(refused.value)
            assert "web1" not in str(refused.value)
            ended = await drain(cluster, allow_stop=("web1", "web2"))
            assert ended.state is OperationState.DONE
            assert places(world)["web1"] == []
            assert places(world)["db1"] == ["h2"]
            cluster.assert_clean()

    run(story())


def test_a_guest_started_during_the_drain_is_moved_too() -> None:
    async def story() -> None:
        world = mixed_world()
        late = world.add_iscsi("late", "h2")
        async with Cluster3(world) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            await asyncio.sleep(1.0)
            world.excused.add(late.uuid)
            del world.machines["h2"].domains[late.uuid]
            world.machines["h2"].held[late.volumes[0].name].role = Role.DETACHED
            world.machines["h1"].held[late.volumes[0].name].role = Role.ATTACHED
            world.machines["h1"].domains[late.uuid] = Domain(DomainState.RUNNING, process=True, ran=True)
            ended = await cluster.until(started.id)
            assert ended.state is OperationState.DONE
            assert places(world)["late"] != ["h1"]
            cluster.assert_clean()

    run(story())


def test_target_dies_mid_drain_the_guest_keeps_running_and_the_drain_ends_once_the_target_is_back() -> None:
    async def story() -> None:
        world = mixed_world()
        world.copy_s = 10.0
        async with Cluster3(world) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            await asyncio.sleep(5.0)
            moving = {d for d, domain in world.machines["h1"].domains.items() if domain.job}
            assert moving
            world.cut("h2", with_bmc=True)
            parked = await cluster.until(started.id, at_most_s=2000.0)
            assert parked.state is OperationState.PARKED
            assert "h2" in parked.reason
            assert places(world)["db1"] == ["h1"]
            assert places(world)["db2"] == ["h3"]
            world.power_on("h2")
            ended = await cluster.until(started.id, parked=False)
            assert ended.state is OperationState.DONE
            cluster.assert_clean()

    run(story())


def test_a_parked_move_that_goes_on_by_itself_does_not_park_the_drain() -> None:
    """Its target returns while other guests still move: its end counts, and the drain needs nobody."""

    async def story() -> None:
        world = mixed_world()
        world.copy_s = 200.0
        async with Cluster3(world) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            await asyncio.sleep(5.0)
            db1 = next(o for o in cluster.controller.operations() if o.subject == "db1")
            world.cut("h2", with_bmc=True)
            assert (await cluster.until(db1.id, at_most_s=2000.0)).state is OperationState.PARKED
            assert cluster.controller.operation(started.id).state is OperationState.RUNNING
            world.power_on("h2")
            assert (await cluster.until(db1.id, parked=False)).state is OperationState.UNDONE
            ended = await cluster.until(started.id)
            assert (ended.state, ended.reason) == (OperationState.DONE, "")
            assert places(world)["db1"] == ["h2"]
            cluster.assert_clean()

    run(story())


def test_a_guest_goes_to_another_target_when_its_first_one_loses_power() -> None:
    """The dead host's last report still shows an arrival: no second instance, once its BMC says off (I3)."""

    async def story() -> None:
        world = World()
        for number in range(4):
            world.add_iscsi(f"web{number}", "h1")
        world.copy_s = 10.0
        async with Cluster3(world) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            await asyncio.sleep(5.0)
            assert any(domain.process for domain in world.machines["h2"].domains.values())
            world.cut("h2")
            ended = await cluster.until(started.id, at_most_s=400.0)
            assert (ended.state, ended.reason) == (OperationState.DONE, "")
            assert set(map(tuple, places(world).values())) == {("h3",)}
            world.power_on("h2")
            await asyncio.sleep(5.0)
            cluster.assert_clean()

    run(story())


def test_what_refuses_a_guest_for_a_moment_does_not_park_the_restore() -> None:
    """libvirt's job of an arrival outlives the guest's resumption: seen in the lab right after a drain."""

    async def story() -> None:
        world = World()
        world.add_iscsi("web", "h1")
        async with Cluster3(world) as cluster:
            assert (await drain(cluster)).state is OperationState.DONE
            there = world.machines[places(world)["web"][0]].domains
            for domain in there.values():
                domain.job = True
            back = await cluster.controller.undrain("h1", UndrainRequest(restore=True))
            await asyncio.sleep(3.0)
            for domain in there.values():
                domain.job = False
            assert (await cluster.until(back.id)).state is OperationState.DONE
            assert places(world)["web"] == ["h1"]
            cluster.assert_clean()

    run(story())


def test_a_guest_that_cannot_be_seen_is_not_gone() -> None:
    """I19: its host is silent when the restore asks; it is waited for, not skipped."""

    async def story() -> None:
        world = World()
        world.add_iscsi("web", "h1")
        async with Cluster3(world) as cluster:
            assert (await drain(cluster)).state is OperationState.DONE
            there = places(world)["web"][0]
            domains, world.machines[there].domains = world.machines[there].domains, {}
            world.machines[there].libvirt_ok = False
            back = await cluster.controller.undrain("h1", UndrainRequest(restore=True))
            await asyncio.sleep(3.0)
            world.machines[there].domains, world.machines[there].libvirt_ok = domains, True
            assert (await cluster.until(back.id)).state is OperationState.DONE
            assert places(world)["web"] == ["h1"]

    run(story())


def test_a_child_that_an_operator_cancels_is_not_begun_anew() -> None:
    async def story() -> None:
        world = World()
        world.add_iscsi("web", "h1")
        world.copy_s = 10.0
        async with Cluster3(world) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            await asyncio.sleep(3.0)
            await cluster.controller.cancel(f"{started.id}.1")
            parked = await cluster.until(started.id)
            assert parked.state is OperationState.PARKED
            assert "cancelled by the operator" in parked.reason
            assert len(parked.children) == 1

    run(story())


def test_two_drains_at_once_do_not_take_the_last_host() -> None:
    async def story() -> None:
        world = World(("h1", "h2"))
        world.add_iscsi("web", "h1")
        async with Cluster3(world) as cluster:
            asked = [cluster.controller.drain(host, DrainRequest()) for host in ("h1", "h2")]
            first, second = await asyncio.gather(*asked, return_exceptions=True)
            assert not isinstance(first, BaseException)
            assert isinstance(second, Refused)
            assert "last host in use" in str(second)

    run(story())


def test_a_drain_waits_for_an_agent_that_restarts_just_when_it_is_asked_what_is_left() -> None:
    async def story() -> None:
        world = World()
        world.add_iscsi("web", "h1")
        async with Cluster3(world) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            await asyncio.sleep(0.1)
            for _ in range(100_000):
                if cluster.controller.operation(f"{started.id}.1").state.ended:
                    break
                await asyncio.sleep(0.0005)
            cluster.agents["h1"].kill()
            await asyncio.sleep(4.0)
            cluster.agents["h1"].restart()
            assert (await cluster.until(started.id)).state is OperationState.DONE

    run(story())


def test_a_crashed_guest_whose_qemu_is_kept_is_not_nothing() -> None:
    """The host is not empty while it is there: a drain that said so would invite to switch it off."""

    async def story() -> None:
        world = mixed_world()
        uuid = next(spec.uuid for spec in world.guests.values() if spec.name == "web1")
        async with Cluster3(world) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            await asyncio.sleep(0.05)
            world.excused.add(uuid)
            world.machines["h1"].domains[uuid].state = DomainState.CRASHED
            parked = await cluster.until(started.id)
            assert parked.state is OperationState.PARKED
            assert "web1" in parked.reason

    run(story())


def test_two_drains_share_the_slots_fairly() -> None:
    async def story() -> None:
        world = World(("h1", "h2", "h3"))
        for number in range(6):
            world.add_iscsi(f"a{number}", "h1")
        for number in range(2):
            world.add_iscsi(f"b{number}", "h2")
        async with Cluster3(world) as cluster:
            first = await cluster.controller.drain("h1", DrainRequest())
            # h2 has been chosen as a target of h1's guests; now it is drained itself
            second = await cluster.controller.drain("h2", DrainRequest())
            done = await cluster.until(second.id, at_most_s=2000.0)
            assert done.state is OperationState.DONE
            assert (await cluster.until(first.id, at_most_s=2000.0)).state is OperationState.DONE
            assert all(where == ["h3"] for where in places(world).values())
            cluster.assert_clean()

    run(story())


def test_a_move_that_waits_is_withdrawn_when_its_target_is_drained_meanwhile() -> None:
    """A drained host never gets a guest, also not by a move that was planned before."""

    async def story() -> None:
        world = World()
        for number in range(6):
            world.add_iscsi(f"g{number}", "h1")
        async with Cluster3(world, Settings(caps=Caps(per_source=1, per_target=1))) as cluster:
            first = await cluster.controller.drain("h1", DrainRequest())
            for _ in range(200):
                if any(d.state is DomainState.PAUSED_INCOMING for d in world.machines["h3"].domains.values()):
                    break
                await asyncio.sleep(0.1)
            second = await cluster.controller.drain("h2", DrainRequest())
            assert (await cluster.until(first.id)).state is OperationState.DONE
            assert (await cluster.until(second.id)).state is OperationState.DONE
            assert any("by now" in shown.reason for shown in cluster.controller.operations())
            assert all(where == ["h3"] for where in places(world).values())
            cluster.assert_clean()

    run(story())


def test_cancel_at_once_starts_nothing() -> None:
    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            await cluster.controller.cancel(started.id)
            ended = await cluster.until(started.id)
            assert ended.state is OperationState.UNDONE
            await asyncio.sleep(30.0)
            assert all(where == ["h1"] for where in places(world).values())
            assert all(shown.state.ended for shown in cluster.controller.operations())
            cluster.assert_clean()

    run(story())


# -- journal --------------------------------------------------------------------------------------


def test_a_full_disk_stops_new_work_and_nothing_else() -> None:
    """A running move stands still before its next side effect, and ends once rows can be written again."""

    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            metrics = Metrics("1")
            cluster.observer = metrics
            await cluster.kill()
            await cluster.start()
            started = await cluster.controller.migrate("db1", MigrateRequest())
            await asyncio.sleep(1.0)
            cluster.journal.read_only = "the journal cannot be written: database or disk is full"
            with pytest.raises(JournalReadOnly, match="disk is full"):
                await cluster.controller.migrate("web1", MigrateRequest())
            await asyncio.sleep(30.0)
            with pytest.raises(JournalReadOnly, match="disk is full"):
                await cluster.controller.cancel(started.id)
            assert not cluster.controller.readiness().ready
            assert metrics.registry.get_sample_value("migrd_journal_read_only") == 1
            assert cluster.controller.operation(started.id).state is OperationState.RUNNING
            assert not any(a.step == "release" for a in cluster.agents["h1"].seen)
            cluster.journal.read_only = ""
            assert (await cluster.until(started.id)).state is OperationState.DONE
            assert cluster.controller.readiness().ready
            await asyncio.sleep(5.0)
            assert metrics.registry.get_sample_value("migrd_journal_read_only") == 0
            cluster.assert_clean()

    run(story())


def test_a_disk_that_fills_up_while_a_drain_names_its_children() -> None:
    async def story() -> None:
        world = mixed_world()
        async with Cluster3(world) as cluster:
            started = await cluster.controller.drain("h1", DrainRequest())
            cluster.journal.read_only = "the journal cannot be written: database or disk is full"
            await asyncio.sleep(60.0)
            assert all(where == ["h1"] for where in places(world).values())
            cluster.journal.read_only = ""
            assert (await cluster.until(started.id)).state is OperationState.DONE
            cluster.assert_clean()

    run(story())


def test_events_tell_the_story_and_a_slow_subscriber_is_dropped() -> None:
    async def story() -> None:
        world = World()
        world.add_iscsi("web", "h1")
        async with Cluster3(world) as cluster:
            slow = cluster.controller.events()
            waiting = asyncio.ensure_future(anext(slow))
            await asyncio.sleep(0)
            ended = await drain(cluster)
            first = await waiting
            assert first.operation is not None
            told = cluster.controller.events(after_seq=0)
            kinds = [(await anext(told)).kind for _ in range(5)]
            assert set(kinds) == {"operation"}
            for number in range(700):
                cluster.controller._feed.publish(0.0, "host", f"event {number}")
            count = 0
            async for _ in slow:
                count += 1
            assert count < 700
            assert ended.state is OperationState.DONE

    run(story())


def test_open_operations_are_those_that_have_not_ended() -> None:
    async def story() -> None:
        async with Cluster3(mixed_world()) as cluster:
            ended = await cluster.controller.migrate("web1", MigrateRequest(to="h2"))
            await cluster.until(ended.id)
            cluster.world.copy_s = 50.0
            first = await cluster.controller.migrate("web2", MigrateRequest(to="h2"))
            second = await cluster.controller.migrate("db1", MigrateRequest(to="h2"))
            assert [op.id for op in cluster.controller.open_operations()] == [second.id, first.id]

    run(story())
