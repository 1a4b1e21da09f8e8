"""The disk kind `iscsi-qemu` on UML hosts, with the names that every disks module has."""

from labkit.disks_iscsi import create_qemu as create
from labkit.disks_iscsi import remove

__all__ = ["create", "remove"]
