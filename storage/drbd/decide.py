"""Every decision about a DRBD volume, as pure functions over what was read. UNKNOWN is never safe (I19).

A list of reasons is a verdict: empty means yes. Each reason names the resource and what to do about it.
"""

from __future__ import annotations

from storage.drbd.model import Connection, Device, Disk, Link, Options, Path, PeerDisk, Replication, Status
from storage.words import Health, Role

# Reconnecting policies that may throw writes of one side away. While two hosts are primary, or just were,
# only a policy that gives up (or that provably loses nothing) is acceptable: I8, drbdsetup(8) net-options.
_HARMLESS = {
    "after-sb-0pri": ("disconnect", "discard-zero-changes"),
    "after-sb-1pri": ("disconnect", "consensus"),
    "after-sb-2pri": ("disconnect",),
    "rr-conflict": ("disconnect", "retry-connect"),
}


def peer_of(status: Status, peer_node: str, major: int) -> Connection | None:
    """The connection to `peer_node`. 8.4 has one peer and does not name it; with 9 the name must match."""
    if major < 9:
        return status.connections[0] if len(status.connections) == 1 else None
    return next((c for c in status.connections if c.name == peer_node), None)


def path_of(options: Options, peer_node: str, major: int) -> Path | None:
    """The options of the connection to `peer_node`; None when there is no such connection."""
    if major < 9:
        return options.paths[0] if len(options.paths) == 1 else None
    return next((p for p in options.paths if p.peer_name == peer_node), None)


def reasons_unhealthy(status: Status, connection: Connection | None, peer_node: str) -> tuple[str, ...]:
    """Why the resource is not whole on both ends. All its volumes count: they are promoted together."""
    name = status.resource
    if not status.complete:
        return (f"DRBD resource {name}: its status could not be read completely",)
    reasons: list[str] = []
    if not status.devices:
        reasons.append(f"DRBD resource {name} is not up on this host: drbdadm up {name}")
    if status.suspended != "no":
        reasons.append(f"DRBD resource {name}: IO is suspended ({status.suspended})")
    for device in status.devices:
        if device.disk is not Disk.UP_TO_DATE:
            reasons.append(f"DRBD {name}/{device.volume}: the disk of this host is {device.disk.value}")
        if not device.quorum:
            reasons.append(f"DRBD {name}/{device.volume}: this host has no quorum")
    if connection is None:
        return (*reasons, f"DRBD resource {name} has no connection to {peer_node}: drbdadm connect {name}")
    if connection.link is not Link.CONNECTED:
        reasons.append(f"DRBD resource {name} is not connected to {peer_node} ({connection.link.value})")
    for device in status.devices:
        disk = next((d for d in connection.disks if d.volume == device.volume), None)
        reasons += _peer_reasons(name, device, disk, peer_node)
    return tuple(reasons)


def _peer_reasons(name: str, device: Device, disk: PeerDisk | None, peer_node: str) -> list[str]:
    where = f"DRBD {name}/{device.volume}"
    if disk is None:
        return [f"{where}: nothing is known of the copy on {peer_node}"]
    reasons: list[str] = []
    if disk.replication is not Replication.ESTABLISHED:
        hint = "; wait for it to end" if disk.replication.ends_by_itself else ""
        reasons.append(f"{where}: replication is {disk.replication.value}, not Established{hint}")
    if disk.disk is not Disk.UP_TO_DATE:
        reasons.append(f"{where}: the copy on {peer_node} is {disk.disk.value}")
    if disk.resync_suspended != "no":
        reasons.append(f"{where}: resync is suspended ({disk.resync_suspended}): drbdadm resume-sync {name}")
    if disk.out_of_sync_kib is None:
        reasons.append(f"{where}: how much is out of sync is not known")
    elif disk.out_of_sync_kib > 0:
        # UpToDate with out-of-sync > 0 exists, e.g. after a verify that found differences.
        reasons.append(
            f"{where}: {disk.out_of_sync_kib} KiB are out of sync with {peer_node}: "
            f"disconnect and connect {name} to resynchronise"
        )
    return reasons


