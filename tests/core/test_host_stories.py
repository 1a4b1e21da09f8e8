"""Hosts are added and removed while the daemon runs, and it is the same after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from migrd.control import DrainRequest, NotFound
from migrd.host_config import Bmc, HostConfig
from migrd.model import HostState
from migrd.operations import OperationKind, OperationState
from storage.errors import Refused
from storage.words import Health
from tests.core.fake_world import World
from tests.core.harness import Cluster3
from tests.core.stories import drain, mixed_world
from tests.core.vloop import run

H3 = HostConfig(
    agent="https://h3:7443",
    bmc=Bmc(address="b3", user="admin", password_file=Path("/etc/migrd/b3"), options={"cipher": "3"}),
)


class Told:
    """MembersPort that remembers what it was told."""

    fixed: Mapping[str, HostConfig] = {
        name: HostConfig(agent=f"https://{name}:7443") for name in ("h1", "h2")
    }

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.wrong: list[str] = []

    def problems(self, host: HostConfig) -> list[str]:
        return self.wrong

    def take(self, name: str, host: HostConfig) -> None:
        assert host == H3
        self.log.append(("take", name))

    def drop(self, name: str) -> None:
        self.log.append(("drop", name))


def with_members(world: World | None = None) -> tuple[Cluster3, Told]:
    cluster, told = Cluster3(world), Told()
    cluster.members = told
    return cluster, told


def test_a_host_is_added_at_once_kept_over_restarts_and_removed_for_good() -> None:
    """I16: journal, then act; every start folds the same."""

    async def story() -> None:
        cluster, told = with_members()
        async with cluster:
            added = await cluster.controller.add_host("h3", H3)
            assert (added.kind, added.state, added.subject) == (OperationKind.HOST, OperationState.DONE, "h3")
            assert told.log == [("take", "h3")]
            for _ in range(2):
                await cluster.kill()
                told.log.clear()
                await cluster.start()
                assert told.log == [("take", "h3")]
            removed = await cluster.controller.remove_host("h3")
            assert removed.state is OperationState.DONE
            assert told.log == [("take", "h3"), ("drop", "h3")]
            await cluster.kill()
            told.log.clear()
            await cluster.start()
            assert told.log == []
            with pytest.raises(NotFound):
                await cluster.controller.remove_host("h3")
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("kill", ["kill_before", "kill_after"])
def test_killed_while_a_host_is_added(kill: str) -> None:
    """Before its row it was never added; after it, the next start follows it (I16)."""

    async def story() -> None:
        cluster, told = with_members()
        async with cluster:
            setattr(cluster.journal, kill, 1)
            asking = asyncio.create_task(cluster.controller.add_host("h3", H3))
            await cluster.journal.dead.wait()
            assert told.log == [], "journal, then act"
            await cluster.kill()
            asking.cancel()
            await cluster.start()
            assert told.log == ([("take", "h3")] if kill == "kill_after" else [])

    run(story())


def test_all_reasons_against_adding() -> None:
    async def story() -> None:
        cluster, told = with_members()
        async with cluster:
            told.wrong = ["bmc.password_file: /x: cannot be read"]
            cluster.journal.read_only = "the journal cannot be written: disk full"
            with pytest.raises(Refused) as refused:
                await cluster.controller.add_host("h1", HostConfig(agent="https://h2:7443"))
            assert len(refused.value.reasons) == 4
            for word in ("h1 exists", "agent of h2", "cannot be read", "disk full"):
                assert word in str(refused.value)
            cluster.journal.read_only = ""
            told.wrong = []
            with pytest.raises(Refused, match="exists already"):
                await cluster.controller.add_host("h1", H3)
            assert told.log == []
            assert cluster.journal.rows == []

    run(story())


def test_two_at_the_same_time_are_one() -> None:
    async def story() -> None:
        cluster, told = with_members()
        async with cluster:
            both = await asyncio.gather(
                *(cluster.controller.add_host("h3", H3) for _ in range(2)), return_exceptions=True
            )
            assert sorted(type(each).__name__ for each in both) == ["Operation", "Refused"]
            assert told.log == [("take", "h3")]

    run(story())


def test_a_host_with_guests_open_work_and_a_sole_replica_stays() -> None:
    async def story() -> None:
        world = mixed_world()
        cluster, told = with_members(world)
        async with cluster:
            await cluster.controller.add_host("h3", H3)
            world.copy_s = 50.0
            await cluster.controller.drain("h1", DrainRequest())
            await asyncio.sleep(5.0)
            world.machines["h1"].held["drbd:r2/0"].health = Health.DEGRADED
            cluster.journal.read_only = "the journal cannot be written: disk full"
            with pytest.raises(Refused) as refused:
                await cluster.controller.remove_host("h3")
            for word in ("still has guest", "has not ended", "only holder", "drbd:r2/0", "disk full"):
                assert word in str(refused.value)
            with pytest.raises(Refused, match=r"remove \[hosts.h1\] there"):
                await cluster.controller.remove_host("h1")
            assert told.log == [("take", "h3")]

    run(story())


def test_what_was_decided_about_a_removed_host_is_void() -> None:
    async def story() -> None:
        cluster, _ = with_members(World())
        async with cluster:
            await cluster.controller.add_host("h3", H3)
            await drain(cluster, "h3")
            assert cluster.controller.administrative() == {"h3": HostState.DRAINED}
            await cluster.controller.remove_host("h3")
            assert cluster.controller.administrative() == {}
            await cluster.controller.add_host("h3", H3)
            assert cluster.controller.administrative() == {}

    run(story())


def test_its_operation_takes_no_wish() -> None:
    async def story() -> None:
        cluster, _ = with_members()
        async with cluster:
            added = await cluster.controller.add_host("h3", H3)
            with pytest.raises(Refused, match="has ended"):
                await cluster.controller.cancel(added.id)
            with pytest.raises(Refused, match="not parked"):
                await cluster.controller.resume(added.id)

    run(story())
