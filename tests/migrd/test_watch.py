"""The view follows agents through silence, lost events, slow reports, restarts and doubtful identities."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from agents.protocol import AttemptReport, DomainState, Event, Outcome
from migrd.changes import Change
from migrd.model import HostState
from migrd.watch import ClusterView, WatchPolicy, backoff_s
from storage.errors import Retryable
from tests.core.vloop import run
from tests.migrd.agent import ScriptedAgent, domain


class World:
    """A view over scripted agents, and what it said."""

    def __init__(self, *agents: ScriptedAgent) -> None:
        self.agents = {agent.name: agent for agent in agents}
        self.changes: list[Change] = []
        self.administrative: dict[str, HostState] = {}
        self.view = ClusterView(
            self.agents,
            administrative=lambda: self.administrative,
            on_change=self.changes.append,
            with_bmc=["h1"],
            share=lambda: 0.5,
        )

    def state(self, host: str) -> str:
        return str(self.view.cluster().hosts[host].state)

    def states(self, host: str) -> list[str]:
        """Every state that was announced for a host."""
        known = {str(state) for state in HostState}
        return [
            each.after
            for each in self.changes
            if (each.kind, each.host) == ("host", host) and each.after in known
        ]

    def said(self, kind: str) -> list[str]:
        return [each.message for each in self.changes if each.kind == kind]

    def guests(self) -> set[tuple[str, str, str]]:
        return {(each.name, each.host, str(each.state)) for each in self.view.cluster().guests}


def story(*agents: ScriptedAgent) -> Callable[[Callable[[World], Coroutine[Any, Any, None]]], World]:
    """Run an async function in virtual time beside a running view that has settled."""

    async def told(tell: Callable[[World], Coroutine[Any, Any, None]]) -> World:
        world = World(*agents)
        following = asyncio.create_task(world.view.run())
        assert await world.view.settled(5.0) == ()
        await asyncio.sleep(0.6)  # one tick, so that the first states are announced
        await tell(world)
        assert not following.done(), following.exception()
        following.cancel()
        return world

    return lambda tell: run(told(tell))


def test_what_is_there_is_adopted() -> None:
    @story(ScriptedAgent("h1", domain("a"), domain("b", DomainState.SHUTOFF)), ScriptedAgent("h2"))
    async def world(world: World) -> None:
        cluster = world.view.cluster()
        assert world.guests() == {("a", "h1", "running"), ("b", "h1", "shutoff")}
        assert [str(host.state) for host in cluster.hosts.values()] == ["online", "online"]
        assert cluster.hosts["h1"].has_bmc
        assert not cluster.hosts["h2"].has_bmc
        assert cluster.hosts["h1"].arch == "x86_64"
        assert world.view.xml_of("uuid-a") == "<domain><name>a</name></domain>"
        assert world.view.xml_of("uuid-z") is None
        assert world.states("h1") == ["online"]

    assert len([text for text in world.said("guest-appeared") if "appeared on h1" in text]) == 2


def test_silence_makes_a_host_suspect_and_then_unreachable_and_a_beat_brings_it_back() -> None:
    @story(ScriptedAgent("h1", domain("a")))
    async def world(world: World) -> None:
        agent = world.agents["h1"]
        agent.beating, agent.refusing = False, True
        seen = []
        for _ in range(24):
            seen.append(world.state("h1"))
            await asyncio.sleep(0.5)
        assert seen[:5] == ["online"] * 5
        assert seen[7:18] == ["suspect"] * 11
        assert seen[21:] == ["unreachable"] * 3
        assert world.guests() == {("a", "h1", "running")}, "its guests are remembered"
        assert world.view.xml_of("uuid-a"), "and their definitions"
        agent.beating, agent.refusing = True, False
        await asyncio.sleep(6)
        assert world.state("h1") == "online"

    assert world.states("h1") == ["online", "suspect", "unreachable", "online"]


def test_a_stream_that_only_hangs_is_given_up_and_opened_again() -> None:
    @story(ScriptedAgent("h1"))
    async def world(world: World) -> None:
        world.agents["h1"].beating = False
        await asyncio.sleep(20)
        assert world.agents["h1"].connections in (4, 5), "once, and again after every 5 s of silence"

    assert world.states("h1")[:3] == ["online", "suspect", "online"], "each hello is a sign of life"


def test_reconnecting_is_bounded() -> None:
    @story(ScriptedAgent("h1"))
    async def world(world: World) -> None:
        before = world.agents["h1"].connections
        world.agents["h1"].refusing = True
        await asyncio.sleep(120)
        tries = world.agents["h1"].connections - before
        assert 20 <= tries <= 50, tries  # every 3.75 s once the back-off has grown
        assert "connection refused" in " ".join(world.view.cluster().hosts["h1"].problems)

    policy = WatchPolicy()
    assert [backoff_s(n, 0.0, policy) for n in (0, 1, 40)] == [0.1, 0.2, 2.5]
    assert backoff_s(40, 0.999, policy) < policy.backoff_cap_s


def test_a_lost_event_is_noticed_at_the_next_beat() -> None:
    @story(ScriptedAgent("h1", domain("a")))
    async def world(world: World) -> None:
        world.agents["h1"].has(domain("a"), domain("new"), told=False)
        assert ("new", "h1", "running") not in world.guests()
        await asyncio.sleep(1.5)
        assert ("new", "h1", "running") in world.guests()

    assert world.agents["h1"].reads == 2


def test_a_report_that_failed_is_asked_for_again() -> None:
    @story(ScriptedAgent("h1", domain("a")))
    async def world(world: World) -> None:
        world.agents["h1"].failing_reads = 2
        world.agents["h1"].has(domain("a"), domain("new", xml=""), told=False)
        await asyncio.sleep(4)
        assert ("new", "h1", "running") in world.guests()

    assert world.agents["h1"].reads == 4
    assert world.states("h1") == ["online"], "the stream went on all the while"


def test_a_report_without_xml_keeps_the_xml_known() -> None:
    @story(ScriptedAgent("h1", domain("a")))
    async def world(world: World) -> None:
        world.agents["h1"].has(domain("a", DomainState.SHUTOFF, xml=""), told=False)
        await world.view.reread("h1")
        assert world.guests() == {("a", "h1", "shutoff")}
        assert world.view.xml_of("uuid-a")

    assert world.states("h1") == ["online"]


def test_guests_that_are_as_they_were_stay_the_same_objects() -> None:
    """Else every read of a host makes work for the garbage collector, see docs/PERFORMANCE.md."""

    @story(ScriptedAgent("h1", domain("a"), domain("b"), domain("c")))
    async def world(world: World) -> None:
        agent = world.agents["h1"]
        before = world.view.cluster()
        agent.has(domain("a"), domain("b", xml=""), domain("c"), told=False)  # equal, and not the same
        await world.view.reread("h1")
        assert world.view.cluster().guests is before.guests
        agent.has(domain("a"), domain("b", DomainState.PAUSED, xml=""), domain("d"), told=False)
        await world.view.reread("h1")
        assert world.guests() == {(name, "h1", "running") for name in "ad"} | {("b", "h1", "paused")}
        assert world.view.xml_of("uuid-b") == "<domain><name>b</name></domain>"
        agent.has(domain("b", DomainState.PAUSED), domain("a"), told=False)
        await world.view.reread("h1")
        assert [guest.name for guest in world.view.cluster().guests] == ["b", "a"]


def test_a_restarted_agent_is_read_again() -> None:
    @story(ScriptedAgent("h1", domain("a")))
    async def world(world: World) -> None:
        agent = world.agents["h1"]
        agent.has(domain("b"), told=False)
        agent.restart()
        await asyncio.sleep(3)
        assert world.guests() == {("b", "h1", "running")}

    assert world.states("h1") == ["online"], "the agent was away for less than it takes to be suspect"


def test_events_change_the_picture_without_a_read() -> None:
    @story(ScriptedAgent("h1", domain("a")))
    async def world(world: World) -> None:
        agent = world.agents["h1"]
        agent.has(domain("a", DomainState.PAUSED, xml=""), domain("b"))
        await asyncio.sleep(0.1)
        assert world.guests() == {("a", "h1", "paused"), ("b", "h1", "running")}
        assert world.view.xml_of("uuid-a"), "an event without XML keeps the XML known"
        agent.has(domain("b"))
        await asyncio.sleep(0.1)
        assert world.guests() == {("b", "h1", "running")}
        assert agent.reads == 1

    assert world.said("guest-state") == ["a on h1 is paused, was running"]
    assert world.said("guest-gone") == ["a is gone from h1, and on no other host"]


def test_a_slow_report_ages_no_heartbeat_and_hides_no_newer_event() -> None:
    @story(ScriptedAgent("h1", domain("a")))
    async def world(world: World) -> None:
        agent = world.agents["h1"]
        agent.report_takes_s = 15.0
        agent.says(Event(stream="", seq=0, kind="volume"))  # asks for a report, which takes its time
        await asyncio.sleep(2)
        agent.has(domain("a", DomainState.PAUSED))  # after the report was made, before it arrives
        await asyncio.sleep(12)
        assert agent.reads == 2
        await asyncio.sleep(3)
        assert world.guests() == {("a", "h1", "paused")}

    assert world.states("h1") == ["online"]


def test_reports_that_cross_leave_the_newer_one() -> None:
    @story(ScriptedAgent("h1", domain("a")))
    async def world(world: World) -> None:
        agent = world.agents["h1"]
        agent.report_takes_s = 3.0
        older = asyncio.create_task(world.view.reread("h1"))
        await asyncio.sleep(0.1)
        agent.report_takes_s = 0.0
        agent.now = replace(agent.now, memory_available_bytes=7, observed_s=agent.now.observed_s + 1)
        await world.view.reread("h1")
        await older
        assert world.view.cluster().hosts["h1"].memory_available_bytes == 7

    assert world.states("h1") == ["online"]


def test_a_read_on_demand_has_a_deadline() -> None:
    @story(ScriptedAgent("h1"))
    async def world(world: World) -> None:
        world.agents["h1"].report_takes_s = 100.0
        with pytest.raises(Retryable, match="h1: no report within 2 s"):
            await world.view.reread("h1", deadline_s=2.0)

    assert world.states("h1") == ["online"]


def test_a_report_grows_old_and_is_read_again() -> None:
    @story(ScriptedAgent("h1"))
    async def world(world: World) -> None:
        await asyncio.sleep(60)

    assert 4 <= world.agents["h1"].reads <= 7


def test_libvirt_that_does_not_answer_degrades_the_host() -> None:
    @story(ScriptedAgent("h1", libvirt_ok=False, problems=("libvirtd does not answer",)))
    async def world(world: World) -> None:
        host = world.view.cluster().hosts["h1"]
        assert str(host.state) == "degraded"
        assert "libvirtd does not answer" in host.problems

    assert world.states("h1") == ["degraded"]


def test_a_host_that_restarted_is_told() -> None:
    @story(ScriptedAgent("h1", domain("a")))
    async def world(world: World) -> None:
        agent = world.agents["h1"]
        agent.has(told=False)
        agent.restart(boot_id="boot-2")
        await asyncio.sleep(3)
        assert world.view.cluster().hosts["h1"].boot_id == "boot-2"
        agent.now = replace(agent.now, node="other")
        agent.restart()
        await asyncio.sleep(3)

    assert any("h1 has restarted: boot boot-2" in text for text in world.said("host"))
    assert any("node name was node-h1 and is other now" in text for text in world.said("alert"))
    assert world.said("guest-gone") == ["a is gone from h1, and on no other host"]


@pytest.mark.parametrize(
    ("one", "two", "word"),
    [
        ({"host": "h9"}, {}, "says that it is h9"),
        ({"node": "n"}, {"node": "n"}, "node n is claimed by h2 too"),
        ({"boot_id": "b"}, {"boot_id": "b"}, "boot_id b is claimed by h2 too"),
        ({"protocol": 99}, {}, "speaks protocol 99"),
    ],
)
def test_a_doubtful_identity_makes_a_host_unusable_and_is_shown(
    one: dict[str, object], two: dict[str, object], word: str
) -> None:
    @story(ScriptedAgent("h1", **one), ScriptedAgent("h2", **two), ScriptedAgent("h3"))
    async def world(world: World) -> None:
        assert world.state("h1") == "degraded"
        assert word in " ".join(world.view.cluster().hosts["h1"].problems)
        assert world.state("h2") == ("degraded" if two else "online")
        assert world.state("h3") == "online"

    assert world.states("h3") == ["online"]


def test_a_decision_about_a_host_outlives_what_it_shows() -> None:
    @story(ScriptedAgent("h1"), ScriptedAgent("h2"))
    async def world(world: World) -> None:
        world.administrative["h1"] = HostState.DRAINING
        await asyncio.sleep(1)
        host = world.view.cluster().hosts["h1"]
        assert (str(host.state), str(host.observed)) == ("draining", "online")
        world.agents["h1"].refusing = True
        await asyncio.sleep(12)
        host = world.view.cluster().hosts["h1"]
        assert (str(host.state), str(host.observed)) == ("draining", "unreachable")
        world.administrative["h1"] = HostState.OFF
        world.agents["h1"].refusing = False
        await asyncio.sleep(6)
        assert any("is heard again" in text for text in world.view.cluster().hosts["h1"].problems)
        world.administrative["h2"] = HostState.ONLINE  # not a decision that anybody can make
        assert world.state("h2") == "online"

    assert world.states("h1") == ["online", "draining", "off"]


def test_a_migration_is_one_move_and_no_alarm() -> None:
    @story(ScriptedAgent("h1", domain("a")), ScriptedAgent("h2"))
    async def world(world: World) -> None:
        one, two = world.agents["h1"], world.agents["h2"]
        two.has(domain("a", DomainState.PAUSED_INCOMING))
        await asyncio.sleep(5)
        two.has(domain("a"))
        await asyncio.sleep(0.5)  # the target's word comes first
        one.has()
        await asyncio.sleep(10)
        assert world.guests() == {("a", "h2", "running")}

    assert world.said("guest-appeared") == ["a appeared on h1, running"]
    assert world.said("guest-moved") == ["a moved from h1 to h2"]
    assert world.said("guest-gone") == []
    assert world.said("alert") == []


def test_a_guest_that_runs_twice_is_alarmed_once() -> None:
    """I1: shown and left to a human."""

    @story(ScriptedAgent("h1", domain("a")), ScriptedAgent("h2"))
    async def world(world: World) -> None:
        world.agents["h2"].has(domain("a"))
        await asyncio.sleep(30)
        world.agents["h2"].has()
        await asyncio.sleep(5)
        world.agents["h2"].has(domain("a"))
        await asyncio.sleep(5)

    assert [text for text in world.said("alert") if "runs on h1 and h2" in text] == world.said("alert")
    assert len(world.said("alert")) == 2


def test_a_host_that_is_not_heard_makes_no_double() -> None:
    @story(ScriptedAgent("h1", domain("a")), ScriptedAgent("h2"))
    async def world(world: World) -> None:
        world.agents["h1"].refusing = True
        await asyncio.sleep(12)
        world.agents["h2"].has(domain("a"))
        await asyncio.sleep(12)

    assert world.said("alert") == []
    assert world.said("guest-moved") == ["a moved from h1 to h2"]


def test_the_end_of_an_attempt_is_handed_on() -> None:
    ended = AttemptReport(operation="op-000001", step="migrate", attempt=1, outcome=Outcome.DONE)

    @story(ScriptedAgent("h1"))
    async def world(world: World) -> None:
        world.agents["h1"].says(Event(stream="", seq=0, kind="attempt", attempt=ended))
        await asyncio.sleep(0.1)

    assert [each.attempt for each in world.changes if each.kind == "attempt"] == [ended]


def test_a_host_never_heard_of_is_unknown() -> None:
    async def tell() -> None:
        agent = ScriptedAgent("h1")
        agent.refusing = True
        world = World(agent)
        following = asyncio.create_task(world.view.run())
        assert await world.view.settled(5.0) == (), "it was tried"
        assert world.state("h1") == "unknown"
        following.cancel()

    run(tell())


def test_a_bug_ends_the_view_instead_of_leaving_an_old_picture() -> None:
    class Broken(ScriptedAgent):
        async def report(self, *, storage: bool = False) -> Any:
            raise ZeroDivisionError

    async def tell() -> None:
        world = World(Broken("h1"))
        async with asyncio.timeout(30):
            with pytest.raises(ExceptionGroup):
                await world.view.run()

    run(tell())


def test_snapshots_share_what_did_not_change() -> None:
    @story(ScriptedAgent("h1", domain("a")), ScriptedAgent("h2", domain("b")))
    async def world(world: World) -> None:
        before = world.view.cluster()
        await asyncio.sleep(2)
        after = world.view.cluster()
        assert before is after
        assert world.view.silent_s()["h1"] < 1.5
        world.agents["h1"].has(domain("a"), domain("c"))
        await asyncio.sleep(0.1)
        last = world.view.cluster()
        assert len(last.guests) == 3
        assert last.hosts["h2"] is before.hosts["h2"]

    assert world.states("h1") == ["online"]


def test_a_host_that_is_added_is_followed_at_once_and_one_that_is_removed_leaves_nothing() -> None:
    late = ScriptedAgent("h2", domain("b"))

    @story(ScriptedAgent("h1", domain("a")))
    async def world(world: World) -> None:
        world.view.add("h2", late, has_bmc=True)
        await asyncio.sleep(2.0)
        assert world.state("h2") == "online"
        assert world.view.cluster().hosts["h2"].has_bmc
        assert world.guests() == {("a", "h1", "running"), ("b", "h2", "running")}
        world.view.remove("h2")
        reads = late.reads
        assert set(world.view.cluster().hosts) == {"h1"}
        assert world.guests() == {("a", "h1", "running")}
        assert world.view.xml_of("uuid-b") is None
        with pytest.raises(KeyError):
            await world.view.reread("h2")
        await asyncio.sleep(60.0)
        assert late.reads == reads, "its loops have ended"
        assert set(world.view.cluster().hosts) == {"h1"}
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert not [name for name in names if "h2" in name], "no orphan"
        # The same name again is a host like any other.
        world.view.add("h2", ScriptedAgent("h2", domain("c")), has_bmc=False)
        await asyncio.sleep(2.0)
        assert world.guests() == {("a", "h1", "running"), ("c", "h2", "running")}
        assert not world.view.cluster().hosts["h2"].has_bmc


def test_a_report_under_way_does_not_bring_a_removed_host_back() -> None:
    slow = ScriptedAgent("h2", domain("b"))

    @story(ScriptedAgent("h1", domain("a")), slow)
    async def world(world: World) -> None:
        slow.report_takes_s = 5.0
        slow.now = replace(slow.now, domains=(domain("b"), domain("z")))
        reading = asyncio.create_task(world.view.reread("h2"))
        await asyncio.sleep(1.0)
        world.view.remove("h2")
        await reading
        assert world.guests() == {("a", "h1", "running")}
        assert not [text for text in world.said("guest-appeared") if "z" in text]


def test_doubts_end_with_the_host_that_caused_them() -> None:
    twin = ScriptedAgent("h2", boot_id="boot-h1")

    @story(ScriptedAgent("h1"), twin)
    async def world(world: World) -> None:
        assert world.state("h1") == "degraded"
        world.view.remove("h2")
        assert world.state("h1") == "online"


def test_hosts_added_before_the_view_runs_are_followed_too() -> None:
    async def told() -> None:
        world = World(ScriptedAgent("h2"))
        world.view.add("h1", ScriptedAgent("h1", domain("a")), has_bmc=False)
        following = asyncio.create_task(world.view.run())
        assert await world.view.settled(5.0) == ()
        assert list(world.view.cluster().hosts) == ["h1", "h2"]
        following.cancel()

    run(told())