def reasons_against_window(path: Path | None, options: Options, peer_node: str) -> tuple[str, ...]:
    """Why two primaries must not be allowed on this connection: its options, not its state."""
    name = options.resource
    if not options.complete:
        return (f"DRBD resource {name}: its options could not be read completely",)
    if path is None or not path.net:
        return (f"DRBD resource {name} has no connection to {peer_node}: drbdadm connect {name}",)
    reasons: list[str] = []
    if path.option("protocol") != "C":
        reasons.append(
            f"DRBD resource {name}: protocol {path.option('protocol') or 'unknown'}, "
            f"but two primaries need protocol C"
        )
    for key, harmless in _HARMLESS.items():
        word = path.option(key)
        if word is None and key == "rr-conflict":
            continue
        if word not in harmless:
            reasons.append(
                f"DRBD resource {name}: {key} is {word or 'unknown'}, which may discard writes by itself; "
                f"set it to disconnect"
            )
    return tuple(reasons)


def reasons_not_to_open(status: Status, options: Options, *, peer_node: str, major: int) -> tuple[str, ...]:
    """All reasons against a dual-primary window to `peer_node` (I6)."""
    return (
        *reasons_unhealthy(status, peer_of(status, peer_node, major), peer_node),
        *reasons_against_window(path_of(options, peer_node, major), options, peer_node),
    )


def reasons_not_to_promote(
    status: Status, options: Options, *, peer_node: str, major: int
) -> tuple[str, ...]:
    """Why this host must not become Primary in a handover (I7): not current, or the window is not open."""
    connection = peer_of(status, peer_node, major)
    path = path_of(options, peer_node, major)
    reasons = list(reasons_unhealthy(status, connection, peer_node))
    is_allowed = options.complete and path is not None and path.option("allow-two-primaries") == "yes"
    # Unless the peer is known to be Secondary it holds the volume, or might: then only inside the window.
    if not is_allowed and (connection is None or connection.role is not Role.SECONDARY):
        reasons.append(
            f"DRBD resource {status.resource}: {peer_node} is or may be primary, "
            f"and two primaries are not allowed on this connection"
        )
    return tuple(reasons)


def reasons_not_to_close(status: Status, *, resource: str) -> tuple[str, ...]:
    """Clearing the flag is refused while both ends are Primary: one must be demoted first (I6)."""
    if not status.complete:
        return (f"DRBD resource {resource}: its status could not be read completely",)
    both = [c for c in status.connections if status.role is Role.PRIMARY and c.role is Role.PRIMARY]
    if both:
        return (
            f"DRBD resource {resource} is primary on both hosts: demote one, drbdadm secondary {resource}",
        )
    return ()


def is_open(options: Options, peer_node: str, major: int) -> bool | None:
    """Is allow-two-primaries on towards the peer? None: not known. No connection object means no flag."""
    path = path_of(options, peer_node, major)
    if not options.complete:
        return None
    if path is None:
        # 8.4 drops the net options of a connection that is torn down; other connections stay what they are.
        return None if major < 9 and len(options.paths) > 1 else False
    return {"yes": True, "no": False}.get(path.option("allow-two-primaries") or "")


def health(status: Status) -> Health:
    """Of the whole resource, over all its peers."""
    if not status.complete or _has_unknown_word(status):
        return Health.UNKNOWN
    if not status.devices:
        return Health.UNREACHABLE
    if status.suspended != "no":
        return Health.SUSPENDED
    if not all_reasons(status):
        return Health.OK
    return Health.SYNCING if _only_syncing(status) else Health.DEGRADED


def _has_unknown_word(status: Status) -> bool:
    if not status.devices and not status.connections:
        return False  # nothing is up, which is known
    disks = [disk for connection in status.connections for disk in connection.disks]
    words = [status.role.value, status.suspended, *(d.disk.value for d in status.devices)]
    words += [connection.link.value for connection in status.connections]
    words += [word.value for disk in disks for word in (disk.replication, disk.disk)]
    return "unknown" in words


