"""A lab host that is a whole Linux kernel: User Mode Linux as the machine, ssh as the way in."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from labkit import hosts, mconsole, process, sh, state, switch, uml_boot
from labkit.hosts import HostKind
from labkit.layout import NETWORKS, STORAGE_HOST, Layout, host_index
from labkit.sh import Completed, LabError, LabRefusedError
from labkit.state import Lab

MAX_UBD = 15  # UML has 16 disks (ubda to ubdp); the first is the root disk
_SSH_POLL_S = 0.5


def ssh_dir(layout: Layout) -> Path:
    """Where the lab's ssh key, known_hosts and control sockets are."""
    return layout.dir / "ssh"


def ssh_options(layout: Layout) -> list[str]:
    """Options for ssh and scp to any host of the lab."""
    home = ssh_dir(layout)
    pairs = {
        "IdentityFile": str(home / "id_ed25519"),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(home / "known_hosts"),
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
        "ControlMaster": "auto",
        "ControlPath": str(home / "%n.sock"),
        "ControlPersist": "600",
        "ConnectTimeout": "5",
        # A host that lost power must show as lost within seconds, also through an open master connection.
        "ServerAliveInterval": "2",
        "ServerAliveCountMax": "4",
    }
    return [part for key, value in pairs.items() for part in ("-o", f"{key}={value}")]


def ubd_device(slot: int) -> str:
    """Device of a disk inside its host: slot 0 is /dev/ubda."""
    return f"/dev/ubd{chr(ord('a') + slot)}"


def command_line(layout: Layout, host: str, disks: Mapping[str, str], gone: Sequence[str]) -> list[str]:
    """The argv of the machine: memory, disks and cables; `gone`: DRBD resources that it has to forget."""
    directory = layout.host_dir(host)
    memory = layout.storage_memory_mib if host == STORAGE_HOST else layout.memory_mib
    argv = [
        str(directory / "machine"),
        f"mem={memory}M",
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        f"init={directory}/init",
        f"uml_dir={directory}",
        "umid=uml",
        "con=null",
        "con0=null,fd:1",
        "quiet",
        f"ubd0={directory}/root.img",
    ]
    argv += [f"lab.gone={','.join(gone)}"] if gone else []
    argv += [f"ubd{slot}={image}" for slot, image in sorted(disks.items(), key=lambda item: int(item[0]))]
    for number, network in enumerate(NETWORKS):
        # gro=1 is decisive for speed: 2.2 Gbit/s between two hosts with it, 2.8 Mbit/s without.
        tap = f"transport=tap,ifname={layout.tap(host, network)},depth=128,gro=1"
        argv.append(f"vec{number}:{tap},mac={layout.host_mac(host, network)}")
    return argv


def home_cpu(host: str, slot: int, cpus: Sequence[int]) -> int:
    """The one processor of this machine on which all of a host's processes run.

    A UML kernel and the processes inside it hand over to each other at every system call (ptrace). On two
    processors each handover wakes an idle one, on the same processor it is a plain switch: the start of a
    guest took 32 s instead of 98 s on a 2-core virtual machine.

    h1, the host that stories drain and restore, has its processor to itself: what leaves it starts elsewhere
    and what comes back starts here, and starting QEMU is what costs most. Instances side by side begin with
    another processor each: two of them would else have six of their eight machines on the same one.
    """
    first = slot % len(cpus)
    own, rest = cpus[first], [*cpus[first + 1 :], *cpus[:first]]
    if host == "h1" or not rest:
        return own
    number = 0 if host == STORAGE_HOST else host_index(host)
    return rest[number % len(rest)]


