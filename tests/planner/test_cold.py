"""What keeps a guest from moving cold, and what keeps it only from moving live."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agents.protocol import DomainState
from migrd.model import Cluster, Facts, Guest, HostState, Plan
from migrd.planner import choose_target, plan_drain, plan_migrate, questions_for
from migrd.planner.checks import GUEST_CHECKS, TARGET_CHECKS
from storage.words import Health, Role
from tests.planner.build import (
    CPU,
    NOTHING_KNOWN,
    POLICY,
    all_yes,
    cluster,
    drbd,
    guest,
    host,
    local,
    lun,
    replicated,
    report,
    with_host,
)

DISK = drbd("a", "node-h1", "node-h2")
LUN = lun("a")


def cold_guest(**more: Any) -> Guest:
    return guest("a", "h1", **{"cold_blockers": (), **more})


def two(found: Guest, **target: Any) -> Cluster:
    return cluster([host("h1"), host("h2", **target)], [found])


def plan(of: Cluster, facts: Facts | None = None, *, cold: bool = True) -> Plan:
    known = all_yes(of) if facts is None else facts
    return plan_migrate(of, "uuid-a", "h2", known, POLICY, cold=cold)


def test_a_guest_that_runs_is_shut_down_and_one_that_is_off_only_moves() -> None:
    runs = plan(two(cold_guest()))
    assert (runs.blockers, runs.stops) == ((), ("uuid-a",))
    rests = plan(two(cold_guest(state=DomainState.SHUTOFF)))
    assert (rests.blockers, rests.stops) == ((), ())
    assert rests.estimate_s < runs.estimate_s
    assert [(move.source, move.target) for move in rests.moves] == [("h1", "h2")]


def test_what_holds_only_for_memory_and_cpu_in_use() -> None:
    of = two(cold_guest(blockers=("disk vda uses cache mode writeback",)))
    no_cpu = Facts(cpu={("h2", CPU): ("lacks avx512",)}, volume={})
    said = " ".join(blocker.reason for blocker in plan(of, no_cpu, cold=False).blockers)
    assert "cache mode" in said
    assert "avx512" in said
    assert plan(of, no_cpu).blockers == ()


def remedies(plan: Plan) -> str:
    return "; ".join(blocker.remedy for blocker in plan.blockers)


STUCK = ("disk vda uses cache mode writeback",)


@pytest.mark.parametrize(
    ("more", "cold_helps"),
    [
        ({}, True),
        ({"persistent": False}, False),
        ({"cold_blockers": None}, False),
        ({"cold_blockers": ("host USB device 1d6b:0002 is passed through",)}, False),
        ({"volumes": (local("/var/a.img"),)}, False),
    ],
)
def test_a_refused_migrate_names_cold_where_that_helps(more: dict[str, Any], cold_helps: bool) -> None:
    refused = remedies(plan(two(cold_guest(blockers=STUCK, **more)), cold=False))
    assert ("--cold" in refused) is cold_helps
    assert "--allow-stop" not in refused, "only a drain has it"


def test_a_guest_that_is_shut_off_moves_with_cold() -> None:
    assert "--cold" in remedies(plan(two(cold_guest(state=DomainState.SHUTOFF)), cold=False))


def test_what_helps_without_room_depends_on_what_was_asked() -> None:
    """`--to` helps where one host was judged; where all were, no option of a single move does."""
    full = two(cold_guest(), gib=1)
    facts = all_yes(full)
    assert "--to" in remedies(plan_migrate(full, "uuid-a", "h2", facts, POLICY))
    assert "--" not in remedies(plan_migrate(full, "uuid-a", None, facts, POLICY))
    assert "--allow-stop NAME" in remedies(plan_drain(full, "h1", facts, POLICY))


def test_no_option_can_be_added_to_an_operation_under_way() -> None:
    for of in (two(cold_guest(blockers=STUCK)), two(cold_guest(), gib=1)):
        found = choose_target(of, "uuid-a", all_yes(of), POLICY).blockers
        assert found
        assert not any("--" in blocker.remedy for blocker in found)


def test_a_drain_names_the_guest_that_it_could_stop() -> None:
    of = two(cold_guest(blockers=STUCK))
    assert "--allow-stop a" in remedies(plan_drain(of, "h1", all_yes(of), POLICY))


@pytest.mark.parametrize(
    ("more", "target", "word"),
    [
        ({"volumes": (local("/var/a.img"),)}, {}, "local file"),
        ({"cold_blockers": ("host USB device 1d6b:0002 is passed through",)}, {}, "passed through"),
        ({"cold_blockers": None}, {}, "does not say"),
        ({"persistent": False}, {}, "transient"),
        ({"state": DomainState.PAUSED}, {}, "paused"),
        ({"state": DomainState.CRASHED}, {}, "crashed"),
        ({"state": DomainState.UNKNOWN}, {}, "unknown"),
        ({"job": True}, {}, "libvirt job"),
        ({}, {"bridges": frozenset()}, "bridge br0"),
        ({}, {"networks": frozenset()}, "network default"),
        ({}, {"arch": "aarch64"}, "architecture"),
        ({}, {"migration_uri": ""}, "migration_uri"),
        ({}, {"state": HostState.DRAINING}, "host is draining"),
        ({}, {"gib": 1}, "memory"),
    ],
)
def test_what_holds_cold_too(more: dict[str, Any], target: dict[str, Any], word: str) -> None:
    refused = plan(two(cold_guest(**more), **target))
    assert refused.moves == ()
    assert any(word in blocker.reason for blocker in refused.blockers)


def test_all_reasons_are_told_at_once() -> None:
    refused = plan(two(cold_guest(volumes=(local("/var/a.img"),)), bridges=frozenset()))
    said = " ".join(blocker.reason for blocker in refused.blockers)
    assert "local file" in said
    assert "br0" in said


def test_a_guest_that_stays_off_asks_for_no_memory() -> None:
    assert plan(two(cold_guest(state=DomainState.SHUTOFF), gib=1)).blockers == ()


def test_a_lun_of_a_guest_that_is_off_need_not_be_logged_in_to() -> None:
    off = cold_guest(state=DomainState.SHUTOFF, volumes=(LUN,))
    resting = report(LUN, Role.DETACHED, Health.UNREACHABLE)

    def seen(found: Guest) -> Plan:
        here = two(found)
        return plan(with_host(here, replace(here.hosts["h1"], volumes={LUN.name: resting})))

    assert seen(off).blockers == ()
    assert seen(replace(off, state=DomainState.RUNNING)).blockers != ()


def test_a_replica_must_be_whole_on_both_sides_for_a_cold_move_as_well() -> None:
    """I7: nobody would be able to promote it."""
    of = replicated(two(cold_guest(volumes=(DISK,))), DISK, "h1", "h2")
    assert plan(of).blockers == ()
    sick = replace(of.hosts["h2"], volumes={DISK.name: report(DISK, Role.SECONDARY, Health.SYNCING)})
    assert plan(with_host(of, sick)).blockers != ()


def test_a_guest_that_is_off_is_asked_for_and_nobodys_cpu_is() -> None:
    off = cold_guest(state=DomainState.SHUTOFF, volumes=(LUN,))
    asked = questions_for(two(off), [off], cold=True)
    assert asked["h2"].volumes == (LUN,)
    assert asked["h2"].cpus == ()
    assert questions_for(two(off), [off]) == {}
    assert plan(two(off), NOTHING_KNOWN).blockers != (), "an unanswered question is no yes (I19)"


def test_every_check_says_for_which_kind_of_move_it_holds() -> None:
    names = [check.__name__ for check, _ in (*GUEST_CHECKS, *TARGET_CHECKS)]
    assert len(names) == len(set(names))
