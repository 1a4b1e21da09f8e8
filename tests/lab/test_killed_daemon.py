"""The daemon dies again and again while it drains a host, and the drain comes to its end (I1, I11, I16)."""

from __future__ import annotations

import random
import time

import pytest

from tests.lab.cluster import CRAWL_MIB_S, FULL_SPEED_MIB_S, MOVER_DIRTY_MIB_S, Cluster
from tests.lab.labctl import until

pytestmark = pytest.mark.lab
KILLS = 10
STARTED = 0.8  # of the kills wait for the daemon to answer first; the others hit it while it starts


def test_daemon_killed_at_ten_random_instants_of_a_drain(cluster: Cluster) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    guests = [
        cluster.guest("kill-a", "h1", "drbd", peer="h2", dirty=MOVER_DIRTY_MIB_S),
        cluster.guest("kill-b", "h1", "drbd", peer="h3", dirty=MOVER_DIRTY_MIB_S),
        cluster.guest("kill-c", "h1", "iscsi"),
    ]
    cluster.copy_at(guests[0], "h1", CRAWL_MIB_S)  # so the drain outlasts the kills on any machine
    asked = cluster.in_background("drain", "h1")
    cluster.copying(*guests)  # the first move is on its way
    operation = cluster.operations(kind="drain", subject="h1")[0]["id"]
    killed_at_s = []
    for _ in range(KILLS):
        if dice.random() < STARTED:
            until("migrd answers", lambda: cluster.migrctl("status").rc == 0, deadline_s=60)
        time.sleep(dice.uniform(0.0, 3.0))
        cluster.kill("s1", "migrd")
        killed_at_s.append(cluster.clock_s("s1"))
    cluster.copy_at(guests[0], "h1", FULL_SPEED_MIB_S)
    cluster.settle()
    ended = cluster.finished(operation)
    asked.communicate(timeout=60)
    assert ended["state"] == "done", ended
    # The daemon's own clock, read after each kill: a drain that ended before it was not met by it.
    assert sum(at_s < ended["ended_at_s"] for at_s in killed_at_s) == KILLS, (killed_at_s, ended)
    assert "h1" not in cluster.assert_all_clean(*guests).values()
    cluster.settle()
    assert cluster.host("h1")["state"] == "drained"
    cluster.assert_nobody_noticed()
