"""The control socket of a running UML kernel: plug a disk in or out without a reboot.

Wire format: arch/um/drivers/mconsole.h of the Linux kernel (version 2, native byte order).
"""

from __future__ import annotations

import socket
import struct
import uuid
from pathlib import Path

from labkit.sh import LabError

_MAGIC = 0xCAFEBABE
_VERSION = 2
_MAX_DATA = 512
_REQUEST = struct.Struct(f"=III{_MAX_DATA}s")
_REPLY = struct.Struct("=III")


def encode(command: str) -> bytes:
    """The datagram of one command; raises ValueError if it does not fit into one."""
    data = command.encode()
    if len(data) >= _MAX_DATA:
        raise ValueError(f"mconsole command of {len(data)} bytes; at most {_MAX_DATA - 1}")
    return _REQUEST.pack(_MAGIC, _VERSION, len(data), data)


def decode(datagram: bytes) -> tuple[bool, bool, str]:
    """(ok, more datagrams follow, text) of one reply; raises ValueError for a short datagram."""
    if len(datagram) < _REPLY.size:
        raise ValueError(f"mconsole reply of {len(datagram)} bytes")
    error, more, length = _REPLY.unpack_from(datagram)
    text = datagram[_REPLY.size : _REPLY.size + length]
    return error == 0, more != 0, text.decode(errors="replace").strip("\0\n ")


def command(control: Path, text: str, *, deadline_s: float = 10) -> str:
    """Send one command to a UML kernel and return its answer; raises LabError if it refuses or is silent."""
    reply_to = control.parent / f"reply-{uuid.uuid4().hex[:8]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(deadline_s)
        sock.bind(str(reply_to))
        try:
            sock.sendto(encode(text), str(control))
            answer = ""
            more = True
            while more:
                ok, more, part = decode(sock.recv(65536))
                answer += part
        except OSError as dead:
            raise LabError(f"{control}: no answer to {text!r}: {dead}") from dead
        finally:
            reply_to.unlink(missing_ok=True)
    if not ok:
        raise LabError(f"{control}: {text!r} refused: {answer}")
    return answer
