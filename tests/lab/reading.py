"""What hosts print, read. Pure: captures in tests/storage/data show that each look is able to fail."""

from __future__ import annotations

import re

_MARK = "-- "
# One ssh connection for all that a host may hold of a guest; a UML host takes its time to start a program.
LOOK = (
    f"echo '{_MARK}domains'; virsh -c qemu:///system list --all --name; "
    f"echo '{_MARK}processes'; cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'guest=[^, ]*'; "
    f"echo '{_MARK}sessions'; iscsiadm -m session 2>/dev/null; "
    f"echo '{_MARK}volumes'; drbdsetup status; "
    f"echo '{_MARK}end'"
)


def window_open(shown: str) -> bool:
    """`drbdsetup show`: may any resource be primary on both sides? It puts a tab before the value."""
    return re.search(r"^\s*allow-two-primaries\s+yes\s*;", shown, re.MULTILINE) is not None


def both_primary(proc_drbd: str) -> bool:
    """/proc/drbd: is any resource primary on both sides now?"""
    return re.search(r"\bro:Primary/Primary\b", proc_drbd) is not None


def left_of(guest: str, looked: str) -> list[str]:
    """What a host where the guest does not live holds of it, out of what LOOK prints; empty is good.

    Raises ValueError for an output that is cut short: nothing seen is not nothing there.
    """
    parts = dict.fromkeys(("domains", "processes", "sessions", "volumes"), "")
    for part in re.split(rf"^{_MARK}", looked, flags=re.MULTILINE)[1:]:
        name, _, text = part.partition("\n")
        parts[name] = text
    if "end" not in parts or not parts["domains"]:
        raise ValueError(f"cut short: {looked!r}")
    found = []
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


def counter(metrics: str, series: str) -> float:
    """One series of a Prometheus text, 0 if it has not been counted yet."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0