class UmlHost:
    """One UML machine. Holds no state of its own: the kernel's process list is the truth."""

    kind: HostKind = "uml"

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout = layout
        self.name = name

    @property
    def dir(self) -> Path:
        """The host's directory on this machine."""
        return self.layout.host_dir(self.name)

    @property
    def control(self) -> Path:
        """The running kernel's mconsole socket."""
        return self.dir / "uml" / "mconsole"

    def is_running(self) -> bool:
        """True if the host has power."""
        return process.find(self.layout.name, self.name) is not None

    def start(self) -> None:
        """Power on with the same root disk and the same further disks; returns at once."""
        if self.is_running():
            return
        self._forget_session()
        machine = self.dir / "machine"
        machine.write_text(uml_boot.script(machine))
        machine.chmod(0o700)
        lab = state.load(self.layout.name)
        disks, gone = lab.ubd.get(self.name, {}), lab.gone.get(self.name, [])
        argv = [*switch.inside(self.layout), *command_line(self.layout, self.name, disks, gone)]
        cpu = home_cpu(self.name, self.layout.slot, sorted(os.sched_getaffinity(0)))
        argv = ["taskset", "--cpu-list", str(cpu), *argv]
        process.spawn(
            argv,
            lab=self.layout.name,
            role=self.name,
            log=self.dir / "console.log",
            env={"HOME": str(self.dir), "TMPDIR": str(self.layout.memory_dir)},
        )

    def kill(self) -> None:
        """Power cut: every process of the machine is killed, nothing is flushed or shut down."""
        leader = process.find(self.layout.name, self.name)
        if leader is not None:
            process.kill_session(leader)
        self._forget_session()

    def run(self, argv: Sequence[str], *, input: bytes | None = None, deadline_s: float = 60) -> Completed:
        """Run argv on the host through ssh, as root."""
        return sh.run(self.reach(argv), input=input, deadline_s=deadline_s)

    def reach(self, argv: Sequence[str]) -> list[str]:
        """Local command that runs argv on the host.

        The shell there stays to say 128+N for a command that a signal ended: ssh itself would answer 255,
        as for a host that it cannot reach.
        """
        target = f"root@{self.layout.host_address(self.name, 'management')}"
        return ["ssh", *ssh_options(self.layout), target, "--", f"{shlex.join(argv)}; exit $?"]

    def must(self, argv: Sequence[str], *, input: bytes | None = None, deadline_s: float = 60) -> str:
        """Like `run` for commands that have to succeed: returns stdout, raises LabError otherwise."""
        return hosts.must(self, argv, input=input, deadline_s=deadline_s)

    def ready_command(self) -> list[str]:
        """Succeeds on the host once it can be used: libvirtd (or the iSCSI target) has finished starting."""
        unit = "rtslib-fb-targetctl.service" if self.name == STORAGE_HOST else "libvirtd.service"
        return ["systemctl", "is-active", "--quiet", unit]

    def wait_ready(self, deadline_s: float, given_up: threading.Event) -> None:
        """Block until the host can be used; LabError with the console's end if it dies or is late.

        Returns early, without a verdict, once `given_up` is set.
        """
        end = time.monotonic() + deadline_s
        while time.monotonic() < end and not given_up.is_set():
            if not self.is_running():
                raise LabError(
                    f"{self.name} went off while booting; its console ends:\n{self._console_tail()}"
                )
            if self.run(self.ready_command(), deadline_s=15).ok:
                return
            given_up.wait(_SSH_POLL_S)
        if given_up.is_set():
            return
        raise LabError(
            f"{self.name} not ready after {deadline_s:.0f} s; its console ends:\n{self._console_tail()}"
        )

    def plug_disk(self, image: Path) -> str:
        """Attach a disk image for good (it is there again after a power cycle); returns the device's path."""
        with state.edit(self.layout.name) as lab:
            slot = free_ubd_slot(lab, self.name)
            lab.ubd.setdefault(self.name, {})[str(slot)] = str(image)
        if self.is_running():
            mconsole.command(self.control, f"config ubd{slot}={image}")
        return ubd_device(slot)

    def unplug_disk(self, image: Path) -> None:
        """Detach a disk image; fine if it is not attached. Raises LabError while the host holds it open."""
        with state.edit(self.layout.name) as lab:
            slots = lab.ubd.get(self.name, {})
            slot = next((slot for slot, path in slots.items() if path == str(image)), None)
            if slot is None:
                return
            if self.is_running():
                mconsole.command(self.control, f"remove ubd{slot}")
            del slots[slot]

    def _console_tail(self) -> str:
        lines = (self.dir / "console.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])

    def _forget_session(self) -> None:
        """Drop the shared ssh connection: it leads to a machine that has lost its power."""
        address = self.layout.host_address(self.name, "management")
        for master in process.with_role(self.layout.name, f"{process.SSH_ROLE}{address}"):
            process.kill_session(master)
        (ssh_dir(self.layout) / f"{self.layout.host_address(self.name, 'management')}.sock").unlink(
            missing_ok=True
        )


def free_ubd_slot(lab: Lab, host: str) -> int:
    """First unused disk slot of a host; raises LabRefusedError when all are taken."""
    taken = lab.ubd.get(host, {})
    for slot in range(1, MAX_UBD + 1):
        if str(slot) not in taken:
            return slot
    raise LabRefusedError(f"{host} has all {MAX_UBD} disks that a UML machine can have: remove a guest first")
