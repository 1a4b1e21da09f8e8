"""One migration at a time: given this cluster, when that happens, this is how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from agents.protocol import Attempt, AttemptReport, DomainState, Outcome
from migrd.control import MigrateRequest
from migrd.operations import Operation, OperationState
from migrd.sagas.migrate_state import Stage
from storage.errors import Refused
from storage.words import Health, Role
from tests.core.fake_agent import FakeAgent
from tests.core.fake_world import Domain, World
from tests.core.harness import Cluster3
from tests.core.vloop import run

CALL_STAGES = (Stage.PREPARE, Stage.OPEN_WINDOW, Stage.ACQUIRE, Stage.MIGRATE)
FINISH_STAGES = (Stage.RELEASE, Stage.CLOSE_WINDOW)


def drbd_world() -> World:
    world = World()
    world.add_drbd("db", "h1", "h2")
    return world


def iscsi_world() -> World:
    world = World()
    world.add_iscsi("db", "h1")
    return world


async def move(cluster: Cluster3) -> Operation:
    started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
    return await cluster.until(started.id)


@pytest.mark.parametrize("world", [drbd_world, iscsi_world])
def test_a_guest_moves_and_nothing_is_left_behind(world: Callable[[], World]) -> None:
    """I1, I5, I6, I9, I11 hold after every change; the window is closed on both hosts."""

    async def story() -> None:
        async with Cluster3(world()) as cluster:
            ended = await move(cluster)
            assert (ended.state, ended.reason, ended.downtime_ms) == (OperationState.DONE, "", 100)
            assert cluster.world.where("db") == ["h2"]
            cluster.assert_clean()

    run(story())


def test_the_order_of_storage_steps_is_the_order_of_the_invariants() -> None:
    async def story() -> list[str]:
        async with Cluster3(drbd_world()) as cluster:
            await move(cluster)
            cluster.assert_clean()
            return cluster.world.trace

    trace = run(story())
    expected = (
        "h2 sets two primaries of drbd:r1/0 to True",
        "h2 holds drbd:r1/0",
        "db copies from h1 to h2",
        "db runs on h2",
        "db is gone from h1",
        "h1 lets go of drbd:r1/0",
        "h1 sets two primaries of drbd:r1/0 to False",
    )
    positions = [trace.index(each) for each in expected]
    assert positions == sorted(positions), trace


def test_another_disk_under_the_same_name_is_refused_before_anything_opens() -> None:
    """I9: the identities differ, so no window, no promotion, no copy."""

    async def story() -> None:
        world = World()
        world.add_iscsi("db", "h1", wrong_on="h2")
        async with Cluster3(world) as cluster:
            ended = await move(cluster)
            assert ended.state is OperationState.UNDONE
            assert "not the same disk" in ended.reason
            assert not any("copies" in event for event in world.trace)
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize(("identities"), [("", "gi"), ("gi", ""), ("", "")])
def test_an_identity_that_cannot_be_proved_is_refused(identities: tuple[str, str]) -> None:
    """I9, I19: unknown is not equal, not even to unknown."""

    async def story() -> None:
        world = World()
        spec = world.add_drbd("db", "h1", "h2")
        for host, identity in zip(("h1", "h2"), identities, strict=True):
            world.machines[host].held[spec.volumes[0].name].identity = identity
        async with Cluster3(world) as cluster:
            ended = await move(cluster)
            assert ended.state is OperationState.UNDONE
            assert "cannot be proved" in ended.reason
            cluster.assert_clean()

    run(story())


def test_a_volume_that_sickens_between_plan_and_prepare_is_refused() -> None:
    async def story() -> None:
        world = drbd_world()
        async with Cluster3(world) as cluster:
            held = world.machines["h2"].held["drbd:r1/0"]
            cluster.agents["h2"].before["prepare"] = lambda: setattr(held, "health", Health.SYNCING)
            ended = await move(cluster)
            assert ended.state is OperationState.UNDONE
            assert "health on h2 is syncing" in ended.reason
            assert not any("True" in event for event in world.trace)

    run(story())


def test_a_window_that_somebody_else_opened_is_not_taken_over() -> None:
    """I6: two primaries allowed without a journalled intent is a reason to stop, not to go on."""

    async def story() -> None:
        world = drbd_world()
        async with Cluster3(world) as cluster:
            held = world.machines["h1"].held["drbd:r1/0"]
            cluster.agents["h1"].before["prepare"] = lambda: setattr(held, "dual_primary", True)
            ended = await move(cluster)
            assert "two primaries are allowed" in ended.reason
            assert not any("copies" in event for event in world.trace)

    run(story())


@pytest.mark.parametrize("world", [drbd_world, iscsi_world])
def test_a_failed_copy_leaves_everything_as_it_was(world: Callable[[], World]) -> None:
    async def story() -> None:
        made = world()
        async with Cluster3(made) as cluster:
            made.migration_error = dict.fromkeys(made.guests, "unable to connect to h2")
            ended = await move(cluster)
            assert (ended.state, ended.reason) == (OperationState.UNDONE, "unable to connect to h2")
            assert made.where("db") == ["h1"]
            cluster.assert_clean()

    run(story())


def test_the_error_of_the_migrate_call_is_not_believed() -> None:
    """libvirt says failed, the guest has moved: the pair of observations decides (field notes, Nova)."""

    async def story() -> None:
        async with Cluster3(drbd_world()) as cluster:
            cluster.world.lie = "internal error: client socket is closed"
            ended = await move(cluster)
            assert ended.state is OperationState.DONE
            assert cluster.world.where("db") == ["h2"]
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("outcome", [Outcome.RETRYABLE, Outcome.UNKNOWN])
@pytest.mark.parametrize("stage", [*CALL_STAGES, *FINISH_STAGES])
def test_one_bad_answer_is_looked_into_and_overcome(stage: Stage, outcome: Outcome) -> None:
    """Unknown is probed, retryable is retried; only a migration that ended unknown goes back."""

    async def story() -> None:
        async with Cluster3(drbd_world()) as cluster:
            host = "h2" if stage is Stage.ACQUIRE else "h1"
            cluster.agents[host].script[stage] = [outcome]
            ended = await move(cluster)
            if (stage, outcome) == (Stage.MIGRATE, Outcome.UNKNOWN):
                assert ended.state is OperationState.UNDONE
                assert cluster.world.where("db") == ["h1"]
            else:
                assert ended.state is OperationState.DONE, ended
                assert cluster.world.where("db") == ["h2"]
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.FAILED])
@pytest.mark.parametrize("stage", CALL_STAGES)
def test_a_final_no_before_the_commit_point_undoes(stage: Stage, outcome: Outcome) -> None:
    async def story() -> None:
        async with Cluster3(drbd_world()) as cluster:
            host = "h2" if stage is Stage.ACQUIRE else "h1"
            cluster.agents[host].script[stage] = [outcome]
            ended = await move(cluster)
            assert ended.state is OperationState.UNDONE
            assert f"was told to end {outcome}" in ended.reason
            assert cluster.world.where("db") == ["h1"]
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("stage", FINISH_STAGES)
def test_after_the_commit_point_a_no_parks_and_resume_finishes_forward(stage: Stage) -> None:
    """Never undone after the commit point: the guest stays where it runs."""

    async def story() -> None:
        async with Cluster3(drbd_world()) as cluster:
            cluster.agents["h1"].script[stage] = [Outcome.REFUSED] * 3
            parked = await move(cluster)
            assert parked.state is OperationState.PARKED
            assert "migrctl op resume" in parked.remedy
            assert "window" in parked.reason
            assert cluster.world.where("db") == ["h2"]
            await cluster.controller.resume(parked.id)
            ended = await cluster.until(parked.id, parked=False)
            assert ended.state is OperationState.DONE
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("stage", [*CALL_STAGES, *FINISH_STAGES])
def test_a_lost_reply_is_asked_for_again_and_nothing_is_done_twice(stage: Stage) -> None:
    async def story() -> None:
        async with Cluster3(drbd_world()) as cluster:
            host = "h2" if stage is Stage.ACQUIRE else "h1"
            cluster.agents[host].lose_reply[stage] = 1
            ended = await move(cluster)
            assert ended.state is OperationState.DONE
            assert [a.attempt for a in cluster.agents[host].seen if a.step == stage] == [1]
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1, 0.2, 0.3, 0.35, 0.5, 1.0, 2.0, 2.5, 2.6, 2.8, 3.0, 3.2])
def test_cancel_at_any_time_ends_undone_or_done_and_clean(delay_s: float) -> None:
    """Before the commit point: back. After it: forward. Never a stopped guest (I5)."""

    async def story() -> None:
        async with Cluster3(drbd_world()) as cluster:
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await asyncio.sleep(delay_s)
            try:
                await cluster.controller.cancel(started.id)
            except Refused:
                assert cluster.controller.operation(started.id).state.ended
            ended = await cluster.until(started.id, parked=False)
            expected = {OperationState.UNDONE: ["h1"], OperationState.DONE: ["h2"]}
            assert cluster.world.where("db") == expected[ended.state]
            cluster.assert_clean()

    run(story())


def test_target_dies_mid_copy_with_its_bmc_and_comes_back() -> None:
    """The guest keeps running; the source's window is closed at once; the rest when the target returns."""

    async def story() -> None:
        world = drbd_world()
        world.copy_s = 10.0
        async with Cluster3(world) as cluster:
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await asyncio.sleep(5.0)
            world.cut("h2", with_bmc=True)
            parked = await cluster.until(started.id)
            assert parked.state is OperationState.PARKED
            assert "once h2 answers again" in parked.remedy
            assert world.where("db") == ["h1"]
            assert not world.machines["h1"].held["drbd:r1/0"].dual_primary
            world.power_on("h2")
            ended = await cluster.until(started.id, parked=False)
            assert ended.state is OperationState.UNDONE
            assert world.where("db") == ["h1"]
            cluster.assert_clean()

    run(story())


