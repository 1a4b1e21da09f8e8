"""A lab host that is a set of namespaces of this machine: fast, shares the kernel, only `iscsi-qemu` disks.

One PID namespace per host, so a power cut is one SIGKILL; an overlay over this machine's `/` as its
root, whose upper layer (a tmpfs) survives a power cycle; its own libvirtd, or tgtd on the storage host.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from labkit import guest_image, hosts, libvirt_conf, netns_init, netns_seed, process, sh, switch
from labkit.hosts import HostKind
from labkit.layout import NETWORKS, STORAGE_HOST, Layout
from labkit.sh import Completed, LabError, LabRefusedError
from labkit.state import Lab

RC_UNREACHABLE = 255  # what ssh answers for a uml host
_READY_POLL_S = 0.1
_START_DEADLINE_S = 10.0
_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


def disks_dir(layout: Layout) -> Path:
    """Backing files of the guests' disks: seen under the same path by tgtd and by the audit."""
    return layout.dir / "disks"


class NetnsHost:
    """One host made of namespaces. Holds no state: the kernel's process list is the truth."""

    kind: HostKind = "netns"

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout = layout
        self.name = name

    @property
    def dir(self) -> Path:
        """The host's directory on this machine."""
        return self.layout.host_dir(self.name)

    @property
    def upper(self) -> Path:
        """What the host has written. On a tmpfs: overlayfs refuses an upper layer inside its own lower."""
        return self.layout.memory_dir / self.name / "upper"

    def prepare(self) -> None:
        """Fill the upper layer of a new host. Once per life of the lab, before the first `start`."""
        for directory in (self.dir / "root", self.upper, self.upper.parent / "work"):
            directory.mkdir(parents=True, exist_ok=True)
        for name in netns_seed.HIDDEN_DIRS:
            path = self.upper / name
            path.mkdir(parents=True, exist_ok=True)
            os.setxattr(path, "trusted.overlay.opaque", b"y")
        for name in netns_seed.DIRECTORIES:
            (self.upper / name).mkdir(parents=True, exist_ok=True)
        for name, text in netns_seed.files(self.layout, self.name).items():
            path = self.upper / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self._init_config().write(self.dir / "init.json")

    def is_running(self) -> bool:
        """True if the host has power."""
        return process.find(self.layout.name, self.name) is not None

    def start(self) -> None:
        """Power on; returns once the cables are in, before libvirtd answers. Nothing if it is on."""
        if self.is_running():
            return
        self._unplug()
        self._pid_file.unlink(missing_ok=True)
        unshare = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        process.spawn(
            [*unshare, sys.executable, "-I", netns_init.__file__, str(self.dir / "init.json")],
            lab=self.layout.name,
            role=self.name,
            log=self.dir / "console.log",
        )
        self._plug(self._wait_for_pid())

    def kill(self) -> None:
        """Power cut: cables first, so that no peer sees a FIN or RST, then every process at once."""
        self._unplug()
        leader = process.find(self.layout.name, self.name)
        if leader is not None:
            process.kill_session(leader)

    def run(self, argv: Sequence[str], *, input: bytes | None = None, deadline_s: float = 60) -> Completed:
        """Run argv as root inside the host; rc 255 if it is off."""
        prefix = self.enter()
        if prefix is None:
            return Completed(RC_UNREACHABLE, "", f"netns: {self.name} is off\n")
        return sh.run([*prefix, *argv], input=input, deadline_s=deadline_s, env=_ENV)

    def must(self, argv: Sequence[str], *, input: bytes | None = None, deadline_s: float = 60) -> str:
        """Like `run` for commands that have to succeed: returns stdout, raises LabError otherwise."""
        return hosts.must(self, argv, input=input, deadline_s=deadline_s)

    def enter(self) -> list[str] | None:
        """Command prefix that runs something inside the host; None if it is off."""
        pid = self._init_pid()
        if pid is None:
            return None
        return ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]

    def reach(self, argv: Sequence[str]) -> list[str] | None:
        """Local command that runs argv inside the host; None if it is off."""
        prefix = self.enter()
        return None if prefix is None else [*prefix, *argv]

    def ready_command(self) -> list[str]:
        """Succeeds on the host once libvirtd (or tgtd) answers."""
        if self.name == STORAGE_HOST:
            return ["tgtadm", "--lld", "iscsi", "--mode", "system", "--op", "show"]
        return ["virsh", "-q", "-c", "qemu:///system", "uri"]

    def wait_ready(self, deadline_s: float) -> None:
        """Block until the host can be used; raises LabError with the end of its log if it dies or is late."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            if self.run(self.ready_command(), deadline_s=10).ok:
                return
            if not self.is_running():
                raise LabError(f"{self.name} went off while starting:\n{self._log_tail()}")
            time.sleep(_READY_POLL_S)
        raise LabError(f"{self.name} not ready after {deadline_s:.0f} s:\n{self._log_tail()}")

    @property
    def _pid_file(self) -> Path:
        return self.dir / "init.pid"

    def _init_config(self) -> netns_init.InitConfig:
        storage = self.name == STORAGE_HOST
        portal = f"portal={self.layout.host_address(STORAGE_HOST, 'storage')}:3260"
        tgtd = ["tgtd", "-f", "--iscsi", portal]
        return netns_init.InitConfig(
            host=self.name,
            root=str(self.dir / "root"),
            upper=str(self.upper),
            work=str(self.upper.parent / "work"),
            pid_file=str(self._pid_file),
            cables=list(NETWORKS),
            binds=[*foreign_mounts(), *([str(disks_dir(self.layout))] if storage else [])],
            run_dirs=["tgtd"] if storage else ["libvirt", "lock"],
            reserved_ports=libvirt_conf.RESERVED_PORTS,
            daemon=tgtd if storage else ["libvirtd", "--listen"],
        )

    def _init_pid(self) -> int | None:
        """The host's process 1 as this machine counts it; None when off (a stale file is not believed)."""
        leader = process.find(self.layout.name, self.name)
        if leader is None:
            return None
        try:
            pid = int(self._pid_file.read_text())
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (OSError, ValueError):
            return None
        return pid if process.parse_session(stat) == leader else None

    def _wait_for_pid(self) -> int:
        end = time.monotonic() + _START_DEADLINE_S
        while time.monotonic() < end:
            pid = self._init_pid()
            if pid is not None:
                return pid
            time.sleep(0.01)
        raise LabError(f"{self.name}: its first process did not start:\n{self._log_tail()}")

    def _plug(self, pid: int) -> None:
        lines = []
        for network in NETWORKS:
            port = self.layout.tap(self.name, network)
            mac = self.layout.host_mac(self.name, network)
            lines.append(f"link add {port} type veth peer name {network} address {mac} netns {pid}")
            lines.append(f"link set {port} master {network} up")
        switch.batch(self.layout, lines)

    def _unplug(self) -> None:
        for network in NETWORKS:
            port = self.layout.tap(self.name, network)
            sh.run(
                [*switch.inside(self.layout), "ip", "link", "del", port]
            )  # fails if there is none, which is fine

    def _log_tail(self) -> str:
        found = []
        for path in (self.dir / "console.log", self.upper / "var/log/daemon.log"):
            if path.exists():
                found += path.read_text(errors="replace").splitlines()[-10:]
        return "\n".join(found)


