"""iSCSI sessions and their LUNs as the kernel shows them in sysfs: no tool, no iscsid, nothing that hangs.

Layout: Documentation/ABI/testing/sysfs-class-iscsi* and the scsi_transport_iscsi class.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from storage.iscsi import parse

SECTOR_BYTES = 512  # sysfs counts sizes in 512-byte sectors whatever the device's block size is


@dataclass(frozen=True, slots=True)
class Lun:
    """One SCSI disk of a session. `name` is the kernel's (sda); `rdevs` are the disk and its partitions."""

    lun: int
    hctl: str  # "2:0:0:1", the directory of the SCSI device
    name: str
    state: str  # "running", "offline", "transport-offline", "blocked" ...
    wwid: str | None
    size_bytes: int | None
    rdevs: tuple[int, ...]
    holders: tuple[str, ...]  # device-mapper and md devices stacked on it


@dataclass(frozen=True, slots=True)
class Session:
    """One session: a target through one portal. `state` is LOGGED_IN, FAILED or FREE."""

    sid: int
    iqn: str
    portal: str
    state: str
    luns: tuple[Lun, ...]

    def find(self, lun: int) -> Lun | None:
        """The LUN with this number, None when the session has not (yet) got it."""
        return next((found for found in self.luns if found.lun == lun), None)


def sessions(sys: Path) -> tuple[Session, ...]:
    """Every iSCSI session below `sys` (normally /sys). A session that ends meanwhile is left out."""
    found: list[Session] = []
    for entry in _entries(sys / "class" / "iscsi_session"):
        iqn, sid = _text(entry / "targetname"), entry.name.removeprefix("session")
        device = entry / "device"
        portal = _portal(device)
        if iqn and portal and sid.isdecimal():
            state = _text(entry / "state") or "unknown"
            found.append(Session(int(sid), iqn, portal, state, _luns(sys, device)))
    return tuple(found)


def _portal(device: Path) -> str | None:
    """The portal as configured; a redirected login shows another one under `address`."""
    for connection in device.glob("connection*/iscsi_connection/connection*"):
        address, port = _text(connection / "persistent_address"), _text(connection / "persistent_port")
        if address and port:
            return f"{address}:{port}"
    return None


def _luns(sys: Path, device: Path) -> tuple[Lun, ...]:
    found: list[Lun] = []
    for scsi in sorted(device.glob("target*/*:*:*:*")):
        number = scsi.name.rsplit(":", 1)[1]
        for block in _entries(scsi / "block"):
            if number.isdecimal():
                found.append(_lun(sys, scsi, int(number), block.name))
    return tuple(found)


def _lun(sys: Path, scsi: Path, number: int, name: str) -> Lun:
    disk = sys / "block" / name
    sectors = _text(disk / "size") or ""
    parts = [disk / "dev", *disk.glob(f"{name}*/dev")]
    return Lun(
        lun=number,
        hctl=scsi.name,
        name=name,
        state=_text(scsi / "state") or "unknown",
        wwid=parse.wwid(_text(scsi / "wwid") or ""),
        size_bytes=int(sectors) * SECTOR_BYTES if sectors.isdecimal() else None,
        rdevs=tuple(rdev for part in parts if (rdev := _rdev(_text(part))) is not None),
        holders=tuple(sorted(entry.name for entry in _entries(disk / "holders"))),
    )


def _rdev(text: str | None) -> int | None:
    major, _, minor = (text or "").partition(":")
    return os.makedev(int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None


def _entries(directory: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(directory.iterdir())
    return []


def _text(path: Path) -> str | None:
    """An attribute's text; None when it is gone or the device refuses to answer (ENXIO, EIO)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def links(dev: Path, found: tuple[Session, ...]) -> dict[str, tuple[Session, Lun]]:
    """Stable names of whole LUNs below `dev` (normally /dev), as a domain may name them."""
    owners = {lun.name: (session, lun) for session in found for lun in session.luns}
    names: dict[str, tuple[Session, Lun]] = {}
    for directory in ("by-path", "by-id"):
        for link in _entries(dev / "disk" / directory):
            owner = owners.get(os.path.basename(os.path.realpath(link)))
            if owner:
                names[f"/dev/disk/{directory}/{link.name}"] = owner
    return names
