"""Reads `ss -tnHOpio` (iproute2): one established TCP connection per line. Pure.

Fields: ss(8). `timer:(on,...)` counts retransmissions, `timer:(persist,...)` probes of a closed window;
`lastack` is in ms, and left out while it is 0. What is not understood is left out: nothing is cut for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agents.streams.words import Stream

_LINE = re.compile(r"ESTAB\s+\d+\s+(?P<waiting>\d+)\s+(?P<local>\S+:\d+)\s+(?P<remote>\S+:\d+)\s(?P<rest>.*)")
_USER = re.compile(r'\("(?:[^"\\]|\\.)*",pid=(?P<pid>\d+),fd=(?P<fd>\d+)\)')
_TIMER = re.compile(r"timer:\((?:on|persist),[^,()]*,(?P<count>\d+)\)")
_LAST_ACK = re.compile(r"\blastack:(?P<ms>\d+)\b")


def parse(text: str) -> tuple[Stream, ...]:
    """A connection that several processes have open is one Stream for each of them."""
    return tuple(stream for line in text.splitlines() for stream in _streams(line))


def _streams(line: str) -> Iterator[Stream]:
    found = _LINE.match(line.strip())
    if found is None:
        return
    rest = found["rest"]
    timer, last_ack = _TIMER.search(rest), _LAST_ACK.search(rest)
    for user in _USER.finditer(rest):
        yield Stream(
            pid=int(user["pid"]),
            fd=int(user["fd"]),
            local=found["local"],
            remote=found["remote"],
            waiting_bytes=int(found["waiting"]),
            unanswered=0 if timer is None else int(timer["count"]),
            unheard_s=0.0 if last_ack is None else int(last_ack["ms"]) / 1000,
        )


def host_of(endpoint: str) -> str:
    """10.0.1.12:49152 -> 10.0.1.12; [fe80::1%eth0]:1 -> fe80::1; [::ffff:10.0.1.12]:1 -> 10.0.1.12."""
    address, _ = _parts(endpoint)
    return address.removeprefix("::ffff:") if "." in address else address


def port_of(endpoint: str) -> int:
    """10.0.1.12:49152 -> 49152."""
    return int(_parts(endpoint)[1])


def endpoint_of(address: str, port: int | str) -> str:
    """As ss writes it, without a zone or device: 10.0.1.12:49152, [fd00::2]:49152."""
    bare = address.partition("%")[0]
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def without_zone(endpoint: str) -> str:
    """10.0.1.11%vrf0:1 -> 10.0.1.11:1; [fe80::1%eth0]:1 -> [fe80::1]:1."""
    return endpoint_of(*_parts(endpoint))


def _parts(endpoint: str) -> tuple[str, str]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]").partition("%")[0], port