def test_a_disk_that_qemu_opens_itself_needs_no_step_of_the_hosts() -> None:
    """Only prepare and migrate are asked for; the look that saw it moved is the last."""

    async def story() -> None:
        world = World()
        world.add_iscsi_qemu("wiki", "h1")
        async with Cluster3(world) as cluster:
            started = await cluster.controller.migrate("wiki", MigrateRequest(to="h2"))
            assert (await cluster.until(started.id)).state is OperationState.DONE
            steps = [(host, a.step) for host, agent in cluster.agents.items() for a in agent.seen]
            assert steps == [("h1", "prepare"), ("h1", "migrate"), ("h2", "prepare")]
            looks = [row for row in cluster.journal.rows if '"looked"' in row[1]]
            assert len(looks) == 2
            assert world.where("wiki") == ["h2"]
            cluster.assert_clean()

    run(story())


def test_a_target_that_its_bmc_says_is_off_keeps_nobody_waiting() -> None:
    """What it held is gone with its power (I3: a separate status); only the source has a half to close."""

    async def story() -> None:
        world = drbd_world()
        world.copy_s = 10.0
        async with Cluster3(world) as cluster:
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await asyncio.sleep(5.0)
            world.cut("h2")
            ended = await cluster.until(started.id, at_most_s=60.0)
            assert ended.state is OperationState.UNDONE
            assert world.where("db") == ["h1"]
            assert not world.machines["h1"].held["drbd:r1/0"].dual_primary
            world.power_on("h2")
            await asyncio.sleep(5.0)
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("stage", ["release", "close-window"])
def test_a_source_that_loses_power_once_the_guest_has_left(stage: str) -> None:
    """Past the switch-over the dead host keeps nothing open: the guest runs, and the move is done."""

    async def story() -> None:
        world = drbd_world()
        async with Cluster3(world) as cluster:
            cluster.agents["h1"].before[stage] = lambda: world.cut("h1")
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            ended = await cluster.until(started.id, at_most_s=300.0)
            assert ended.state is OperationState.DONE
            assert world.where("db") == ["h2"]
            assert not world.machines["h2"].held["drbd:r1/0"].dual_primary
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("back_after_s", [1.0, 15.0, 60.0, 400.0])
def test_source_agent_killed_mid_copy(back_after_s: float) -> None:
    """Peer-to-peer: the copy goes on without agent. When it answers again, the pair decides."""

    async def story() -> None:
        world = drbd_world()
        world.copy_s = 10.0
        async with Cluster3(world) as cluster:
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await asyncio.sleep(5.0)
            cluster.agents["h1"].kill()
            await asyncio.sleep(back_after_s)
            cluster.agents["h1"].restart()
            ended = await cluster.until(started.id, parked=False)
            assert ended.state is OperationState.DONE
            assert world.where("db") == ["h2"]
            cluster.assert_clean()

    run(story())


