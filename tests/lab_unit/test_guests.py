"""What a guest is made of, and when it is refused."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from labkit import guest_xml, guests, netns_seed
from labkit.disks_tgt import disk_xml
from labkit.guest_xml import Guest
from labkit.layout import Layout
from labkit.sh import LabRefusedError
from labkit.state import Lab

UML = Layout("lab", 0, ("h1", "h2", "h3"))
NETNS = Layout("lab", 3, ("h1", "h2"), kind="netns")
GUEST = Guest("web-1", 4, "6d1c7b0e-0000-4000-8000-000000000001", 128, 10, 20)


@pytest.mark.parametrize("name", ["g", "g1", "web-1", "a23456789012345"])
def test_good_names(name: str) -> None:
    assert guests.check_name(name) == name


@pytest.mark.parametrize("name", ["", "h1", "s1", "1g", "G1", "a b", "../x", "a234567890123456", "g_1", "-g"])
def test_bad_names(name: str) -> None:
    with pytest.raises(LabRefusedError):
        guests.check_name(name)


def test_all_reasons_at_once() -> None:
    lab = Lab(NETNS, numbers={"g": 0}, extra={"guests": {"g": {}}})
    found = guests.refusals(lab, "g", "h9", "drbd", "h8", 16)
    assert len(found) == 5
    assert any("h9" in reason for reason in found)
    assert any("h8" in reason for reason in found)


@pytest.mark.parametrize(
    ("kind", "peer", "good"),
    [
        ("drbd", "h2", True),
        ("drbd", None, False),
        ("drbd", "h1", False),
        ("iscsi", None, True),
        ("iscsi", "h2", False),
        ("iscsi-qemu", None, True),
    ],
)
def test_peers(kind: guests.DiskKind, peer: str | None, good: bool) -> None:
    assert (guests.refusals(Lab(UML), "g", "h1", kind, peer, 128) == []) is good


def test_numbers_are_used_again() -> None:
    assert guests.free_number(set()) == 0
    assert guests.free_number({0, 1, 3}) == 2


def parsed(layout: Layout, guest: Guest = GUEST) -> ElementTree.Element:
    text = guest_xml.domain_xml(layout, guest, disk_xml(layout, guest.name), "/k", "/i")
    return ElementTree.fromstring(text)


def test_the_domain_is_what_was_asked_for() -> None:
    domain = parsed(NETNS)
    assert domain.findtext("name") == "web-1"
    assert domain.findtext("uuid") == GUEST.uuid
    assert domain.findtext("memory") == "128"
    mac = domain.find("devices/interface/mac")
    assert mac is not None
    assert mac.get("address") == "52:54:00:50:01:04"
    line = (domain.findtext("os/cmdline") or "").split()
    assert "migrd.ip=10.80.2.154/24" in line
    assert "migrd.dirty=10" in line
    assert f"migrd.observer_mac={guest_xml.observer_mac(NETNS)}" in line


@pytest.mark.parametrize("memory_mib", [96, 128, 256, 1024])
def test_the_memory_that_qemu_gets_keeps_its_dirty_tracking_right(memory_mib: int) -> None:
    """A multiple of 64 pages (256 KiB) loses pages in a TCG migration; QEMU wants a multiple of 8 KiB."""
    guest = Guest("g", 0, GUEST.uuid, memory_mib, 0, 20)
    namespace = "{http://libvirt.org/schemas/domain/qemu/1.0}"
    arguments = [node.get("value", "") for node in parsed(UML, guest).iter(f"{namespace}arg")]
    size_kib = int(arguments[arguments.index("-m") + 1].removesuffix("k"))
    assert size_kib % 256 != 0
    assert size_kib % 8 == 0
    assert size_kib >= memory_mib * 1024
    assert f"memory-backend-ram,id=lab.ram,size={size_kib}k" in arguments


def test_no_secret_in_the_domain() -> None:
    text = disk_xml(NETNS, "web-1")
    auth = ElementTree.fromstring(text).find("source/auth")
    assert auth is not None
    assert auth.get("username") == "guest-web-1"
    assert "password" not in text


def test_the_observers_address_is_in_no_hosts_way() -> None:
    for layout in (UML, NETNS):
        macs = {layout.host_mac(host, "guests") for host in ("s1", *layout.hosts)}
        assert guest_xml.observer_mac(layout) not in macs


def test_a_netns_host_knows_every_name_and_has_its_own_identity() -> None:
    h1, h2 = netns_seed.files(NETNS, "h1"), netns_seed.files(NETNS, "h2")
    for name in ("h1", "h2", "h2-storage", "s1"):
        assert f" {name}\n" in h1["etc/hosts"]
    assert h1["etc/machine-id"] != h2["etc/machine-id"]
    assert 'listen_addr = "10.80.1.12"' in h2["etc/libvirt/libvirtd.conf"]
    assert "br-guests" in h1["etc/lab/network.batch"]
    storage = netns_seed.files(NETNS, "s1")
    assert "br-guests" not in storage["etc/lab/network.batch"]
    assert "etc/libvirt/libvirtd.conf" not in storage
