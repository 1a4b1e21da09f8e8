"""Faults in the middle of a real copy: the guest keeps running, nothing is left behind (I1, I5, I6, I16).

Killed agents, a restarted libvirtd and cut networks and hosts are in test_chaos.py.
"""

from __future__ import annotations

import signal
import time

import pytest

from tests.lab.cluster import HOSTS, MOVER, Cluster
from tests.lab.labctl import until

pytestmark = pytest.mark.lab
LOST = ("suspect", "unreachable")
UNHEARD_S = 28.0  # longer than an agent may be unheard before migrd calls it unreachable


def test_cancel_in_the_middle_of_a_copy(cluster: Cluster) -> None:
    # It must not converge before the cancel: 128 MiB are rewritten faster than a lab host sends them.
    guest = cluster.guest("cancel", "h1", "drbd", peer="h2", memory_mib=512, dirty=64)
    asked = cluster.in_background("migrate", guest, "--to", "h2")
    operation = cluster.copying(guest)
    # The look at the flag is seen able to fail: while memory is on the wire, both sides have it on.
    assert cluster.open_windows("h1", "h2") == ["h1", "h2"]
    assert cluster.migrctl("op", "cancel", operation["id"]).rc in (0, 1)
    asked.communicate(timeout=120)
    assert cluster.ended(operation["id"])["state"] == "undone"
    assert cluster.assert_clean(guest) == "h1"
    cluster.assert_nobody_noticed()


def test_ctrl_c_in_migrctl_detaches_and_the_drain_goes_on(moving: Cluster) -> None:
    source, target = moving.ready_to_move(MOVER)
    drain = moving.in_background("drain", source)
    moving.copying(MOVER)
    drain.send_signal(signal.SIGINT)
    _, said = drain.communicate(timeout=30)
    operation = moving.operations(kind="drain", subject=source)[0]
    assert operation["id"] in said, "it says how to watch or cancel"
    assert moving.ended(operation["id"])["state"] == "done"
    assert moving.assert_clean(MOVER) == target
    moving.assert_nobody_noticed()


def test_daemon_killed_in_the_middle_of_a_copy(moving: Cluster) -> None:
    source, target = moving.ready_to_move(MOVER)
    asked = moving.in_background("migrate", MOVER, "--to", target)
    operation = moving.copying(MOVER)
    moving.kill("s1", "migrd")
    asked.communicate(timeout=300)
    until("migrd answers again", lambda: moving.migrctl("status").rc == 0, deadline_s=60)
    ended = moving.ended(operation["id"])
    assert ended["state"] in ("done", "undone"), ended
    assert moving.assert_clean(MOVER) == (target if ended["state"] == "done" else source)
    moving.assert_nobody_noticed()


def test_target_agent_unreachable_until_the_drain_ends_or_parks(moving: Cluster) -> None:
    source, target = moving.ready_to_move(MOVER)
    drain = moving.in_background("drain", source)
    moving.copying(MOVER)
    operation = moving.operations(kind="drain", subject=source)[0]
    moving.ctl.lab("net", target, "--drop", "management")
    until("migrd notices", lambda: moving.host(target)["state"] in LOST, deadline_s=60)
    moving.ended(operation["id"])
    moving.ctl.lab("net", target, "--heal")
    moving.settle()
    ended = moving.finished(operation["id"])
    drain.communicate(timeout=30)
    assert ended["state"] == "done", ended
    assert moving.assert_clean(MOVER) == target
    moving.assert_nobody_noticed()


def test_source_agent_unreachable_for_longer_than_a_look_is_patient(moving: Cluster) -> None:
    source, target = moving.ready_to_move(MOVER)
    asked = moving.in_background("migrate", MOVER, "--to", target)
    operation = moving.copying(MOVER)
    moving.ctl.lab("net", source, "--drop", "management")
    dropped = time.monotonic()
    until("migrd notices", lambda: moving.host(source)["state"] in LOST, deadline_s=60)
    time.sleep(max(0.0, dropped + UNHEARD_S - time.monotonic()))
    moving.ctl.lab("net", source, "--heal")
    moving.settle()
    ended = moving.finished(operation["id"])
    asked.communicate(timeout=30)
    assert ended["state"] in ("done", "undone"), ended
    assert moving.assert_clean(MOVER) == (target if ended["state"] == "done" else source)
    assert all(moving.host(host)["state"] == "online" for host in HOSTS)
    moving.assert_nobody_noticed()
