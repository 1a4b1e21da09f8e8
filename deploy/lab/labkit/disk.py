"""The disk of a guest, as the disks modules hand it to the guests module and to the audit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

DiskKind = Literal["drbd", "iscsi", "iscsi-qemu"]
DISK_KINDS: tuple[DiskKind, ...] = ("drbd", "iscsi", "iscsi-qemu")


@dataclass(frozen=True)
class Disk:
    """One guest disk. `backing` are files on this machine that hold the guest's bytes from offset 0.

    The audit reads `backing` behind the back of every host, so that a lost write cannot be hidden
    by the software that lost it. `xml` is the complete <disk> element with target `vda`.
    `hosts` are the hosts where the guest may run (replicas for DRBD, all hosts for iSCSI).
    """

    kind: DiskKind
    guest: str
    xml: str
    backing: list[str]
    hosts: list[str]
    size_mib: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as it stands in the lab's state file and in `-o json` answers."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Disk:
        """Inverse of `to_json`; raises TypeError for a row with unknown or missing keys."""
        return cls(**row)
