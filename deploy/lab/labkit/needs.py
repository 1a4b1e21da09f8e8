"""What the lab needs from this machine; everything that is missing is said at once."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from labkit.sh import LabRefusedError

# Program -> Debian package that brings it.
PROGRAMS = {
    "linux.uml": "user-mode-linux",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "taskset": "util-linux",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "modprobe": "kmod",
    "libvirtd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "drbdadm": "drbd-utils",
    "iscsid": "open-iscsi",
    "targetctl": "python3-rtslib-fb",
    "ipmi_sim": "openipmi",
    "ipmitool": "ipmitool",
    "gcc": "gcc",
    "tgtd": "tgt",
    "tgtadm": "tgt",
    "cpio": "cpio",
    "busybox": "busybox-static",
    "iscsi-inq": "libiscsi-bin",
    "fence_ipmilan": "fence-agents",
    "openssl": "openssl",
}
FILES = {
    "/lib/systemd/systemd": "systemd",
    "/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so": "qemu-block-extra",
}
_EXTRA_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


def check() -> None:
    """Raise LabRefusedError with every reason why the lab cannot work here."""
    path = f"{os.environ.get('PATH', '')}:{_EXTRA_PATH}"
    programs = {program for program in PROGRAMS if shutil.which(program, path=path) is None}
    files = {name for name in FILES if not Path(name).exists()}
    tun = Path("/dev/net/tun").exists()
    _refuse(reasons(sys.platform, Path("/etc/debian_version").exists(), os.geteuid(), tun, programs, files))


def check_rights() -> None:
    """What taking a lab down needs, and no more: Linux and root."""
    _refuse(reasons(sys.platform, True, os.geteuid(), True, set(), set()))


def _refuse(found: list[str]) -> None:
    if found:
        raise LabRefusedError("the lab cannot run here:\n" + "\n".join(f"  - {reason}" for reason in found))


def memory_reason(wanted_mib: int, free_mib: int) -> str | None:
    """Why the hosts' memory does not fit; None if it does. Pure.

    UML keeps a host's memory in an unlinked file of a tmpfs: what has no room there dies with SIGBUS.
    """
    if wanted_mib <= free_mib:
        return None
    return (
        f"the hosts need up to {wanted_mib} MiB of memory and {free_mib} MiB are available: fewer --hosts, "
        f"less --memory, or end something else"
    )


def available_memory_mib() -> int:
    """What can be taken without swapping, as the kernel estimates it."""
    return parse_available_mib(Path("/proc/meminfo").read_text())


def parse_available_mib(meminfo: str) -> int:
    """MemAvailable of /proc/meminfo (proc(5), kB) in MiB; 0 if it is not there."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(found[1]) // 1024 if found else 0


def reasons(
    platform: str, debian: bool, uid: int, tun: bool, programs: set[str], files: set[str]
) -> list[str]:
    """Every reason, in the order in which a user would repair them. Pure."""
    found = []
    if platform != "linux" or not debian:
        found.append("it needs Debian GNU/Linux 12 (User Mode Linux and DRBD come as Debian packages)")
    if uid != 0:
        found.append("it needs root (network namespaces, taps): run it with sudo")
    if platform == "linux" and not tun:
        found.append("it needs /dev/net/tun (modprobe tun): the hosts' network cards are taps")
    packages = {PROGRAMS[program] for program in programs} | {FILES[name] for name in files}
    if packages:
        missing = ", ".join(sorted(programs | files))
        install = f"apt-get install --no-install-recommends {' '.join(sorted(packages))}"
        found.append(f"missing: {missing}; install with: {install}")
    return found
