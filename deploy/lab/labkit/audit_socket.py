"""The observer's window on the switches: one packet socket over all ports, with the kernel's time stamps."""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from typing import NamedTuple

from labkit import audit_packets
from labkit.guest_xml import ACK_PORT
from labkit.layout import Layout

_ETH_P_ALL = 0x0003
_SO_ATTACH_FILTER = 26
_SO_TIMESTAMPNS = 35
_SO_RCVBUFFORCE = 33
_TIMESPEC = struct.Struct("=qq")
_RECEIVE_BUFFER = 8 << 20  # seconds of acknowledgements, should the observer be kept from running


class Frame(NamedTuple):
    """A frame as it came in: nanoseconds since the epoch, the port's name, the bytes."""

    time_ns: int
    port: str
    data: bytes


def open_capture(but_not: str | None = None) -> socket.socket:
    """A socket that hears acknowledgements and echo replies on every interface of this network namespace.

    Except on the interface `but_not`.

    Raises PermissionError without CAP_NET_RAW.
    """
    # All protocols: a socket for IPv4 alone would hear nothing of a port whose frames a bridge takes.
    capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    program = audit_packets.capture_filter(ACK_PORT, socket.if_nametoindex(but_not) if but_not else 0)
    keep = ctypes.create_string_buffer(program)
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(keep))
    capture.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
    capture.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    capture.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    capture.setblocking(False)
    # What came in before the filter was attached may be anything.
    while receive(capture) is not None:
        pass
    return capture


def receive(capture: socket.socket) -> Frame | None:
    """The next frame, or None if none is waiting."""
    try:
        data, ancillary, _, address = capture.recvmsg(256, 64)
    except BlockingIOError:
        return None
    except OSError:
        # A port vanished (ENETDOWN, once): the socket goes on hearing the others.
        return None
    stamp = time.time_ns()
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack_from(value)
            stamp = seconds * 1_000_000_000 + nanoseconds
    return Frame(stamp, address[0], data)


def dropped(capture: socket.socket) -> int:
    """Frames that the kernel had no room for since the last call (PACKET_STATISTICS of packet(7))."""
    _, drops = struct.unpack("II", capture.getsockopt(263, 6, 8))
    return int(drops)


def guest_ports(layout: Layout) -> dict[str, str]:
    """Interface name -> host, for the ports of the guest network."""
    return {layout.tap(host, "guests"): host for host in layout.hosts}
