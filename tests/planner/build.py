"""Small clusters in a few words. Every default is harmless, so that a test states only what matters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agents.protocol import AnyVolume, DomainState
from migrd.model import Cluster, Facts, Guest, Host, HostState
from migrd.planner import Policy
from storage.words import DrbdVolume, Health, IscsiVolume, OtherVolume, Role, VolumeReport

MIB = 1 << 20
GIB = 1 << 30
CPU = "<cpu mode='custom'><model>qemu64</model></cpu>"
POLICY = Policy(memory_reserve_bytes=GIB, memory_reserve_ratio=0.0, bandwidth_bps=GIB, move_overhead_s=2.0)


def host(name: str, state: HostState = HostState.ONLINE, *, gib: int = 16, **more: object) -> Host:
    known: dict[str, object] = {
        "observed": state,
        "arch": "x86_64",
        "node": f"node-{name}",
        "boot_id": f"boot-{name}",
        "memory_total_bytes": gib * GIB,
        "memory_available_bytes": gib * GIB,
        "bridges": frozenset({"br0"}),
        "networks": frozenset({"default"}),
        "migration_uri": f"qemu+tls://{name}/system",
        "migration_address": f"tcp://{name}",
    }
    return Host(name=name, state=state, **{**known, **more})  # type: ignore[arg-type]


def guest(name: str, on: str, *, gib: float = 1, **more: object) -> Guest:
    known: dict[str, object] = {
        "uuid": f"uuid-{name}",
        "state": DomainState.RUNNING,
        "memory_bytes": int(gib * GIB),
        "bridges": ("br0",),
        "networks": ("default",),
        "cpu_xml": CPU,
    }
    return Guest(name=name, host=on, **{**known, **more})  # type: ignore[arg-type]


def cluster(hosts: Iterable[Host], guests: Iterable[Guest] = ()) -> Cluster:
    return Cluster(hosts={each.name: each for each in hosts}, guests=tuple(guests))


def three(*guests: Guest) -> Cluster:
    return cluster([host("h1"), host("h2"), host("h3")], guests)


def with_host(before: Cluster, changed: Host) -> Cluster:
    return replace(before, hosts={**before.hosts, changed.name: changed})


def drbd(name: str, *nodes: str) -> DrbdVolume:
    return DrbdVolume(resource=name, volume_nr=0, minor=1, nodes=nodes)


def lun(name: str) -> IscsiVolume:
    return IscsiVolume(
        portal="10.0.0.5:3260", iqn=f"iqn.2026-11.org.lab:{name}", lun=0, device=f"/dev/disk/by-path/{name}"
    )


def local(path: str) -> OtherVolume:
    return OtherVolume(path=path, reason=f"disk {path} is a local file of this host")


def report(volume: AnyVolume, role: Role, health: Health = Health.OK, **more: object) -> VolumeReport:
    return VolumeReport(volume=volume, role=role, health=health, identity="ID", size_bytes=GIB, **more)  # type: ignore[arg-type]


def replicated(before: Cluster, volume: DrbdVolume, primary: str, secondary: str) -> Cluster:
    """Both hosts report their healthy copy."""
    for name, role in ((primary, Role.PRIMARY), (secondary, Role.SECONDARY)):
        old = before.hosts[name]
        before = with_host(before, replace(old, volumes={**old.volumes, volume.name: report(volume, role)}))
    return before


def all_yes(of: Cluster) -> Facts:
    """Every host says yes, asked or not: no other guard hides behind a missing answer."""
    cpus = {each.cpu_xml for each in of.guests if each.cpu_xml}
    volumes = {volume.name for each in of.guests for volume in each.volumes}
    return Facts(
        cpu={(name, cpu): () for name in of.hosts for cpu in cpus},
        volume={(name, volume): () for name in of.hosts for volume in volumes},
    )


NOTHING_KNOWN = Facts(cpu={}, volume={})
