"""What hosts print, read. Pure: captures in tests/storage/data show that each look is able to fail."""

from __future__ import annotations

import re

_MARK = "-- "
# What has to answer, and what answers with an error where there is nothing.
_PARTS = {
    "domains": "virsh -c qemu:///system list --all --name || exit",
    "active": "virsh -c qemu:///system list --name || exit",
    "processes": "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'guest=[^, ]*'",
    "sessions": "iscsiadm -m session 2>/dev/null",
    "volumes": "drbdsetup status",
    "options": "drbdsetup show || exit",
    "roles": "cat /proc/drbd || exit",
}
# One ssh connection for all that a host may hold of its guests; a UML host takes its time to start a program.
LOOK = "; ".join(
    [*(f"echo '{_MARK}{part}'; {words}" for part, words in _PARTS.items()), f"echo '{_MARK}end'"]
)


class Look:
    """What one host holds, out of what LOOK prints.

    Raises ValueError for an output that is cut short: nothing seen is not nothing there.
    """

    def __init__(self, printed: str) -> None:
        parts = dict.fromkeys(_PARTS, "")
        for part in re.split(rf"^{_MARK}", printed, flags=re.MULTILINE)[1:]:
            name, _, text = part.partition("\n")
            parts[name] = text
        if "end" not in parts or not parts["domains"]:
            raise ValueError(f"cut short: {printed!r}")
        self._parts = parts

    def runs(self, guest: str) -> bool:
        """As libvirt says: running, paused or shutting down."""
        return guest in self._parts["active"].split()

    def window_open(self) -> bool:
        """The flag of I6 on any resource, or one that is primary on both sides."""
        return window_open(self._parts["options"]) or both_primary(self._parts["roles"])

    def left_of(self, guest: str) -> list[str]:
        """What a host where the guest does not live holds of it; empty is good."""
        parts, found = self._parts, []
        if guest in parts["domains"].split():
            found.append("a definition")
        if f"guest={guest}" in parts["processes"].split():
            found.append("a QEMU")
        if re.search(rf":[a-z0-9]+\.{re.escape(guest)}\b", parts["sessions"]):
            found.append("an iSCSI session")
        role = re.search(rf"^{re.escape(guest)} role:(\w+)", parts["volumes"], re.MULTILINE)
        if role and role[1] != "Secondary":
            found.append(f"its DRBD volume as {role[1]}")
        return found


def window_open(shown: str) -> bool:
    """`drbdsetup show`: may any resource be primary on both sides? It puts a tab before the value."""
    return re.search(r"^\s*allow-two-primaries\s+yes\s*;", shown, re.MULTILINE) is not None


def both_primary(proc_drbd: str) -> bool:
    """/proc/drbd: is any resource primary on both sides now?"""
    return re.search(r"\bro:Primary/Primary\b", proc_drbd) is not None


def counter(metrics: str, series: str) -> float:
    """One series of a Prometheus text, 0 if it has not been counted yet."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0
