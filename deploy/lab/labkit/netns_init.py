"""Process 1 of a netns host: makes the private root, configures the network, keeps one daemon alive.

Started by labkit.netns_host as `unshare --net --mount --uts --ipc --pid --fork --kill-child python3 THIS
CONFIG.json`. It is the first process of its PID namespace, so killing it kills the whole host, and
every orphan of the host becomes its child and is reaped here.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

_CABLES_DEADLINE_S = 20.0
_RESPAWN_S = 2.0  # as RestartSec in the units of UML hosts


@dataclass(frozen=True)
class InitConfig:
    """Everything the init needs; written by the lab as JSON. Paths are those of this machine."""

    host: str
    root: str  # empty directory to mount the overlay on
    upper: str  # tmpfs directory that survives a power cycle
    work: str  # overlayfs's own directory, on the same tmpfs
    pid_file: str  # the init's pid as this machine counts it
    cables: list[str]  # interface names to wait for
    binds: list[str]  # paths that stay this machine's own
    run_dirs: list[str]  # directories to make under /run
    reserved_ports: str  # kept from outgoing connections
    daemon: list[str]  # kept running

    def write(self, path: Path) -> None:
        """Save as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))


def main(path: str) -> None:
    """Become the host; returns never."""
    config = InitConfig(**json.loads(Path(path).read_text()))
    # The outer /proc still shows this machine's numbering here.
    Path(config.pid_file).write_text(os.readlink("/proc/self"))
    os.environ.clear()
    os.environ.update(
        PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LANG="C.UTF-8"
    )
    socket.sethostname(config.host)
    make_root(config)
    for name in config.run_dirs:
        Path("/run", name).mkdir(parents=True, exist_ok=True)
    Path("/proc/sys/net/ipv4/ip_local_reserved_ports").write_text(config.reserved_ports)
    _wait_for_cables(config.cables)
    _do("ip", "-batch", "/etc/lab/network.batch")
    keep_running(config.daemon)


def make_root(config: InitConfig) -> None:
    """Overlay over this machine's `/`, own /proc, /sys, /run and /tmp, then pivot into it."""
    root = config.root
    layers = f"lowerdir=/,upperdir={config.upper},workdir={config.work}"
    _do("mount", "-t", "overlay", "lab", "-o", layers, root)
    _do("mount", "--rbind", "/dev", f"{root}/dev")
    _do("mount", "-t", "proc", "proc", f"{root}/proc")
    _do("mount", "-t", "sysfs", "sysfs", f"{root}/sys")
    for place in ("run", "tmp"):
        _do(
            "mount",
            "-t",
            "tmpfs",
            "-o",
            "mode=1777" if place == "tmp" else "mode=755",
            place,
            f"{root}/{place}",
        )
    for path in config.binds:
        Path(f"{root}{path}").mkdir(parents=True, exist_ok=True)
        _do("mount", "--rbind", path, f"{root}{path}")
    # The kernel is shared, its boot is not: every power-on of the host is a boot of its own.
    boot_id = Path(f"{root}/run/boot_id")
    boot_id.write_text(f"{uuid.uuid4()}\n")
    _do("mount", "--bind", str(boot_id), f"{root}/proc/sys/kernel/random/boot_id")
    os.chdir(root)
    _do("pivot_root", ".", ".")
    _do("umount", "-l", ".")
    os.chdir("/")


def keep_running(argv: list[str]) -> None:
    """Run the daemon, start it again when it ends, and reap whatever the host orphans; never returns."""
    log = Path("/var/log/daemon.log")
    while True:
        with log.open("ab") as out:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        while True:
            ended, _ = os.waitpid(-1, 0)
            if ended == child.pid:
                child.returncode = 0  # reaped here, behind subprocess's back
                break
        time.sleep(_RESPAWN_S)


def _wait_for_cables(names: list[str]) -> None:
    deadline = time.monotonic() + _CABLES_DEADLINE_S
    while not all(Path("/sys/class/net", name).exists() for name in names):
        if time.monotonic() > deadline:
            raise SystemExit(f"no cable after {_CABLES_DEADLINE_S:.0f} s: {names}")
        time.sleep(0.02)


def _do(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, timeout=30)


if __name__ == "__main__":
    main(sys.argv[1])
