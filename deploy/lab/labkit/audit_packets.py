"""Frames of the guest network, as the observer sends and reads them. Pure: bytes in, values out.

Layouts: Ethernet II, IPv4 (RFC 791), ICMP echo (RFC 792), UDP (RFC 768), and `struct ack_packet` of
workload/record.h.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

ETH_P_IP = 0x0800
PROBE_IDENT = 0x6D67  # "mg": ICMP identifier of the observer's probes
ROLL_CALL_IDENT = PROBE_IDENT + 1
BROADCAST = b"\xff" * 6

_ETH_IP = struct.Struct("!6s6sH BBHHHBBH4s4s")  # Ethernet + IPv4 header without options, 34 bytes
_ICMP = struct.Struct("!BBHHH")
_ACK = struct.Struct("<8s32s16sQQII")
_IP_OFFSET, _L4_OFFSET = 14, 34
_UDP, _ICMP_PROTOCOL = 17, 1
ACK_MAGIC = b"MIGRDACK"


@dataclass(frozen=True, slots=True)
class Ack:
    """A guest says: record `seq`, written under `boot`, is on stable storage."""

    guest: str
    boot: str  # hex
    seq: int
    mono_ns: int  # the guest's own clock: tells an acknowledgement sent twice from a frame heard twice
    memory_faults: int = 0  # pages that lost what the guest had written to them


@dataclass(frozen=True, slots=True)
class Reply:
    """A guest's answer to the probe or roll call `seq` (16 bits)."""

    source_ip: bytes
    seq: int
    roll_call: bool


def parse_frame(frame: bytes, ack_port: int) -> Ack | Reply | None:
    """Read one frame; None for whatever is neither an acknowledgement nor a probe's answer.

    A frame with a wrong magic, length or CRC is None too: the observer counts only what it is sure of.
    """
    if len(frame) < _L4_OFFSET + _ICMP.size:
        return None
    _, _, ether, version, _, _, _, fragment, _, protocol, _, source, _ = _ETH_IP.unpack_from(frame)
    if ether != ETH_P_IP or version != 0x45 or fragment & 0x3FFF:
        return None
    if protocol == _ICMP_PROTOCOL:
        kind, code, _, ident, seq = _ICMP.unpack_from(frame, _L4_OFFSET)
        if (kind, code) != (0, 0) or ident not in (PROBE_IDENT, ROLL_CALL_IDENT):
            return None
        return Reply(source, seq, ident == ROLL_CALL_IDENT)
    if protocol == _UDP and int.from_bytes(frame[_L4_OFFSET + 2 : _L4_OFFSET + 4], "big") == ack_port:
        return _parse_ack(frame[_L4_OFFSET + 8 :])
    return None


def _parse_ack(payload: bytes) -> Ack | None:
    if len(payload) < _ACK.size:
        return None
    magic, guest, boot, seq, mono_ns, faults, crc = _ACK.unpack_from(payload)
    if magic != ACK_MAGIC or zlib.crc32(payload[: _ACK.size - 4]) != crc:
        return None
    return Ack(guest.rstrip(b"\0").decode("ascii", "replace"), boot.hex(), seq, mono_ns, faults)


def make_ack(guest: str, boot: bytes, seq: int, mono_ns: int, memory_faults: int = 0) -> bytes:
    """The payload that the workload sends; the inverse of what `parse_frame` reads."""
    body = _ACK.pack(ACK_MAGIC, guest.encode(), boot, seq, mono_ns, memory_faults, 0)[:-4]
    return body + struct.pack("<I", zlib.crc32(body))


class ProbeFrames:
    """Echo requests to one guest: everything but the sequence number is computed once."""

    def __init__(self, source_mac: bytes, source_ip: bytes, guest_mac: bytes, guest_ip: bytes) -> None:
        header = _ETH_IP.pack(
            guest_mac,
            source_mac,
            ETH_P_IP,
            0x45,
            0,
            28,
            0,
            0x4000,
            64,
            _ICMP_PROTOCOL,
            0,
            source_ip,
            guest_ip,
        )
        ip = bytearray(header[_IP_OFFSET:])
        ip[10:12] = struct.pack("!H", checksum(bytes(ip)))
        self._unicast = header[:_IP_OFFSET] + bytes(ip)
        self._broadcast = BROADCAST + self._unicast[6:]

    def probe(self, seq: int) -> bytes:
        """Probe number `seq` (taken modulo 65536), to the guest's own MAC."""
        return self._unicast + _echo(PROBE_IDENT, seq)

    def roll_call(self, seq: int) -> bytes:
        """The same to the broadcast MAC: every running instance hears it and answers, on whichever port."""
        return self._broadcast + _echo(ROLL_CALL_IDENT, seq)


def _echo(ident: int, seq: int) -> bytes:
    seq &= 0xFFFF
    total = 0x0800 + ident + seq
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return _ICMP.pack(8, 0, ~total & 0xFFFF, ident, seq)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def capture_filter(ack_port: int, but_not: int = 0) -> bytes:
    """Classic BPF (bpf(4), Linux ancillary loads): incoming IPv4 acknowledgements and echo replies only.

    `but_not` is the index of an interface to leave out: the bridge, where every frame would be heard again.

    The observer's socket hears every port of the switches, migration traffic included; what this
    program rejects costs no copy and no wake-up.
    """
    ld_h_abs, ld_b_abs, ld_w_abs = 0x28, 0x30, 0x20
    jeq, ret = 0x15, 0x06
    packet_type = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
    interface = 0xFFFFF000 + 8  # SKF_AD_IFINDEX
    outgoing = 4
    program = [
        (ld_w_abs, 0, 0, packet_type),
        (jeq, 12, 0, outgoing),  # -> reject
        (ld_w_abs, 0, 0, interface),
        (jeq, 10, 0, but_not),  # -> reject
        (ld_h_abs, 0, 0, 12),
        (jeq, 0, 8, ETH_P_IP),
        (ld_b_abs, 0, 0, 23),
        (jeq, 3, 0, _UDP),  # -> the UDP port
        (jeq, 0, 5, _ICMP_PROTOCOL),
        (ld_b_abs, 0, 0, _L4_OFFSET),
        (jeq, 2, 3, 0),  # echo reply -> accept
        (ld_h_abs, 0, 0, _L4_OFFSET + 2),
        (jeq, 0, 1, ack_port),
        (ret, 0, 0, 0xFFFF),
        (ret, 0, 0, 0),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in program)
