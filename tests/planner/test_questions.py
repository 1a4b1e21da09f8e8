"""What is asked before a plan: all that is needed, of those who could take a guest, each thing once."""

from __future__ import annotations

from agents.protocol import DomainState, Preflight
from migrd.model import Cluster, HostState
from migrd.planner import questions_for
from tests.planner.build import CPU, cluster, drbd, guest, host, local, lun, three


def asked_of(before: Cluster) -> dict[str, Preflight]:
    """For a drain of h1."""
    return questions_for(before, before.guests_on("h1"))


def test_equal_cpus_and_volumes_are_asked_once_per_candidate() -> None:
    shared = lun("shared")
    asked = asked_of(three(*[guest(f"g{n}", "h1", volumes=(shared,)) for n in range(9)]))
    assert set(asked) == {"h2", "h3"}
    for question in asked.values():
        assert question.cpus == (CPU,)
        assert question.volumes == (shared,)


def test_a_drbd_volume_is_asked_of_its_peer_and_a_local_file_of_nobody() -> None:
    volume = drbd("a", "node-h1", "node-h2")
    asked = asked_of(three(guest("a", "h1", volumes=(volume, local("/f")), cpu_xml="")))
    assert list(asked) == ["h2"]
    assert asked["h2"].volumes == (volume,)


def test_only_hosts_that_could_take_a_guest_are_asked() -> None:
    hosts = [host("h1"), *[host(state, state) for state in HostState]]
    hosts.append(host("back", HostState.DRAINED, observed=HostState.ONLINE))
    assert set(asked_of(cluster(hosts, [guest("a", "h1")]))) == {"online"}


def test_guests_that_stay_and_guests_of_other_hosts_ask_nothing() -> None:
    before = three(guest("off", "h1", state=DomainState.SHUTOFF), guest("b", "h2"))
    assert asked_of(before) == {}


def test_a_restore_asks_one_host_about_guests_of_many() -> None:
    before = three(guest("a", "h2", volumes=(lun("a"),)), guest("b", "h3", volumes=(lun("b"),)))
    asked = questions_for(before, before.guests, candidates=["h1"])
    assert list(asked) == ["h1"]
    assert asked["h1"].volumes == (lun("a"), lun("b"))
