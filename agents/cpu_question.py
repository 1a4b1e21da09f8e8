"""What a target must be able to run: asked as one small XML document, opaque to the daemon.

A <cpu> alone is not enough for virConnectCompareHypervisorCPU: what a host can provide depends on the
virtualisation type (an emulated guest fits where KVM would refuse its CPU), the architecture and the machine
type. So the document is a domain's skeleton: <domain type><os><type arch machine/></os><cpu/></domain>,
with <host><cpu/></host> added for a guest that sees its host's CPU as it is.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

MAX_CHARS = 256 * 1024
SEES_HOST = ("host-passthrough", "maximum")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuQuestion:
    """`cpu`, `host_cpu`: <cpu> elements as text, "" when there is none."""

    kind: str  # kvm, qemu
    arch: str | None
    machine: str | None
    cpu: str
    host_cpu: str


def of(domain: ET.Element, host_cpu_xml: str) -> str:
    """The question for a domain's live definition. Equal guests give equal text, so that it is asked once."""
    question = ET.Element("domain", type=domain.get("type", ""))
    kind = domain.find("os/type")
    if kind is not None:
        wanted = {name: kind.get(name, "") for name in ("arch", "machine") if kind.get(name)}
        ET.SubElement(ET.SubElement(question, "os"), "type", wanted)
    cpu = domain.find("cpu")
    if cpu is not None:
        question.append(_compact(cpu))
        if cpu.get("mode") in SEES_HOST and host_cpu_xml:
            ET.SubElement(question, "host").append(_compact(ET.fromstring(host_cpu_xml)))  # noqa: S314 - libvirtd's own
    return ET.tostring(question, encoding="unicode")


def read(text: str) -> CpuQuestion | None:
    """None when it is no such document. A document type is refused: its entities could explode."""
    if len(text) > MAX_CHARS or "<!" in text:
        return None
    try:
        root = ET.fromstring(text)  # noqa: S314 - without a DOCTYPE there are no entities to expand
    except (ET.ParseError, ValueError):
        return None
    if root.tag != "domain" or not root.get("type"):
        return None
    kind, cpu, host_cpu = root.find("os/type"), root.find("cpu"), root.find("host/cpu")
    return CpuQuestion(
        kind=root.get("type", ""),
        arch=None if kind is None else kind.get("arch"),
        machine=None if kind is None else kind.get("machine"),
        cpu="" if cpu is None else ET.tostring(cpu, encoding="unicode"),
        host_cpu="" if host_cpu is None else ET.tostring(host_cpu, encoding="unicode"),
    )


def _compact(element: ET.Element) -> ET.Element:
    """A copy without the white space between elements, and without what differs between equal CPUs."""
    copy = ET.Element(element.tag, dict(element.attrib))
    copy.text = (element.text or "").strip() or None
    copy.extend(_compact(child) for child in element if child.tag not in ("microcode", "counter", "pages"))
    return copy
