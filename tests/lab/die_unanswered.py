"""Ends libvirtd (kill -9) when it has let an incoming guest run and has not yet said so to the source.

    python3 die_unanswered.py GUEST        on the guest's target, as root, while its memory is being copied

libvirtd writes the guest's status file right after QEMU said that the guest runs, and its answer milliseconds
later. The file's rename wakes this program, and its real-time priority brings it in before libvirtd goes on.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import sys
import time
from pathlib import Path

STATUS_DIR = "/run/libvirt/qemu"
IN_MOVED_TO = 0x80  # inotify(7)
DEADLINE_S = 120.0


def renames() -> int:
    """A descriptor that can be read whenever libvirtd has put a status file in its place."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_CLOEXEC)
    if watch < 0 or libc.inotify_add_watch(watch, STATUS_DIR.encode(), IN_MOVED_TO) < 0:
        raise OSError(ctypes.get_errno(), f"inotify on {STATUS_DIR}")
    return int(watch)


def runs(status: Path) -> bool:
    """As libvirtd wrote it down last."""
    try:
        return re.search(rb"<domstatus state='running'", status.read_bytes()) is not None
    except FileNotFoundError:
        return False


def main(guest: str) -> None:
    status = Path(STATUS_DIR, f"{guest}.xml")
    pid = int(Path("/run/libvirtd.pid").read_text())
    watch, end = renames(), time.monotonic() + DEADLINE_S
    if runs(status) or not status.exists():
        sys.exit(f"{guest} is not on its way to this host")
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("watching", flush=True)
    while not runs(status):
        if not select.select([watch], [], [], max(0.0, end - time.monotonic()))[0]:
            sys.exit(f"{guest} did not run within {DEADLINE_S} s")
        os.read(watch, 65536)
    os.kill(pid, signal.SIGKILL)
    print("killed", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
