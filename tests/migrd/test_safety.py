"""A drain cuts power only when nothing speaks against it (I12). Each guard has a story that needs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agents.protocol import DomainState, HostReport
from migrd.safety import Reports, reasons_not_to_power_off
from storage.words import DrbdVolume, Health, IscsiVolume, Role, VolumeReport
from tests.migrd.agent import domain, host_report

DRBD = DrbdVolume(resource="a", volume_nr=0, minor=1, nodes=("node-h1", "node-h2"))
LUN = IscsiVolume(portal="10.0.0.5:3260", iqn="iqn.2026-11.org.lab:a", lun=0, device="/dev/disk/by-path/a")


def copy(role: Role = Role.SECONDARY, health: Health = Health.OK, **more: object) -> VolumeReport:
    known: dict[str, object] = {
        "volume": DRBD,
        "identity": "ID",
        "size_bytes": 1,
        "peer_role": Role.SECONDARY,
    }
    return VolumeReport(role=role, health=health, **{**known, **more})  # type: ignore[arg-type]


def empty() -> HostReport:
    """h1 after a good drain: a guest that is shut off, a DRBD copy that is secondary and current."""
    return host_report("h1", domain("off", DomainState.SHUTOFF), volumes=(copy(peer_role=Role.PRIMARY),))


def peer(**more: Any) -> HostReport:
    return host_report("h2", domain("a"), volumes=(copy(Role.PRIMARY, **more),))


def reasons(own: HostReport | None, other: HostReport | None, *, age_s: float = 0.5) -> tuple[str, ...]:
    reports: dict[str, tuple[HostReport, float]] = {}
    if own is not None:
        reports["h1"] = (own, age_s)
    if other is not None:
        reports["h2"] = (other, 0.5)
    return reasons_not_to_power_off("h1", reports)


def test_an_emptied_host_may_go() -> None:
    assert reasons(empty(), peer()) == ()
    assert reasons(host_report("h1"), None) == (), "no DRBD, no peer needed"
    attached = VolumeReport(volume=LUN, role=Role.ATTACHED, health=Health.OK, identity="W", size_bytes=1)
    assert reasons(host_report("h1", volumes=(attached,)), None) == (), "a LUN lives elsewhere"


@pytest.mark.parametrize("state", list(DomainState))
def test_any_guest_that_may_have_a_process_keeps_the_power_on(state: DomainState) -> None:
    found = reasons(host_report("h1", domain("g", state)), None)
    if state in (DomainState.SHUTOFF, DomainState.ABSENT):
        assert found == ()
    else:
        assert found == (f"h1: guest g is {state}",)


def test_a_job_on_a_guest_that_looks_off_keeps_the_power_on() -> None:
    found = reasons(host_report("h1", domain("g", DomainState.SHUTOFF, job=True)), None)
    assert found == ("h1: a libvirt job runs on guest g",)


@pytest.mark.parametrize("age_s", [10.1, 3600.0, -1.0, float("nan"), float("inf")])
def test_an_old_report_says_nothing(age_s: float) -> None:
    assert any("old" in reason for reason in reasons(empty(), peer(), age_s=age_s))


def test_no_report_says_nothing() -> None:
    assert len(reasons(None, peer())) == 1


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"libvirt_ok": False}, "libvirt does not answer"),
        ({"problems": ("drbdsetup hangs",)}, "drbdsetup hangs"),
        ({"host": "h9"}, "the report is one of h9"),
    ],
)
def test_what_the_agent_could_not_see_counts_as_there(more: dict[str, object], word: str) -> None:
    found = reasons(replace(empty(), **more), peer())  # type: ignore[arg-type]
    assert len(found) == 1
    assert word in found[0]


@pytest.mark.parametrize(
    ("own", "word"),
    [
        (copy(Role.PRIMARY), "its role of drbd:a/0 is primary"),
        (copy(Role.UNKNOWN), "its role of drbd:a/0 is unknown"),
        (copy(dual_primary_allowed=True), "two primaries are allowed"),
        (copy(sole_current_copy=True), "only current copy"),
        (copy(Role.DETACHED, sole_current_copy=True), "only current copy"),
        *[
            (copy(health=health), f"it is {health} here and ok on node-h2")
            for health in Health
            if health is not Health.OK
        ],
    ],
)
def test_one_thing_wrong_with_the_copy_here(own: VolumeReport, word: str) -> None:
    found = reasons(replace(empty(), volumes=(own,)), peer())
    assert len(found) == 1
    assert word in found[0]


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (None, "no fresh report of it from node-h2"),
        (host_report("h2"), "no fresh report of it from node-h2"),
        (replace(peer(), node="node-h7"), "no fresh report of it from node-h2"),
        *[(peer(health=health), f"and {health} on node-h2") for health in Health if health is not Health.OK],
        (host_report("h2", volumes=(copy(Role.DETACHED),)), "its role on node-h2 is detached"),
        (host_report("h2", volumes=(copy(Role.UNKNOWN),)), "its role on node-h2 is unknown"),
    ],
)
def test_one_thing_wrong_with_the_copy_there(other: HostReport | None, word: str) -> None:
    found = reasons(empty(), other)
    assert len(found) == 1
    assert word in found[0]


def test_a_stale_or_silent_peer_proves_nothing() -> None:
    stale: Reports = {"h1": (empty(), 0.5), "h2": (peer(), 60.0)}
    assert "no fresh report" in reasons_not_to_power_off("h1", stale)[0]
    fresh: Reports = {"h1": (empty(), 0.5), "h2": (peer(), 0.5)}
    assert "no fresh report" in reasons_not_to_power_off("h1", fresh, unheard=["h2"])[0]


def test_a_host_whose_disk_failed_may_go_when_its_peer_holds_the_current_copy() -> None:
    """The very maintenance that drains are for: I10 is kept by the peer, which says so itself."""
    broken = replace(empty(), volumes=(copy(health=Health.DEGRADED),))
    assert reasons(broken, peer(health=Health.DEGRADED)) != ()
    assert reasons(broken, peer(health=Health.DEGRADED, sole_current_copy=True)) == ()


def test_a_peer_that_sees_this_host_as_primary_is_believed() -> None:
    found = reasons(empty(), peer(peer_role=Role.PRIMARY))
    assert found == ("h1: h2 sees it as primary of drbd:a/0",)


def test_a_volume_that_only_the_peer_knows_of_keeps_the_power_on() -> None:
    found = reasons(replace(empty(), volumes=()), peer())
    assert found == ("h1: it does not report drbd:a/0, which h2 shares with it",)


def test_every_reason_is_said_at_once() -> None:
    own = replace(
        empty(), libvirt_ok=False, domains=(domain("x"), domain("y")), volumes=(copy(Role.PRIMARY),)
    )
    text = "\n".join(reasons(own, None, age_s=99.0))
    for word in ("99 s old", "libvirt does not answer", "guest x", "guest y", "is primary", "elsewhere"):
        assert word in text
