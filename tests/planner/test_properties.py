"""What holds for every cluster: nobody is overcommitted, no bad target, every refusal explained."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.protocol import DomainState
from migrd.model import Cluster, Facts, Guest, Host, HostState, Plan, Promise
from migrd.planner import plan_drain
from storage.words import DrbdVolume, Health, OtherVolume, Role
from tests.planner.build import CPU, GIB, POLICY, all_yes, cluster, drbd, guest, host, local, lun, report

STATES = st.sampled_from([HostState.ONLINE] * 6 + list(HostState))
RUNNING = (DomainState.RUNNING, DomainState.BLOCKED)


@st.composite
def hosts(draw: st.DrawFn) -> list[Host]:
    count = draw(st.integers(1, 6))
    return [
        host(
            f"h{n}",
            draw(STATES),
            gib=draw(st.integers(0, 24)),
            memory_available_bytes=draw(st.integers(0, 24)) * GIB,
            bridges=frozenset(draw(st.sampled_from([("br0",), ("br0", "br1"), ()]))),
            arch=draw(st.sampled_from(["x86_64"] * 5 + ["aarch64", ""])),
        )
        for n in range(count)
    ]


@st.composite
def guests(draw: st.DrawFn, names: list[str]) -> list[Guest]:
    found = []
    for n in range(draw(st.integers(0, 14))):
        nodes = [f"node-{name}" for name in draw(st.lists(st.sampled_from(names), min_size=2, max_size=2))]
        volume = draw(st.sampled_from([None, None, lun(f"v{n}"), drbd(f"v{n}", *nodes), local(f"/f{n}")]))
        found.append(
            guest(
                draw(st.sampled_from([f"g{n}"] * 9 + ["g0"])),
                draw(st.sampled_from([names[0], *names])),
                uuid=draw(st.sampled_from([f"uuid-{n}"] * 9 + ["uuid-0"])),
                gib=draw(st.integers(0, 9)),
                state=draw(st.sampled_from([DomainState.RUNNING] * 8 + list(DomainState))),
                volumes=() if volume is None else (volume,),
                bridges=draw(st.sampled_from([(), ("br0",), ("br1",)])),
                job=draw(st.sampled_from([False] * 9 + [True])),
            )
        )
    unique = {(each.host, each.uuid): each for each in found}
    return list({(each.host, each.name): each for each in unique.values()}.values())


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Cluster, Facts, list[Promise]]:
    all_hosts = draw(hosts())
    names = [each.name for each in all_hosts]
    world = cluster(all_hosts, draw(guests(names)))
    for each in world.guests:
        for volume in each.volumes:
            if isinstance(volume, DrbdVolume):
                world = _with_copies(draw, world, each, volume)
    facts = all_yes(world)
    for book in (facts.cpu, facts.volume):
        assert isinstance(book, dict)
        for key in sorted(book):
            match draw(st.integers(0, 11)):
                case 0:
                    del book[key]
                case 1:
                    book[key] = ("it said no",)
    promises = draw(
        st.lists(
            st.builds(
                Promise,
                guest=st.sampled_from(["uuid-x", "uuid-0", "uuid-1"]),
                target=st.sampled_from(names),
                memory_bytes=st.integers(0, 5).map(lambda gib: gib * GIB),
            ),
            max_size=3,
        )
    )
    return world, facts, promises


def _with_copies(draw: st.DrawFn, world: Cluster, each: Guest, volume: DrbdVolume) -> Cluster:
    health = draw(st.sampled_from([Health.OK] * 5 + [Health.SYNCING]))
    changed = dict(world.hosts)
    for name, old in world.hosts.items():
        if old.node in volume.nodes:
            role = Role.PRIMARY if name == each.host else Role.SECONDARY
            changed[name] = replace(old, volumes={**old.volumes, volume.name: report(volume, role, health)})
    return replace(world, hosts=changed)


def plan_of(world: tuple[Cluster, Facts, list[Promise]]) -> Plan:
    before, facts, promises = world
    return plan_drain(before, "h0", facts, POLICY, promises=promises)


@settings(max_examples=120, deadline=None)
@given(worlds())
def test_no_target_is_promised_more_than_it_has(world: tuple[Cluster, Facts, list[Promise]]) -> None:
    """Counted here from scratch, not with the planner's own ledger."""
    before, _, promises = world
    plan = plan_of(world)
    memory = {each.uuid: each.memory_bytes for each in before.guests if each.host == "h0"}
    for name in {move.target for move in plan.moves}:
        target = before.hosts[name]
        there = {each.uuid: each for each in before.guests if each.host == name}
        used = [
            each.memory_bytes
            for each in there.values()
            if each.state not in (DomainState.SHUTOFF, DomainState.ABSENT)
        ]
        coming = [memory[move.guest] for move in plan.moves if move.target == name]
        unseen = [
            each.memory_bytes
            for each in promises
            if each.target == name
            and (
                each.guest not in there
                or there[each.guest].state in (DomainState.SHUTOFF, DomainState.ABSENT)
            )
        ]
        promised = [each.memory_bytes for each in promises if each.target == name]
        if sum(coming) == 0:
            continue  # guests of no memory fit everywhere that is not overcommitted already
        assert sum(used) + sum(coming) + sum(unseen) + GIB <= target.memory_total_bytes
        assert sum(coming) + sum(promised) + GIB <= target.memory_available_bytes


