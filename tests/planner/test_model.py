"""Looking guests up in one moment of the cluster."""

from __future__ import annotations

from agents.protocol import DomainState
from migrd.api.views import count_guests, guest_views
from tests.planner.build import guest, three


def test_a_guest_on_several_hosts_is_found_on_all_in_their_order() -> None:
    here = guest("a", "h1", state=DomainState.PAUSED)
    there = guest("a", "h2")
    third = guest("a", "h3", state=DomainState.PAUSED_INCOMING)
    other, namesake = guest("b", "h1"), guest("b", "h2", uuid="uuid-c")
    cluster = three(here, other, there, third, namesake)
    assert cluster.instances("uuid-a") == (here, there, third)
    assert cluster.instances("uuid-b") == (other,)
    assert cluster.instances("uuid-z") == ()
    assert cluster.called("b") == (other, namesake)
    assert cluster.called("z") == ()
    assert cluster.instance("uuid-a") is there
    assert cluster.on_host("uuid-a", "h3") is third
    assert cluster.others(here) == [there, third]


def test_guests_are_counted_once_where_they_run_as_they_are_shown() -> None:
    cluster = three(
        guest("a", "h1", state=DomainState.PAUSED_INCOMING),
        guest("a", "h2"),
        guest("b", "h1", state=DomainState.SHUTOFF),
        guest("b", "h3", state=DomainState.CRASHED),
        guest("c", "h1"),
    )
    assert count_guests(cluster) == {"crashed": 1, "running": 2}
    shown = [view.state.value for view in guest_views(cluster, ())]
    assert sorted(shown) == ["crashed", "running", "running"]
