"""The main job on real hosts: drain, power off, bring back, restore (I1, I5, I6, I9, I11, I12)."""

from __future__ import annotations

import pytest

from tests.lab.cluster import Cluster

pytestmark = pytest.mark.lab


def test_drain_power_off_and_restore(cluster: Cluster) -> None:
    homes = {
        cluster.guest("web", "h1", "drbd", peer="h2"): {"h2"},
        cluster.guest("db", "h1", "drbd", peer="h3"): {"h3"},
        cluster.guest("mail", "h1", "iscsi"): {"h2", "h3"},
        cluster.guest("wiki", "h1", "iscsi-qemu"): {"h2", "h3"},
    }

    planned = cluster.migrctl("drain", "h1", "--dry-run")
    assert planned.rc == 0, planned.err
    assert {m["name"] for m in planned.json["moves"]} == set(homes)
    assert all(m["target"] in homes[m["name"]] for m in planned.json["moves"])
    assert cluster.host("h1")["state"] == "online", "a dry run touches nothing"

    drained = cluster.migrctl("drain", "h1", "--power-off", deadline_s=600)
    assert drained.rc == 0, drained.err + drained.out
    assert drained.json["state"] == "done"
    assert cluster.ctl.lab("power", "h1", "status")["power"] == "off"
    assert cluster.host("h1")["state"] == "off"
    found = cluster.homes(*homes)
    assert all(found[guest] in targets for guest, targets in homes.items()), found
    cluster.assert_no_window_open()

    again = cluster.migrctl("drain", "h1")
    assert again.rc == 3, "an already drained host is refused"

    restored = cluster.migrctl("undrain", "h1", "--restore", deadline_s=600)
    assert restored.rc == 0, restored.err + restored.out
    assert cluster.assert_all_clean(*homes) == dict.fromkeys(homes, "h1")
    cluster.assert_nobody_noticed()


def test_restore_moves_back_only_what_that_drain_moved(cluster: Cluster) -> None:
    cluster.guest("a", "h1", "iscsi")
    cluster.guest("b", "h2", "iscsi")
    assert cluster.migrctl("drain", "h1").rc == 0
    assert cluster.migrctl("undrain", "h1", "--restore").rc == 0
    assert cluster.homes("a", "b") == {"a": "h1", "b": "h2"}
    cluster.assert_nobody_noticed()
