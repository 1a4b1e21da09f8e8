"""What a drain cannot do is said before anything is touched, all of it at once (I5)."""

from __future__ import annotations

import pytest

from tests.lab.cluster import HOSTS, Cluster
from tests.lab.labctl import until

pytestmark = pytest.mark.lab


def test_unknown_host_is_named_with_what_exists(cluster: Cluster) -> None:
    done = cluster.migrctl("drain", "h9")
    assert done.rc in (1, 3)
    assert "h9" in done.err + done.out


STUCK = """<domain type='qemu'>
  <name>stuck</name>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/var/tmp/local.img'/><target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'><source bridge='br-odd'/><model type='virtio'/></interface>
    <controller type='usb' model='qemu-xhci'/>
    <hostdev mode='subsystem' type='usb'>
      <!-- optional: libvirt starts the guest without the device, which no host has, and keeps it here -->
      <source startupPolicy='optional'><vendor id='0x1d6b'/><product id='0x0999'/></source>
    </hostdev>
    <memballoon model='none'/>
  </devices>
</domain>
"""


# UML has no USB at all, and libvirt reads the directory of its devices even for one that may be missing.
WITH_USB = (
    "mkdir -p /run/usb/usb/devices && mount -t overlay none -o lowerdir=/run/usb:/sys/bus /sys/bus || exit; "
    "virsh -q -c qemu:///system create /dev/stdin; rc=$?; umount /sys/bus; exit $rc"
)


def test_every_blocker_of_a_guest_is_a_reason(cluster: Cluster) -> None:
    """A USB device of the host, a local disk and a bridge that no target has: all said at once."""
    guest = cluster.guest("fine", "h1", "iscsi")
    try:
        for text, command in (
            ("", ("truncate", "-s", "1M", "/var/tmp/local.img")),
            ("", ("ip", "link", "add", "br-odd", "type", "bridge")),
            ("", ("ip", "link", "set", "br-odd", "up")),
            (STUCK, ("sh", "-c", WITH_USB)),
        ):
            done = cluster.ctl.feed("h1", text, *command)
            assert done.rc == 0, f"{command}: {done.err}"
        until("migrd sees it", lambda: cluster.migrctl("vm", "show", "stuck").rc == 0, deadline_s=60)
        for words in (("drain", "h1"), ("drain", "h1", "--dry-run"), ("migrate", "stuck", "--to", "h2")):
            refused = cluster.migrctl(*words)
            assert refused.rc == 3, words
            for reason in ("host USB device 1d6b:0999", "local.img", "br-odd"):
                assert reason in refused.out + refused.err, words
        assert cluster.host("h1")["state"] == "online"
        assert not cluster.operations(kind="drain", subject="h1", state="running")
        cluster.assert_runs_only_on(guest, "h1")
        cluster.assert_nobody_noticed()
    finally:
        for command in (
            ("virsh", "-q", "-c", "qemu:///system", "destroy", "stuck"),
            ("ip", "link", "del", "br-odd"),
            ("rm", "-rf", "/var/tmp/local.img", "/run/usb"),
        ):
            cluster.ctl.sh("h1", *command)


def test_drain_of_the_last_host_is_refused(cluster: Cluster) -> None:
    for host in HOSTS[1:]:
        assert cluster.migrctl("drain", host).rc == 0
    refused = cluster.migrctl("drain", "h1")
    assert refused.rc == 3
    assert "last" in (refused.out + refused.err).lower() or "no other" in (refused.out + refused.err).lower()
