"""Whole domain definitions in, volumes and blockers out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.discover import Devices, find
from storage.words import DrbdVolume, IscsiQemuVolume, IscsiVolume, OtherVolume

UUID = "11111111-2222-3333-4444-555555555555"
R0 = DrbdVolume(resource="r0", volume_nr=0, minor=0, nodes=("h1", "h2"))
R1 = DrbdVolume(resource="web", volume_nr=1, minor=12, nodes=("h1", "h2"))
BY_ID = "/dev/disk/by-id/wwn-0x600140558c76fd7109545d5852cca1bb"
LUN = IscsiVolume(portal="10.0.0.5:3260", iqn="iqn.2026-11.org.lab:t1", lun=3, device=BY_ID)
DEVICES = Devices(drbd=(R0, R1), iscsi={BY_ID: LUN})

GOOD = f"""<?xml version='1.0' encoding='UTF-8'?>
<domain type='kvm' id='7'>
  <name>g1</name>
  <uuid>{UUID}</uuid>
  <memory unit='KiB'>262144</memory>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/></os>
  <cpu mode='custom' match='exact' check='full'><model fallback='forbid'>qemu64</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    %s
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/></interface>
    <interface type='network'><source network='lan' portid='x' bridge='virbr7'/></interface>
    <interface type='bridge'><source bridge='br0'/></interface>
    <serial type='file'><source path='/var/log/g1.log'/><target port='0'/></serial>
    <input type='keyboard' bus='ps2'/>
    <memballoon model='virtio'/>
  </devices>
