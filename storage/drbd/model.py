"""What is known of a DRBD resource, in DRBD's own words. Every enum maps unknown words to UNKNOWN (I19)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from storage.words import Role


class _Word(StrEnum):
    @classmethod
    def _missing_(cls, value: object) -> _Word:
        return cls["UNKNOWN"]


class Link(_Word):
    """Connection states, drbdsetup-9.0(8); 8.4's events2 uses the same words."""

    CONNECTED = "Connected"
    CONNECTING = "Connecting"
    UNCONNECTED = "Unconnected"
    STANDALONE = "StandAlone"
    DISCONNECTING = "Disconnecting"
    TIMEOUT = "Timeout"
    BROKEN_PIPE = "BrokenPipe"
    NETWORK_FAILURE = "NetworkFailure"
    PROTOCOL_ERROR = "ProtocolError"
    TEAR_DOWN = "TearDown"
    UNKNOWN = "unknown"


class Disk(_Word):
    """Disk states. DUNKNOWN is DRBD's own word for "the peer's disk, and I am not connected"."""

    UP_TO_DATE = "UpToDate"
    CONSISTENT = "Consistent"
    OUTDATED = "Outdated"
    INCONSISTENT = "Inconsistent"
    DISKLESS = "Diskless"
    ATTACHING = "Attaching"
    DETACHING = "Detaching"
    FAILED = "Failed"
    NEGOTIATING = "Negotiating"
    DUNKNOWN = "DUnknown"
    UNKNOWN = "unknown"


class Replication(_Word):
    """Replication states."""

    OFF = "Off"
    ESTABLISHED = "Established"
    STARTING_SYNC_S = "StartingSyncS"
    STARTING_SYNC_T = "StartingSyncT"
    WF_BITMAP_S = "WFBitMapS"
    WF_BITMAP_T = "WFBitMapT"
    WF_SYNC_UUID = "WFSyncUUID"
    SYNC_SOURCE = "SyncSource"
    SYNC_TARGET = "SyncTarget"
    VERIFY_S = "VerifyS"
    VERIFY_T = "VerifyT"
    PAUSED_SYNC_S = "PausedSyncS"
    PAUSED_SYNC_T = "PausedSyncT"
    AHEAD = "Ahead"
    BEHIND = "Behind"
    UNKNOWN = "unknown"

    @property
    def ends_by_itself(self) -> bool:
        """Will waiting bring Established back? Not for a paused sync, nor for a word we do not know."""
        return self in _PASSING


_PASSING = frozenset(
    {
        Replication.STARTING_SYNC_S,
        Replication.STARTING_SYNC_T,
        Replication.WF_BITMAP_S,
        Replication.WF_BITMAP_T,
        Replication.WF_SYNC_UUID,
        Replication.SYNC_SOURCE,
        Replication.SYNC_TARGET,
        Replication.VERIFY_S,
        Replication.VERIFY_T,
        Replication.AHEAD,
        Replication.BEHIND,
    }
)


@dataclass(frozen=True, slots=True)
class PeerDisk:
    """One volume as this host sees it on one peer. `out_of_sync_kib` None: not reported."""

    volume: int
    replication: Replication
    disk: Disk
    out_of_sync_kib: int | None
    resync_suspended: str = "unknown"


@dataclass(frozen=True, slots=True)
class Connection:
    """To one peer. `name` is the peer's node name with DRBD 9 and always "peer" with 8.4."""

    name: str
    node_id: int
    link: Link
    role: Role
    disks: tuple[PeerDisk, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """A volume on this host. `size_kib` is the size of the replicated device, agreed with the peer."""

    volume: int
    minor: int
    disk: Disk
    size_kib: int | None
    quorum: bool = True


@dataclass(frozen=True, slots=True)
class Status:
    """A resource as the kernel reports it. `complete` False: it was cut, so absence proves nothing."""

    resource: str
    role: Role
    suspended: str  # "no", or why: user, fencing, no-data, quorum
    devices: tuple[Device, ...] = ()
    connections: tuple[Connection, ...] = ()
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Path:
    """A connection's options and ends. `local`/`remote` as drbdsetup takes them: "ipv4:10.0.0.1:7788".

    `net` holds the net options in force without any secret; empty for a connection that is torn down.
    """

    peer_node_id: int
    peer_name: str
    local: str
    remote: str
    net: tuple[tuple[str, str], ...] = ()

    def option(self, name: str) -> str | None:
        """An option's value, None when drbdsetup did not name it."""
        return dict(self.net).get(name)


@dataclass(frozen=True, slots=True)
class Options:
    """`drbdsetup show RES --show-defaults`. `complete` False: cut, so a missing option is not "off"."""

    resource: str
    paths: tuple[Path, ...] = ()
    complete: bool = False

    @property
    def dual_primary_allowed(self) -> bool:
        """Is allow-two-primaries on, or possibly on (cut output, unknown word), for any connection?"""
        words = [path.option("allow-two-primaries") for path in self.paths if path.net]
        return not self.complete or any(word != "no" for word in words)


@dataclass(frozen=True, slots=True)
class Configured:
    """One volume of drbd.conf, as this host's section has it."""

    resource: str
    volume: int
    minor: int
    nodes: tuple[str, ...]
    two_primaries: bool  # the administrator's own, durable setting
