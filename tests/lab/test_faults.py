"""Faults in the middle of a real copy: the guest keeps running, nothing is left behind (I1, I5, I6, I16)."""

from __future__ import annotations

import signal

import pytest

from tests.lab.cluster import Cluster
from tests.lab.labctl import until

pytestmark = pytest.mark.lab
DIRTY_MIB_S = 8  # keeps a copy busy long enough to be hit


def test_cancel_in_the_middle_of_a_copy(cluster: Cluster) -> None:
    guest = cluster.guest("cancel", "h1", "drbd", peer="h2", dirty=DIRTY_MIB_S)
    moving = cluster.in_background("migrate", guest, "--to", "h2")
    operation = cluster.copying(guest)
    assert cluster.migrctl("op", "cancel", operation["id"]).rc in (0, 1)
    moving.communicate(timeout=120)
    assert cluster.ended(operation["id"])["state"] == "undone"
    cluster.assert_runs_only_on(guest, "h1")
    cluster.assert_nothing_left(guest, "h2")
    cluster.assert_no_window_open()
    cluster.assert_nobody_noticed()


def test_ctrl_c_in_migrctl_detaches_and_the_drain_goes_on(cluster: Cluster) -> None:
    guest = cluster.guest("ctrlc", "h1", "iscsi")
    drain = cluster.in_background("drain", "h1")
    cluster.copying(guest)
    drain.send_signal(signal.SIGINT)
    _, said = drain.communicate(timeout=30)
    operation = cluster.operations(kind="drain", subject="h1")[0]
    assert operation["id"] in said, "it says how to watch or cancel"
    assert cluster.ended(operation["id"])["state"] == "done"
    assert cluster.ctl.running_on(guest) in (["h2"], ["h3"])
    cluster.assert_nobody_noticed()


def test_target_host_loses_power_in_the_middle_of_a_copy(cluster: Cluster) -> None:
    guest = cluster.guest("tgtcut", "h1", "drbd", peer="h2", dirty=DIRTY_MIB_S)
    moving = cluster.in_background("migrate", guest, "--to", "h2")
    operation = cluster.copying(guest)
    cluster.ctl.lab("cut", "h2")
    moving.communicate(timeout=300)
    cluster.assert_runs_only_on(guest, "h1")
    cluster.ctl.lab("power", "h2", "on")
    cluster.settle()
    ended = cluster.ended(operation["id"])
    if ended["state"] == "parked":
        assert ended["reason"]
        assert ended["remedy"]
        cluster.migrctl("op", "resume", operation["id"])
        ended = cluster.ended(operation["id"])
    assert ended["state"] == "undone", ended
    cluster.assert_runs_only_on(guest, "h1")
    cluster.assert_nothing_left(guest, "h2")
    cluster.assert_no_window_open()
    cluster.assert_nobody_noticed(outage_limit_ms=10_000)  # DRBD waits for its dead peer (ping-timeout)


def test_source_agent_killed_in_the_middle_of_a_copy(cluster: Cluster) -> None:
    guest = cluster.guest("srckill", "h1", "drbd", peer="h2", dirty=DIRTY_MIB_S)
    moving = cluster.in_background("migrate", guest, "--to", "h2")
    operation = cluster.copying(guest)
    killed = cluster.ctl.sh("h1", "systemctl", "kill", "--kill-whom=main", "-s", "KILL", "migrd-agent")
    assert killed.rc == 0, killed.err
    moving.communicate(timeout=300)
    ended = cluster.ended(operation["id"])
    home, empty = ("h2", "h1") if ended["state"] == "done" else ("h1", "h2")
    assert ended["state"] in ("done", "undone"), ended
    cluster.assert_runs_only_on(guest, home)
    cluster.assert_nothing_left(guest, empty)
    cluster.assert_no_window_open()
    cluster.assert_nobody_noticed()


def test_daemon_killed_in_the_middle_of_a_copy(cluster: Cluster) -> None:
    guest = cluster.guest("dkill", "h1", "iscsi", dirty=DIRTY_MIB_S)
    moving = cluster.in_background("migrate", guest, "--to", "h3")
    operation = cluster.copying(guest)
    killed = cluster.ctl.sh("s1", "systemctl", "kill", "--kill-whom=main", "-s", "KILL", "migrd")
    assert killed.rc == 0, killed.err
    moving.communicate(timeout=300)
    until("migrd answers again", lambda: cluster.migrctl("status").rc == 0, deadline_s=60)
    ended = cluster.ended(operation["id"])
    assert ended["state"] in ("done", "undone"), ended
    home = "h3" if ended["state"] == "done" else "h1"
    cluster.assert_runs_only_on(guest, home)
    cluster.assert_nobody_noticed()


def test_agent_unreachable_in_the_middle_of_a_drain(cluster: Cluster) -> None:
    guest = cluster.guest("unreach", "h1", "drbd", peer="h2", dirty=DIRTY_MIB_S)
    other = cluster.guest("other", "h1", "iscsi")
    drain = cluster.in_background("drain", "h1")
    cluster.copying(guest)
    operation = cluster.operations(kind="drain", subject="h1")[0]
    cluster.ctl.lab("net", "h2", "--drop", "management")
    until("migrd notices", lambda: cluster.host("h2")["state"] in ("suspect", "unreachable"), deadline_s=60)
    cluster.ctl.lab("net", "h2", "--heal")
    drain.communicate(timeout=300)
    ended = cluster.ended(operation["id"])
    if ended["state"] == "parked":
        assert cluster.migrctl("op", "resume", operation["id"]).rc in (0, 5)
        ended = cluster.ended(operation["id"])
    assert ended["state"] == "done", ended
    for name in (guest, other):
        assert len(cluster.ctl.running_on(name)) == 1
        cluster.assert_nothing_left(name, "h1")
    cluster.assert_no_window_open()
    cluster.assert_nobody_noticed()