</domain>"""
DISK = (
    "<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/>"
    "<source dev='%s' index='1'/><backingStore/><target dev='vda' bus='virtio'/></disk>"
)
QEMU_DISK = """<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/>
  <source protocol='iscsi' name='iqn.2026-11.org.lab:t2/4'><host name='10.0.0.5' port='3260'/>
  <initiator><iqn name='iqn.2026-11.org.lab:guest-g'/></initiator>
  <auth username='g'><secret type='iscsi' usage='lab-t2'/></auth></source><target dev='vda'/></disk>"""


def domain(devices: str) -> str:
    return GOOD % devices


def test_a_guest_that_can_move():
    found = find(domain(DISK % "/dev/drbd0"), DEVICES)
    assert found.blockers == ()
    assert found.volumes == (R0,)
    assert (found.bridges, found.networks) == (("br0",), ("lan",))
    assert found.cpu_xml.startswith("<cpu mode=")
    assert "qemu64" in found.cpu_xml
    assert [(disk.target, disk.cache, disk.format, disk.removable) for disk in found.disks] == [
        ("vda", "none", "raw", False),
        ("sda", "", "", True),
    ]


@pytest.mark.parametrize(
    ("path", "volume"),
    [
        ("/dev/drbd12", R1),
        ("/dev/drbd/by-res/web/1", R1),
        ("/dev/drbd/by-res/r0", R0),
        ("/dev/drbd/by-res/r0/0", R0),
        (BY_ID, LUN),
    ],
)
def test_names_of_volumes(path, volume):
    assert find(domain(DISK % path), DEVICES).volumes == (volume,)


def test_by_path_needs_no_session():
    path = "/dev/disk/by-path/ip-10.0.0.5:3260-iscsi-iqn.2026-11.org.lab:t1-lun-3"
    (volume,) = find(domain(DISK % path), Devices()).volumes
    assert volume == IscsiVolume(portal="10.0.0.5:3260", iqn="iqn.2026-11.org.lab:t1", lun=3, device=path)
    assert volume.name == LUN.name  # one volume, whatever name opens it


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/dev/sdb", "changes from boot to boot"),
        ("/dev/vg0/web", "neither a DRBD device nor an iSCSI LUN"),
        ("/dev/drbd99", "no DRBD resource"),
        ("/dev/drbd/by-disk/sdb", "no DRBD resource"),
        ("/dev/disk/by-path/ip-10.0.0.5:3260-iscsi-iqn.a:b-lun-3-part1", "neither"),
    ],
)
def test_other_block_devices_say_why(path, word):
    (volume,) = find(domain(DISK % path), DEVICES).volumes
    assert isinstance(volume, OtherVolume)
    assert word in volume.reason
    assert "vda" in volume.reason


def test_luns_of_qemu():
    (volume,) = find(domain(QEMU_DISK), DEVICES).volumes
    assert volume == IscsiQemuVolume(
        portal="10.0.0.5:3260",
        iqn="iqn.2026-11.org.lab:t2",
        lun=4,
        secret_usage="lab-t2",
        chap_user="g",
        initiator_iqn="iqn.2026-11.org.lab:guest-g",
    )
    old_style = QEMU_DISK.replace("<initiator><iqn name='iqn.2026-11.org.lab:guest-g'/></initiator>", "")
    auth = "<auth username='g'><secret type='iscsi' usage='lab-t2'/></auth>"
    old_style = old_style.replace(auth, "").replace("<source", f"{auth}<source")
    (volume,) = find(domain(old_style), DEVICES).volumes
    assert isinstance(volume, IscsiQemuVolume)
    assert (volume.chap_user, volume.secret_usage) == ("g", "lab-t2")
    assert volume.initiator_iqn == f"iqn.2008-11.org.linux-kvm:{UUID}"  # what QEMU makes up itself


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("protocol='iscsi'", "protocol='rbd'"), "protocol rbd"),
        (("/4'", "/4/5'"), "not one target"),
        (("<host name='10.0.0.5' port='3260'/>", ""), "one portal"),
        (("port='3260'", "transport='iser'"), "transport iser"),
    ],
)
def test_other_network_disks_say_why(change, word):
    (volume,) = find(domain(QEMU_DISK.replace(*change)), DEVICES).volumes
    assert isinstance(volume, OtherVolume)
    assert word in volume.reason


HOSTDEV = """<hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x03' slot='0x00'
 function='0x1'/></source></hostdev>"""
USB = """<hostdev mode='subsystem' type='usb'><source><vendor id='0x0951'/>
 <product id='0x1666'/></source></hostdev>"""
FILE = (
    "<disk type='file' device='disk'><driver cache='none'/><source file='/g.img'/><target dev='vdb'/></disk>"
)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (HOSTDEV, ("PCI device 0000:03:00.1", "detach")),
        (USB, ("USB device 0951:1666", "detach")),
        (FILE, ("vdb", "/g.img")),
        (
            "<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sdb'/></disk>",
            ("/a.iso", "eject"),
        ),
        (DISK.replace("cache='none' ", "") % "/dev/drbd0", ("vda", "cache mode default")),
        (DISK.replace("none", "writeback") % "/dev/drbd0", ("vda", "writeback", "directsync")),
        (
            DISK.replace(
                "<backingStore/>", "<backingStore type='file'><source file='/b.qcow2'/></backingStore>"
            )
            % "/dev/drbd0",
            ("/b.qcow2", "blockcommit"),
        ),
        (DISK.replace("<backingStore/>", "<mirror/>") % "/dev/drbd0", ("vda", "block job")),
        (DISK.replace("<backingStore/>", "<transient/>") % "/dev/drbd0", ("vda", "transient")),
        (DISK.replace("<backingStore/>", "<shareable/>") % "/dev/drbd0", ("vda", "shareable")),
        (
            DISK.replace("index='1'/>", "><reservations managed='yes'/></source>") % "/dev/drbd0",
            ("reservations",),
        ),
        (
            "<filesystem type='mount'><driver type='virtiofs'/><source dir='/srv'/></filesystem>",
            ("virtiofs", "/srv"),
        ),
        ("<filesystem type='mount'><source dir='/srv'/></filesystem>", ("9p", "/srv")),
        ("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>", ("TPM", "state")),
        ("<shmem name='s0'><model type='ivshmem-plain'/></shmem>", ("s0", "ivshmem")),
        ("<memory model='nvdimm'><source><path>/nv</path></source></memory>", ("/nv", "NVDIMM")),
        (
            "<interface type='direct'><mac address='52:54:00:00:00:09'/></interface>",
            ("52:54:00:00:00:09", "macvtap"),
        ),
        ("<input type='evdev'><source dev='/dev/input/event0'/></input>", ("/dev/input/event0",)),
        ("<serial type='dev'><source path='/dev/ttyS0'/></serial>", ("/dev/ttyS0",)),
        ("<disk type='nvme' device='disk'><source type='pci'/><target dev='vdc'/></disk>", ("vdc", "nvme")),
    ],
)
def test_every_blocker_names_the_device_and_the_way_out(device, words):
    (reason,) = find(domain(device), DEVICES).blockers
    assert all(word in reason for word in words), reason


def test_all_reasons_come_at_once():
    found = find(domain(HOSTDEV + USB + FILE + DISK % "/dev/drbd0"), DEVICES)
    assert len(found.blockers) == 3
    assert [type(volume) for volume in found.volumes] == [OtherVolume, DrbdVolume]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<domain",
        "<network/>",
        "<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>",
        "<domain>&undefined;</domain>",
        "\x00",
    ],
)
def test_what_cannot_be_read_is_itself_the_blocker(text):
    found = find(text, DEVICES)
    assert len(found.blockers) == 1
    assert "not migrated" in found.blockers[0]


@given(st.integers(0, len(domain(DISK % "/dev/drbd0")) - 2))
def test_a_cut_definition_is_blocked(end):
    assert find(domain(DISK % "/dev/drbd0")[:end], DEVICES).blockers


@given(st.text())
def test_garbage_never_raises(text):
    assert find(text, DEVICES).blockers
    find(domain(DISK % text.translate({ord(c): None for c in "<>&'"})), DEVICES)


@pytest.mark.parametrize(
    ("devices", "live", "cold"),
    [
        (DISK.replace("cache='none'", "cache='writeback'") % "/dev/drbd0", True, False),
        (DISK % "/dev/drbd0" + "<shmem name='s'/>", True, False),
        (DISK % "/dev/drbd0", False, False),
        ("<disk type='file'><source file='/var/a.img'/><target dev='vda'/></disk>", True, True),
        (
            "<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sdb'/></disk>",
            True,
            True,
        ),
        (
            "<hostdev type='usb'><source><vendor id='0x1d6b'/><product id='0x0002'/></source></hostdev>",
            True,
            True,
        ),
        ("<interface type='direct'><source dev='eth0'/></interface>", True, True),
        ("<tpm><backend type='emulator'/></tpm>", True, True),
        ("<memory model='nvdimm'><source><path>/mnt/pmem</path></source></memory>", True, True),
    ],
)
def test_what_holds_while_a_guest_is_shut_off(devices: str, live: bool, cold: bool):
    """Cache modes and shared memory end with QEMU; what is bound to the host does not."""
    found = find(domain(devices), DEVICES)
    assert bool(found.blockers) is live
    assert bool(found.cold_blockers) is cold


@pytest.mark.parametrize(
    "os",
    [
        "<os firmware='efi'>",
        "<os><loader type='pflash'>/x.fd</loader>",
        "<os><nvram>/var/lib/libvirt/qemu/nvram/g1_VARS.fd</nvram>",
    ],
)
def test_uefi_variables_travel_live_and_not_cold(os: str):
    found = find(domain(DISK % "/dev/drbd0").replace("<os>", os), DEVICES)
    assert found.blockers == ()
    assert "UEFI variables" in found.cold_blockers[0]


def test_a_definition_that_cannot_be_read_moves_neither_way():
    found = find("<domain", DEVICES)
    assert found.blockers
    assert found.cold_blockers
