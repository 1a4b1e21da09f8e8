"""Becomes the UML kernel of a host; runs at power on and, as a program of its own, at every reboot.

A UML kernel reboots by executing its own argv[0] again, with its taps and disks still open and its old
processes still there; the new kernel then finds its taps busy and boots without a network. argv[0] is
therefore a script that comes here (`HOST/machine`): what a reset would clear is cleared, then the kernel
is executed in the same process, so that its pid and the lab's record of it stay true.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from pathlib import Path

KERNEL = "linux.uml"
XSTATE = "xstate.so"  # `uml/xstate.c`, built into the instance's directory by `lab up`


def script(machine: Path) -> str:
    """Content of `HOST/machine`, the argv[0] of the kernel."""
    return f'#!/bin/sh\nexec /usr/bin/python3 -I "{Path(__file__).resolve()}" "{machine}" "$@"\n'


def main(machine: str, arguments: list[str]) -> None:
    """Clear what the last kernel left in this process and session, and become the next one."""
    os.closerange(3, max(int(entry) for entry in os.listdir("/proc/self/fd")) + 1)
    for pid in _session_members(os.getsid(0)):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(Path(machine).parent / "uml", ignore_errors=True)  # the old kernel's control socket
    # The dispositions are inherited over an exec: the kernel would miss signals that the last one ignored.
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP) and number in signal.valid_signals():
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # The kernel holds one descriptor for every file of this machine that a program in it has open.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    preload = {"LD_PRELOAD": str(Path(machine).parents[1] / XSTATE)}
    os.execvpe(KERNEL, [machine, *arguments], {**os.environ, **preload})


def _session_members(session: int) -> list[int]:
    """Every other process of the session; they are all of the kernel that was here before."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            if os.getsid(int(entry)) == session:
                found.append(int(entry))
        except ProcessLookupError:
            continue  # it has just ended
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
