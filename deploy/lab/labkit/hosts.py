"""What the rest of the lab knows about a host, whichever kind it is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Literal, Protocol

from labkit.sh import Completed, LabError

HostKind = Literal["uml", "netns"]
HOST_KINDS: tuple[HostKind, ...] = ("uml", "netns")

__all__ = ["HOST_KINDS", "Completed", "Host", "HostKind", "must"]


class Host(Protocol):
    """One lab host. A `uml` host is a whole kernel reached by ssh, a `netns` host a set of namespaces."""

    @property
    def name(self) -> str:
        """h1, h2, ... or s1 for the storage host."""

    @property
    def kind(self) -> HostKind:
        """Which of the two kinds of host this is."""

    def run(self, argv: Sequence[str], *, input: bytes | None = None, deadline_s: float = 60) -> Completed:
        """Run argv as root on the host; never raises for a non-zero exit.

        rc 255 with "ssh:" on stderr means the host could not be reached (uml); rc 124 means the
        deadline passed and the local end was killed, so the outcome on the host is not known.
        """

    def start(self) -> None:
        """Power on, without waiting for the host to be ready. Does nothing on a running host."""

    def is_running(self) -> bool:
        """True if the host has power. Says nothing about the health of what runs in it."""


def must(host: Host, argv: Sequence[str], *, input: bytes | None = None, deadline_s: float = 60) -> str:
    """Run a command that has to succeed on the host: returns stdout, raises LabError otherwise."""
    done = host.run(argv, input=input, deadline_s=deadline_s)
    if not done.ok:
        what = (done.stderr or done.stdout).strip()
        raise LabError(f"{host.name}: {shlex.join(argv)[:200]}: exit {done.rc}: {what}")
    return done.stdout
