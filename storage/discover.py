"""From a domain's XML to its volumes, networks and blockers. Pure, never raises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

from storage import blockers as blocking
from storage import domain_xml
from storage.domain_xml import Disk
from storage.iscsi import parse as iscsi
from storage.iscsi_qemu.inq import QEMU_IQN
from storage.words import DrbdVolume, IscsiQemuVolume, IscsiVolume, OtherVolume, Volume

ISCSI_PORT = 3260
_DRBD_MINOR = re.compile(r"/dev/drbd(\d{1,7})\Z")
_DRBD_NAME = re.compile(r"/dev/drbd/by-res/([^/]+)(?:/(\d{1,5}))?\Z")
_TARGET = re.compile(r"([^/]+)(?:/(\d{1,5}))?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """What this host knows: `DrbdDriver.volumes()` and `IscsiDriver.links()`."""

    drbd: tuple[DrbdVolume, ...] = ()
    iscsi: Mapping[str, IscsiVolume] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a domain needs of a host. Fields as in agents.protocol.DomainReport."""

    disks: tuple[Disk, ...] = ()
    volumes: tuple[Volume, ...] = ()
    bridges: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    cpu_xml: str = ""
    blockers: tuple[str, ...] = ()
    cold_blockers: tuple[str, ...] = ()


def find(xml: str, devices: Devices) -> Found:
    """Everything at once. A definition that cannot be read is itself the blocker."""
    try:
        root = domain_xml.read(xml)
    except domain_xml.UnreadableXmlError as error:
        reason = (f"{error}: it cannot be judged, so it is not migrated",)
        return Found(blockers=reason, cold_blockers=reason)
    disks = domain_xml.disks(root)
    uuid = (root.findtext("uuid") or "").strip().lower()
    volumes = [volume_of(disk, devices, uuid) for disk in disks if not disk.removable]
    return Found(
        disks=disks,
        volumes=tuple(dict.fromkeys(volumes)),
        bridges=domain_xml.bridges(root),
        networks=domain_xml.networks(root),
        cpu_xml=domain_xml.cpu(root),
        blockers=blocking.find(root),
        cold_blockers=blocking.find_cold(root),
    )


def volume_of(disk: Disk, devices: Devices, domain_uuid: str) -> Volume:
    """The volume behind one disk; OtherVolume with the reason when no driver can hand it over."""
    if reason := blocking.local_reason(disk):
        return OtherVolume(path=disk.source or disk.target, reason=reason)
    if disk.type == "network":
        return _network(disk, domain_uuid)
    return _block(disk, devices)


def _block(disk: Disk, devices: Devices) -> Volume:
    path = disk.source
    if found := devices.iscsi.get(path):
        return found
    if parts := iscsi.by_path(path):
        portal, iqn, lun = parts
        return IscsiVolume(portal=portal, iqn=iqn, lun=lun, device=path)
    if path.startswith("/dev/drbd"):
        return _drbd(disk, devices)
    if re.match(r"/dev/sd[a-z]+\d*\Z", path):
        return _other(
            disk, f"{path} is a name that changes from boot to boot: use /dev/disk/by-path or by-id"
        )
    return _other(disk, f"{path} is neither a DRBD device nor an iSCSI LUN that this host is logged in to")


def _drbd(disk: Disk, devices: Devices) -> Volume:
    by_minor, by_name = _DRBD_MINOR.match(disk.source), _DRBD_NAME.match(disk.source)
    for volume in devices.drbd:
        if by_minor and volume.minor == int(by_minor[1]):
            return volume
        # Without a volume number the link stands for the only volume of its resource.
        if by_name and (by_name[1], int(by_name[2] or 0)) == (volume.resource, volume.volume_nr):
            return volume
    return _other(disk, f"{disk.source} belongs to no DRBD resource configured on this host")


def _network(disk: Disk, domain_uuid: str) -> Volume:
    source = disk.element.find("source")
    assert source is not None or not disk.source
    protocol = source.get("protocol", "?") if source is not None else "?"
    if source is None or protocol != "iscsi":
        return _other(disk, f"protocol {protocol} ({disk.source or 'no source'}) is not supported")
    target, hosts = _TARGET.match(disk.source), source.findall("host")
    if not target or len(hosts) != 1 or not hosts[0].get("name"):
        return _other(disk, f"iSCSI source {disk.source!r} is not one target at one portal")
    if hosts[0].get("transport", "tcp") != "tcp":
        return _other(disk, f"iSCSI transport {hosts[0].get('transport')} is not supported")
    name = source.find("initiator/iqn")
    auth, secret = _auth(disk.element, source)
    return IscsiQemuVolume(
        portal=_portal(hosts[0]),
        iqn=target[1],
        lun=int(target[2] or 0),
        secret_uuid=secret.get("uuid") if secret is not None else None,
        secret_usage=secret.get("usage") if secret is not None else None,
        chap_user=auth.get("username") if auth is not None else None,
        initiator_iqn=(name.get("name") if name is not None else None) or _default_initiator(domain_uuid),
    )


def _default_initiator(domain_uuid: str) -> str:
    """The name QEMU makes up when it is given none (block/iscsi.c, get_initiator_name)."""
    return f"{QEMU_IQN}:{domain_uuid}" if domain_uuid else QEMU_IQN


def _portal(host: ET.Element) -> str:
    name = host.get("name", "")
    address = f"[{name}]" if ":" in name and not name.startswith("[") else name
    return f"{address}:{host.get('port') or ISCSI_PORT}"


def _auth(disk: ET.Element, source: ET.Element) -> tuple[ET.Element | None, ET.Element | None]:
    """<auth> stands below <source>, or, as before libvirt 3.9, below <disk>."""
    auth = source.find("auth")
    if auth is None:
        auth = disk.find("auth")
    return auth, (auth.find("secret") if auth is not None else None)


def _other(disk: Disk, reason: str) -> OtherVolume:
    return OtherVolume(path=disk.source or disk.target, reason=f"disk {disk.target}: {reason}")
