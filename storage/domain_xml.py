"""The devices of a libvirt domain, read from its XML. Format: libvirt.org/formatdomain."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree as ET

MAX_XML_CHARS = 4 * 1024 * 1024
REMOVABLE = ("cdrom", "floppy")


class UnreadableXmlError(ValueError):
    """The text is no domain definition. The message says why, for the operator."""


def read(text: str) -> ET.Element:
    """The <domain> element. A document type is refused: its entities could explode or read files."""
    if len(text) > MAX_XML_CHARS:
        raise UnreadableXmlError(f"the definition is longer than {MAX_XML_CHARS} characters")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UnreadableXmlError("the definition has a document type declaration")
    try:
        root = ET.fromstring(text)  # noqa: S314 - without a DOCTYPE there are no entities to expand
    except (ET.ParseError, ValueError) as error:
        raise UnreadableXmlError(f"the definition is not well-formed XML: {error}") from None
    if root.tag != "domain":
        raise UnreadableXmlError(f"the definition starts with <{root.tag}>, not with <domain>")
    return root


@dataclass(frozen=True, slots=True)
class Disk:
    """One <disk>. `source` is what it names: a path, a protocol name, a volume; "" when it is empty."""

    target: str  # vda
    type: str  # file, block, network, volume, nvme ...
    device: str  # disk, lun, cdrom, floppy
    source: str
    readonly: bool
    shareable: bool
    transient: bool
    cache: str  # "" = the hypervisor's default, which is write-back
    format: str  # raw, qcow2 ...
    boot_order: int | None
    backing: str  # source of the first backing image of a chain, "" when there is none
    mirror: bool  # a block job copies it now
    reservations: bool
    encrypted: bool
    element: ET.Element

    @property
    def removable(self) -> bool:
        """A CD-ROM or floppy drive: its medium is no volume of the guest."""
        return self.device in REMOVABLE


def disks(root: ET.Element) -> tuple[Disk, ...]:
    """Every <disk> of the domain, in the order of the definition."""
    return tuple(_disk(element) for element in root.iterfind("devices/disk"))


def _disk(element: ET.Element) -> Disk:
    driver, source = element.find("driver"), element.find("source")
    target, boot = element.find("target"), element.find("boot")
    order = boot.get("order", "") if boot is not None else ""
    return Disk(
        target=target.get("dev", "?") if target is not None else "?",
        type=element.get("type", "file"),
        device=element.get("device", "disk"),
        source=source_of(source),
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        cache=driver.get("cache", "") if driver is not None else "",
        format=driver.get("type", "") if driver is not None else "",
        boot_order=int(order) if order.isdecimal() else None,
        # An empty <backingStore/> is libvirt's word for "the chain ends here".
        backing=_chain(element.find("backingStore")),
        mirror=element.find("mirror") is not None,
        reservations=source is not None and source.find("reservations") is not None,
        encrypted=element.find(".//encryption") is not None,
        element=element,
    )


def _chain(backing: ET.Element | None) -> str:
    if backing is None or (backing.get("type") is None and len(backing) == 0):
        return ""
    return source_of(backing.find("source")) or "an unnamed image"


def source_of(source: ET.Element | None) -> str:
    """What a <source> names, whatever the attribute is called."""
    if source is None:
        return ""
    for name in ("file", "dev", "dir", "name", "volume", "path", "type"):
        if found := source.get(name):
            return found
    return ""


def bridges(root: ET.Element) -> tuple[str, ...]:
    """Host bridges that the guest's interfaces are plugged into, each once."""
    return _sources(root, "bridge", "bridge")


def networks(root: ET.Element) -> tuple[str, ...]:
    """libvirt networks that the guest's interfaces use, each once."""
    return _sources(root, "network", "network")


def _sources(root: ET.Element, kind: str, attribute: str) -> tuple[str, ...]:
    found = [
        source.get(attribute, "")
        for interface in root.iterfind("devices/interface")
        if interface.get("type") == kind
        for source in interface.iterfind("source")
    ]
    return tuple(dict.fromkeys(name for name in found if name))


def cpu(root: ET.Element) -> str:
    """The <cpu> element as text; "" when the domain leaves it to the hypervisor."""
    element = root.find("cpu")
    return "" if element is None else ET.tostring(element, encoding="unicode").strip()
