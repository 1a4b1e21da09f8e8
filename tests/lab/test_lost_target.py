"""Nobody waits for a dead target: the drain takes another one, and a guest in its switch-over runs on."""

from __future__ import annotations

import pytest

from tests.lab.cluster import CRAWL_MIB_S, MOVER_DIRTY_MIB_S, SILENT_PEER_MS, Cluster

pytestmark = pytest.mark.lab

# A switch-over that takes seconds, so that the power can be cut in the middle of it: the copying crawls, and
# a downtime of ten minutes is said to be welcome.
LONG_SWITCH_OVER = """
for try in $(seq 150); do virsh domjobinfo GUEST | grep -q 'Memory processed' && break; sleep 0.1; done
virsh migrate-setspeed GUEST 1
sleep 1.5  # the agent has set its own limit by then
virsh migrate-setmaxdowntime GUEST 600000
for try in $(seq 300); do
    virsh domstate GUEST --reason | grep -q 'paused (migrating)' && exit 0
    sleep 0.05
done
exit 1
"""


def test_drain_whose_target_lost_its_power_takes_another_one(cluster: Cluster) -> None:
    """I3, I15: its BMC says off."""
    guest = cluster.guest("retry", "h1", "iscsi")
    cluster.copy_at(guest, "h1", CRAWL_MIB_S)
    drain = cluster.in_background("drain", "h1")
    dead = cluster.copying(guest)["target"]
    alive = ({"h2", "h3"} - {dead}).pop()
    operation = cluster.operations(kind="drain", subject="h1")[0]
    cluster.ctl.lab("cut", dead)  # its BMC stays, and says off
    ended = cluster.ended(operation["id"], deadline_s=300)
    drain.communicate(timeout=30)
    assert ended["state"] == "done", ended
    cluster.assert_runs_only_on(guest, alive)
    cluster.ctl.lab("power", dead, "on")
    cluster.settle()
    assert cluster.assert_clean(guest) == alive
    cluster.assert_nobody_noticed(outage_limit_ms=SILENT_PEER_MS)


def test_guest_in_its_switch_over_runs_on_when_the_target_loses_its_power(cluster: Cluster) -> None:
    """I5: QEMU waits in the kernel for a dead peer, paused and deaf to libvirt, for a quarter of an hour."""
    guest = cluster.guest("midway", "h1", "iscsi", dirty=MOVER_DIRTY_MIB_S)
    with cluster.default_keepalive("h1"):
        cluster.settle()
        asked = cluster.in_background("migrate", guest, "--to", "h2")
        paused = cluster.ctl.sh("h1", "sh", "-c", LONG_SWITCH_OVER.replace("GUEST", guest))
        assert paused.rc == 0, paused.err
        cluster.ctl.lab("cut", "h2")
        ended = cluster.finished(cluster.operations(kind="migrate", subject=guest)[0]["id"])
        asked.communicate(timeout=30)
        assert ended["state"] == "undone", ended
        assert "the connection was cut" in ended["reason"]
    cluster.ctl.lab("power", "h2", "on")
    cluster.settle()
    assert cluster.assert_clean(guest) == "h1"
    cluster.assert_nobody_noticed(outage_limit_ms=SILENT_PEER_MS)
