"""Stories of drains: given this cluster, when this host is to be emptied, this is decided."""

from __future__ import annotations

from typing import Any

import pytest

from agents.protocol import DomainState
from migrd.model import Host, HostState, Plan, Promise
from migrd.planner import Policy, plan_drain
from tests.planner.build import (
    GIB,
    POLICY,
    all_yes,
    cluster,
    drbd,
    guest,
    host,
    local,
    replicated,
    three,
    with_host,
)


def targets(plan: Plan) -> dict[str, str]:
    return {move.name: move.target for move in plan.moves}


def reasons(plan: Plan) -> str:
    return "\n".join(f"{b.name} -> {b.target}: {b.reason} ({b.remedy})" for b in plan.blockers)


def test_guests_are_spread_and_never_all_sent_to_one_target() -> None:
    before = three(*[guest(f"g{n}", "h1", gib=2) for n in range(6)])
    plan = plan_drain(before, "h1", all_yes(before), POLICY)
    assert not plan.blockers
    assert not plan.refusals
    assert sorted(targets(plan).values()) == ["h2"] * 3 + ["h3"] * 3
    assert {move.source for move in plan.moves} == {"h1"}


def test_the_constrained_guest_gets_its_only_place_first() -> None:
    """b's DRBD copy is on h2, which has room for one guest: a, that could go anywhere, must not take it."""
    volume = drbd("b", "node-h1", "node-h2")
    before = cluster(
        [host("h1"), host("h2", gib=4), host("h3", gib=4)],
        [guest("a", "h1", gib=3), guest("b", "h1", gib=3, volumes=(volume,))],
    )
    before = replicated(before, volume, "h1", "h2")
    plan = plan_drain(before, "h1", all_yes(before), POLICY)
    assert targets(plan) == {"a": "h3", "b": "h2"}


def test_few_choices_come_first_where_moving_one_guest_would_not_help() -> None:
    """By size alone a takes h2 and c takes h3; then b, which has only h2, would need both to move."""
    before = cluster(
        [
            host("h1"),
            host("h2", gib=4, bridges=frozenset({"a", "b"})),
            host("h3", gib=4, bridges=frozenset({"a", "c"})),
            host("h4", gib=4, bridges=frozenset({"c"})),
        ],
        [
            guest("a", "h1", gib=3, bridges=("a",)),
            guest("b", "h1", gib=2, bridges=("b",)),
            guest("c", "h1", gib=3, bridges=("c",)),
        ],
    )
    plan = plan_drain(before, "h1", all_yes(before), POLICY)
    assert targets(plan) == {"a": "h3", "b": "h2", "c": "h4"}


def test_a_guest_placed_before_makes_room_and_the_books_stay_right() -> None:
    """x has few choices, comes first, and takes the roomiest host, which only y needs: x goes to h2 instead.

    Then 1 GiB is left on h2 and on h3: two of the three small guests fit, the third must not.
    """
    both = frozenset({"br0", "br1"})
    before = cluster(
        [host("h1"), host("h2", gib=4, bridges=both), host("h3", gib=7, bridges=both), host("h4", gib=1)],
        [
            guest("x", "h1", gib=2, bridges=("br1",)),
            guest("y", "h1", gib=5),
            *[guest(f"z{n}", "h1", gib=1) for n in range(3)],
        ],
    )
    plan = plan_drain(before, "h1", all_yes(before), POLICY)
    found = targets(plan)
    assert (found["x"], found["y"]) == ("h2", "h3")
    assert {found["z0"], found["z1"]} == {"h2", "h3"}
    assert {blocker.name for blocker in plan.blockers} == {"z2"}


def test_a_plan_names_who_is_stopped_and_who_stays() -> None:
    before = three(
        guest("stuck", "h1", blockers=("has a USB device",)), guest("idle", "h1", state=DomainState.SHUTOFF)
    )
    plan = plan_drain(before, "h1", all_yes(before), POLICY, allow_stop=["stuck"])
    assert {uuid: plan.names[uuid] for uuid in plan.stops} == {"uuid-stuck": "stuck"}
    assert {uuid: plan.names[uuid] for uuid in plan.stays} == {"uuid-idle": "idle"}


def test_memory_of_a_move_in_flight_counts_whether_or_not_it_shows() -> None:
    before = cluster([host("h1"), host("h2", gib=8)], [guest("a", "h1", gib=4)])
    promise = Promise(guest="uuid-x", target="h2", memory_bytes=4 * GIB)
    plan = plan_drain(before, "h1", all_yes(before), POLICY, promises=[promise])
    assert "4.0 GiB, 3.0 GiB left" in reasons(plan)
    shown = three(guest("a", "h1", gib=11), guest("x", "h2", gib=4, state=DomainState.PAUSED_INCOMING))
    shown = with_host(shown, host("h3", HostState.DRAINED))
    plan = plan_drain(shown, "h1", all_yes(shown), POLICY, promises=[promise])
    assert targets(plan) == {"a": "h2"}, "counted once, not twice"


