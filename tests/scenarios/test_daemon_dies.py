"""I16: the daemon is killed at every journal write, one at a time; a new one converges to the same end.

Killed "after" row N: the row is on disk and nothing that follows from it was done. Killed "before" row N:
everything that row N-1 asked for was done, and its outcome was never written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agents.protocol import Outcome
from migrd.control import DrainRequest, MigrateRequest, UndrainRequest
from migrd.operations import OperationState
from tests.core.fake_world import World
from tests.core.harness import Cluster3
from tests.core.vloop import run

Story = Callable[[Cluster3], Awaitable[str]]


def small_world() -> World:
    world = World()
    world.add_drbd("db", "h1", "h2")
    world.add_iscsi("web", "h1")
    return world


async def migrate_drbd(cluster: Cluster3) -> str:
    return (await cluster.controller.migrate("db", MigrateRequest(to="h2"))).id


async def migrate_iscsi(cluster: Cluster3) -> str:
    return (await cluster.controller.migrate("web", MigrateRequest(to="h3"))).id


async def migrate_and_fail(cluster: Cluster3) -> str:
    cluster.agents["h1"].script["migrate"] = [Outcome.FAILED]
    return (await cluster.controller.migrate("db", MigrateRequest(to="h2"))).id


async def cold_drbd(cluster: Cluster3) -> str:
    return (await cluster.controller.migrate("db", MigrateRequest(to="h2", cold=True))).id


async def cold_iscsi(cluster: Cluster3) -> str:
    return (await cluster.controller.migrate("web", MigrateRequest(to="h3", cold=True))).id


async def cold_and_home_again(cluster: Cluster3) -> str:
    cluster.world.boots_not_on |= {("db", "h2")}
    return await cold_drbd(cluster)


async def cold_while_shut_off(cluster: Cluster3) -> str:
    if cluster.world.where("web"):
        cluster.world.shut_off("web")
    return await cold_iscsi(cluster)


async def drain_and_power_off(cluster: Cluster3) -> str:
    return (await cluster.controller.drain("h1", DrainRequest(power_off=True))).id


async def undrain_and_restore(cluster: Cluster3) -> str:
    if "h1" not in cluster.controller.administrative():
        drained = await cluster.controller.drain("h1", DrainRequest(power_off=True))
        await cluster.until(drained.id)
    return (await cluster.controller.undrain("h1", UndrainRequest(restore=True))).id


async def play(story: Story, *, kill_at: int | None, before: bool, pause_s: float) -> tuple[object, ...]:
    """Tell the story once, with at most one kill, and say how the world looks at the end."""
    async with Cluster3(small_world()) as cluster:
        if before:
            cluster.journal.kill_before = kill_at
        else:
            cluster.journal.kill_after = kill_at
        telling = asyncio.ensure_future(story(cluster))
        dead = asyncio.ensure_future(cluster.journal.dead.wait())
        await asyncio.wait([telling, dead], return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            done = asyncio.ensure_future(cluster.until(telling.result(), at_most_s=600.0))
            await asyncio.wait([done, dead], return_when=asyncio.FIRST_COMPLETED)
        if cluster.journal.dead.is_set():
            if not telling.done():
                telling.cancel()
                await asyncio.wait([telling])
            await cluster.kill()
            await asyncio.sleep(pause_s)
            await cluster.start()
        dead.cancel()
        for shown in cluster.controller.operations():
            await cluster.until(shown.id, at_most_s=2000.0)
        if telling.cancelled():
            # The kill came before the daemon had answered: the operator asks again.
            again = await story(cluster) if not _asked(cluster, story) else ""
            if again:
                await cluster.until(again)
        cluster.assert_clean()
        assert all(shown.state.ended for shown in cluster.controller.operations())
        return (
            cluster.world.where("db"),
            cluster.world.where("web"),
            cluster.world.defined("db"),
            cluster.world.defined("web"),
            cluster.world.machines["h1"].powered,
            cluster.controller.administrative(),
        )


def _asked(cluster: Cluster3, story: Story) -> bool:
    """Has the story's own operation reached the journal before the kill?"""
    kinds = [shown.kind for shown in cluster.controller.operations() if not shown.parent]
    return bool(kinds) and (story is not undrain_and_restore or "undrain" in kinds)


def rows_of(story: Story) -> int:
    async def count() -> int:
        async with Cluster3(small_world()) as cluster:
            await cluster.until(await story(cluster))
            return len(cluster.journal.rows)

    return run(count())


STORIES: list[Story] = [
    migrate_drbd,
    migrate_iscsi,
    migrate_and_fail,
    cold_drbd,
    cold_iscsi,
    cold_and_home_again,
    cold_while_shut_off,
    drain_and_power_off,
    undrain_and_restore,
]


@pytest.mark.parametrize("pause_s", [0.0, 5.0])
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("story", STORIES, ids=[story.__name__ for story in STORIES])
def test_killed_at_every_journal_write_the_end_is_the_same(
    story: Story, before: bool, pause_s: float
) -> None:
    undisturbed = run(play(story, kill_at=None, before=False, pause_s=0.0))
    told = rows_of(drain_and_power_off) if story is undrain_and_restore else 0
    for row in range(told + 1, rows_of(story) + 1):
        ended = run(play(story, kill_at=row, before=before, pause_s=pause_s))
        assert ended == undisturbed, f"killed at row {row}"


