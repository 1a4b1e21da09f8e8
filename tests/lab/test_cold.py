"""A guest moved without its memory, on real hosts: shut down by its power button, started elsewhere (I1, I2,
I5, I6, I9, I11)."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.lab.cluster import HOSTS, Cluster
from tests.lab.labctl import until

pytestmark = pytest.mark.lab
LIBVIRT_PORT = "16509"
VIRSH = ("virsh", "-c", "qemu:///system")


def audited(cluster: Cluster, guest: str, *, boots: int) -> dict[str, Any]:
    """One instance at a time, nothing lost; it was away while it booted, which nobody promised otherwise."""

    def again() -> dict[str, Any] | None:
        row: dict[str, Any] = cluster.ctl.lab("audit", "report")["guests"][guest]
        return row if row["boots"] >= boots else None

    row = until(f"{guest} writes under boot {boots}", again, deadline_s=120, every_s=2)
    assert row["instances_max"] == 1, row
    assert row["boots"] == boots, row
    assert (row["missing"], row["reordered"], row["corrupt"]) == (0, 0, 0), row
    return row


def state_of(cluster: Cluster, guest: str, host: str) -> str:
    done = cluster.ctl.sh(host, *VIRSH, "domstate", guest)
    return done.out.strip() if done.rc == 0 else "absent"


def assert_defined_only_on(cluster: Cluster, guest: str, host: str, state: str) -> None:
    expected = {name: state if name == host else "absent" for name in HOSTS}
    assert {name: state_of(cluster, guest, name) for name in HOSTS} == expected


@pytest.mark.parametrize("disk", ["drbd", "iscsi", "iscsi-qemu"])
def test_a_running_guest_is_shut_down_moved_and_started(cluster: Cluster, disk: str) -> None:
    guest = cluster.guest(f"cold{disk.replace('-', '')}", "h1", disk, peer="h2" if disk == "drbd" else None)

    planned = cluster.migrctl("migrate", guest, "--to", "h2", "--cold", "--dry-run")
    assert planned.rc == 0, planned.err
    assert len(planned.json["stops"]) == 1, "the plan says that it will be shut down"
    cluster.assert_runs_only_on(guest, "h1")

    moved = cluster.migrctl("migrate", guest, "--to", "h2", "--cold", deadline_s=400)
    assert moved.rc == 0, moved.err + moved.out
    assert moved.json["state"] == "done", moved.json
    assert moved.json["request"]["cold"] is True
    assert_defined_only_on(cluster, guest, "h2", "running")
    cluster.assert_no_window_open()
    audited(cluster, guest, boots=2)


def shut_off(cluster: Cluster, name: str) -> str:
    guest = cluster.guest(name, "h1", "iscsi")
    assert cluster.ctl.sh("h1", *VIRSH, "shutdown", guest).rc == 0
    until("it is off", lambda: state_of(cluster, guest, "h1") == "shut off", deadline_s=60)
    until(
        "migrd sees that",
        lambda: cluster.migrctl("vm", "show", guest).json["state"] == "shutoff",
        deadline_s=30,
    )
    return guest


def at_step(cluster: Cluster, guest: str, name: str) -> dict[str, Any]:
    """Wait until the move of this guest has been asked for that step; returns its operation."""

    def asked() -> dict[str, Any] | None:
        for row in cluster.operations(kind="migrate", subject=guest):
            if any(step["name"] == name and step["attempt"] for step in row["steps"]):
                return row
        return None

    return until(f"{guest} is at {name}", asked, deadline_s=240, every_s=0.1)


def test_a_guest_that_is_shut_off_moves_and_stays_so(cluster: Cluster) -> None:
    guest = shut_off(cluster, "coldoff")
    refused = cluster.migrctl("migrate", guest, "--to", "h2")
    assert refused.rc == 3, "live it has nothing to move"
    moved = cluster.migrctl("migrate", guest, "--to", "h2", "--cold")
    assert moved.rc == 0, moved.err + moved.out
    assert_defined_only_on(cluster, guest, "h2", "shut off")
    assert cluster.ctl.sh("h2", *VIRSH, "start", guest).rc == 0, "its disk is there"
    audited(cluster, guest, boots=2)


def test_a_start_that_fails_on_the_target_brings_the_guest_home(cluster: Cluster) -> None:
    """The target's libvirt cannot start it: definition and disk go back, and it runs where it ran."""
    guest = cluster.guest("coldback", "h1", "drbd", peer="h2")
    hook = (
        "mkdir -p /etc/libvirt/hooks && printf '#!/bin/sh\\n"
        '[ "$2" != prepare ] || [ "$1" != coldback ] || exit 1\\n'
        "' > /etc/libvirt/hooks/qemu && chmod +x /etc/libvirt/hooks/qemu && systemctl restart libvirtd"
    )
    assert cluster.ctl.sh("h2", "sh", "-c", hook).rc == 0
    cluster.settle()
    try:
        moved = cluster.migrctl("migrate", guest, "--to", "h2", "--cold", deadline_s=400)
        assert moved.rc == 1, moved.err + moved.out
        assert moved.json["state"] == "undone", moved.json
        assert "hook" in moved.json["reason"], moved.json
    finally:
        cluster.ctl.sh("h2", "sh", "-c", "rm /etc/libvirt/hooks/qemu; systemctl restart libvirtd")
        cluster.settle()
    assert_defined_only_on(cluster, guest, "h1", "running")
    cluster.assert_no_window_open()
    audited(cluster, guest, boots=2)


def test_cancelled_while_the_guest_goes_down_it_runs_at_home_again(cluster: Cluster) -> None:
    guest = cluster.guest("coldstop", "h1", "iscsi")
    moving = cluster.in_background("migrate", guest, "--to", "h2", "--cold")
    operation = at_step(cluster, guest, "shutdown")
    cluster.migrctl("op", "cancel", operation["id"], deadline_s=400)
    moving.communicate(timeout=300)
    ended = cluster.ended(operation["id"])
    home = "h1" if ended["state"] == "undone" else "h2"  # a cancel that comes too late finishes
    assert ended["state"] in ("undone", "done"), ended
    assert_defined_only_on(cluster, guest, home, "running")
    audited(cluster, guest, boots=2)


def test_a_definition_that_libvirt_still_moves_is_waited_for(cluster: Cluster) -> None:
    """I1: the agent died over it, and the move was cancelled: swept meanwhile, it would be on no host."""
    guest = shut_off(cluster, "coldslow")
    cluster.ctl.lab("net", "h2", "--mute", LIBVIRT_PORT)
    moving = cluster.in_background("migrate", guest, "--to", "h2", "--cold")
    try:
        operation = at_step(cluster, guest, "move-definition")
        time.sleep(2)  # the source's libvirt has begun, and waits for the target's
        cluster.kill("h1", "migrd-agent")
        cluster.migrctl("op", "cancel", operation["id"], "--no-wait")
        at_step(cluster, guest, "settle")
        time.sleep(5)
        assert state_of(cluster, guest, "h1") == "shut off"
    finally:
        cluster.ctl.lab("net", "h2", "--heal")
    ended = cluster.finished(operation["id"])
    moving.communicate(timeout=60)
    assert ended["state"] == "undone", ended
    assert_defined_only_on(cluster, guest, "h1", "shut off")
    assert cluster.ctl.sh("h1", *VIRSH, "start", guest).rc == 0, "its disk is there"
    audited(cluster, guest, boots=2)
