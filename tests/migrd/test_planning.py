"""The planner as the core calls it: policy bound, moves in flight by guest and target."""

from __future__ import annotations

from agents.protocol import DomainState
from migrd.model import HostState
from migrd.planning import BoundPlanner
from tests.planner.build import GIB, POLICY, all_yes, cluster, guest, host, lun, three, with_host

PLANNER = BoundPlanner(POLICY)


def test_moves_in_flight_take_memory_and_their_guests_are_left_alone() -> None:
    before = cluster(
        [host("h1"), host("h2", gib=8)],
        [guest("a", "h1", gib=4), guest("b", "h1", gib=4)],
    )
    plan = PLANNER.plan_drain(before, "h1", all_yes(before), allow_stop=(), promised={"uuid-a": "h2"})
    said = {blocker.name: blocker.reason for blocker in plan.blockers}
    assert said["a"] == "it is being worked on: a move to h2"
    assert "3.0 GiB left" in said["b"]
    migrate = PLANNER.plan_migrate(before, "uuid-a", None, all_yes(before), promised={"uuid-a": "h2"})
    assert "a move to h2" in migrate.blockers[0].reason


def test_a_retry_is_not_in_its_own_way() -> None:
    before = cluster([host("h1"), host("h2", gib=8)], [guest("a", "h1", gib=6)])
    found = PLANNER.choose(before, "uuid-a", all_yes(before), promised={"uuid-a": "h2"}, exclude=())
    assert found.host == "h2"


def test_a_guest_goes_where_it_is_sent_or_the_reasons_are_sentences() -> None:
    before = with_host(three(guest("a", "h1")), host("h3", HostState.SUSPECT))
    facts = all_yes(before)
    assert PLANNER.choose(before, "uuid-a", facts, promised={}, exclude=(), among=("h2",)).host == "h2"
    found = PLANNER.choose(before, "uuid-a", facts, promised={}, exclude=(), among=("h3",))
    assert found.host == ""
    assert found.reasons == ("h3: host is suspect (check that h3 is up and its migrd-agent answers)",)
    nowhere = PLANNER.choose(before, "uuid-a", facts, promised={}, exclude=("h2", "h3"))
    assert "no other host" in nowhere.reasons[0]


def test_questions_for_one_guest_are_about_that_guest() -> None:
    before = three(
        guest("a", "h1", volumes=(lun("a"),)),
        guest("b", "h1", volumes=(lun("b"),)),
        guest("a", "h2", state=DomainState.SHUTOFF),
    )
    assert PLANNER.questions(before, "h1", "uuid-a")["h3"].volumes == (lun("a"),)
    assert len(PLANNER.questions(before, "h1")["h3"].volumes) == 2


def test_the_memory_of_a_move_is_the_largest_that_any_host_reports() -> None:
    before = cluster(
        [host("h1"), host("h2", gib=10), host("h3")],
        [
            guest("x", "h3", gib=6),
            guest("x", "h1", gib=1, state=DomainState.SHUTOFF),
            guest("a", "h1", gib=4),
        ],
    )
    only = with_host(before, host("h3", HostState.DRAINED))
    plan = PLANNER.plan_drain(only, "h1", all_yes(only), allow_stop=(), promised={"uuid-x": "h2"})
    assert any("needs 4.0 GiB, 3.0 GiB left" in each.reason for each in plan.blockers)
    assert POLICY.memory_reserve_bytes == GIB
