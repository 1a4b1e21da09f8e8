"""Waits for one acknowledgement of a guest: `python3 -m labkit.audit_listen GUEST SECONDS`.

Runs in the network namespace of the switches. Exit 0: seen; exit 1: not seen in time.
"""

from __future__ import annotations

import select
import sys
import time

from labkit import audit_packets, audit_socket
from labkit.guest_xml import ACK_PORT


def main(guest: str, deadline_s: float) -> int:
    """Return the exit code."""
    end = time.monotonic() + deadline_s
    with audit_socket.open_capture() as capture:
        while (left := end - time.monotonic()) > 0:
            select.select([capture], [], [], left)
            frame = audit_socket.receive(capture)
            if frame is None:
                continue
            seen = audit_packets.parse_frame(frame.data, ACK_PORT)
            if isinstance(seen, audit_packets.Ack) and seen.guest == guest:
                return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
