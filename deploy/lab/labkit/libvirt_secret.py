"""CHAP secrets of QEMU's own iSCSI initiator, as libvirt keeps them on each host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from xml.sax.saxutils import escape

from labkit.sh import Completed


class SecretHost(Protocol):
    """What is needed of a host of either kind."""

    def run(self, argv: Sequence[str], *, input: bytes | None = None, deadline_s: float = 60) -> Completed:
        """Run argv on the host."""

    def must(self, argv: Sequence[str], *, input: bytes | None = None, deadline_s: float = 60) -> str:
        """Run argv on the host or raise LabError."""


def parse_list(text: str, usage: str) -> list[str]:
    """UUIDs of the iSCSI secrets with this usage in the output of `virsh -q secret-list`."""
    rows = [line.split() for line in text.splitlines()]
    return [row[0] for row in rows if len(row) == 3 and row[1:] == ["iscsi", usage]]


def define(host: SecretHost, usage: str, secret: str) -> None:
    """Give libvirt on this host the secret; the value passes through stdin only. Safe to repeat."""
    known = parse_list(host.must(["virsh", "-q", "secret-list"]), usage)
    if not known:
        target = f"<usage type='iscsi'><target>{escape(usage)}</target></usage>"
        xml = f"<secret ephemeral='no' private='yes'>{target}</secret>"
        host.must(["virsh", "-q", "secret-define", "/dev/stdin"], input=xml.encode())
        known = parse_list(host.must(["virsh", "-q", "secret-list"]), usage)
    setter = ["virsh", "-q", "secret-set-value", known[0], "--plain", "--file", "/dev/stdin"]
    host.must(setter, input=secret.encode())


def undefine(host: SecretHost, usage: str) -> None:
    """Forget the secret on this host. Fine if it is not there."""
    for uuid in parse_list(host.run(["virsh", "-q", "secret-list"]).stdout, usage):
        host.run(["virsh", "-q", "secret-undefine", uuid])
