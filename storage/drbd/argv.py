"""Command lines for drbdadm and drbdsetup. Sources: drbdadm-8.4(8), drbdsetup-8.4(8), drbdsetup-9.0(8).

Nothing here ever forces: there is no --force, no discard, no invalidate to be built (I8).
"""

from __future__ import annotations

from storage.drbd.model import Options, Path


def dump_xml() -> tuple[str, ...]:
    """The configuration as drbdadm reads it. Contains shared secrets: never log the output (I17)."""
    return ("drbdadm", "dump-xml")


def status_84(resource: str) -> tuple[str, ...]:
    """8.4 knows no JSON. events2 ends with a line `exists -`, which proves that nothing was cut off."""
    return ("drbdsetup", "events2", resource, "--now", "--statistics")


def status_9(resource: str) -> tuple[str, ...]:
    """JSON of one resource, so that a stuck one does not stall the others."""
    return ("drbdsetup", "status", resource, "--json", "--verbose", "--statistics")


def show(resource: str) -> tuple[str, ...]:
    """Options in force in the kernel, defaults spelled out. Contains shared secrets: never log the output."""
    return ("drbdsetup", "show", resource, "--show-defaults")


def generation_84(minor: int) -> tuple[str, ...]:
    """Data generation identifiers of a device; one connection per resource, so no peer is named."""
    return ("drbdsetup", "get-gi", str(minor))


def generation_9(resource: str, peer_node_id: int, volume: int) -> tuple[str, ...]:
    """Data generation identifiers of a device against one peer."""
    return ("drbdsetup", "get-gi", resource, str(peer_node_id), str(volume))


def allow_two_primaries(major: int, options: Options, path: Path, allowed: bool) -> tuple[str, ...]:
    """Change this one option of this one connection, and none of the others (no --set-defaults)."""
    word = "yes" if allowed else "no"
    if major >= 9:
        return (
            "drbdsetup",
            "net-options",
            options.resource,
            str(path.peer_node_id),
            f"--allow-two-primaries={word}",
        )
    return ("drbdsetup", "net-options", path.local, path.remote, f"--allow-two-primaries={word}")


def primary(resource: str) -> tuple[str, ...]:
    """Promote, only if DRBD itself agrees (I8)."""
    return ("drbdadm", "primary", resource)


def disconnect(resource: str) -> tuple[str, ...]:
    """End the replication in good order: the peer need not wait for a timeout. Never with --force (I8)."""
    return ("drbdadm", "disconnect", resource)


def connect(resource: str) -> tuple[str, ...]:
    """Take the replication up again, as drbd.conf has it."""
    return ("drbdadm", "adjust", resource)


def secondary(resource: str) -> tuple[str, ...]:
    """Demote."""
    return ("drbdadm", "secondary", resource)