class SlowToHear(FakeAgent):
    """A submission takes more than a second to arrive."""

    async def submit(self, attempt: Attempt, wait_s: float = 0.0) -> AttemptReport:
        await asyncio.sleep(1.2)
        return await super().submit(attempt, wait_s)


def test_a_cancel_that_overtakes_the_migrate_call_still_aborts_it() -> None:
    """The agent has not seen the attempt yet when the abort comes: it is asked again, not forgotten."""

    async def story() -> None:
        world = drbd_world()
        world.copy_s = 300.0
        cluster = Cluster3(world)
        cluster.agents["h1"] = SlowToHear(world, "h1")
        async with cluster:
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            for _ in range(1000):
                steps = cluster.controller.operation(started.id).steps
                if any(step.name == Stage.MIGRATE and step.state == "running" for step in steps):
                    break
                await asyncio.sleep(0.02)
            assert not world.copying
            await cluster.controller.cancel(started.id)
            ended = await cluster.until(started.id, at_most_s=100.0)
            assert ended.state is OperationState.UNDONE
            assert world.where("db") == ["h1"]
            cluster.assert_clean()

    run(story())


def test_no_agent_answers_at_all_nothing_begins() -> None:
    async def story() -> None:
        async with Cluster3(drbd_world()) as cluster:
            cluster.agents["h2"].kill()
            with pytest.raises(Refused) as refused:
                await move(cluster)
            assert "h2" in str(refused.value)
            assert cluster.journal.rows == []

    run(story())


