"""Read what DRBD's tools print. Total functions: a cut or strange text never raises, it yields UNKNOWN (I19).

Formats: drbdsetup-8.4(8) and drbdsetup-9.0(8), sections events2, status --json, get-gi; 8.4's /proc/drbd.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

from storage.drbd.model import (
    Configured,
    Connection,
    Device,
    Disk,
    Link,
    PeerDisk,
    Replication,
    Status,
)
from storage.words import Role

_NONE = Status(resource="", role=Role.UNKNOWN, suspended="unknown")


def role_of(word: object) -> Role:
    """Primary, Secondary, or UNKNOWN for every other word."""
    return {"Primary": Role.PRIMARY, "Secondary": Role.SECONDARY}.get(str(word), Role.UNKNOWN)


def _number(word: object) -> int | None:
    text = str(word)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def events2(text: str, resource: str) -> Status:
    """`drbdsetup events2 RES --now --statistics` of one resource.

    A line that lost its end could carry a shortened number, so only lines with their newline count; the
    closing `exists -` makes the status complete.
    """
    status = replace(_NONE, resource=resource)
    complete = False
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        words = line.split()
        if words[:2] == ["exists", "-"]:
            complete = True
            continue
        pairs = dict(word.split(":", 1) for word in words[2:] if ":" in word)
        if words[:1] == ["exists"] and len(words) > 1 and pairs.get("name") == resource:
            status = _event(status, words[1], pairs)
    return replace(status, complete=complete)


def _event(status: Status, kind: str, pairs: dict[str, str]) -> Status:
    match kind:
        case "resource":
            return replace(
                status, role=role_of(pairs.get("role")), suspended=pairs.get("suspended", "unknown")
            )
        case "connection":
            found = Connection(
                name=pairs.get("conn-name", ""),
                node_id=_known(_number(pairs.get("peer-node-id"))),
                link=Link(pairs.get("connection", "")),
                role=role_of(pairs.get("role")),
            )
            return replace(status, connections=(*status.connections, found))
        case "device":
            device = Device(
                volume=_known(_number(pairs.get("volume"))),
                minor=_known(_number(pairs.get("minor"))),
                disk=Disk(pairs.get("disk", "")),
                size_kib=_number(pairs.get("size")),
                quorum=pairs.get("quorum", "yes") == "yes",
            )
            return replace(status, devices=(*status.devices, device))
        case "peer-device":
            return _with_peer_disk(status, pairs)
        case _:
            return status  # e.g. `path` of DRBD 9: nothing that decides


def _known(number: int | None) -> int:
    return -1 if number is None else number


def _with_peer_disk(status: Status, pairs: dict[str, str]) -> Status:
    disk = PeerDisk(
        volume=_known(_number(pairs.get("volume"))),
        replication=Replication(pairs.get("replication", "")),
        disk=Disk(pairs.get("peer-disk", "")),
        out_of_sync_kib=_number(pairs.get("out-of-sync")),
        resync_suspended=pairs.get("resync-suspended", "unknown"),
    )
    node = _known(_number(pairs.get("peer-node-id")))
    connections = tuple(
        replace(c, disks=(*c.disks, disk)) if c.node_id == node else c for c in status.connections
    )
    return replace(status, connections=connections)


def status_json(text: str, resource: str) -> Status:
    """`drbdsetup status RES --json --verbose --statistics` of DRBD 9. Invalid JSON means an empty status."""
    empty = replace(_NONE, resource=resource)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return empty
    for row in _rows(rows):
        if row.get("name") == resource:
            return Status(
                resource=resource,
                role=role_of(row.get("role")),
                suspended=_suspended(row),
                devices=tuple(_device(device) for device in _rows(row.get("devices"))),
                connections=tuple(_connection(c) for c in _rows(row.get("connections"))),
                complete=True,
            )
    return replace(empty, complete=isinstance(rows, list))


def _rows(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (row for row in value if isinstance(row, dict))


def _suspended(row: dict[str, Any]) -> str:
    match row.get("suspended"):
        case False:
            return "no"
        case True:
            why = [
                key.removeprefix("suspended-")
                for key, on in row.items()
                if "suspended-" in key and on is True
            ]
            return ",".join(why) or "yes"
        case str(word):
            return word
        case _:
            return "unknown"


def _device(row: dict[str, Any]) -> Device:
    return Device(
        volume=_known(_number(row.get("volume"))),
        minor=_known(_number(row.get("minor"))),
        disk=Disk(str(row.get("disk-state"))),
        size_kib=_number(row.get("size")),
        quorum=row.get("quorum", True) is True,
    )


def _connection(row: dict[str, Any]) -> Connection:
    disks = tuple(
        PeerDisk(
            volume=_known(_number(disk.get("volume"))),
            replication=Replication(str(disk.get("replication-state"))),
            disk=Disk(str(disk.get("peer-disk-state"))),
            out_of_sync_kib=_number(disk.get("out-of-sync")),
            resync_suspended=str(disk.get("resync-suspended", "unknown")),
        )
        for disk in _rows(row.get("peer_devices"))
    )
    return Connection(
        name=str(row.get("name", "")),
        node_id=_known(_number(row.get("peer-node-id"))),
        link=Link(str(row.get("connection-state"))),
        role=role_of(row.get("peer-role")),
        disks=disks,
    )


_PROC_LINE = re.compile(r"^\s*(\d+): cs:(\S+) ro:(\S+)/(\S+) ds:(\S+)/(\S+) (\S) (\S+)$")
_PROC_COUNTS = re.compile(r"^\s+ns:.* oos:(\d+)$")
_PROC_VERSION = re.compile(r"^version: (\d+)\.(\d+)\.(\S+)")


def version(proc_drbd: str) -> tuple[int, str] | None:
    """(major, "8.4.11") from the first line of /proc/drbd, which 8.4 and 9 both have."""
    found = _PROC_VERSION.match(proc_drbd)
    return (int(found[1]), f"{found[1]}.{found[2]}.{found[3]}") if found else None


def proc_drbd(text: str, minor: int) -> Status | None:
    """One minor of 8.4's /proc/drbd: what can still be read while netlink hangs. None when it is not there.

    Never complete: it names no resource, no size and no flag, so nothing is decided from it, only shown.
    """
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        found = _PROC_LINE.match(line.rstrip("\n")) if line.endswith("\n") else None
        if not found or int(found[1]) != minor:
            continue
        counts = _PROC_COUNTS.match(lines[number + 1].rstrip("\n")) if number + 1 < len(lines) else None
        link, replication = _state_84(found[2])
        peer = PeerDisk(0, replication, Disk(found[6]), int(counts[1]) if counts else None)
        return Status(
            resource="",
            role=role_of(found[3]),
            suspended="no" if found[8].startswith("r") else "yes",
            devices=(Device(0, minor, Disk(found[5]), None),),
            connections=(Connection("peer", 0, link, role_of(found[4]), (peer,)),),
        )
    return None


def _state_84(word: str) -> tuple[Link, Replication]:
    """8.4 has one state for link and replication; WFConnection is what the newer tools call Connecting."""
    if word == "Connected":
        return Link.CONNECTED, Replication.ESTABLISHED
    if word in ("WFConnection", "WFReportParams"):
        return Link.CONNECTING, Replication.OFF
    replication = Replication(word)
    if replication is not Replication.UNKNOWN:
        return Link.CONNECTED, replication
    return Link(word), Replication.OFF


_GENERATION = re.compile(r"^([0-9A-F]{16})(?::[0-9A-F]{16}){3,}(?::[01]){7,}\n$")
_PRIMARY_BIT = 1
_JUST_CREATED = 4  # UUID_JUST_CREATED in drbd.h: fresh metadata, the same number everywhere


def current_uuid(text: str) -> str | None:
    """The current data generation UUID of `get-gi`, without its primary bit; None if it proves nothing.

    The lowest bit only says that the node is Primary, so it differs between the two ends. Fresh metadata
    carries the same constant on every machine of the world and so identifies no disk.
    """
    found = _GENERATION.match(text)
    return _uuid(found[1]) if found else None


def ancestor_uuids(text: str) -> tuple[str, ...]:
    """The bitmap and history UUIDs of `get-gi`: generations that this copy has gone through."""
    if not _GENERATION.match(text):
        return ()
    fields = [field for field in text.strip().split(":")[1:] if len(field) == 16]
    return tuple(uuid for field in fields if (uuid := _uuid(field)) is not None)


def _uuid(field: str) -> str | None:
    value = int(field, 16) & ~_PRIMARY_BIT
    return f"{value:016X}" if value not in (0, _JUST_CREATED) else None


def dump_xml(text: str, node: str) -> tuple[Configured, ...] | None:
    """Volumes of `drbdadm dump-xml` that `node` (uname -n) takes part in; None if the text is no such XML."""
    if "<!DOCTYPE" in text:
        return None
    try:
        root = ET.fromstring(text)  # noqa: S314 - DOCTYPE is refused above; the text is drbdadm's own
    except ET.ParseError:
        return None
    common = _two_primaries(root.find("common"))
    found: list[Configured] = []
    for resource in root.iter("resource"):
        hosts = resource.findall("host")
        nodes = tuple(sorted(name for host in hosts for name in host.get("name", "").split()))
        own = _two_primaries(resource)
        for host in hosts:
            if node not in host.get("name", "").split():
                continue
            for volume in host.findall("volume"):
                device = volume.find("device")
                number = _number(volume.get("vnr"))
                minor = _number(device.get("minor")) if device is not None else None
                if number is not None and minor is not None:
                    allowed = own if own is not None else bool(common)
                    found.append(Configured(resource.get("name", ""), number, minor, nodes, allowed))
    return tuple(found)


def _two_primaries(section: ET.Element | None) -> bool | None:
    if section is None:
        return None
    for option in section.iterfind("section[@name='net']/option[@name='allow-two-primaries']"):
        return option.get("value", "yes") != "no"
    return None
