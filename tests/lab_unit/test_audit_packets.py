"""Frames as they are on the wire."""

from __future__ import annotations

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st
from labkit import audit_packets
from labkit.audit_packets import Ack, ProbeFrames, Reply, checksum, make_ack, parse_frame

PORT = 7000
OBSERVER, GUEST = socket.inet_aton("10.77.2.1"), socket.inet_aton("10.77.2.150")
OBSERVER_MAC, GUEST_MAC = bytes.fromhex("024d4d0002fe"), bytes.fromhex("5254004d0100")
BOOT = bytes(range(16))


def probes() -> ProbeFrames:
    return ProbeFrames(OBSERVER_MAC, OBSERVER, GUEST_MAC, GUEST)


def answer_to(frame: bytes) -> bytes:
    """What a guest's kernel makes of an echo request (RFC 792): addresses swapped, type 0."""
    ip, icmp = bytearray(frame[14:34]), bytearray(frame[34:])
    ip[12:16], ip[16:20] = ip[16:20], ip[12:16]
    icmp[0] = 0
    return OBSERVER_MAC + GUEST_MAC + frame[12:14] + bytes(ip) + bytes(icmp)


def udp_frame(payload: bytes, port: int = PORT) -> bytes:
    udp = struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0, GUEST, OBSERVER)
    return OBSERVER_MAC + GUEST_MAC + b"\x08\x00" + ip + udp


@given(st.integers(0, 1 << 20))
def test_probes_have_right_checksums_and_their_answers_are_understood(seq: int) -> None:
    frame = probes().probe(seq)
    assert checksum(frame[14:34]) == 0
    assert checksum(frame[34:]) == 0
    assert parse_frame(answer_to(frame), PORT) == Reply(GUEST, seq & 0xFFFF, roll_call=False)


def test_a_roll_call_goes_to_everybody_and_is_told_apart() -> None:
    frame = probes().roll_call(7)
    assert frame[:6] == b"\xff" * 6
    assert parse_frame(answer_to(frame), PORT) == Reply(GUEST, 7, roll_call=True)


def test_an_acknowledgement() -> None:
    frame = udp_frame(make_ack("g1", BOOT, 1234, 99, memory_faults=3))
    assert parse_frame(frame, PORT) == Ack("g1", BOOT.hex(), 1234, 99, memory_faults=3)


def test_what_is_not_ours() -> None:
    assert parse_frame(probes().probe(1), PORT) is None  # a request, not an answer
    assert parse_frame(udp_frame(make_ack("g1", BOOT, 1, 1), port=53), PORT) is None
    assert parse_frame(b"", PORT) is None


@given(st.integers(0, len(make_ack("g1", BOOT, 1234, 99)) - 1), st.integers(1, 255))
def test_a_damaged_acknowledgement_is_not_believed(place: int, flip: int) -> None:
    payload = bytearray(make_ack("g1", BOOT, 1234, 99))
    payload[place] ^= flip
    assert parse_frame(udp_frame(bytes(payload)), PORT) is None


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_fail(data: bytes) -> None:
    parse_frame(data, PORT)


BRIDGE, SOME_PORT = 4, 9


def run_filter(frame: bytes, packet_type: int, interface: int = SOME_PORT) -> int:
    """A classic BPF machine, as far as the filter needs one (bpf(4))."""
    program = audit_packets.capture_filter(PORT, BRIDGE)
    steps = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator = at = 0
    while True:
        code, if_true, if_false, k = steps[at]
        at += 1
        match code:
            case 0x20:
                accumulator = {0xFFFFF004: packet_type, 0xFFFFF008: interface}[k]
            case 0x28:
                accumulator = int.from_bytes(frame[k : k + 2], "big")
            case 0x30:
                accumulator = frame[k]
            case 0x15:
                at += if_true if accumulator == k else if_false
            case 0x06:
                return k
            case other:
                raise AssertionError(f"unknown instruction {other:#x}")


def test_the_kernel_filter_passes_what_the_parser_reads_and_nothing_else() -> None:
    host, other_host, outgoing = 0, 3, 4
    for frame in (answer_to(probes().probe(1)), udp_frame(make_ack("g1", BOOT, 1, 1))):
        assert run_filter(frame, host) > 0
        assert run_filter(frame, other_host) > 0
        assert run_filter(frame, outgoing) == 0
        assert run_filter(frame, host, BRIDGE) == 0
    assert run_filter(probes().probe(1), host) == 0
    assert run_filter(udp_frame(b"x" * 100, port=49152), host) == 0
    tcp = bytearray(udp_frame(b"x" * 100))
    tcp[23] = 6
    assert run_filter(bytes(tcp), host) == 0