def test_a_guest_that_is_arriving_will_still_take_available_memory() -> None:
    arriving = guest("x", "h2", gib=4, state=DomainState.PAUSED_INCOMING)
    before = cluster(
        [host("h1"), host("h2", memory_available_bytes=8 * GIB)], [guest("a", "h1", gib=4), arriving]
    )
    promise = Promise(guest="uuid-x", target="h2", memory_bytes=4 * GIB)
    plan = plan_drain(before, "h1", all_yes(before), POLICY, promises=[promise])
    assert "needs 4.0 GiB, 3.0 GiB left" in reasons(plan)


@pytest.mark.parametrize(("lazy_gib", "promised_gib"), [(5, 0), (2, 3)])
def test_memory_that_guests_have_not_touched_yet_is_spoken_for(lazy_gib: int, promised_gib: int) -> None:
    """All 8 GiB look available; the guest that is there may still grow, and one more is promised."""
    lazy = guest("lazy", "h2", gib=lazy_gib)
    before = cluster([host("h1"), host("h2", gib=8)], [guest("a", "h1", gib=3), lazy])
    promise = Promise(guest="uuid-x", target="h2", memory_bytes=promised_gib * GIB)
    plan = plan_drain(before, "h1", all_yes(before), POLICY, promises=[promise])
    assert "needs 3.0 GiB, 2.0 GiB left" in reasons(plan)


def test_available_memory_limits_as_well_as_promised_memory() -> None:
    before = three(guest("a", "h1", gib=4))
    before = with_host(before, host("h2", memory_available_bytes=4 * GIB))
    before = with_host(before, host("h3", memory_available_bytes=5 * GIB))
    assert targets(plan_drain(before, "h1", all_yes(before), POLICY)) == {"a": "h3"}


def test_the_reserve_is_never_given_away() -> None:
    before = cluster([host("h1"), host("h2", gib=10)], [guest("a", "h1", gib=9)])
    assert targets(plan_drain(before, "h1", all_yes(before), POLICY)) == {"a": "h2"}
    share = Policy(memory_reserve_bytes=0, memory_reserve_ratio=0.2)
    plan = plan_drain(before, "h1", all_yes(before), share)
    assert not plan.moves
    assert "reserve of 2.0 GiB" in reasons(plan)


def test_shut_off_guests_stay_and_shut_off_guests_elsewhere_use_no_memory() -> None:
    before = cluster(
        [host("h1"), host("h2", gib=8)],
        [
            guest("a", "h1", gib=4),
            guest("off", "h1", gib=64, state=DomainState.SHUTOFF),
            guest("idle", "h2", gib=64, state=DomainState.SHUTOFF),
        ],
    )
    plan = plan_drain(before, "h1", all_yes(before), POLICY)
    assert targets(plan) == {"a": "h2"}
    assert plan.stays == ("uuid-off",)


@pytest.mark.parametrize("state", [state for state in HostState if state is not HostState.ONLINE])
def test_a_host_that_is_not_online_is_never_a_target(state: HostState) -> None:
    before = with_host(three(guest("a", "h1")), host("h2", state))
    assert targets(plan_drain(before, "h1", all_yes(before), POLICY)) == {"a": "h3"}
    alone = cluster([host("h1"), host("h2", state)], [guest("a", "h1")])
    plan = plan_drain(alone, "h1", all_yes(alone), POLICY)
    assert not plan.moves
    assert "last usable host" in plan.refusals[0]
    assert f"host is {state}" in reasons(plan)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (host("h1", HostState.DRAINING), "being drained already"),
        (host("h1", HostState.DRAINED), "drained already: migrctl undrain h1"),
        (host("h1", HostState.OFF), "off already"),
        (host("h1", HostState.SUSPECT), "h1 is suspect"),
        (host("h1", HostState.UNREACHABLE), "h1 is unreachable"),
        (host("h1", HostState.DEGRADED), "h1 is degraded"),
        (host("h1", HostState.UNKNOWN), "h1 is unknown"),
    ],
)
def test_a_host_that_cannot_be_drained_says_why(source: Host, word: str) -> None:
    before = with_host(three(guest("a", "h1")), source)
    plan = plan_drain(before, "h1", all_yes(before), POLICY)
    assert any(word in refusal for refusal in plan.refusals), plan.refusals


def test_an_unknown_host_is_refused_and_nothing_else_is_said() -> None:
    before = three(guest("a", "h1"))
    plan = plan_drain(before, "h9", all_yes(before), POLICY, allow_stop=["a"])
    assert plan.refusals == ("host h9 is unknown: see migrctl hosts",)
    assert plan.moves == ()


