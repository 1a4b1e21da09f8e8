"""A person's wish (cancel, resume) is answered whatever happens to the operation meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from agents.client import StaleEpoch
from agents.protocol import Attempt, AttemptReport
from migrd.control import MigrateRequest
from migrd.operations import OperationState
from migrd.ports import JournalReadOnly, Row
from migrd.sagas.events import CancelRequested, Event, MigrateRequested
from storage.errors import Refused, Unknown
from tests.core.fake_agent import FakeAgent
from tests.core.fake_world import World
from tests.core.harness import Cluster3, MemoryJournal
from tests.core.vloop import run


class ObeysAnother(FakeAgent):
    async def submit(self, attempt: Attempt, wait_s: float = 0.0) -> AttemptReport:
        raise StaleEpoch(f"{self.host}: epoch 9 has spoken")


class WishesTakeLong(MemoryJournal):
    """The fsync of a wish does not return."""

    async def append(self, operation: str, event: Event, at_s: float) -> Row:
        if isinstance(event, CancelRequested):
            await asyncio.Event().wait()
        return await super().append(operation, event, at_s)


class Hangs(MemoryJournal):
    """The disk hangs from the first row of such a kind on; the real one says so after ten seconds."""

    def __init__(self, *kinds: type[Event]) -> None:
        super().__init__()
        self.kinds = kinds
        self.answers = asyncio.Event()

    async def append(self, operation: str, event: Event, at_s: float) -> Row:
        if isinstance(event, self.kinds) and not self.answers.is_set() and not self.read_only:
            asyncio.get_running_loop().call_later(10.0, setattr, self, "read_only", "the disk hangs")
            await self.answers.wait()
            self.read_only = ""
        return await super().append(operation, event, at_s)


def test_a_wish_is_refused_when_a_newer_daemon_takes_over_before_it_is_taken() -> None:
    """The runner is cancelled while one wish is being written and one is queued: both are told (I4, I20)."""

    async def story() -> None:
        world = World()
        world.add_drbd("db", "h1", "h2")
        world.add_drbd("web", "h2", "h3")
        cluster = Cluster3(world)
        cluster.journal = WishesTakeLong()
        cluster.agents["h3"] = ObeysAnother(world, "h3")
        async with cluster:
            world.copy_s = 50.0
            moving = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await asyncio.sleep(10.0)
            wishes = [asyncio.create_task(cluster.controller.cancel(moving.id)) for _ in range(2)]
            await asyncio.sleep(1.0)
            await cluster.controller.migrate("web", MigrateRequest(to="h3"))
            _, waiting = await asyncio.wait(wishes, timeout=60.0)
            assert not waiting, "nobody ever answers"
            for wish in wishes:
                with pytest.raises(Refused, match="newer migrd"):
                    wish.result()

    run(story())


def test_a_wish_is_refused_when_the_daemon_stops_before_it_is_taken() -> None:
    async def story() -> None:
        world = World()
        world.add_drbd("db", "h1", "h2")
        cluster = Cluster3(world)
        cluster.journal = WishesTakeLong()
        async with cluster:
            world.copy_s = 50.0
            moving = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await asyncio.sleep(10.0)
            wish = asyncio.create_task(cluster.controller.cancel(moving.id))
            await asyncio.sleep(1.0)
            await cluster.kill()
            with pytest.raises(Refused, match="stopping"):
                await asyncio.wait_for(wish, 60.0)

    run(story())


def test_i20_a_wish_on_a_disk_that_hangs_is_answered_and_taken_when_it_is_durable() -> None:
    async def story() -> None:
        world = World()
        world.add_drbd("db", "h1", "h2")
        cluster = Cluster3(world)
        cluster.journal = journal = Hangs(CancelRequested)
        async with cluster:
            world.copy_s = 500.0
            moving = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await asyncio.sleep(10.0)
            async with asyncio.timeout(20.0):
                with pytest.raises(Unknown, match=f"{moving.id} may still take it"):
                    await cluster.controller.cancel(moving.id)
            with pytest.raises(JournalReadOnly, match="the disk hangs"):
                await cluster.controller.cancel(moving.id)
            journal.answers.set()
            assert (await cluster.until(moving.id)).state is OperationState.UNDONE
            assert len([1 for _, payload, _ in journal.rows if "cancel-requested" in payload]) == 1
            cluster.assert_clean()

    run(story())


def test_i20_a_request_on_a_disk_that_hangs_is_answered_and_begins_when_it_is_durable() -> None:
    """Nobody else waits behind it, and its number is not given away again."""

    async def story() -> None:
        world = World()
        db = world.add_drbd("db", "h1", "h2")
        world.add_iscsi("web", "h2")
        cluster = Cluster3(world)
        cluster.journal = journal = Hangs(MigrateRequested)
        async with cluster:
            async with asyncio.timeout(20.0):
                with pytest.raises(Unknown, match="it may still begin"):
                    await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            async with asyncio.timeout(1.0):
                with pytest.raises(JournalReadOnly, match="the disk hangs"):
                    await cluster.controller.migrate("web", MigrateRequest(to="h3"))
            journal.answers.set()
            await asyncio.sleep(1.0)
            (begun,) = cluster.controller.open_operations()
            assert begun.guest == db.uuid
            other = await cluster.controller.migrate("web", MigrateRequest(to="h3"))
            assert other.id != begun.id
            for each in (begun, other):
                assert (await cluster.until(each.id)).state is OperationState.DONE
            cluster.assert_clean()

    run(story())