def _only_syncing(status: Status) -> bool:
    """Is a running resync the only thing that is wrong? It passes by itself; anything else does not."""
    disks = [disk for connection in status.connections for disk in connection.disks]
    return (
        bool(status.connections)
        and all(connection.link is Link.CONNECTED for connection in status.connections)
        and all(device.quorum for device in status.devices)
        and any(disk.replication.ends_by_itself for disk in disks)
        and all(_is_fine_or_syncing(disk) for disk in disks)
    )


def _is_fine_or_syncing(disk: PeerDisk) -> bool:
    if disk.resync_suspended != "no":
        return False
    if disk.replication.ends_by_itself:
        return True
    return (
        disk.replication is Replication.ESTABLISHED
        and disk.disk is Disk.UP_TO_DATE
        and disk.out_of_sync_kib == 0
    )


def all_reasons(status: Status) -> tuple[str, ...]:
    """Every reason why the resource is not OK, over all its peers, each once."""
    if not status.connections:
        return reasons_unhealthy(status, None, "its peer")
    found = [
        reason
        for connection in status.connections
        for reason in reasons_unhealthy(status, connection, _peer_word(connection))
    ]
    return tuple(dict.fromkeys(found))


def _peer_word(connection: Connection) -> str:
    return connection.name if connection.name not in ("", "peer") else "its peer"


def peer_role(status: Status) -> Role:
    """PRIMARY if any peer is; SECONDARY only if every peer is known to be."""
    roles = [connection.role for connection in status.connections]
    if Role.PRIMARY in roles:
        return Role.PRIMARY
    return Role.SECONDARY if roles and status.complete and set(roles) == {Role.SECONDARY} else Role.UNKNOWN


def sole_current_copy(status: Status, volume: int) -> bool:
    """May this host hold the only current copy (I10, I12)? False needs proof: a synced peer, or no data here.

    A Secondary that shows UpToDate/DUnknown may be stale, and may as well be the last good one: True. So may
    the disk of a resource that is not up, e.g. right after a boot.
    """
    device = next((d for d in status.devices if d.volume == volume), None)
    if device is None:
        return True
    if device.disk in (Disk.DISKLESS, Disk.OUTDATED, Disk.INCONSISTENT, Disk.ATTACHING, Disk.FAILED):
        return False
    return not any(_current_on_peer(connection, volume) for connection in status.connections)


def _current_on_peer(connection: Connection, volume: int) -> bool:
    return connection.link is Link.CONNECTED and any(
        disk.volume == volume
        and disk.disk is Disk.UP_TO_DATE
        and disk.replication in (Replication.ESTABLISHED, Replication.VERIFY_S, Replication.VERIFY_T)
        and disk.out_of_sync_kib == 0
        for disk in connection.disks
    )


def identity(status: Status, options: Options, volume: int, uuid: str | None) -> str | None:
    """What both hosts must say alike to hold the same disk (I9); the argument is in docs/STORAGE.md.

    None unless this host's own disk is current: else what is read here is not what the UUID names.
    """
    device = next((d for d in status.devices if d.volume == volume), None)
    if uuid is None or device is None or device.size_kib is None or device.disk is not Disk.UP_TO_DATE:
        return None
    if not options.complete or not status.complete:
        return None
    if len(options.paths) == 1 and options.paths[0].local and options.paths[0].remote:
        ends = ",".join(sorted((options.paths[0].local, options.paths[0].remote)))
    else:
        # With several peers every host has other paths; the UUID then carries the proof with name and size.
        ends = f"{len(options.paths) + 1}-nodes"
    return f"drbd:{status.resource}/{volume}:{device.size_kib}KiB:{uuid}:{ends}"


def is_linked(status: Status) -> bool:
    """Is there any connection that is not given up? What is not understood counts as one (I19)."""
    return any(connection.link is not Link.STANDALONE for connection in status.connections)


def is_held_open(said: str) -> bool:
    """Did drbdadm refuse to demote because the device is open? Exit code 11 has other meanings too."""
    return "held open" in said.lower()