@settings(max_examples=120, deadline=None)
@given(worlds())
def test_every_target_is_fit_for_its_guest(world: tuple[Cluster, Facts, list[Promise]]) -> None:
    before, facts, _ = world
    for move in plan_of(world).moves:
        moved = next(each for each in before.guests if (each.uuid, each.host) == (move.guest, "h0"))
        target = before.hosts[move.target]
        assert target.state is HostState.ONLINE
        assert move.source == "h0" != move.target
        assert moved.state in RUNNING
        assert not moved.job
        assert set(moved.bridges) <= target.bridges
        assert target.arch == before.hosts["h0"].arch != ""
        assert facts.cpu[move.target, CPU] == ()
        for other in before.guests:
            if other.host == move.target and other.state is not DomainState.ABSENT:
                assert other.uuid != moved.uuid
                assert other.name != moved.name
        for volume in moved.volumes:
            assert not isinstance(volume, OtherVolume)
            assert facts.volume[move.target, volume.name] == ()
            if isinstance(volume, DrbdVolume):
                assert target.node in volume.nodes
                assert target.volumes[volume.name].health is Health.OK
                assert target.volumes[volume.name].role is Role.SECONDARY


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_every_guest_is_accounted_for_and_every_refusal_explained(
    world: tuple[Cluster, Facts, list[Promise]],
) -> None:
    plan = plan_of(world)
    moved = [move.guest for move in plan.moves]
    explained = {blocker.guest for blocker in plan.blockers}
    here = {
        each.uuid for each in world[0].guests if each.host == "h0" and each.state is not DomainState.ABSENT
    }
    assert len(moved) == len(set(moved))
    assert set(moved) | explained | set(plan.stays) == here
    assert not set(moved) & explained
    assert not set(plan.stays) & (set(moved) | explained)
    assert all(blocker.reason and blocker.remedy for blocker in plan.blockers)
    assert plan.stops == ()
    assert all(0 < move.estimate_s <= plan.estimate_s for move in plan.moves)


@settings(max_examples=60, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(
    world: tuple[Cluster, Facts, list[Promise]], order: random.Random
) -> None:
    before, facts, promises = world
    names, listed = list(before.hosts), list(before.guests)
    order.shuffle(names)
    order.shuffle(listed)
    again = Cluster(hosts={name: before.hosts[name] for name in names}, guests=tuple(listed))
    order.shuffle(promises)
    assert plan_of((again, facts, promises)) == plan_of(world)
