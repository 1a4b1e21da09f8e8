"""CHAP secrets of QEMU's own iSCSI initiator, kept by libvirt. Implements storage.iscsi_qemu's SecretStore.

The value is read from this host's credential file by the driver and goes to libvirtd over its local socket:
never through an argv, a log line or an error text (I17).
"""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any, TypeVar

import libvirt

from agents.hypervisor.libvirt_link import Link, Lost
from storage.errors import Failed, Retryable, Unknown

T = TypeVar("T")

DEADLINE_S = 10.0
SLOTS = 4  # below libvirtd's max_client_requests of 5


class LibvirtSecrets:
    """One connection. Questions may overlap: every guest's step and every inventory asks."""

    def __init__(self, uri: str) -> None:
        self._link = Link(uri, "libvirt-secrets", slots=SLOTS)
        # Two guests may share a secret: both would find none, and the second to define it would fail.
        self._defining = asyncio.Lock()

    async def has(self, *, uuid: str | None, usage: str | None) -> bool:
        """See SecretStore. Raises Retryable."""
        try:
            return await self._link.call(lambda c: has_secret(c, uuid, usage), deadline_s=DEADLINE_S)
        except (Lost, Unknown, libvirt.libvirtError) as error:
            raise Retryable(f"libvirt secrets: {_said(error)}") from None

    async def define(self, *, uuid: str | None, usage: str | None, value: bytes) -> None:
        """See SecretStore. Raises Failed, Retryable, Unknown."""
        try:
            async with self._defining:
                await self._link.call(lambda c: put_secret(c, uuid, usage, value), deadline_s=DEADLINE_S)
        except Lost as error:
            raise Unknown(f"libvirt secrets: the connection broke: {error}") from None
        except libvirt.libvirtError as error:
            raise Failed(f"libvirt secrets: {_said(error)}") from None

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()


def has_secret(connection: Any, uuid: str | None, usage: str | None) -> bool:
    """Blocking: SecretStore.has on a connection. Raises libvirtError."""
    secret = _find(connection, uuid, usage)
    return secret is not None and _may_have_value(secret)


def put_secret(connection: Any, uuid: str | None, usage: str | None, value: bytes) -> None:
    """Blocking: SecretStore.define on a connection. Raises libvirtError."""
    secret = _find(connection, uuid, usage)
    if secret is None:
        secret = connection.secretDefineXML(secret_xml(uuid, usage))
    secret.setValue(value)


def secret_xml(uuid: str | None, usage: str | None) -> str:
    """Definition of a secret: private (cannot be read back), not ephemeral (survives libvirtd)."""
    root = ET.Element("secret", ephemeral="no", private="yes")
    if uuid is not None:
        ET.SubElement(root, "uuid").text = uuid
    ET.SubElement(root, "description").text = "iSCSI CHAP, defined by migrd-agent"
    target = ET.SubElement(ET.SubElement(root, "usage", type="iscsi"), "target")
    target.text = usage or f"migrd-{uuid}"
    return ET.tostring(root, encoding="unicode")


def _find(connection: Any, uuid: str | None, usage: str | None) -> Any | None:
    lookups: list[Callable[[], Any]] = []
    if uuid is not None:
        lookups.append(lambda: connection.secretLookupByUUIDString(uuid))
    if usage is not None:
        lookups.append(lambda: connection.secretLookupByUsage(libvirt.VIR_SECRET_USAGE_TYPE_ISCSI, usage))
    for lookup in lookups:
        try:
            return lookup()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
                raise
    return None


def _may_have_value(secret: Any) -> bool:
    """libvirt does not let the value of a private secret be read; NO_SECRET says that it has none."""
    try:
        secret.value()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
            return False
        if error.get_error_code() == libvirt.VIR_ERR_INVALID_SECRET:  # private: not told
            return True
        raise
    return True


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
