"""What keeps a domain from being moved, as far as its XML tells. An ordered list: the user gets all of it.

Each reason is a sentence that names the device and the way out. Sources: libvirt's qemuMigrationSrcIsAllowed
and qemuMigrationSrcIsSafe, QEMU's migration blockers, and what storage.discover cannot hand over.

`find` is for a live migration, `find_cold` for a move with the guest shut off. What is bound to the host even
then blocks both; what is bound to running memory or to disks that two hosts hold open blocks only the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from xml.etree import ElementTree as ET

from storage.domain_xml import Disk, disks

SAFE_CACHES = ("none", "directsync")


def find(root: ET.Element) -> tuple[str, ...]:
    """All reasons in the definition of one domain, each once."""
    reasons: list[str] = []
    for disk in disks(root):
        reasons += disk_reasons(disk)
    for check in _CHECKS:
        reasons += check(root)
    return tuple(dict.fromkeys(reasons))


def find_cold(root: ET.Element) -> tuple[str, ...]:
    """Reasons that hold while the guest is shut off, each once.

    Not among them: cache modes (the cache is flushed when QEMU ends), transient disks (their changes end with
    QEMU), ivshmem and encrypted memory (made anew at the start). One holds for a cold move alone: UEFI
    variables, which QEMU sends along in a live migration and nobody does when only the definition moves.
    """
    reasons: list[str] = []
    for disk in disks(root):
        reasons += disk_reasons(disk, cold=True)
    for check in _COLD_CHECKS:
        reasons += check(root)
    return tuple(dict.fromkeys(reasons))


def local_reason(disk: Disk) -> str | None:
    """Why a disk of this type can never be handed over; None if its type alone does not forbid it."""
    match disk.type:
        case "block" | "network":
            return None
        case "file" | "dir":
            return (
                f"disk {disk.target} is the local file {disk.source}: put it on DRBD or iSCSI, "
                f"or migrate the guest by hand with --copy-storage-all"
            )
        case "volume":
            return f"disk {disk.target} is volume {disk.source} of a storage pool: name its device instead"
        case kind:
            return (
                f"disk {disk.target} is of type {kind} ({disk.source or 'no source'}), which is not supported"
            )


def disk_reasons(disk: Disk, *, cold: bool = False) -> Iterator[str]:
    """Reasons of one disk. `cold`: only those that hold for a guest that is shut off, too."""
    if disk.removable:
        if disk.source and disk.type != "network":
            yield (
                f"{disk.device} {disk.target} holds {disk.source}, which the target host need not have: "
                f"eject it with virsh change-media DOMAIN {disk.target} --eject"
            )
        return
    if reason := local_reason(disk):
        yield reason
    elif not cold and disk.cache not in SAFE_CACHES and not disk.readonly:
        yield (
            f"disk {disk.target} uses cache mode {disk.cache or 'default (write-back)'}: "
            f"only none and directsync are safe on shared storage"
        )
    if disk.backing:
        yield (
            f"disk {disk.target} is an overlay on {disk.backing} (an external snapshot?): "
            f"merge it with virsh blockcommit DOMAIN {disk.target} --active --pivot"
        )
    if disk.mirror:
        yield f"disk {disk.target} has a running block job: wait for it, or end it with virsh blockjob"
    if disk.transient and not cold:
        yield f"disk {disk.target} is transient: its changes are in a local file that does not move"
    if disk.shareable and not disk.readonly:
        yield f"disk {disk.target} is shareable, so other guests may write to it: it cannot move alone"
    if disk.reservations:
        yield f"disk {disk.target} uses persistent reservations through qemu-pr-helper, which do not move"
    if disk.encrypted:
        yield f"disk {disk.target} is encrypted by QEMU: its secret is not carried to the target host"


def _host_devices(root: ET.Element) -> Iterator[str]:
    for device in root.iterfind("devices/hostdev"):
        kind = device.get("type", "?")
        yield (
            f"host {kind.upper()} device {_address(device.find('source'))} is passed through: "
            f"detach it with virsh detach-device"
        )


def _address(source: ET.Element | None) -> str:
    """As lspci and lsusb write it; what is there otherwise."""
    if source is None:
        return "(unnamed)"
    address = source.find("address")
    vendor, product = source.find("vendor"), source.find("product")
    if vendor is not None and product is not None:
        return f"{vendor.get('id', '?')}:{product.get('id', '?')}".replace("0x", "")
    if address is None:
        return source.get("dev") or "(unnamed)"
    if address.get("slot"):
        words = [address.get(key, "0x0").removeprefix("0x") for key in ("domain", "bus", "slot")]
        function = address.get("function", "0x0").removeprefix("0x")
        return f"{words[0].zfill(4)}:{words[1].zfill(2)}:{words[2].zfill(2)}.{function}"
    if address.get("uuid"):
        return address.get("uuid", "")
    return f"bus {address.get('bus', '?')} device {address.get('device', '?')}"


_LOCAL_INTERFACES = {
    "hostdev": "is a passed-through host device",
    "direct": "is a macvtap on a device of this host",
    "vhostuser": "is a vhost-user socket of this host",
    "vdpa": "is a vDPA device of this host",
    "ethernet": "is a tap device of this host that libvirt does not manage",
}


def _interfaces(root: ET.Element) -> Iterator[str]:
    for interface in root.iterfind("devices/interface"):
        word = _LOCAL_INTERFACES.get(interface.get("type", ""))
        mac = interface.find("mac")
        name = mac.get("address", "?") if mac is not None else "?"
        if word:
            yield f"network interface {name} {word}: plug it into a bridge or a libvirt network"


def _filesystems(root: ET.Element) -> Iterator[str]:
    for filesystem in root.iterfind("devices/filesystem"):
        driver = filesystem.find("driver")
        kind = driver.get("type", "path") if driver is not None else "path"
        source = filesystem.find("source")
        path = (source.get("dir") or source.get("socket") or "?") if source is not None else "?"
        word = "virtiofs" if kind == "virtiofs" else "9p"
        yield f"{word} filesystem {path} is a directory of this host: unmount and detach it"


def _tpm(root: ET.Element) -> Iterator[str]:
    for backend in root.iterfind("devices/tpm/backend"):
        kind = backend.get("type", "?")
        if kind == "emulator":
            yield "the virtual TPM keeps its state in a local directory: remove it, or migrate by hand"
        elif kind == "passthrough":
            yield "the TPM of this host is passed through: remove it"


def _shared_memory(root: ET.Element) -> Iterator[str]:
    for shmem in root.iterfind("devices/shmem"):
        yield f"shared memory {shmem.get('name', '?')} (ivshmem) is bound to this host: detach it"


def _host_memory(root: ET.Element) -> Iterator[str]:
    for path in root.iterfind("devices/memory/source/path"):
        yield f"memory device on {path.text or '?'} of this host (NVDIMM or pmem) does not move: detach it"


def _host_inputs(root: ET.Element) -> Iterator[str]:
    for device in root.iterfind("devices/input"):
        if device.get("type") in ("passthrough", "evdev"):
            source = device.find("source")
            path = (source.get("evdev") or source.get("dev") or "?") if source is not None else "?"
            yield f"input device {path} of this host is passed through: detach it"
    for card in root.iterfind("devices/smartcard"):
        if card.get("mode") in ("host", "host-certificates"):
            yield "the smartcard reader of this host is passed through: detach it"
    for tag in ("serial", "parallel", "console", "channel"):
        for port in root.iterfind(f"devices/{tag}"):
            source = port.find("source")
            if port.get("type") == "dev" and source is not None:
                yield f"{tag} port is connected to {source.get('path', '?')} of this host: detach it"


def _confidential(root: ET.Element) -> Iterator[str]:
    for security in root.iterfind("launchSecurity"):
        yield f"the memory is encrypted ({security.get('type', '?')}), which cannot be migrated"


def _variables(root: ET.Element) -> Iterator[str]:
    """<nvram> as a path or with a <source>; firmware='efi' gets such a file at the first start."""
    os_element = root.find("os")
    if os_element is None:
        return
    nvram = os_element.find("nvram")
    loader = os_element.find("loader")
    flash = loader is not None and loader.get("type") == "pflash" and loader.get("stateless") != "yes"
    if nvram is not None or os_element.get("firmware") == "efi" or flash:
        yield (
            "its UEFI variables are in a local file, which a cold move leaves behind: move it live, "
            "or copy the file by hand"
        )


_CHECKS: tuple[Callable[[ET.Element], Iterator[str]], ...] = (
    _host_devices,
    _interfaces,
    _filesystems,
    _tpm,
    _shared_memory,
    _host_memory,
    _host_inputs,
    _confidential,
)

_COLD_CHECKS: tuple[Callable[[ET.Element], Iterator[str]], ...] = (
    _host_devices,
    _interfaces,
    _filesystems,
    _tpm,
    _host_memory,
    _host_inputs,
    _variables,
)
