"""The observer: a process in the switches' namespace that probes every guest and hears every port.

    python3 -m labkit.audit_observer STATE_FILE SOCKET INTERVAL_MS

It trusts nobody: it has its own probes, its own ears on every host's port of the guest network, and the
kernel's time stamps; it asks neither libvirt nor migrd. A request on the Unix socket is answered with
one JSON document (`report`, or `ledger GUEST`). It reads the state file for the list of guests only.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit import audit_packets, audit_socket
from labkit.audit_packets import Ack, ProbeFrames
from labkit.audit_state import GuestLog, Watched, watched_guests
from labkit.guest_xml import ACK_PORT, observer_mac
from labkit.layout import Layout
from labkit.state import Lab

BRIDGE = "guests"
_ROLL_CALL_NS = 10**9
_REFRESH_NS = 500_000_000
_DRAIN_LIMIT = 2000  # frames per turn, so that a flood cannot keep the probes from going out
_REQUEST_LIMIT = 64  # bytes
_LATE_NS = 5_000_000


class Observer:
    """The state and the sockets of the one loop. `run` returns when told to stop by SIGTERM."""

    def __init__(self, state_file: Path, answers: Path, interval_ns: int) -> None:
        self.state_file = state_file
        self.interval_ns = interval_ns
        self.roll_call_every = _ROLL_CALL_NS // interval_ns  # ticks
        self.layout = self._read_layout()
        self.ports = audit_socket.guest_ports(self.layout)
        self.logs: dict[str, GuestLog] = {}
        self.by_ip: dict[bytes, GuestLog] = {}
        self.probes: dict[str, ProbeFrames] = {}
        self.capture = audit_socket.open_capture(but_not=BRIDGE)
        self.sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.sender.bind((BRIDGE, 0))
        self.sender.setblocking(False)
        # Somebody must own the port, or the kernel answers each acknowledgement with an ICMP error.
        # It is never read: what does not fit into its buffer is dropped, and the capture has heard it.
        self.sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sink.bind((self.layout.gateway("guests"), ACK_PORT))
        answers.unlink(missing_ok=True)
        self.answers = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.answers.bind(str(answers))
        self.answers.listen(4)
        self.stopping = False
        self.started_ns = time.time_ns()
        self.late_max_ns = 0
        self.late_ticks = 0
        self.ticks = 0
        self.unsent = 0
        self.dropped = 0
        self._state_stamp: tuple[int, int] = (0, 0)

    def run(self) -> None:
        """Probe, and hear what came in since: the kernel has stamped each frame with its time."""
        due = time.monotonic_ns()
        refresh = 0
        while not self.stopping:
            now = time.monotonic_ns()
            if now >= due:
                self._tick(max(0, now - due))
                # Lateness is not made good with a burst: missed probes stay missed, and are reported as late.
                due = (due if now < due + self.interval_ns else now) + self.interval_ns
            if now >= refresh:
                self._refresh()
                refresh = now + _REFRESH_NS
            ready, _, _ = select.select([self.answers], [], [], max(0, due - time.monotonic_ns()) / 1e9)
            if ready:
                self._hear()
                self._answer()

    def report(self) -> dict[str, Any]:
        """Every figure of the observer; times are milliseconds, `started_at` is seconds since the epoch."""
        self.dropped += audit_socket.dropped(self.capture)
        now = time.time_ns()
        return {
            "started_at": round(self.started_ns / 1e9, 3),
            "seconds": round((now - self.started_ns) / 1e9, 1),
            "probe_interval_ms": self.interval_ns / 1e6,
            "probe_ticks": self.ticks,
            "probe_late_max_ms": round(self.late_max_ns / 1e6, 1),
            "probe_late_ticks": self.late_ticks,
            "probes_unsent": self.unsent,
            "frames_dropped": self.dropped,
            "guests": {name: self._guest_report(log, now) for name, log in self.logs.items()},
        }

    def _guest_report(self, log: GuestLog, now_ns: int) -> dict[str, Any]:
        found = log.report(now_ns)
        return {**found, "host_port": self.ports.get(found["port"] or "")}

    def _tick(self, late_ns: int) -> None:
        self._hear()
        self.ticks += 1
        self.late_max_ns = max(self.late_max_ns, late_ns)
        if late_ns > _LATE_NS:
            self.late_ticks += 1
        roll_call = self.ticks % self.roll_call_every == 0
        for name, frames in self.probes.items():
            log = self.logs[name]
            log.outages.late(late_ns)
            self._send(frames.probe(self.ticks))
            if roll_call:
                number = (self.ticks // self.roll_call_every) & 0xFFFF
                log.instances.roll_call(number, time.time_ns())
                self._send(frames.roll_call(number))

    def _send(self, frame: bytes) -> None:
        try:
            self.sender.send(frame)
        except OSError:  # queue full, or the bridge is being taken down
            self.unsent += 1

    def _hear(self) -> None:
        for _ in range(_DRAIN_LIMIT):
            frame = audit_socket.receive(self.capture)
            if frame is None:
                break
            if frame.port not in self.ports:
                continue
            heard = audit_packets.parse_frame(frame.data, ACK_PORT)
            if heard is None:
                continue
            log = self.logs.get(heard.guest) if isinstance(heard, Ack) else self.by_ip.get(heard.source_ip)
            if log is not None:
                log.hear(frame.time_ns, frame.port, heard)

    def _refresh(self) -> None:
        """Follow the state file: guests come and go while the audit runs."""
        try:
            status = self.state_file.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp == self._state_stamp:
                return
            guests = watched_guests(json.loads(self.state_file.read_text()))
        except (OSError, ValueError):
            return  # `down` has taken it away; whoever did that ends this process too
        self._state_stamp = stamp
        wanted = {guest.name: guest for guest in guests}
        for name in list(self.logs):
            if name not in wanted or wanted[name].uuid != self.logs[name].guest.uuid:
                del self.logs[name], self.probes[name]
        for guest in guests:
            if guest.name not in self.logs:
                self._watch(guest)
        self.by_ip = {socket.inet_aton(log.guest.address): log for log in self.logs.values()}

    def _watch(self, guest: Watched) -> None:
        self.logs[guest.name] = GuestLog(guest, self.interval_ns)
        self.probes[guest.name] = ProbeFrames(
            bytes.fromhex(observer_mac(self.layout).replace(":", "")),
            socket.inet_aton(self.layout.gateway("guests")),
            bytes.fromhex(guest.mac.replace(":", "")),
            socket.inet_aton(guest.address),
        )

    def _answer(self) -> None:
        caller, _ = self.answers.accept()
        with caller, contextlib.suppress(OSError):
            # A caller that does not read must not stop the probes for longer than this.
            caller.settimeout(0.2)
            words = caller.recv(_REQUEST_LIMIT).decode("ascii", "replace").split()
            caller.sendall(json.dumps(self._document(words)).encode())

    def _document(self, words: list[str]) -> dict[str, Any]:
        if words == ["report"]:
            return self.report()
        if len(words) == 2 and words[0] == "ledger" and words[1] in self.logs:
            return self.logs[words[1]].packed_ledger()
        return {"error": f"no such request: {' '.join(words)}"}

    def _read_layout(self) -> Layout:
        return Lab.from_json(json.loads(self.state_file.read_text())).layout


def main(state_file: str, answers: str, interval_ms: str) -> None:
    """Run until SIGTERM."""
    observer = Observer(Path(state_file), Path(answers), int(interval_ms) * 10**6)
    stop: Callable[..., None] = lambda *_: setattr(observer, "stopping", True)  # noqa: E731
    signal.signal(signal.SIGTERM, stop)
    # Before everything else on the machine: the observer's own delays must never look like a guest's.
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(20))
    gc.collect()
    gc.disable()  # nothing here makes cycles per frame; a collection would be a pause of milliseconds
    observer.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