def test_a_drain_plans_again_for_its_own_host_while_its_agent_is_heard() -> None:
    before = with_host(three(guest("late", "h1")), host("h1", HostState.DRAINING, observed=HostState.ONLINE))
    plan = plan_drain(before, "h1", all_yes(before), POLICY, continuing=True)
    assert plan.refusals == ()
    assert len(plan.moves) == 1
    silent = with_host(before, host("h1", HostState.DRAINING, observed=HostState.UNREACHABLE))
    plan = plan_drain(silent, "h1", all_yes(silent), POLICY, continuing=True)
    assert "h1 is unreachable" in plan.refusals[0]


def test_every_reason_of_every_guest_is_said_at_once() -> None:
    before = three(
        guest("usb", "h1", blockers=("USB host device 046d:c52b is attached",)),
        guest("file", "h1", volumes=(local("/var/lib/a.qcow2"),), bridges=("br9",)),
        guest("big", "h1", gib=64),
        guest("fine", "h1"),
        guest("asleep", "h1", state=DomainState.PAUSED, networks=("lab",)),
    )
    plan = plan_drain(before, "h1", all_yes(before), POLICY)
    assert {blocker.name for blocker in plan.blockers} == {"usb", "file", "big", "asleep"}
    text = reasons(plan)
    for word in (
        "USB host device",
        "/var/lib/a.qcow2 is a local file",
        "bridge br9 does not exist there",
        "needs 64.0 GiB",
        "the guest is paused",
        "network lab is not active there",
    ):
        assert word in text
    assert all(blocker.remedy for blocker in plan.blockers)
    assert targets(plan).keys() == {"fine"}, "a dry run shows what would move"


def test_a_reason_shared_by_all_targets_is_one_line_and_others_name_theirs() -> None:
    before = three(guest("a", "h1", bridges=("br7",)))
    before = with_host(before, host("h3", arch="aarch64"))
    lines = [(b.target, b.reason) for b in plan_drain(before, "h1", all_yes(before), POLICY).blockers]
    assert lines == [
        ("", "bridge br7 does not exist there"),
        ("h3", "architecture is aarch64, and x86_64 on h1"),
    ]
    many = cluster(
        [host("h1"), *[host(f"n{n:03}", bridges=frozenset()) for n in range(40)], host("z", HostState.OFF)],
        [guest("a", "h1")],
    )
    lines = [(b.target, b.reason) for b in plan_drain(many, "h1", all_yes(many), POLICY).blockers]
    assert lines == [
        ("n000, n001, n002 and 37 more", "bridge br0 does not exist there"),
        ("z", "host is off"),
    ]


def test_consent_stops_only_what_was_named_and_cannot_move() -> None:
    """I5: a guest that can move is moved although a stop was allowed; one not named is never stopped."""
    before = three(
        guest("usb", "h1", blockers=("USB host device",)),
        guest("tape", "h1", blockers=("SCSI host device",)),
        guest("fine", "h1"),
    )
    plan = plan_drain(before, "h1", all_yes(before), POLICY, allow_stop=["usb", "uuid-fine"])
    assert plan.stops == ("uuid-usb",)
    assert targets(plan).keys() == {"fine"}
    assert [blocker.name for blocker in plan.blockers] == ["tape"]


@pytest.mark.parametrize(
    "more",
    [{"state": DomainState.PAUSED}, {"job": True}, {"state": DomainState.UNKNOWN}],
)
def test_consent_does_not_reach_a_guest_that_could_not_hear_a_shutdown(more: dict[str, Any]) -> None:
    before = three(guest("a", "h1", **more))
    plan = plan_drain(before, "h1", all_yes(before), POLICY, allow_stop=["a"])
    assert plan.stops == ()
    assert plan.blockers


def test_a_misspelt_consent_is_refused() -> None:
    before = three(guest("a", "h1"), guest("b", "h2"))
    plan = plan_drain(before, "h1", all_yes(before), POLICY, allow_stop=["aa", "b"])
    assert plan.refusals == (
        "--allow-stop aa: no such guest on h1",
        "--allow-stop b: no such guest on h1",
    )


def test_an_empty_host_needs_no_moves() -> None:
    plan = plan_drain(three(), "h1", all_yes(three()), POLICY)
    assert (plan.moves, plan.blockers, plan.refusals, plan.estimate_s) == ((), (), (), 0.0)


def test_the_estimate_is_the_busiest_link_or_the_longest_move() -> None:
    policy = Policy(bandwidth_bps=GIB, move_overhead_s=2.0, dirtied_ratio=0.5, per_host_moves=2)
    before = three(*[guest(f"g{n}", "h1", gib=2) for n in range(4)])
    plan = plan_drain(before, "h1", all_yes(before), policy)
    assert {move.estimate_s for move in plan.moves} == {2 + 3}
    assert plan.estimate_s == 4 * 3 + 4 * 2 / 2  # all through the link of h1, overheads two at a time
    one = three(guest("g", "h1", gib=2))
    assert plan_drain(one, "h1", all_yes(one), policy).estimate_s == 5
