"""What the observer knows of each guest: instances, outages, acknowledgements. No socket, no clock."""

from __future__ import annotations

import base64
import contextlib
import zlib
from array import array
from dataclasses import dataclass
from typing import Any

from labkit.audit_instances import InstanceCounter, Seen
from labkit.audit_outage import INTERVAL_NS, GapMeter, OutageMeter
from labkit.audit_packets import Ack, Reply

MAX_BOOTS = 65_000  # a ledger entry is an unsigned short


@dataclass(frozen=True)
class Watched:
    """A guest to watch, as the lab's state file has it."""

    name: str
    uuid: str
    address: str
    mac: str
    records: int  # how many fit on its disk


class GuestLog:
    """Everything observed of one guest. Its size is fixed by the size of the guest's disk."""

    def __init__(self, guest: Watched, interval_ns: int = INTERVAL_NS) -> None:
        self.guest = guest
        self.instances = InstanceCounter()
        self.outages = OutageMeter(interval_ns)
        self.gaps = GapMeter()
        self.ports: dict[str, int] = {}  # port -> frames heard on it
        self.last_port: str | None = None
        self.boots: list[str] = []
        self.acked = 0
        self.acked_again = 0
        self.memory_faults = 0
        self._ledger = array("H", bytes(2 * guest.records))

    def hear(self, time_ns: int, port: str, heard: Ack | Reply) -> None:
        """Take one frame of this guest, heard on a port of the guest network."""
        if isinstance(heard, Ack):
            self._port(port)
            self.instances.add(Seen(time_ns, port, heard.boot, heard.seq, heard.mono_ns))
            self._note_ack(heard, time_ns)
            self.memory_faults = max(self.memory_faults, heard.memory_faults)
        elif heard.roll_call:
            self.instances.answer(heard.seq, time_ns, port)
        else:
            self._port(port)
            self.outages.answer(time_ns)

    def report(self, now_ns: int) -> dict[str, Any]:
        """The figures, without the ledger."""
        return {
            "instances_max": self.instances.maximum,
            "instances_evidence": list(self.instances.evidence),
            "heard_twice": self.instances.heard_twice,
            "boots": len(self.boots),
            **self.outages.report(now_ns),
            **self.gaps.report(now_ns),
            "acked": self.acked,
            "acked_again": self.acked_again,
            "memory_faults": self.memory_faults,
            "port": self.last_port,
            "ports": dict(self.ports),
        }

    def packed_ledger(self) -> dict[str, Any]:
        """The acknowledgements for `audit_records.check_disk`; compressed, as most of a disk is empty."""
        data = zlib.compress(self._ledger.tobytes(), 1)
        return {"boots": list(self.boots), "acks": base64.b64encode(data).decode()}

    def _port(self, port: str) -> None:
        self.last_port = port
        self.ports[port] = self.ports.get(port, 0) + 1

    def _note_ack(self, ack: Ack, time_ns: int) -> None:
        if ack.boot not in self.boots:
            if len(self.boots) >= MAX_BOOTS:
                return
            self.boots.append(ack.boot)
        if ack.seq >= len(self._ledger):
            return  # no such place on its disk: nothing that a disk check could confirm
        if self._ledger[ack.seq]:
            self.acked_again += 1
        else:
            self.acked += 1
            self.gaps.record(time_ns)
        self._ledger[ack.seq] = 1 + self.boots.index(ack.boot)


def unpack_ledger(packed: dict[str, Any]) -> tuple[list[str], array[int]]:
    """(boots, acks) out of `packed_ledger`."""
    ledger = array("H")
    ledger.frombytes(zlib.decompress(base64.b64decode(packed["acks"])))
    return list(packed["boots"]), ledger


def watched_guests(row: dict[str, Any]) -> list[Watched]:
    """The guests in a lab's state file (its JSON). Half-made ones, without a disk, are left out."""
    found = []
    for name, guest in row["extra"].get("guests", {}).items():
        with contextlib.suppress(KeyError):
            size = row["disks"][name]["size_mib"] << 20
            found.append(
                Watched(name, guest["uuid"], guest["address"], guest["mac"], size // guest["record_size"])
            )
    return found
