"""The storage vocabulary: volumes, their identity, health and role, and the phases of a handover.

Frozen dataclasses, plain values only: they cross the RPC and the journal as JSON. Every enum has
UNKNOWN: parsers map what they do not know to it, and nothing that decides treats it as safe (I19).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Role(StrEnum):
    """What this host holds of a volume."""

    PRIMARY = "primary"  # drbd: may write
    SECONDARY = "secondary"  # drbd: replicates
    ATTACHED = "attached"  # iscsi: a session and a device exist; iscsi-qemu: credentials are in place
    DETACHED = "detached"  # nothing on this host
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> Role:
        return cls.UNKNOWN  # a word of a newer version (I19)


class Health(StrEnum):
    """May this volume be handed over as it stands? Only OK means yes."""

    OK = "ok"  # both copies current and connected (drbd); path usable (iscsi)
    SYNCING = "syncing"  # will become OK by waiting
    DEGRADED = "degraded"  # a copy is missing, stale, disconnected, or out of sync
    SUSPENDED = "suspended"  # IO is frozen
    UNREACHABLE = "unreachable"  # no path from this host
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> Health:
        return cls.UNKNOWN  # a word of a newer version (I19)


class Side(StrEnum):
    """A host's part in one handover."""

    SOURCE = "source"
    TARGET = "target"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrbdVolume:
    """One volume of a DRBD resource. `resource`/`volume_nr` as in drbd.conf; `nodes` are `uname -n` names."""

    resource: str
    volume_nr: int
    minor: int
    nodes: tuple[str, ...]
    kind: Literal["drbd"] = "drbd"

    @property
    def name(self) -> str:
        return f"drbd:{self.resource}/{self.volume_nr}"


@dataclass(frozen=True, slots=True, kw_only=True)
class IscsiVolume:
    """A LUN through the kernel initiator; the domain names it by /dev/disk/by-path or by-id."""

    portal: str  # "10.0.0.5:3260"
    iqn: str
    lun: int
    device: str  # as the domain XML has it; the same path must open the same LUN on the target
    kind: Literal["iscsi"] = "iscsi"

    @property
    def name(self) -> str:
        return f"iscsi:{self.iqn}/{self.lun}"


@dataclass(frozen=True, slots=True, kw_only=True)
class IscsiQemuVolume:
    """A LUN through QEMU's own initiator (libiscsi). `secret_*`: how the domain XML names its CHAP secret."""

    portal: str
    iqn: str
    lun: int
    secret_uuid: str | None = None
    secret_usage: str | None = None
    chap_user: str | None = None
    initiator_iqn: str | None = None  # <initiator><iqn name=.../></initiator> of the disk, when it names one
    kind: Literal["iscsi-qemu"] = "iscsi-qemu"

    @property
    def name(self) -> str:
        return f"iscsi-qemu:{self.iqn}/{self.lun}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherVolume:
    """A disk that no driver can hand over: a local file, an unknown block device, an unknown protocol.

    `reason` is a sentence for the operator: what it is and why it blocks.
    """

    path: str
    reason: str
    kind: Literal["other"] = "other"

    @property
    def name(self) -> str:
        return f"other:{self.path}"


Volume = DrbdVolume | IscsiVolume | IscsiQemuVolume | OtherVolume
"""`volume.name` is cluster-wide: the same volume has the same name on every host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeReport:
    """What one host sees of one volume, now."""

    volume: Volume
    role: Role
    health: Health
    identity: str | None  # equal on two hosts iff both open the same disk; None = not provable (I9)
    size_bytes: int | None
    dual_primary_allowed: bool = False  # drbd: allow-two-primaries is on, on this host's connection (I6)
    peer_role: Role = Role.UNKNOWN  # drbd: as this host sees its peer
    sole_current_copy: bool = False  # this host may hold the only current copy (I10, I12)
    problems: tuple[str, ...] = ()  # every reason why health is not OK, for the operator
    generation: str | None = None  # drbd: of this copy's data, whatever its state; None = not known
    ancestors: tuple[
        str, ...
    ] = ()  # drbd: generations that this copy has gone through, so has every write of


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Which migration a driver call belongs to. Drivers log it; guards use `domain_uuid`."""

    operation: str
    domain_uuid: str
    side: Side
    peer_node: str  # `uname -n` of the other host


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOptions:
    """What a connection's options were before `open_window`, to be put back by `close_window`."""

    volume: str
    allow_two_primaries: bool
