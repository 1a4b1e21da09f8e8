"""One guest moved cold: given this cluster, when that happens, this is how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from agents.protocol import Command, MoveDefinition, OpenWindow, Outcome, StartDomain
from migrd.control import MigrateRequest
from migrd.operations import Operation, OperationState
from migrd.sagas.cold_state import FORWARD, ColdStage
from storage.errors import Refused
from storage.words import DrbdVolume, Role
from tests.core.fake_world import World
from tests.core.harness import Cluster3
from tests.core.vloop import run

STEPS = [stage for stage in FORWARD if stage is not ColdStage.LEAVE]
ON_TARGET = (ColdStage.ACQUIRE, ColdStage.START)
COLD = MigrateRequest(to="h2", cold=True)


def drbd_world() -> World:
    world = World()
    world.add_drbd("db", "h1", "h2")
    return world


def iscsi_world() -> World:
    world = World()
    world.add_iscsi("db", "h1")
    return world


WORLDS = pytest.mark.parametrize("world", [drbd_world, iscsi_world])
Make = Callable[[], World]


async def move(cluster: Cluster3) -> Operation:
    started = await cluster.controller.migrate("db", COLD)
    return await cluster.until(started.id)


def assert_home(cluster: Cluster3, host: str, *, runs: bool = True) -> None:
    """The guest is defined on exactly this host, and runs there or nowhere."""
    assert cluster.world.where("db") == ([host] if runs else [])
    assert cluster.world.defined("db") == [host]
    cluster.assert_clean()


def commands(cluster: Cluster3) -> list[Command]:
    return [attempt.command for agent in cluster.agents.values() for attempt in agent.seen]


@WORLDS
def test_a_running_guest_moves_and_runs_on_the_target(world: Make) -> None:
    async def story() -> None:
        async with Cluster3(world()) as cluster:
            ended = await move(cluster)
            assert (ended.state, ended.reason) == (OperationState.DONE, "")
            assert ended.request == {"guest": "db", "to": "h2", "cold": True}
            assert_home(cluster, "h2")

    run(story())


@WORLDS
def test_no_window_is_opened_and_each_host_acts_after_the_other_has_let_go(world: Make) -> None:
    """I2, I6, I11: the order of the invariants, and never two primaries."""

    async def story() -> tuple[list[str], str]:
        async with Cluster3(world()) as cluster:
            await move(cluster)
            assert not any(isinstance(command, OpenWindow) for command in commands(cluster))
            volume = next(iter(cluster.world.guests.values())).volumes[0]
            return cluster.world.trace, "" if isinstance(volume, DrbdVolume) else volume.name

    trace, lun = run(story())
    taken = f"h2 holds {lun or 'drbd:r1/0'}"
    # A LUN is logged in to before anything is asked of the guest: that proves what it is.
    expected = (
        *((taken,) if lun else ()),
        "db is asked to shut down on h1",
        "db is shut off on h1",
        f"h1 lets go of {lun or 'drbd:r1/0'}",
        *((taken,) if not lun else ()),
        "db is defined on h2",
        "db is undefined on h1",
        "db is started on h2",
    )
    positions = [trace.index(each) for each in expected]
    assert positions == sorted(positions), trace
    assert not any("two primaries" in event for event in trace)


@WORLDS
@pytest.mark.parametrize("held", [False, True])
def test_a_guest_that_is_shut_off_moves_and_stays_so(world: Make, held: bool) -> None:
    """Its storage is on the target afterwards as it was on the source: at rest, or held."""

    async def story() -> None:
        made = world()
        made.shut_off("db", held=held)
        async with Cluster3(made) as cluster:
            ended = await move(cluster)
            assert (ended.state, ended.reason) == (OperationState.DONE, "")
            assert made.where("db") == []
            assert made.defined("db") == ["h2"]
            volume = next(iter(made.guests.values())).volumes[0]
            roles = {name: made.machines[name].held[volume.name].role for name in ("h1", "h2")}
            if held:
                assert roles["h2"] in (Role.PRIMARY, Role.ATTACHED)
                assert roles["h1"] in (Role.SECONDARY, Role.DETACHED)
            else:
                assert set(roles.values()) <= {Role.SECONDARY, Role.DETACHED}
            assert not any(isinstance(command, StartDomain) for command in commands(cluster))

    run(story())


def test_another_disk_under_the_same_name_is_refused_before_the_guest_is_asked_to_stop() -> None:
    """I9."""

    async def story() -> None:
        world = World()
        world.add_iscsi("db", "h1", wrong_on="h2")
        async with Cluster3(world) as cluster:
            ended = await move(cluster)
            assert ended.state is OperationState.UNDONE
            assert "not the same disk" in ended.reason
            assert not any("asked to shut down" in event for event in world.trace)
            assert_home(cluster, "h1")

    run(story())


@WORLDS
def test_a_guest_that_ignores_the_request_keeps_running(world: Make) -> None:
    """I5: it is asked, twice, and never destroyed."""

    async def story() -> None:
        made = world()
        made.deaf = set(made.guests)
        async with Cluster3(made) as cluster:
            ended = await move(cluster)
            assert ended.state is OperationState.UNDONE
            assert "is still running" in ended.reason
            assert "may still do so" in ended.reason
            assert made.trace.count("db is asked to shut down on h1") == 2
            assert_home(cluster, "h1")

    run(story())


def test_a_guest_that_follows_late_is_started_again() -> None:
    """The request is given up, and then the guest goes down: it ran, so it has to run."""

    async def story() -> None:
        world = drbd_world()
        uuid = next(iter(world.guests))
        world.deaf = {uuid}
        async with Cluster3(world) as cluster:
            started = await cluster.controller.migrate("db", COLD)
            await asyncio.sleep(186.0)  # both requests are over; the saga watches whether it stays calm
            world.stop_guest("h1", uuid)
            ended = await cluster.until(started.id)
            assert ended.state is OperationState.UNDONE
            assert "db is started on h1" in world.trace
            assert_home(cluster, "h1")

    run(story())


@WORLDS
def test_a_start_that_fails_on_the_target_brings_the_guest_home(world: Make) -> None:
    """The definition goes back, the storage goes back, and the guest runs where it ran (I1, I11)."""

    async def story() -> None:
        made = world()
        made.boots_not_on.add(("db", "h2"))
        async with Cluster3(made) as cluster:
            ended = await move(cluster)
            assert ended.state is OperationState.UNDONE
            assert "CPU is incompatible" in ended.reason
            assert_home(cluster, "h1")

    run(story())


@WORLDS
@pytest.mark.parametrize("outcome", [Outcome.RETRYABLE, Outcome.UNKNOWN])
@pytest.mark.parametrize("step", STEPS)
def test_one_bad_answer_is_looked_into_and_overcome(world: Make, step: ColdStage, outcome: Outcome) -> None:
    async def story() -> None:
        async with Cluster3(world()) as cluster:
            cluster.agents["h2" if step in ON_TARGET else "h1"].script[step] = [outcome]
            ended = await move(cluster)
            assert ended.state is OperationState.DONE, ended
            assert_home(cluster, "h2")

    run(story())


@WORLDS
@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.FAILED])
@pytest.mark.parametrize("step", STEPS)
def test_a_final_no_brings_the_guest_home(world: Make, step: ColdStage, outcome: Outcome) -> None:
    async def story() -> None:
        async with Cluster3(world()) as cluster:
            cluster.agents["h2" if step in ON_TARGET else "h1"].script[step] = [outcome]
            ended = await move(cluster)
            assert ended.state is OperationState.UNDONE
            assert f"was told to end {outcome}" in ended.reason
            assert_home(cluster, "h1")

    run(story())


@WORLDS
@pytest.mark.parametrize("step", STEPS)
def test_a_lost_reply_is_asked_for_again_and_nothing_is_done_twice(world: Make, step: ColdStage) -> None:
    async def story() -> None:
        async with Cluster3(world()) as cluster:
            host = "h2" if step in ON_TARGET else "h1"
            cluster.agents[host].lose_reply[step] = 1
            ended = await move(cluster)
            assert ended.state is OperationState.DONE
            assert [a.attempt for a in cluster.agents[host].seen if a.step == step] == [1]
            assert_home(cluster, "h2")

    run(story())


@WORLDS
@pytest.mark.parametrize("delay_s", [n * 0.07 for n in range(30)])
def test_cancel_at_any_time_ends_with_the_guest_running_on_one_host(world: Make, delay_s: float) -> None:
    """Before it runs on the target: home, started again there. After: done. Never down (I5)."""

    async def story() -> None:
        async with Cluster3(world()) as cluster:
            started = await cluster.controller.migrate("db", COLD)
            await asyncio.sleep(delay_s)
            try:
                await cluster.controller.cancel(started.id)
            except Refused:
                assert cluster.controller.operation(started.id).state.ended
            ended = await cluster.until(started.id, parked=False)
            assert ended.state in (OperationState.UNDONE, OperationState.DONE)
            assert_home(cluster, "h1" if ended.state is OperationState.UNDONE else "h2")

    run(story())


def test_a_definition_that_stays_on_both_hosts_is_moved_again() -> None:
    """libvirt defines there first: the connection breaks in between. Nothing is started meanwhile (I1)."""

    async def story() -> None:
        async with Cluster3(drbd_world()) as cluster:
            world, uuid = cluster.world, next(iter(cluster.world.guests))
            agent = cluster.agents["h1"]

            def half() -> None:
                world.machines["h2"].domains[uuid] = type(world.machines["h1"].domains[uuid])(
                    world.machines["h1"].domains[uuid].state, process=False
                )

            agent.before["move-definition"] = half
            agent.script["move-definition"] = [Outcome.UNKNOWN]
            ended = await move(cluster)
            assert ended.state is OperationState.DONE
            assert sum(isinstance(command, MoveDefinition) for command in commands(cluster)) == 2
            assert_home(cluster, "h2")

    run(story())


@WORLDS
@pytest.mark.parametrize("step", [ColdStage.RELEASE, ColdStage.ACQUIRE, ColdStage.MOVE, ColdStage.START])
def test_target_lost_after_the_shutdown(world: Make, step: ColdStage) -> None:
    """While the definition is at home, home is enough, if storage allows it. Else it waits, and says so."""

    async def story() -> None:
        made = world()
        async with Cluster3(made) as cluster:
            host = "h2" if step in ON_TARGET else "h1"
            cluster.agents[host].before[step] = lambda: made.cut("h2")
            started = await cluster.controller.migrate("db", COLD)
            parked = await cluster.until(started.id)
            assert parked.state is OperationState.PARKED
            assert "h2" in parked.remedy
            if step in (ColdStage.RELEASE, ColdStage.ACQUIRE):
                assert made.where("db") == ["h1"], "the definition never left, so home is enough"
            else:
                assert made.where("db") == []
                assert "the guest is not running" in parked.reason
            made.power_on("h2")
            ended = await cluster.until(started.id, parked=False)
            assert_home(cluster, "h1" if ended.state is OperationState.UNDONE else "h2")

    run(story())


@WORLDS
@pytest.mark.parametrize("step", [ColdStage.RELEASE, ColdStage.ACQUIRE, ColdStage.MOVE])
def test_source_lost_after_the_shutdown_parks_and_goes_on_when_it_returns(
    world: Make, step: ColdStage
) -> None:
    """I2: its own word is missing, so nothing is started elsewhere."""

    async def story() -> None:
        made = world()
        async with Cluster3(made) as cluster:
            host = "h2" if step in ON_TARGET else "h1"
            # The agent alone dies before it answers: what its host holds cannot be asked.
            cluster.agents[host].before[step] = lambda: made.cut("h1")
            started = await cluster.controller.migrate("db", COLD)
            ended = await cluster.until(started.id)
            assert ended.state is OperationState.PARKED
            assert "once h1 answers again" in ended.remedy
            assert "the guest is not running" in ended.reason
            assert made.where("db") == []
            made.power_on("h1")
            ended = await cluster.until(started.id, parked=False)
            assert ended.state is OperationState.DONE
            assert_home(cluster, "h2")

    run(story())


def test_source_lost_after_its_definition_was_seen_gone_does_not_keep_the_guest_down() -> None:
    """Without a definition the source cannot start it, whatever happens there (I1, I2)."""

    async def story() -> None:
        world = drbd_world()
        async with Cluster3(world) as cluster:
            cluster.agents["h2"].before["start"] = lambda: world.cut("h1")
            ended = await move(cluster)
            assert ended.state is OperationState.DONE
            assert_home(cluster, "h2")

    run(story())


def test_a_guest_that_somebody_starts_at_home_meanwhile_is_left_there() -> None:
    async def story() -> None:
        world = iscsi_world()
        uuid = next(iter(world.guests))
        async with Cluster3(world) as cluster:

            def virsh_start() -> None:
                volume = world.guests[uuid].volumes[0]
                world.machines["h1"].held[volume.name].role = Role.ATTACHED
                world.start_guest("h1", uuid)

            cluster.agents["h2"].before["acquire"] = virsh_start
            cluster.agents["h2"].script["acquire"] = [Outcome.RETRYABLE]
            ended = await move(cluster)
            assert ended.state is OperationState.UNDONE
            assert "somebody started the guest on h1" in ended.reason
            assert_home(cluster, "h1")

    run(story())


def test_what_holds_only_live_does_not_keep_a_guest_from_moving_cold() -> None:
    async def story() -> None:
        world = drbd_world()
        spec = next(iter(world.guests.values()))
        spec.blockers = ("disk vda uses cache mode writeback",)
        spec.autostart = True
        async with Cluster3(world) as cluster:
            with pytest.raises(Refused):
                await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            ended = await move(cluster)
            assert ended.state is OperationState.DONE
            assert "autostart is not carried over" in ended.reason
            assert_home(cluster, "h2")

    run(story())


def test_a_dry_run_says_that_the_guest_will_be_shut_down_and_touches_nothing() -> None:
    async def story() -> None:
        async with Cluster3(drbd_world()) as cluster:
            plan = await cluster.controller.plan_migrate("db", COLD)
            assert [(move.source, move.target) for move in plan.moves] == [("h1", "h2")]
            assert plan.stops == tuple(cluster.world.guests)
            assert cluster.journal.rows == []
            assert cluster.world.trace == []

    run(story())


def test_one_thing_at_a_time_per_guest_live_or_cold() -> None:
    async def story() -> None:
        async with Cluster3(iscsi_world()) as cluster:
            first = await cluster.controller.migrate("db", COLD)
            for wanted in (MigrateRequest(to="h3"), MigrateRequest(to="h3", cold=True)):
                with pytest.raises(Refused) as refused:
                    await cluster.controller.migrate("db", wanted)
                assert first.id in str(refused.value)
            assert (await cluster.until(first.id)).state is OperationState.DONE

    run(story())
