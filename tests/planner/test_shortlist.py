"""Whom to ask first: the emptiest hosts and the nodes of replicas; nobody is left out of a small cluster."""

from __future__ import annotations

from migrd.model import Cluster, HostState, Promise
from migrd.planner import choose_target, plan_drain, plan_migrate, shortlist
from migrd.planner.shortlist import SHORT
from tests.planner.build import GIB, POLICY, all_yes, cluster, drbd, guest, host


def large() -> Cluster:
    """h1 and 100 others, n000 the fullest, n099 the emptiest."""
    hosts = [host("h1"), *(host(f"n{n:03}", memory_available_bytes=(40 + n) * GIB // 10) for n in range(100))]
    return cluster(hosts, [guest("a", "h1")])


def test_a_small_cluster_has_no_shortlist() -> None:
    hosts = [host("h1"), *(host(f"n{n}") for n in range(SHORT))]
    assert shortlist(cluster(hosts), [guest("a", "h1")], POLICY) is None


def test_the_emptiest_hosts_come_first_and_promises_fill_them() -> None:
    before = large()
    found = shortlist(before, before.guests, POLICY)
    assert found is not None
    assert (len(found), found[0], found[-1]) == (SHORT, "n099", "n036")
    promise = Promise(guest="b", target="n099", memory_bytes=10 * GIB)
    promised = shortlist(before, before.guests, POLICY, promises=[promise], exclude=["n098"])
    assert promised is not None
    assert promised[0] == "n097"
    assert not {"n099", "n098"} & set(promised)


def test_only_hosts_that_are_online_and_not_its_own_are_on_it() -> None:
    hosts = [host("h1", gib=999), *(host(f"n{n:03}") for n in range(90))]
    hosts += [host(f"off{n}", HostState.OFF, gib=99) for n in range(9)]
    found = shortlist(cluster(hosts), [guest("a", "h1")], POLICY)
    assert found is not None
    assert all(name.startswith("n") for name in found)


def test_a_guest_on_drbd_needs_nobody_but_the_node_of_its_other_copy() -> None:
    before = large()
    replicated = guest("d", "h1", volumes=(drbd("d", "node-h1", "node-n000"),))
    assert shortlist(before, [replicated], POLICY) == ("n000",)
    both = shortlist(before, [replicated, *before.guests], POLICY)
    assert both is not None
    assert both[:2] == ("n000", "n099")


def test_many_guests_make_it_longer() -> None:
    before = cluster([host("h1"), *(host(f"n{n:03}") for n in range(300))])
    found = shortlist(before, [guest(f"g{n}", "h1") for n in range(100)], POLICY)
    assert found is not None
    assert len(found) == 200


def test_a_plan_among_some_looks_at_no_other() -> None:
    before = large()
    facts = all_yes(before)
    assert plan_drain(before, "h1", facts, POLICY, among=("n007",)).moves[0].target == "n007"
    assert plan_migrate(before, "uuid-a", None, facts, POLICY, among=("n008",)).moves[0].target == "n008"
    assert plan_migrate(before, "uuid-a", "n009", facts, POLICY, among=("n008",)).moves[0].target == "n009"
    choice = choose_target(before, "uuid-a", facts, POLICY, among=("n007", "n008"), exclude=("n008",))
    assert choice.move is not None
    assert choice.move.target == "n007"