def test_a_guest_that_someone_started_on_the_target_is_never_touched() -> None:
    """I1: the pair shows two instances that have run: alarm, park, no sweep, no release."""

    async def story() -> None:
        world = drbd_world()
        uuid = next(iter(world.guests))
        async with Cluster3(world) as cluster:
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            held = world.machines["h2"].held["drbd:r1/0"]

            def virsh_start() -> None:
                held.role = Role.PRIMARY
                world.machines["h2"].domains[uuid] = Domain(DomainState.PAUSED, process=True, ran=True)

            cluster.agents["h1"].before["migrate"] = virsh_start
            cluster.agents["h1"].script["migrate"] = [Outcome.FAILED]
            parked = await cluster.until(started.id)
            assert parked.state is OperationState.PARKED
            assert "ALARM" in parked.reason
            assert not any(a.step in ("sweep", "release-target") for a in cluster.agents["h2"].seen)

    run(story())


def test_a_guest_that_shuts_itself_down_during_the_copy_is_left_shut_down() -> None:
    async def story() -> None:
        world = drbd_world()
        uuid = next(iter(world.guests))
        world.excused.add(uuid)
        async with Cluster3(world) as cluster:

            def poweroff() -> None:
                world.machines["h1"].domains[uuid] = Domain(DomainState.SHUTOFF, process=False, ran=True)
                world.machines["h1"].held["drbd:r1/0"].role = Role.SECONDARY

            cluster.agents["h1"].before["migrate"] = poweroff
            ended = await move(cluster)
            assert ended.state is OperationState.UNDONE
            assert "was shut down on h1" in ended.reason
            cluster.assert_clean()

    run(story())


def test_what_stays_parked_is_tried_again_ever_more_rarely() -> None:
    """I20: a device that someone holds open for hours must not fill the journal, nor shout every minute."""

    async def story() -> None:
        async with Cluster3(drbd_world()) as cluster:
            cluster.agents["h1"].script["release"] = [Outcome.FAILED] * 1000
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            assert (await cluster.until(started.id)).state is OperationState.PARKED
            await asyncio.sleep(6 * 3600.0)
            tries = sum(a.step == "release" for a in cluster.agents["h1"].seen)
            assert 15 < tries < 60
            cluster.agents["h1"].script.clear()
            assert (await cluster.until(started.id, parked=False)).state is OperationState.DONE
            cluster.assert_clean()

    run(story())


def test_two_migrations_of_one_guest_the_second_is_refused() -> None:
    async def story() -> None:
        async with Cluster3(iscsi_world()) as cluster:
            first = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            with pytest.raises(Refused) as refused:
                await cluster.controller.migrate("db", MigrateRequest(to="h3"))
            assert first.id in str(refused.value)
            assert (await cluster.until(first.id)).state is OperationState.DONE
            cluster.assert_clean()

    run(story())


def test_a_daemon_with_a_stale_epoch_stops_commanding() -> None:
    """I4: an agent obeys a newer daemon. This one journals nothing more, and says so in readiness."""

    async def story() -> None:
        async with Cluster3(drbd_world()) as cluster:
            cluster.agents["h2"].epoch = 99
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await asyncio.sleep(60.0)
            assert not cluster.controller.readiness().ready
            assert "newer migrd" in str(cluster.controller.readiness().reasons)
            assert "migrd --raise-epoch 99" in str(cluster.controller.readiness().reasons)
            assert not cluster.controller.operation(started.id).state.ended
            with pytest.raises(Refused):
                await cluster.controller.resume(started.id)
            assert not any("True" in event for event in cluster.world.trace)

    run(story())
