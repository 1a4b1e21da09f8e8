"""Command lines of iscsiadm(8). Credentials never stand here: they go into the record file (I17)."""

from __future__ import annotations

from storage.words import IscsiVolume


def _node(volume: IscsiVolume) -> tuple[str, ...]:
    return ("iscsiadm", "-m", "node", "-T", volume.iqn, "-p", volume.portal)


def new_record(volume: IscsiVolume) -> tuple[str, ...]:
    """Make a node record from the defaults of iscsid.conf, without asking the target."""
    return (*_node(volume), "-o", "new")


def login(volume: IscsiVolume) -> tuple[str, ...]:
    """One target at one portal, so that the exit code is that of this login and no other."""
    return (*_node(volume), "--login")


def logout(volume: IscsiVolume) -> tuple[str, ...]:
    """End the session of this target at this portal."""
    return (*_node(volume), "--logout")
