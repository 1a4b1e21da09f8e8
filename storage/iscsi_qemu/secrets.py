"""The door to libvirt's secrets. The agent implements it over its libvirt connection."""

from __future__ import annotations

from typing import Protocol


class SecretStore(Protocol):
    """Secrets of type iscsi on this host. Implementations log neither values nor such XML (I17)."""

    async def has(self, *, uuid: str | None, usage: str | None) -> bool:
        """Is there a secret with this UUID, or else this usage (iscsi target name)?

        False for one that is known to have no value. Of a private one libvirt tells nothing: that is True.
        """
        ...

    async def define(self, *, uuid: str | None, usage: str | None, value: bytes) -> None:
        """Define it private and persistent if it is missing, and set its value; raises storage.errors."""
        ...
