"""What the kernel tells about a host: memory, CPU, bridges, versions. Small files, no libvirt.

`root` is "/" except in tests, which lay out the few files read here.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One look at /proc and /sys. Sizes in bytes; 0 and "" where the kernel did not say."""

    node: str  # uname -n
    boot_id: str
    cpu_model: str
    cpu_threads: int
    arch: str
    memory_total_bytes: int
    memory_available_bytes: int
    bridges: tuple[str, ...]
    versions: dict[str, str]
    problems: tuple[str, ...]


def look(root: Path = Path("/")) -> HostFacts:
    """Read it all; never raises: what cannot be read is named in `problems`."""
    problems: list[str] = []
    memory = meminfo(_read(root / "proc/meminfo", problems))
    uname = os.uname()
    versions = {"kernel": uname.release}
    drbd = re.match(r"version: (\S+)", _read(root / "proc/drbd", None))
    if drbd:
        versions["drbd"] = drbd[1]
    return HostFacts(
        node=uname.nodename,
        boot_id=_read(root / "proc/sys/kernel/random/boot_id", problems).strip(),
        cpu_model=cpu_model(_read(root / "proc/cpuinfo", problems)) or platform.machine(),
        cpu_threads=os.cpu_count() or 1,
        arch=uname.machine,
        memory_total_bytes=memory.get("MemTotal", 0),
        memory_available_bytes=memory.get("MemAvailable", 0),
        bridges=bridges(root / "sys/class/net", problems),
        versions=versions,
        problems=tuple(problems),
    )


def meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in bytes (proc(5): values are in KiB). Lines it cannot read are left out."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(value) * KIB for name, value in found}


def cpu_model(text: str) -> str:
    """The model as /proc/cpuinfo names it, for people."""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def bridges(net: Path, problems: list[str]) -> tuple[str, ...]:
    """Linux bridges: network interfaces with a `bridge` folder in sysfs; Open vSwitch has none there."""
    try:
        return tuple(sorted(entry.name for entry in net.iterdir() if (entry / "bridge").is_dir()))
    except OSError as error:
        problems.append(f"{net}: {error.strerror}")
        return ()


def _read(path: Path, problems: list[str] | None) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        if problems is not None:
            problems.append(f"{path}: {error.strerror}")
        return ""
