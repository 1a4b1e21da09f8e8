"""May a host be added, or removed: every reason, from one picture."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.protocol import DomainState
from migrd import roster
from migrd.host_config import HostConfig
from migrd.model import Cluster, Guest, Host, HostState
from migrd.operations import Operation, OperationKind, OperationState
from migrd.sagas.events import HostAdded, HostRemoved
from storage.words import DrbdVolume, Health, IscsiVolume, Role, VolumeReport

FIXED = {"h1": HostConfig(agent="https://h1:7443")}
ADDED = {"h2": HostConfig(agent="https://h2:7443")}
NEW = HostConfig(agent="https://h4:7443")
VOLUME = DrbdVolume(resource="db", volume_nr=0, minor=1, nodes=("n1", "n2"))


def copy(role: Role = Role.SECONDARY, health: Health = Health.OK, *, sole: bool = False) -> VolumeReport:
    return VolumeReport(
        volume=VOLUME, role=role, health=health, identity="x", size_bytes=1, sole_current_copy=sole
    )


def cluster(*guests: Guest, **volumes: VolumeReport) -> Cluster:
    hosts = {
        name: Host(
            name=name,
            state=HostState.ONLINE,
            node=f"n{name[1:]}",
            volumes={volumes[name].volume.name: volumes[name]} if name in volumes else {},
        )
        for name in ("h1", "h2")
    }
    return Cluster(hosts=hosts, guests=guests)


def test_a_new_name_and_address_may_be_added() -> None:
    assert roster.reasons_not_to_add("h4", NEW, FIXED, ADDED) == []


def test_all_that_is_taken_is_told_at_once() -> None:
    both = roster.reasons_not_to_add("h1", HostConfig(agent="https://h2:7443"), FIXED, ADDED)
    assert both == [
        "host h1 exists already: see migrctl host show h1",
        "https://h2:7443 is the agent of h2 already",
    ]
    again = roster.reasons_not_to_add("h2", ADDED["h2"], FIXED, ADDED)
    assert again == ["host h2 exists already: see migrctl host show h2"]


def test_there_is_a_last_host() -> None:
    many = {f"x{n}": HostConfig(agent=f"https://x{n}:1") for n in range(roster.MAX_HOSTS)}
    assert "more than 1000" in roster.reasons_not_to_add("h4", NEW, {}, many)[0]


def test_the_file_holds_where_both_speak_of_a_host() -> None:
    assert roster.shadowed(FIXED, "h4", NEW) == ""
    assert "is in migrd.toml now" in roster.shadowed(FIXED, "h1", NEW)
    assert "agent of h1" in roster.shadowed(FIXED, "h4", FIXED["h1"])


def test_what_was_added_is_a_fold_of_the_rows() -> None:
    rows = [HostAdded(host="h4", config=NEW), HostAdded(host="h5", config=NEW), HostRemoved(host="h4")]
    found: dict[str, HostConfig] = {}
    for row in rows:
        found = roster.after(found, row)
    assert found == {"h5": NEW}


def test_nothing_speaks_for_an_empty_host() -> None:
    assert roster.reasons_not_to_remove("h2", FIXED, cluster(), ()) == []
    assert roster.reasons_not_to_remove("unheard", FIXED, cluster(), ()) == []


def test_everything_that_speaks_for_a_host_is_told_at_once() -> None:
    guests = [
        Guest(uuid="u1", name="web", host="h2", state=DomainState.RUNNING, memory_bytes=1),
        Guest(uuid="u2", name="idle", host="h2", state=DomainState.SHUTOFF, memory_bytes=1),
        Guest(uuid="u3", name="h2", host="h1", state=DomainState.RUNNING, memory_bytes=1),
    ]
    move = Operation(
        id="op-1",
        kind=OperationKind.MIGRATE,
        state=OperationState.RUNNING,
        subject="x",
        source="h1",
        target="h2",
    )
    drain = Operation(id="op-2", kind=OperationKind.DRAIN, state=OperationState.PARKED, subject="h2")
    namesake = replace(move, id="op-3", subject="h2", target="h3")  # a guest that is called h2
    reasons = roster.reasons_not_to_remove(
        "h2", {**FIXED, **ADDED}, cluster(*guests, h2=copy(sole=True)), (move, drain, namesake)
    )
    words = ["in migrd.toml: remove [hosts.h2]", "op-1 (migrate x)", "op-2 (drain h2)"]
    words += ["guest idle (shutoff)", "guest web (running)"]
    words += ["only holder of a current replica of drbd:db/0"]
    assert len(reasons) == len(words)
    for word, reason in zip(words, reasons, strict=True):
        assert word in reason


@pytest.mark.parametrize(
    ("here", "there", "may"),
    [
        (copy(), copy(), True),
        (copy(health=Health.DEGRADED), copy(health=Health.DEGRADED, sole=True), True),
        (copy(Role.DETACHED), None, True),
        (copy(), None, False),
        (copy(), copy(health=Health.SYNCING), False),
        (copy(), copy(health=Health.UNKNOWN), False),
        (copy(), copy(Role.UNKNOWN), False),
        (copy(sole=True), copy(), False),
        (copy(Role.UNKNOWN, Health.UNKNOWN), None, False),
    ],
)
def test_a_replica_may_go_only_when_another_is_known_to_be_current(
    here: VolumeReport, there: VolumeReport | None, may: bool
) -> None:
    """I10, I19."""
    known = cluster(h2=here) if there is None else cluster(h1=there, h2=here)
    assert (roster.reasons_not_to_remove("h2", FIXED, known, ()) == []) is may


def test_a_lun_is_no_replica() -> None:
    lun = IscsiVolume(portal="p:1", iqn="iqn.x", lun=0, device="/dev/x")
    assert roster.reasons_not_to_remove("h2", FIXED, cluster(h2=replace(copy(), volume=lun)), ()) == []


@pytest.mark.parametrize(
    ("there", "may"),
    [(copy(health=Health.DEGRADED), False), (copy(health=Health.DEGRADED, sole=True), True), (copy(), True)],
)
def test_a_host_never_heard_may_be_the_node_that_a_degraded_volume_lacks(
    there: VolumeReport, may: bool
) -> None:
    """After a restart nothing is known of a host that is down, but its peers are heard (I10)."""
    known = cluster(h1=there)
    silent = Host(name="h2", state=HostState.UNKNOWN)
    known = replace(known, hosts={**known.hosts, "h2": silent})
    assert (roster.reasons_not_to_remove("h2", FIXED, known, ()) == []) is may
    # Where both nodes are heard, the volume says nothing about a host that is not.
    whole = cluster(h1=there)
    whole = replace(whole, hosts={**whole.hosts, "h9": replace(silent, name="h9")})
    assert roster.reasons_not_to_remove("h9", FIXED, whole, ()) == []


@pytest.mark.parametrize("wrong", [{"claimed": "h7"}, {"boot_id": "b1"}])
def test_one_added_with_a_wrong_address_can_be_removed_again(wrong: dict[str, str]) -> None:
    """It shows the guests of another host, and nothing can be drained from it."""
    guest = Guest(uuid="u1", name="web", host="h2", state=DomainState.RUNNING, memory_bytes=1)
    known = cluster(guest, h2=copy(sole=True))
    hosts = {"h1": replace(known.hosts["h1"], boot_id="b1"), "h2": replace(known.hosts["h2"], boot_id="b2")}
    assert roster.reasons_not_to_remove("h2", FIXED, replace(known, hosts=hosts), ()) != []
    hosts["h2"] = replace(hosts["h2"], **wrong)  # type: ignore[arg-type]
    assert roster.reasons_not_to_remove("h2", FIXED, replace(known, hosts=hosts), ()) == []
