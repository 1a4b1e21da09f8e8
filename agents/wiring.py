"""The parts of a real host: libvirt, the storage drivers, and what ties definitions to volumes."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from agents import cpu_question, domain_xml
from agents.assembly import Parts
from agents.config import AgentConfig
from agents.discovery import Needs
from agents.hypervisor.libvirt_hypervisor import LibvirtHypervisor
from agents.hypervisor.libvirt_secrets import LibvirtSecrets
from agents.hypervisor.words import DomainFull
from agents.streams.sockets import Sockets
from storage import discover
from storage.domain_xml import UnreadableXmlError
from storage.domain_xml import read as read_xml
from storage.drbd.driver import DrbdDriver
from storage.errors import OutcomeError
from storage.iscsi.driver import IscsiDriver
from storage.iscsi_qemu.driver import IscsiQemuDriver
from storage.run import run
from storage.users import DeviceUsers, QemuProcesses

log = structlog.get_logger()

VERSION_DEADLINE_S = 5.0


async def real_parts(config: AgentConfig, version: str) -> Parts:
    """Everything a real host needs. Never fails for a tool that is not installed."""
    in_use, openers = QemuProcesses(), DeviceUsers()
    drbd = DrbdDriver(in_use=in_use, node=os.uname().nodename, openers=openers)
    iscsi = IscsiDriver(in_use=in_use, openers=openers, chap_dir=config.chap_dir)
    secrets = LibvirtSecrets(config.libvirt_uri)
    iscsi_qemu = IscsiQemuDriver(in_use=in_use, secrets=secrets, chap_dir=config.chap_dir)

    async def devices() -> discover.Devices:
        return discover.Devices(drbd=await drbd.volumes(), iscsi=await iscsi.links())

    return Parts(
        hypervisor=LibvirtHypervisor(config.libvirt_uri, call_deadline_s=config.limits.libvirt_deadline_s),
        drivers={"drbd": drbd, "iscsi": iscsi, "iscsi-qemu": iscsi_qemu},
        streams=Sockets(run),
        discover=HostDiscover(
            devices, max_age_s=config.storage_s, deadline_s=config.limits.inspect_deadline_s
        ),
        in_use=in_use,
        tool_versions=await tool_versions(),
        agent_version=version,
    )


class HostDiscover:
    """`Discover` over storage.discover; reads a definition again when it or the devices changed."""

    def __init__(
        self,
        devices: Callable[[], Awaitable[discover.Devices]],
        *,
        max_age_s: float,
        deadline_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_devices = devices
        self._max_age_s = max_age_s
        self._deadline_s = deadline_s
        self._now = now
        self._devices = discover.Devices()
        self._due_s = 0.0
        self._known: dict[str, tuple[tuple[str, str], Needs]] = {}

    async def __call__(self, domain: DomainFull) -> Needs:
        """See Discover. Without an answer from the storage tools the last known devices stay."""
        if self._now() >= self._due_s:
            await self._refresh()
        texts = (domain.live_xml or domain.xml, domain.xml or domain.live_xml)
        known = self._known.get(domain.facts.uuid)
        if known is not None and known[0] == texts:
            return known[1]
        needs = needs_of(texts[0], self._devices, host_cpu_xml=domain.host_cpu_xml, inactive=texts[1])
        self._known[domain.facts.uuid] = (texts, needs)
        return needs

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                found = await self._read_devices()
        except (OutcomeError, TimeoutError) as error:
            log.warning("storage devices cannot be read", error=str(error) or "no answer")
        except Exception:  # a bug in a driver must not end the agent: the last known devices stay
            log.exception("storage devices cannot be read")
        else:
            self._devices = found
            self._known.clear()  # cheap to read again; and a domain that is gone must not stay
        self._due_s = self._now() + self._max_age_s


def needs_of(
    xml: str, devices: discover.Devices, *, host_cpu_xml: str = "", inactive: str | None = None
) -> Needs:
    """Pure: what a definition needs of a host that has these devices. Never raises.

    `inactive`: the definition that the next start takes, when it is another than `xml`, which runs.
    """
    found = discover.find(xml, devices)
    cold_blockers = found.cold_blockers
    if inactive is not None and inactive != xml:
        cold_blockers = _cold_blockers(found, discover.find(inactive, devices))
    try:
        root = read_xml(xml)
    except UnreadableXmlError:
        return Needs(blockers=found.blockers, cold_blockers=cold_blockers)
    return Needs(
        memory_bytes=domain_xml.memory_bytes(root),
        vcpus=domain_xml.vcpus(root),
        volumes=found.volumes,
        bridges=found.bridges,
        networks=found.networks,
        cpu_xml=cpu_question.of(root, host_cpu_xml),
        blockers=found.blockers,
        cold_blockers=cold_blockers,
    )


def _cold_blockers(live: discover.Found, next_start: discover.Found) -> tuple[str, ...]:
    """After a cold move the guest starts from its definition on disk: what that one opens must be what was
    proved to be the same on both hosts (I9), so the two may not differ in disks and networks."""
    differ = [
        word
        for word, here, there in (
            ("disks", live.volumes, next_start.volumes),
            ("bridges", live.bridges, next_start.bridges),
            ("networks", live.networks, next_start.networks),
        )
        if set(here) != set(there)
    ]
    if not differ:
        return next_start.cold_blockers
    reason = (
        f"its definition has other {' and '.join(differ)} than the running guest: compare virsh dumpxml "
        "with virsh dumpxml --inactive, and make them equal"
    )
    return (*next_start.cold_blockers, reason)


_TOOLS: tuple[tuple[str, Sequence[str], str], ...] = (
    ("drbd-utils", ("drbdadm", "--version"), r"DRBDADM_VERSION=(\S+)"),
    ("open-iscsi", ("iscsiadm", "--version"), r"version\s+(\S+)"),
)


async def tool_versions() -> dict[str, str]:
    """Versions of the storage tools; one that is missing or does not answer is left out."""
    found = {}
    for name, argv, pattern in _TOOLS:
        try:
            said = await run(argv, deadline_s=VERSION_DEADLINE_S)
        except OutcomeError:
            continue
        if match := re.search(pattern, said.stdout):
            found[name] = match[1]
    return found
