"""What a guest's disk holds against what the guest acknowledged. Pure: bytes and values in, figures out.

The record's layout is `struct record_head` of workload/record.h: record n is at byte n * record_size.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_HEAD = struct.Struct("<8sII32s16sQQ")
RECORD_MAGIC = b"MIGRDREC"
_EXAMPLES = 5
_ZERO_CHUNK = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class Record:
    """A record whose checksum is right."""

    guest: str
    boot: str  # hex
    seq: int
    mono_ns: int


def make_record(guest: str, boot: bytes, seq: int, mono_ns: int, size: int = 512) -> bytes:
    """A record as the workload writes it: what tests put on a disk."""
    head = _HEAD.pack(RECORD_MAGIC, size, 0, guest.encode(), boot, seq, mono_ns)
    body = head + bytes([seq & 0xFF]) * (size - 4 - len(head))
    return body + struct.pack("<I", zlib.crc32(body))


def parse_record(raw: bytes) -> Record | None:
    """The record in these bytes, or None if they are no valid record of their own length."""
    magic, size, _, guest, boot, seq, mono_ns = _HEAD.unpack_from(raw)
    if magic != RECORD_MAGIC or size != len(raw):
        return None
    if zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        return None
    return Record(guest.rstrip(b"\0").decode("ascii", "replace"), boot.hex(), seq, mono_ns)


@dataclass
class DiskCheck:
    """The verdict on one replica. A record counts once: as missing, corrupt or reordered."""

    records: int = 0  # valid and where they belong
    missing: int = 0  # acknowledged (or followed by later records) and not there
    reordered: int = 0  # valid, but in another's place or out of the order of their boots and clock
    corrupt: int = 0  # neither a valid record nor untouched
    torn_tail: bool = False  # the last one was being written when the disk was read
    last_seq: int = -1
    examples: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How much is wrong."""
        return self.missing + self.reordered + self.corrupt

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "records": self.records,
            "missing": self.missing,
            "reordered": self.reordered,
            "corrupt": self.corrupt,
            "torn_tail": self.torn_tail,
            "last_seq": self.last_seq,
            "examples": self.examples,
        }

    def note(self, text: str) -> None:
        """Keep the first few faults in words."""
        if len(self.examples) < _EXAMPLES:
            self.examples.append(text)


def check_disk(
    data: bytes, guest: str, acks: Sequence[int], boots: Sequence[str], record_size: int = 512
) -> DiskCheck:
    """Compare a replica with the acknowledgements.

    `acks[n]` is 0 if record n was never acknowledged, else 1 + the index in `boots` of the boot that
    acknowledged it last. The acknowledgements must have been read *before* the disk: then every one of
    them must be on it. Behind the last acknowledgement one record may be half written.
    """
    found = DiskCheck()
    last_acked = max((seq for seq in range(len(acks) - 1, -1, -1) if acks[seq]), default=-1)
    end = max(last_acked + 1, _written_end(data, record_size))
    order = _Order()
    for seq in range(end):
        raw = data[seq * record_size : (seq + 1) * record_size]
        record = parse_record(raw) if len(raw) == record_size else None
        acked = acks[seq] if seq < len(acks) else 0
        if record is not None:
            _check_record(found, order, record, guest, seq, boots[acked - 1] if acked else None)
        elif not any(raw):
            found.missing += 1
            found.note(f"record {seq}: nothing on the disk{'' if acked else ', but later records are there'}")
        elif seq == end - 1 and seq > last_acked:
            found.torn_tail = True
        else:
            found.corrupt += 1
            found.note(f"record {seq}: neither valid nor empty")
    return found


def _check_record(
    found: DiskCheck, order: _Order, record: Record, guest: str, seq: int, acked_boot: str | None
) -> None:
    found.last_seq = seq
    if record.guest != guest or record.seq != seq:
        found.reordered += 1
        found.note(f"record {seq}: holds record {record.seq} of {record.guest}")
    elif acked_boot is not None and record.boot != acked_boot:
        found.missing += 1
        found.note(
            f"record {seq}: acknowledged by boot {acked_boot[:8]}, on the disk from boot {record.boot[:8]}"
        )
    elif not order.follows(record):
        found.reordered += 1
        found.note(f"record {seq}: written earlier than the one before it (boot {record.boot[:8]})")
    else:
        found.records += 1


class _Order:
    """Is each record younger than the one before it? A boot that comes back after another one is not."""

    def __init__(self) -> None:
        self._boot = ""
        self._mono_ns = 0
        self._ended: set[str] = set()

    def follows(self, record: Record) -> bool:
        if record.boot != self._boot:
            if record.boot in self._ended:
                return False
            self._ended.add(self._boot)
            self._boot, self._mono_ns = record.boot, record.mono_ns
            return True
        younger = record.mono_ns >= self._mono_ns
        self._mono_ns = max(self._mono_ns, record.mono_ns)
        return younger


def _written_end(data: bytes, record_size: int) -> int:
    """One past the last record slot that is not all zero."""
    end = len(data)
    chunk = len(_ZERO_CHUNK)
    while end > 0:
        start = max(0, end - chunk)
        piece = data[start:end]
        if piece != _ZERO_CHUNK[: len(piece)]:
            return (start + len(piece.rstrip(b"\0")) + record_size - 1) // record_size
        end = start
    return 0


@dataclass(frozen=True)
class Replica:
    """One backing file of a disk with its verdict; `host` is None for storage that no single host owns."""

    path: str
    host: str | None
    check: DiskCheck


def choose_replica(replicas: Sequence[Replica], runs_on: str | None) -> Replica:
    """The replica that counts: that of the host where the guest was last seen, else the most complete one.

    The guest reads and writes *its* host's replica, so a loss there is a loss, however good the others
    are. Only when that host has none (shared storage, or a diskless primary) does the most complete count.
    """
    own = [replica for replica in replicas if replica.host is not None and replica.host == runs_on]
    if own:
        return own[0]
    return max(replicas, key=lambda replica: (replica.check.last_seq, -replica.check.faults))


def ack_ledger(data: bytes) -> array[int]:
    """The observer's ledger: one little-endian unsigned short per record."""
    ledger = array("H")
    ledger.frombytes(data[: len(data) // 2 * 2])
    return ledger