def foreign_mounts() -> list[str]:
    """Directories the hosts need and would not see: on another filesystem than `/`, or below a hidden one.

    An overlay does not cross mounts, and every host has a /tmp and a /run of its own.
    """
    root = os.stat("/").st_dev
    hidden = [Path("/", name) for name in (*netns_seed.HIDDEN_DIRS, "tmp", "run")]
    needed = sorted({guest_image.CHECKOUT, guest_image.cache_dir()})
    return [
        str(path)
        for path in needed
        if path.exists()
        and (path.stat().st_dev != root or any(path.is_relative_to(place) for place in hidden))
    ]


def up(lab: Lab) -> None:
    """Start the storage host and every host of a netns lab and wait until all can be used."""
    layout = lab.layout
    disks_dir(layout).mkdir(parents=True, exist_ok=True)
    machines = [NetnsHost(layout, name) for name in (STORAGE_HOST, *layout.hosts)]
    for host in machines:
        host.prepare()
        host.start()
    for host in machines:
        host.wait_ready(60)


def host(lab: Lab, name: str) -> NetnsHost:
    """A host by name, the storage host included; raises LabRefusedError for a name the lab does not have."""
    known = (*lab.layout.hosts, STORAGE_HOST)
    if name not in known:
        raise LabRefusedError(f"lab {lab.name} has no host {name!r}: {', '.join(known)}")
    return NetnsHost(lab.layout, name)
