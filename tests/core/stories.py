"""What the stories of drains and of power have in common."""

from __future__ import annotations

from migrd.control import DrainRequest
from migrd.operations import Operation
from tests.core.fake_world import World
from tests.core.harness import Cluster3


def mixed_world() -> World:
    world = World()
    world.add_drbd("db1", "h1", "h2")
    world.add_drbd("db2", "h1", "h3")
    world.add_iscsi("web1", "h1")
    world.add_iscsi("web2", "h1")
    return world


async def drain(cluster: Cluster3, host: str = "h1", **asked: object) -> Operation:
    started = await cluster.controller.drain(host, DrainRequest(**asked))  # type: ignore[arg-type]
    return await cluster.until(started.id)


def places(world: World) -> dict[str, list[str]]:
    return {spec.name: world.where(spec.name) for spec in world.guests.values()}