def test_an_attempt_number_is_never_used_twice() -> None:
    """The agents' ledger answers a repeated number with the first outcome: a new try needs a new number."""

    async def story() -> None:
        async with Cluster3(small_world()) as cluster:
            cluster.journal.kill_after = 6
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await cluster.journal.dead.wait()
            await cluster.kill()
            await cluster.start()
            ended = await cluster.until(started.id)
            assert ended.state is OperationState.DONE
            for agent in cluster.agents.values():
                keys = [(a.operation, a.step, a.attempt) for a in agent.seen]
                assert len(keys) == len(set(keys))
                epochs = [a.epoch for a in agent.seen]
                assert epochs == sorted(epochs)
            assert {a.epoch for a in cluster.agents["h1"].seen} == {1, 2}

    run(story())


def test_a_parked_operation_stays_parked_over_a_restart_and_resumes_when_the_host_is_back() -> None:
    async def story() -> None:
        world = small_world()
        world.copy_s = 10.0
        async with Cluster3(world) as cluster:
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            await asyncio.sleep(5.0)
            world.cut("h2", with_bmc=True)
            assert (await cluster.until(started.id)).state is OperationState.PARKED
            await cluster.kill()
            await cluster.start()
            await asyncio.sleep(200.0)
            assert cluster.controller.operation(started.id).state is OperationState.PARKED
            world.power_on("h2")
            ended = await cluster.until(started.id, parked=False)
            assert ended.state is OperationState.UNDONE
            cluster.assert_clean()

    run(story())


@pytest.mark.parametrize("host", ["h1", "h2"])
@pytest.mark.parametrize("step", ["prepare", "open-window", "acquire", "migrate", "release", "close-window"])
def test_an_agent_killed_before_it_does_a_step(host: str, step: str) -> None:
    """The agent is gone for 10 s and forgets what it was doing; the saga looks and goes on, or goes back."""

    async def story() -> None:
        async with Cluster3(small_world()) as cluster:
            agent = cluster.agents[host]
            agent.before[step] = agent.kill
            started = await cluster.controller.migrate("db", MigrateRequest(to="h2"))
            for _ in range(100):
                await asyncio.sleep(0.1)
                if not cluster.world.machines[host].agent:
                    await asyncio.sleep(10.0)
                    agent.restart()
            ended = await cluster.until(started.id, parked=False)
            expected = {OperationState.UNDONE: ["h1"], OperationState.DONE: ["h2"]}
            assert cluster.world.where("db") == expected[ended.state]
            cluster.assert_clean()

    run(story())


COLD_STEPS = ["prepare", "shutdown", "release", "acquire", "move-definition", "start"]


@pytest.mark.parametrize("forgets", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("host", ["h1", "h2"])
@pytest.mark.parametrize("step", COLD_STEPS)
@pytest.mark.parametrize("story", [cold_drbd, cold_iscsi], ids=["drbd", "iscsi"])
def test_an_agent_killed_around_a_step_of_a_cold_move(
    story: Story, host: str, step: str, forgets: bool
) -> None:
    """Gone for 10 s, before the step is done or right after: the guest runs on one host at the end."""

    async def told() -> None:
        async with Cluster3(small_world()) as cluster:
            agent = cluster.agents[host]

            def die() -> None:
                if forgets:
                    asyncio.get_running_loop().call_later(0.005, agent.kill)
                else:
                    agent.kill()

            agent.before[step] = die
            started = await story(cluster)
            for _ in range(200):
                await asyncio.sleep(0.1)
                if not cluster.world.machines[host].agent:
                    await asyncio.sleep(10.0)
                    agent.restart()
            ended = await cluster.until(started, parked=False)
            name, target = ("db", "h2") if story is cold_drbd else ("web", "h3")
            expected = [{OperationState.UNDONE: "h1", OperationState.DONE: target}[ended.state]]
            assert cluster.world.where(name) == cluster.world.defined(name) == expected
            cluster.assert_clean()

    run(told())


def test_event_numbers_grow_over_a_restart() -> None:
    """A subscriber that comes back with its Last-Event-ID misses nothing that the new life tells."""

    async def story() -> None:
        world = World()
        world.add_iscsi("web", "h1")
        async with Cluster3(world) as cluster:
            first = await cluster.controller.migrate("web", MigrateRequest(to="h2"))
            await cluster.until(first.id)
            told = cluster.controller.events(after_seq=0)
            last = 0
            for _ in range(10):
                last = (await anext(told)).seq
            await cluster.kill()
            await cluster.start()
            second = await cluster.controller.migrate("web", MigrateRequest(to="h3"))
            await cluster.until(second.id)
            missed = await anext(cluster.controller.events(after_seq=last))
            assert missed == await anext(cluster.controller.events(after_seq=0)), "the first of the new life"
            assert missed.seq > last

    run(story())
