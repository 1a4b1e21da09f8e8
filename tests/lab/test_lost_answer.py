"""The target runs the guest, and the network breaks before its libvirt has said so: no second run (I1)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab.cluster import CRAWL_MIB_S, FULL_SPEED_MIB_S, MOVER, Cluster
from tests.lab.labctl import until

pytestmark = pytest.mark.lab

LIBVIRT_PORT = 16509
KEEPALIVE_S = 30.0  # libvirt's default; then it lets the guest run on the source, too
ENDED = ("shut off", "")  # the definition goes once libvirt's call has ended


@pytest.fixture
def patient(moving: Cluster) -> Iterator[Cluster]:
    """libvirt waits for a silent peer as long as it does by default, and every cable is in again."""
    hosts = ("h1", "h2")
    with moving.default_keepalive(*hosts):
        try:
            yield moving
        finally:
            for host in hosts:
                moving.ctl.try_lab("net", host, "--heal")


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
