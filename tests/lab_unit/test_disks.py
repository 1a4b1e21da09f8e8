"""Disks of guests: what the domain's XML and drbd.conf say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from labkit import disks_drbd, disks_iscsi, libvirt_secret
from labkit.layout import Layout
from labkit.sh import LabRefusedError
from labkit.state import Lab

LAYOUT = Layout(name="lab", slot=0, hosts=("h1", "h2", "h3"))


def test_drbd_resource_names_both_hosts_and_never_two_primaries() -> None:
    text = disks_drbd.resource(LAYOUT, "g1", 3, {"h1": "/dev/ubdb", "h2": "/dev/ubdc"})
    assert re.findall(r"on (\w+)", text) == ["h1", "h2"]
    assert text.count("device minor 13;") == 2
    assert "address 10.77.1.11:7803;" in text
    assert "address 10.77.1.12:7803;" in text
    assert "allow-two-primaries" not in text
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize("peer", [None, "h1"])
def test_drbd_disk_without_another_host_is_refused_before_anything_is_made(peer: str | None) -> None:
    with pytest.raises(LabRefusedError, match="needs a peer"):
        disks_drbd.create(Lab(layout=LAYOUT), "g1", "h1", peer, 64)


def test_iscsi_disk_with_a_peer_is_refused_before_anything_is_made() -> None:
    for create in (disks_iscsi.create, disks_iscsi.create_qemu):
        with pytest.raises(LabRefusedError, match="has no peer"):
            create(Lab(layout=LAYOUT), "g1", "h1", "h2", 64)


@pytest.mark.parametrize(
    "xml",
    [
        disks_drbd.disk_xml("g1"),
        disks_iscsi.kernel_xml(LAYOUT, "g1"),
        disks_iscsi.qemu_xml(LAYOUT, "g1"),
    ],
)
def test_every_disk_is_vda_and_safe_to_migrate(xml: str) -> None:
    disk = ET.fromstring(xml)
    target, driver = disk.find("target"), disk.find("driver")
    assert target is not None
    assert target.get("dev") == "vda"
    assert driver is not None
    assert driver.get("cache") == "none", "libvirt refuses to migrate a cached shared disk"


def test_qemu_initiator_names_user_and_secret_but_holds_no_password() -> None:
    disk = ET.fromstring(disks_iscsi.qemu_xml(LAYOUT, "g1"))
    auth = disk.find("source/auth")
    assert auth is not None
    assert auth.get("username") == "guest-g1"
    secret = auth.find("secret")
    assert secret is not None
    assert dict(secret.attrib) == {"type": "iscsi", "usage": "iqn.2026-11.org.lab:lab.g1"}


def test_secret_list_is_read_by_usage_and_type() -> None:
    listed = (
        " 39175ebb-945b-41f3-9d9e-a66affa01e0c   iscsi iqn.2026-11.org.lab:a.q1\n"
        " 9b1c0f6e-0a2b-4a45-8f9d-2f0f6b1a2c3d   ceph iqn.2026-11.org.lab:a.q1\n"
        " 0d8f3c1e-9f55-4c43-b6de-1f5f1d6f7a8b   Unused\n"
    )
    assert libvirt_secret.parse_list(listed, "iqn.2026-11.org.lab:a.q1") == [
        "39175ebb-945b-41f3-9d9e-a66affa01e0c"
    ]
    assert libvirt_secret.parse_list(listed, "iqn.2026-11.org.lab:a.q") == []
