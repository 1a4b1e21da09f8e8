"""The target runs the guest, and the network breaks before its libvirt has said so: no second run (I1)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab.cluster import CRAWL_MIB_S, FULL_SPEED_MIB_S, MOVER, Cluster
from tests.lab.labctl import until

pytestmark = pytest.mark.lab

LIBVIRT_PORT = 16509
# libvirt's default is 30 s, then it lets the guest run on the source, too. The lab has 12 s elsewhere: for
# stories that wait for it, and on a machine that may have two labs on two processors.
COUNT, DEFAULT_COUNT, KEEPALIVE_S = 5, 14, 30.0
ENDED = ("shut off", "")  # the definition goes once libvirt's call has ended


@pytest.fixture
def patient(moving: Cluster) -> Iterator[Cluster]:
    """libvirt waits for a silent peer as long as it does by default."""
    hosts = ("h1", "h2")
    try:
        for host in hosts:
            patience(moving, host, DEFAULT_COUNT)
        yield moving
    finally:
        for host in hosts:
            moving.ctl.try_lab("net", host, "--heal")
            patience(moving, host, COUNT)


def patience(cluster: Cluster, host: str, count: int) -> None:
    script = (
        f"sed -i 's/^keepalive_count = .*/keepalive_count = {count}/' /etc/libvirt/qemu.conf"
        f" && grep -q '^keepalive_count = {count}$' /etc/libvirt/qemu.conf && systemctl restart libvirtd"
    )
    done = cluster.ctl.sh(host, "sh", "-c", script)
    assert done.rc == 0, done.err


def test_an_answer_lost_in_the_switch_over_does_not_run_the_guest_twice(patient: Cluster) -> None:
    """libvirt leaves this to lock managers. The target hears its request, and cannot answer."""
    source, target = patient.ready_to_move(MOVER)
    patient.copy_at(MOVER, source, CRAWL_MIB_S)
    asked = patient.in_background("migrate", MOVER, "--to", target)
    patient.copying(MOVER)
    patient.ctl.lab("net", target, "--mute", str(LIBVIRT_PORT))
    patient.copy_at(MOVER, source, FULL_SPEED_MIB_S)

    def state(host: str) -> str:
        return patient.ctl.sh(host, "virsh", "domstate", MOVER).out.strip()

    until("it runs on the target", lambda: state(target) == "running", deadline_s=60, every_s=0.1)
    until("its QEMU here has ended", lambda: state(source) in ENDED, deadline_s=KEEPALIVE_S, every_s=0.2)
    time.sleep(KEEPALIVE_S)  # libvirt on the source has given up by now
    assert state(source) in ENDED
    assert state(target) == "running"
    patient.ctl.lab("net", target, "--heal")
    ended = patient.finished(patient.operations(kind="migrate", subject=MOVER)[0]["id"])
    asked.communicate(timeout=30)
    assert ended["state"] == "done", ended
    assert f"the answer of {target} was lost" in ended["reason"]
    assert patient.assert_clean(MOVER) == target
    patient.assert_nobody_noticed()
