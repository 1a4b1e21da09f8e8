"""The target runs the guest, and network or libvirt break before it has said so: no second run (I1)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.lab.cluster import CRAWL_MIB_S, FULL_SPEED_MIB_S, MOVER, SILENT_PEER_MS, Cluster
from tests.lab.labctl import REPO, until

pytestmark = pytest.mark.lab

LIBVIRT_PORT = 16509
KEEPALIVE_S = 30.0  # libvirt's default; then it lets the guest run on the source, too
ENDED = ("shut off", "")  # the definition goes once libvirt's call has ended
DIE_UNANSWERED = REPO / "tests" / "lab" / "die_unanswered.py"


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


def state(cluster: Cluster, host: str) -> str:
    return cluster.ctl.sh(host, "virsh", "domstate", MOVER).out.strip()


def lose_answer(cluster: Cluster, *, no_order: bool = False) -> tuple[str, str, subprocess.Popen[str]]:
    """The source and the target that runs the guest and cannot say so, and the command that still waits.

    `no_order`: the source's agent stands still, so that nobody tells the QEMU that is left there to end.
    """
    source, target = cluster.ready_to_move(MOVER)
    cluster.copy_at(MOVER, source, CRAWL_MIB_S)
    asked = cluster.in_background("migrate", MOVER, "--to", target)
    cluster.copying(MOVER)
    cluster.ctl.lab("net", target, "--mute", str(LIBVIRT_PORT))
    if no_order:
        assert cluster.ctl.sh(source, "systemctl", "kill", "--signal=STOP", "migrd-agent").rc == 0
    cluster.copy_at(MOVER, source, FULL_SPEED_MIB_S)
    until("it runs on the target", lambda: state(cluster, target) == "running", deadline_s=60, every_s=0.1)
    return source, target, asked


def kill_unanswered(cluster: Cluster) -> tuple[str, str, subprocess.Popen[str]]:
    """The source and the target whose libvirtd died with its answer, and the command that still waits."""
    source, target = cluster.ready_to_move(MOVER)
    cluster.copy_at(MOVER, source, CRAWL_MIB_S)
    asked = cluster.in_background("migrate", MOVER, "--to", target)
    cluster.copying(MOVER)
    with cluster.ctl.spawn(target, "/usr/bin/python3", str(DIE_UNANSWERED), MOVER) as killer:
        assert killer.stdout is not None
        first = killer.stdout.readline()  # it watches: the switch-over may come
        cluster.copy_at(MOVER, source, FULL_SPEED_MIB_S)
        said, wrong = killer.communicate(timeout=150)
    assert killer.returncode == 0, first + said + wrong
    return source, target, asked


def test_an_answer_lost_in_the_switch_over_does_not_run_the_guest_twice(patient: Cluster) -> None:
    """libvirt leaves this to lock managers. The target hears its request, and cannot answer."""
    source, target, asked = lose_answer(patient)

    def ended_here() -> bool:
        return state(patient, source) in ENDED

    until("its QEMU here has ended", ended_here, deadline_s=KEEPALIVE_S, every_s=0.2)
    time.sleep(KEEPALIVE_S)  # libvirt on the source has given up by now
    assert ended_here()
    assert state(patient, target) == "running"
    patient.ctl.lab("net", target, "--heal")
    ended = patient.finished(patient.operations(kind="migrate", subject=MOVER)[0]["id"])
    asked.communicate(timeout=30)
    assert ended["state"] == "done", ended
    assert f"the answer of {target} was lost" in ended["reason"]
    assert patient.assert_clean(MOVER) == target
    patient.assert_nobody_noticed()


def test_i1_a_source_that_loses_its_power_then_keeps_no_definition(patient: Cluster) -> None:
    """libvirt never came to its Confirm: what is still defined there is removed once the host is back."""
    source, target, asked = lose_answer(patient, no_order=True)
    patient.ctl.lab("cut", source)
    operation = patient.operations(kind="migrate", subject=MOVER)[0]["id"]
    waits = patient.ended(operation)
    assert waits["state"] == "parked", waits
    assert f"its definition may still be on {source}" in waits["reason"]
    assert f"power {source} on" in waits["remedy"]
    patient.ctl.lab("net", target, "--heal")
    patient.ctl.lab("power", source, "on")
    ended = patient.finished(operation)
    asked.communicate(timeout=30)
    assert ended["state"] == "done", ended
    assert f"definition on {source}: it was removed" in ended["reason"]
    patient.settle()
    assert patient.assert_clean(MOVER) == target
    patient.assert_nobody_noticed(outage_limit_ms=SILENT_PEER_MS)  # DRBD waits for a dead peer, too


def test_i1_a_libvirtd_that_dies_with_its_answer_does_not_run_the_guest_twice(patient: Cluster) -> None:
    """kill -9 on the target, between letting the guest run and saying so."""
    source, target, asked = kill_unanswered(patient)

    def ended_here() -> bool:
        seen = state(patient, source)
        assert seen != "running", f"it runs on {source}, and on {target} it is {state(patient, target)!r}"
        return seen in ENDED

    until("its QEMU here has ended", ended_here, deadline_s=KEEPALIVE_S, every_s=0.2)
    ended = patient.finished(patient.operations(kind="migrate", subject=MOVER)[0]["id"])
    asked.communicate(timeout=30)
    assert ended["state"] == "done", ended
    assert f"the answer of {target} was lost" in ended["reason"]
    assert patient.assert_clean(MOVER) == target
    patient.assert_nobody_noticed()
