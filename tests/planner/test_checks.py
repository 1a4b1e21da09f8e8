"""Each verdict alone: the one thing that is wrong is the one thing that is said, with what to do (I19)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agents.protocol import DomainState
from migrd.model import Blocker, Cluster, Facts, Guest, Host, HostState
from migrd.planner import choose_target, plan_migrate
from storage.words import Health, Role, VolumeReport
from tests.planner.build import (
    CPU,
    NOTHING_KNOWN,
    POLICY,
    all_yes,
    cluster,
    drbd,
    guest,
    host,
    lun,
    replicated,
    report,
    three,
    with_host,
)

VOLUME = drbd("a", "node-h1", "node-h2")


def two(*guests: Guest, target: Host | None = None) -> Cluster:
    return cluster([host("h1"), target or host("h2")], guests)


def blockers(of: Cluster, facts: Facts | None = None) -> tuple[Blocker, ...]:
    choice = choose_target(of, "uuid-a", all_yes(of) if facts is None else facts, POLICY)
    assert (choice.move is None) == bool(choice.blockers), "a refusal explains itself, a move has no reasons"
    return choice.blockers


def on_drbd() -> Cluster:
    return replicated(two(guest("a", "h1", volumes=(VOLUME,))), VOLUME, "h1", "h2")


def test_nothing_wrong_means_a_move() -> None:
    assert blockers(two(guest("a", "h1"))) == ()
    assert blockers(on_drbd()) == ()


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"bridges": frozenset()}, "bridge br0"),
        ({"networks": frozenset()}, "network default"),
        ({"arch": "aarch64"}, "architecture is aarch64"),
        ({"arch": ""}, "architecture is unknown"),
        ({"migration_uri": ""}, "migration_uri"),
        ({"migration_address": ""}, "migration_address"),
        ({"memory_available_bytes": 0}, "memory: needs"),
        ({"memory_total_bytes": 0}, "memory: needs"),
    ],
)
def test_one_thing_wrong_with_the_target(more: dict[str, Any], word: str) -> None:
    found = blockers(two(guest("a", "h1"), target=host("h2", **more)))
    assert len(found) == 1
    assert word in found[0].reason
    assert "h2" in found[0].remedy or "host" in found[0].remedy
    assert found[0].target == "h2"


@pytest.mark.parametrize(
    "state", [s for s in DomainState if s not in (DomainState.RUNNING, DomainState.BLOCKED)]
)
def test_only_a_running_guest_moves(state: DomainState) -> None:
    found = blockers(two(guest("a", "h1", state=state)))
    assert [f"the guest is {state}"] == [each.reason for each in found if "the guest is" in each.reason]
    assert all(each.remedy for each in found)


def test_an_architecture_unknown_on_both_sides_is_not_equal() -> None:
    before = cluster([host("h1", arch=""), host("h2", arch="")], [guest("a", "h1")])
    assert "unknown" in blockers(before)[0].reason


def test_a_cpu_is_what_the_target_says_and_silence_is_no() -> None:
    before = two(guest("a", "h1"))
    assert "not known whether its CPU" in blockers(before, NOTHING_KNOWN)[0].reason
    no = Facts(cpu={("h2", CPU): ("the host CPU lacks avx512f",)}, volume={})
    assert [each.reason for each in blockers(before, no)] == ["cpu: the host CPU lacks avx512f"]
    other = Facts(cpu={("h2", "<cpu/>"): (), ("h3", CPU): ()}, volume={})
    assert len(blockers(before, other)) == 1, "an answer to another question is no answer"
    assert "not known from h1" in blockers(two(guest("a", "h1", cpu_xml="")))[0].reason


def test_a_lun_is_what_the_target_says_and_silence_is_no() -> None:
    disk = lun("a")
    before = two(guest("a", "h1", volumes=(disk,)))
    cpu = all_yes(before).cpu
    assert "can be opened there: no answer" in blockers(before, Facts(cpu=cpu, volume={}))[0].reason
    no = Facts(cpu=cpu, volume={("h2", disk.name): ("no credentials for this portal",)})
    assert "no credentials for this portal" in blockers(before, no)[0].reason
    assert blockers(before, Facts(cpu=cpu, volume={("h2", disk.name): ()})) == ()


def test_a_drbd_guest_goes_to_its_peer_and_nowhere_else() -> None:
    before = replicated(three(guest("a", "h1", volumes=(VOLUME,))), VOLUME, "h1", "h2")
    assert plan_migrate(before, "uuid-a", None, all_yes(before), POLICY).moves[0].target == "h2"
    refused = plan_migrate(before, "uuid-a", "h3", all_yes(before), POLICY)
    assert [each.reason for each in refused.blockers] == ["drbd:a/0: its other copy is on node-h2"]


def test_two_drbd_volumes_with_different_peers_have_no_common_target() -> None:
    other = drbd("b", "node-h1", "node-h3")
    before = three(guest("a", "h1", volumes=(VOLUME, other)))
    before = replicated(replicated(before, VOLUME, "h1", "h2"), other, "h1", "h3")
    found = {(each.target, each.reason) for each in blockers(before)}
    assert found == {
        ("h2", "drbd:b/0: its other copy is on node-h3"),
        ("h3", "drbd:a/0: its other copy is on node-h2"),
    }


def sick(health: Health) -> Callable[[VolumeReport], VolumeReport]:
    return lambda before: replace(before, health=health)


@pytest.mark.parametrize("side", ["h1", "h2"])
@pytest.mark.parametrize(
    ("change", "word"),
    [
        *[(sick(health), f"is {health} ") for health in Health if health is not Health.OK],
        (lambda before: replace(before, dual_primary_allowed=True), "two primaries are already allowed"),
    ],
)
def test_a_copy_that_is_not_fine_on_either_side_blocks(
    side: str, change: Callable[[VolumeReport], VolumeReport], word: str
) -> None:
    """I6, I7: only OK means yes, and a window left open is found before another is opened."""
    before = on_drbd()
    seen = before.hosts[side]
    changed = replace(seen, volumes={VOLUME.name: change(seen.volumes[VOLUME.name])})
    found = blockers(with_host(before, changed))
    assert len(found) == 1
    assert word in found[0].reason
    assert found[0].remedy


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.SECONDARY])
def test_the_target_of_a_drbd_volume_must_be_secondary(role: Role) -> None:
    before = on_drbd()
    changed = replace(before.hosts["h2"], volumes={VOLUME.name: report(VOLUME, role)})
    assert [each.reason for each in blockers(with_host(before, changed))] == [
        f"drbd:a/0: its role there is {role}, not secondary"
    ]


def test_a_copy_that_is_not_reported_is_not_there() -> None:
    before = on_drbd()
    for side in ("h1", "h2"):
        silent = with_host(before, replace(before.hosts[side], volumes={}))
        assert "report" in blockers(silent)[0].reason


def test_a_drbd_answer_is_needed_as_well() -> None:
    before = on_drbd()
    facts = Facts(cpu=all_yes(before).cpu, volume={})
    assert "no answer" in blockers(before, facts)[0].reason


def test_a_definition_of_the_same_uuid_blocks_that_target_only() -> None:
    before = three(guest("a", "h1"), guest("a", "h2", state=DomainState.SHUTOFF))
    assert plan_migrate(before, "uuid-a", None, all_yes(before), POLICY).moves[0].target == "h3"
    refused = plan_migrate(before, "uuid-a", "h2", all_yes(before), POLICY)
    assert "uuid is defined there already" in refused.blockers[0].reason
    assert "virsh undefine" in refused.blockers[0].remedy


def test_the_same_uuid_with_a_process_elsewhere_blocks_everything() -> None:
    """I1: before anything moves, somebody has to know which one is real. A crashed one may have its QEMU."""
    for state in (DomainState.PAUSED_INCOMING, DomainState.CRASHED):
        before = three(guest("a", "h1"), guest("a", "h2", state=state))
        assert any(f"{state} on h2" in each.reason for each in blockers(before))
    off = with_host(three(guest("a", "h1"), guest("a", "h2")), host("h2", HostState.OFF))
    assert blockers(off) == (), "the last report of a host without power says nothing about running guests"
    lost = with_host(three(guest("a", "h1"), guest("a", "h2")), host("h2", HostState.UNREACHABLE))
    assert any("running on h2" in each.reason for each in blockers(lost))


def test_another_domain_of_the_same_name_blocks_that_target() -> None:
    before = two(guest("a", "h1"), guest("a", "h2", uuid="uuid-other", state=DomainState.SHUTOFF))
    found = blockers(before)
    assert [each.reason for each in found] == ["another domain has its name there"]
    assert "uuid-other" in found[0].remedy


def test_a_guest_with_a_job_or_an_operation_is_left_alone() -> None:
    before = two(guest("a", "h1", job=True))
    assert "a libvirt job runs on it" in blockers(before)[0].reason
    plan = plan_migrate(before, "uuid-a", None, all_yes(before), POLICY, busy={"uuid-a": "op-000007"})
    assert "op-000007" in plan.blockers[0].reason


@pytest.mark.parametrize(
    ("guest_name", "to", "word"),
    [("uuid-x", None, "on no host"), ("uuid-a", "h9", "unknown"), ("uuid-a", "h1", "on h1 already")],
)
def test_a_migration_that_makes_no_sense_is_refused(guest_name: str, to: str | None, word: str) -> None:
    before = two(guest("a", "h1"))
    plan = plan_migrate(before, guest_name, to, all_yes(before), POLICY)
    assert len(plan.refusals) == 1
    assert word in plan.refusals[0]
    assert plan.moves == ()


def test_a_guest_may_leave_a_draining_host_that_is_heard_but_not_a_silent_one() -> None:
    for observed, moves in (
        (HostState.ONLINE, True),
        (HostState.SUSPECT, False),
        (HostState.DEGRADED, False),
    ):
        before = with_host(two(guest("a", "h1")), host("h1", HostState.DRAINING, observed=observed))
        assert (blockers(before) == ()) == moves


def test_a_retry_leaves_out_what_failed_and_says_when_nothing_is_left() -> None:
    before = three(guest("a", "h1"))
    facts = all_yes(before)
    first = choose_target(before, "uuid-a", facts, POLICY)
    assert first.move is not None
    second = choose_target(before, "uuid-a", facts, POLICY, exclude=[first.move.target])
    assert second.move is not None
    assert {first.move.target, second.move.target} == {"h2", "h3"}
    last = choose_target(before, "uuid-a", facts, POLICY, exclude=["h2", "h3"])
    assert last.move is None
    assert "no other host" in last.blockers[0].reason
    assert choose_target(before, "uuid-x", facts, POLICY).blockers[0].reason == "it is on no host"
