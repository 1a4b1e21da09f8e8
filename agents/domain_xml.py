"""The sizes in a domain's definition. Everything about its disks is storage.discover's."""

from __future__ import annotations

import xml.etree.ElementTree as ET

_UNITS = {
    "b": 1, "bytes": 1, "KB": 1000, "k": 1 << 10, "KiB": 1 << 10, "MB": 10**6, "M": 1 << 20, "MiB": 1 << 20,
    "GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40,
}  # fmt: skip


def memory_bytes(domain: ET.Element) -> int:
    """<memory>: what the guest may use at most, DIMMs included; hugepages come out of the same. 0 = unread.

    Units as in libvirt's formatdomain ("Memory Allocation"); KiB when none is given.
    """
    found = domain.find("memory")
    if found is None or not (found.text or "").strip().isdecimal():
        return 0
    return int(found.text or "") * _UNITS.get(found.get("unit", "KiB"), 0)


def vcpus(domain: ET.Element) -> int:
    """<vcpu>: the CPUs in use (`current`), else the maximum. 0 = unread."""
    found = domain.find("vcpu")
    if found is None:
        return 0
    text = found.get("current") or (found.text or "").strip()
    return int(text) if text.isdecimal() else 0
