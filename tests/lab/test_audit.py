"""The audit can fail: each fault that it exists for is made for real, and has to be found.

netns hosts, because these stories are about the observer and not about the hosts' kernels. No bound here is
the machine's speed: what takes time is waited for, an outage is judged by the moments that enclose it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.labctl import LabCtl, until

pytestmark = pytest.mark.lab
STEADY = "steady"  # on h2; a story that uses it leaves it as it was
OWN = "own"  # on h1; made for one story, which may do to it what it likes
PATIENCE_S = 90.0


@pytest.fixture(scope="module")
def hosts() -> Iterator[LabCtl]:
    ctl = LabCtl("audit")
    ctl.lab("down")  # what an interrupted run may have left
    try:
        ctl.lab("up", "--hosts", "2", "--host-kind", "netns")
        yield ctl
    finally:
        ctl.lab("down")


@pytest.fixture(scope="module")
def steady_guest(hosts: LabCtl) -> None:
    hosts.lab("guest", "add", STEADY, "--host", "h2", "--disk", "iscsi-qemu")


@pytest.fixture
def steady(hosts: LabCtl, steady_guest: None) -> Iterator[LabCtl]:
    """A guest that has run for a while, and an audit that has just begun."""
    yield from audited(hosts, STEADY)


@pytest.fixture
def own(hosts: LabCtl) -> Iterator[LabCtl]:
    """A guest of the story's own, and an audit that has just begun."""
    hosts.lab("guest", "add", OWN, "--host", "h1", "--disk", "iscsi-qemu")
    try:
        yield from audited(hosts, OWN)
    finally:
        hosts.lab("guest", "rm", OWN)


def audited(hosts: LabCtl, guest: str) -> Iterator[LabCtl]:
    hosts.lab("audit", "start")
    try:
        until("the guest is heard", lambda: when(figures(hosts, guest), "acked", 5), deadline_s=PATIENCE_S)
        yield hosts
    finally:
        hosts.lab("audit", "stop")


def figures(lab: LabCtl, guest: str) -> dict[str, Any]:
    found: dict[str, Any] = lab.lab("audit", "report")["guests"][guest]
    return found


def answers(lab: LabCtl, guest: str) -> bool:
    return not figures(lab, guest)["outage_now"]


def when(row: dict[str, Any], figure: str, above: int) -> dict[str, Any] | None:
    return row if row[figure] > above else None


def faults(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["missing"], row["reordered"], row["corrupt"]


def backing(lab: LabCtl, name: str) -> Path:
    row = next(guest for guest in lab.lab("guest", "list") if guest["name"] == name)
    return Path(row["disk"]["backing"][0])


def definition(lab: LabCtl) -> str:
    done = lab.sh("h1", "virsh", "dumpxml", "--inactive", OWN)
    assert done.rc == 0, done.err
    return done.out


def start_on_h2(lab: LabCtl, xml: str) -> None:
    """The same domain, with the same UUID and disk, behind everybody's back."""
    lab.lab("guest", "admit", OWN, "--host", "h2")
    done = lab.sh("h2", "sh", "-c", 'printf "%s" "$0" > /root/copy.xml; virsh create /root/copy.xml', xml)
    assert done.rc == 0, done.err


def test_a_healthy_guest_has_nothing_held_against_it(steady: LabCtl) -> None:
    row = until("records", lambda: when(figures(steady, STEADY), "acked", 40), deadline_s=PATIENCE_S)
    assert (row["instances_max"], row["boots"], row["host_port"]) == (1, 1, "h2")
    assert faults(row) == (0, 0, 0)
    assert row["on_disk"] >= row["acked"]


def test_a_pulled_cable_is_an_outage_of_its_length(steady: LabCtl) -> None:
    began = time.time()
    steady.lab("net", "h2", "--drop", "guests")
    dropped_by = time.time()
    time.sleep(1)
    heals_from = time.time()
    steady.lab("net", "h2", "--heal")
    until("an answer", lambda: answers(steady, STEADY), deadline_s=PATIENCE_S)
    found = figures(steady, STEADY)
    over_by = time.time()
    spans = [(one["at"], one["at"] + one["ms"] / 1e3) for one in found["outages_longest"]]
    pulled = [span for span in spans if span[0] <= dropped_by and span[1] >= heals_from - 0.1]
    assert len(pulled) == 1, (began, dropped_by, heals_from, over_by, spans)
    assert pulled[0][0] >= began - 1, "a whole second of silence before the cable was touched"
    assert pulled[0][1] <= over_by
    assert found["outage_max_ms"] >= (heals_from - dropped_by - 0.1) * 1e3
    assert found["instances_max"] == 1
    assert faults(found) == (0, 0, 0)


def test_a_lost_and_a_damaged_record_are_counted(steady: LabCtl) -> None:
    until("some records", lambda: when(figures(steady, STEADY), "on_disk", 20), deadline_s=PATIENCE_S)
    with backing(steady, STEADY).open("r+b", buffering=0) as disk:
        disk.seek(5 * 512)
        before = disk.read(3 * 512)
        disk.seek(5 * 512)
        disk.write(bytes(512))
        disk.seek(7 * 512 + 100)
        disk.write(b"\xff\x00\xff")
        assert faults(figures(steady, STEADY)) == (1, 0, 1)
        disk.seek(5 * 512)
        disk.write(before)
    assert faults(figures(steady, STEADY)) == (0, 0, 0)


def test_two_running_instances_are_seen(own: LabCtl) -> None:
    start_on_h2(own, definition(own))
    row = until(
        "the second instance", lambda: when(figures(own, OWN), "instances_max", 1), deadline_s=PATIENCE_S
    )
    assert row["instances_max"] == 2
    assert row["instances_evidence"]
    assert set(row["ports"]) == {"h1-guests", "h2-guests"}


def test_a_restart_elsewhere_after_a_power_cut_is_neither_twice_nor_a_loss(own: LabCtl) -> None:
    xml = definition(own)
    own.lab("power", "h1", "off")
    until("silence", lambda: not answers(own, OWN), deadline_s=PATIENCE_S)
    start_on_h2(own, xml)
    row = until("the second boot", lambda: when(figures(own, OWN), "boots", 1), deadline_s=PATIENCE_S)
    assert (row["instances_max"], row["boots"], row["host_port"]) == (1, 2, "h2")
    assert faults(row) == (0, 0, 0)
    assert row["outage_max_ms"] > 1000
    own.lab("power", "h1", "on")
    until("h1 is back", lambda: own.sh("h1", "virsh", "uri").rc == 0, deadline_s=PATIENCE_S)
    assert own.sh("h1", "virsh", "list", "--name").out.strip() == "", (
        "a returning host starts nothing by itself"
    )
