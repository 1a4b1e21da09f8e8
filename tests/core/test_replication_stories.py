"""I7: the replication breaks while the guest moves: nothing is demoted until both copies are one again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from agents.protocol import MigrateDomain
from migrd.control import MigrateRequest
from migrd.operations import OperationState
from migrd.sagas.compare import reasons_apart
from storage.words import Health, Role, VolumeReport
from tests.core.fake_world import Held, World
from tests.core.harness import Cluster3
from tests.core.vloop import run

NAME = "drbd:r1/0"


def drbd_world() -> World:
    world = World()
    world.add_drbd("db", "h1", "h2")
    return world


def other_generation(held: Held) -> None:
    held.identity += "-wrote-alone"


def degraded(held: Held) -> None:
    held.health, held.problems = Health.DEGRADED, ("r1 is not connected to h2 (StandAlone)",)


async def happened(world: World, event: str) -> None:
    for _ in range(1000):
        if event in world.trace:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{event}: never happened")


@pytest.mark.parametrize("breaks", [other_generation, degraded])
def test_a_copy_that_may_be_newer_is_not_demoted(breaks: Callable[[Held], None]) -> None:
    async def story() -> None:
        world = drbd_world()
        source = world.machines["h1"].held[NAME]
        identity = source.identity
        async with Cluster3(world) as cluster:
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await happened(world, "db copies from h1 to h2")
            breaks(source)
            parked = await cluster.until(started.id)
            assert parked.state is OperationState.PARKED
            assert parked.reason.startswith("ALARM: the guest runs on h2")
            assert f"migrctl op resume {started.id}" in parked.remedy
            assert world.where("db") == ["h2"]
            assert source.role is Role.PRIMARY
            assert "h1 lets go of drbd:r1/0" not in world.trace
            source.identity, source.health, source.problems = identity, Health.OK, ()  # by the operator
            await cluster.controller.resume(started.id)
            assert (await cluster.until(started.id)).state is OperationState.DONE
            cluster.assert_clean()

    run(story())


def test_a_replication_that_recovers_in_time_parks_nothing() -> None:
    async def story() -> None:
        world = drbd_world()
        source = world.machines["h1"].held[NAME]
        async with Cluster3(world) as cluster:
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await happened(world, "db copies from h1 to h2")
            source.health = Health.UNKNOWN
            await happened(world, "db is gone from h1")
            await asyncio.sleep(5)
            source.health = Health.OK
            assert (await cluster.until(started.id)).state is OperationState.DONE
            cluster.assert_clean()

    run(story())


def test_the_migration_names_its_volumes_and_its_peer() -> None:
    """The source's agent watches them while it copies."""

    async def story() -> None:
        world = drbd_world()
        async with Cluster3(world) as cluster:
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await cluster.until(started.id)
            commands = [each.command for each in cluster.agents["h1"].seen]
            (command,) = [each for each in commands if isinstance(each, MigrateDomain)]
            assert [volume.name for volume in command.volumes] == [NAME]
            assert command.handover is not None
            assert command.handover.peer_node == "h2.lab"

    run(story())


def test_what_counts_as_one_copy() -> None:
    world = drbd_world()
    world.add_iscsi("web", "h1")
    world.machines["h1"].held[NAME].dual_primary = True  # as it must be at that moment
    volumes = tuple(volume for spec in world.guests.values() for volume in spec.volumes)

    def judge(source: tuple[VolumeReport, ...], target: tuple[VolumeReport, ...]) -> tuple[str, ...]:
        return reasons_apart(volumes, source, target, hosts=("h1", "h2"))

    here = tuple(world.volume("h1", volume) for volume in volumes)
    there = tuple(world.volume("h2", volume) for volume in volumes)
    assert judge(here, there) == ()
    assert "h2 did not report" in judge(here, ())[0]
    assert "h1 did not report" in judge((), there)[0]
    broken = replace(here[0], identity="moved-on", health=Health.DEGRADED, generation="A")
    ahead = replace(there[0], identity="newer", health=Health.DEGRADED, generation="B", ancestors=("A",))
    assert judge((broken, *here[1:]), (ahead, *there[1:])) == (), "the source is behind: nothing is lost"
    same = replace(ahead, generation="A", ancestors=())
    assert judge((broken, *here[1:]), (same, *there[1:])) == (), "neither has written alone"
    unrelated = replace(ahead, ancestors=("C",))
    assert judge((broken, *here[1:]), (unrelated, *there[1:]))
    assert judge((replace(broken, generation=None), *here[1:]), (ahead, *there[1:])), (
        "not known is not behind"
    )
    world.machines["h2"].held[NAME].identity = ""
    unproved = tuple(world.volume("h2", volume) for volume in volumes)
    assert "cannot be proved on h2" in judge(here, unproved)[0]
