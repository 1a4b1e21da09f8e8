"""A drain does not wait for a dead target: its BMC says off, so another one is taken (I3, I5, I15)."""

from __future__ import annotations

import pytest

from tests.lab.cluster import MOVER_DIRTY_MIB_S, Cluster

pytestmark = pytest.mark.lab


def test_drain_whose_target_lost_its_power_takes_another_one(cluster: Cluster) -> None:
    guest = cluster.guest("retry", "h1", "iscsi", dirty=MOVER_DIRTY_MIB_S)
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
    cluster.assert_nobody_noticed()
