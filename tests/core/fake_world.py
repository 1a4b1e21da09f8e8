"""A small cluster that obeys physics and nothing else: machines, QEMU processes, DRBD and LUNs, BMCs.

It guards nothing that the core has to guard. Agents (fake_agent.py) carry out whatever they are told; after
every change `check()` compares the world with the invariants and remembers each violation. What real
hardware would refuse (two primaries without the flag, clearing it while both are primary) it refuses too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from agents.protocol import AnyVolume, CpuReport, DomainReport, DomainState, HostReport
from storage.words import DrbdVolume, Health, IscsiQemuVolume, IscsiVolume, Role, VolumeReport

GIB = 1 << 30
RUNS = (DomainState.RUNNING, DomainState.BLOCKED)


@dataclass
class Domain:
    state: DomainState
    process: bool
    job: bool = False
    ran: bool = False  # executed guest code on this host


@dataclass
class Held:
    """One volume as one host holds it."""

    volume: AnyVolume
    role: Role
    identity: str
    dual_primary: bool = False
    health: Health = Health.OK
    problems: tuple[str, ...] = ()
    size_bytes: int = GIB


@dataclass
class GuestSpec:
    uuid: str
    name: str
    volumes: tuple[AnyVolume, ...]
    memory_bytes: int = GIB
    blockers: tuple[str, ...] = ()
    cold_blockers: tuple[str, ...] = ()
    autostart: bool = False


@dataclass
class Machine:
    name: str
    node: str
    powered: bool = True
    agent: bool = True
    boot: int = 1
    libvirt_ok: bool = True
    memory_bytes: int = 64 * GIB
    domains: dict[str, Domain] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)


class World:
    """`window_allowed(uuid)`: does the journal hold an open window intent for the guest (I6)?"""

    def __init__(self, hosts: Collection[str] = ("h1", "h2", "h3")) -> None:
        self.machines = {name: Machine(name=name, node=f"{name}.lab") for name in hosts}
        self.guests: dict[str, GuestSpec] = {}
        self.violations: list[str] = []
        self.trace: list[str] = []
        self.consented: set[str] = set()
        self.excused: set[str] = set()  # guests that a fault of the story, not migrd, has stopped
        self.catch_up: Callable[[], None] = lambda: None  # read what is on disk by now
        self.window_allowed: Callable[[str], bool] = lambda _uuid: True
        self.copy_s = 2.0
        self.copying: dict[str, asyncio.Task[str]] = {}
        self.migration_error: dict[str, str] = {}  # guest -> libvirt's words, once the copy is over
        self.lie = ""  # an error that libvirt reports for migrations that have succeeded
        self.deaf: set[str] = set()  # guests that do not hear a request to shut down
        self.shutdown_s = 1.0
        self.boots_not_on: set[tuple[str, str]] = set()  # (guest, host): libvirt cannot start it there
        self.bmc_dead: set[str] = set()
        self.no_bmc: set[str] = set()
        self.epochs: dict[str, int] = {}  # host -> what its reports say that its agent obeys
        self.off_commands: list[str] = []
        self.away: set[str] = set()  # hosts whose replicas have left their peers in good order

    # -- building ---------------------------------------------------------------------------------

    def add_drbd(
        self, name: str, host: str, peer: str, *, identity: tuple[str, str] | None = None
    ) -> GuestSpec:
        number = len(self.guests) + 1
        nodes = (self.machines[host].node, self.machines[peer].node)
        volume = DrbdVolume(resource=f"r{number}", volume_nr=0, minor=number, nodes=nodes)
        ids = identity or (f"gi-{number}", f"gi-{number}")
        spec = self._add(name, host, (volume,))
        self.machines[host].held[volume.name] = Held(volume, Role.PRIMARY, ids[0])
        self.machines[peer].held[volume.name] = Held(volume, Role.SECONDARY, ids[1])
        return spec

    def add_iscsi(self, name: str, host: str, *, wrong_on: str = "") -> GuestSpec:
        number = len(self.guests) + 1
        volume = IscsiVolume(
            portal="10.0.0.5:3260",
            iqn=f"iqn.2026-11.org.lab:{name}",
            lun=0,
            device=f"/dev/disk/by-path/{name}",
        )
        spec = self._add(name, host, (volume,))
        for machine in self.machines.values():
            role = Role.ATTACHED if machine.name == host else Role.DETACHED
            identity = f"naa.{number:04d}" + ("bad" if machine.name == wrong_on else "")
            machine.held[volume.name] = Held(volume, role, identity)
        return spec

    def add_iscsi_qemu(self, name: str, host: str) -> GuestSpec:
        """QEMU logs in by itself; a host only has the credentials in place."""
        volume = IscsiQemuVolume(portal="10.0.0.5:3260", iqn=f"iqn.2026-11.org.lab:{name}", lun=0)
        spec = self._add(name, host, (volume,))
        for machine in self.machines.values():
            role = Role.ATTACHED if machine.name == host else Role.DETACHED
            machine.held[volume.name] = Held(volume, role, f"naa.{len(self.guests):04d}")
        return spec

    def _add(self, name: str, host: str, volumes: tuple[AnyVolume, ...]) -> GuestSpec:
        uuid = f"00000000-0000-0000-0000-{len(self.guests) + 1:012d}"
        spec = self.guests[uuid] = GuestSpec(uuid=uuid, name=name, volumes=volumes)
        self.machines[host].domains[uuid] = Domain(DomainState.RUNNING, process=True, ran=True)
        return spec

    def shut_off(self, name: str, *, held: bool = False) -> str:
        """The guest was never running in this story: defined, and its storage at rest unless `held`."""
        spec = next(spec for spec in self.guests.values() if spec.name == name)
        self.excused.add(spec.uuid)
        for machine in self.machines.values():
            if spec.uuid in machine.domains:
                machine.domains[spec.uuid] = Domain(DomainState.SHUTOFF, process=False)
            for volume in spec.volumes if not held else ():
                if volume.name in machine.held:
                    machine.held[volume.name].role = _at_rest(volume)
        return spec.uuid

    # -- what is where ----------------------------------------------------------------------------

    def where(self, name: str) -> list[str]:
        """Hosts on which the guest executes."""
        uuid = next(spec.uuid for spec in self.guests.values() if spec.name == name)
        return [m.name for m in self.machines.values() if uuid in m.domains and m.domains[uuid].state in RUNS]

    def defined(self, name: str) -> list[str]:
        """Hosts that have a definition of the guest, running or not."""
        uuid = next(spec.uuid for spec in self.guests.values() if spec.name == name)
        return [m.name for m in self.machines.values() if uuid in m.domains]

    def leftovers(self) -> list[str]:
        """All that a finished operation must not leave behind."""
        found = []
        for machine in self.machines.values():
            for held in machine.held.values():
                if held.dual_primary:
                    found.append(f"{held.volume.name}: flag set on {machine.name}")
            for uuid, domain in machine.domains.items():
                if domain.state not in (*RUNS, DomainState.SHUTOFF) or domain.job:
                    found.append(f"{self.guests[uuid].name} is {domain.state} on {machine.name}")
        for spec in self.guests.values():
            for volume in spec.volumes:
                if isinstance(volume, IscsiQemuVolume):
                    continue  # the secret stays: it is the host's, not the guest's
                holders = [
                    m.name
                    for m in self.machines.values()
                    if volume.name in m.held and m.held[volume.name].role in (Role.PRIMARY, Role.ATTACHED)
                ]
                if sorted(holders) != sorted(self.where(spec.name)):
                    found.append(
                        f"{volume.name} is held by {holders}, its guest runs on {self.where(spec.name)}"
                    )
        return found

    def report(self, host: str) -> HostReport:
        machine = self.machines[host]
        return HostReport(
            protocol=1,
            host=host,
            node=machine.node,
            boot_id=f"{host}-{machine.boot}",
            epoch=self.epochs.get(host, 0),
            agent_version="fake",
            versions={},
            libvirt_ok=machine.libvirt_ok,
            problems=(),
            cpu=CpuReport(arch="x86_64", threads=8, model="fake", host_xml=""),
            memory_total_bytes=machine.memory_bytes,
            memory_available_bytes=machine.memory_bytes
            - sum(self.guests[uuid].memory_bytes for uuid, d in machine.domains.items() if d.process),
            bridges=("br0",),
            networks=(),
            domains=tuple(self._domain(uuid, domain) for uuid, domain in sorted(machine.domains.items())),
            volumes=tuple(self.volume(host, held.volume) for held in machine.held.values()),
            migration_uri=f"qemu+tls://{host}/system",
            migration_address=f"tcp://{host}",
            observed_s=asyncio.get_running_loop().time(),
        )

    def _domain(self, uuid: str, domain: Domain) -> DomainReport:
        spec = self.guests[uuid]
        return DomainReport(
            uuid=uuid,
            name=spec.name,
            state=domain.state,
            reason="unknown",
            memory_bytes=spec.memory_bytes,
            vcpus=1,
            persistent=True,
            autostart=spec.autostart,
            volumes=spec.volumes,
            bridges=("br0",),
            networks=(),
            cpu_xml='<cpu mode="custom"/>',
            blockers=spec.blockers,
            cold_blockers=spec.cold_blockers,
            job=domain.job,
        )

    def volume(self, host: str, volume: AnyVolume) -> VolumeReport:
        held = self.machines[host].held[volume.name]
        peer = self._peer(host, volume)
        health, problems = held.health, held.problems
        if isinstance(volume, DrbdVolume) and peer is None:
            health, problems = Health.DEGRADED, ("the peer is not connected",)
        return VolumeReport(
            volume=volume,
            role=held.role,
            health=health,
            identity=held.identity or None,
            size_bytes=held.size_bytes,
            dual_primary_allowed=held.dual_primary,
            peer_role=peer.role if peer is not None else Role.UNKNOWN,
            sole_current_copy=isinstance(volume, DrbdVolume) and peer is None,
            problems=problems,
        )

    def _peer(self, host: str, volume: AnyVolume) -> Held | None:
        for machine in self.machines.values():
            if machine.name != host and machine.powered and volume.name in machine.held:
                return machine.held[volume.name]
        return None

    # -- physics ----------------------------------------------------------------------------------

    def promote(self, host: str, volume: AnyVolume) -> str:
        """'' or why the kernel refuses."""
        held, peer = self.machines[host].held[volume.name], self._peer(host, volume)
        if isinstance(volume, DrbdVolume):
            if (
                peer is not None
                and peer.role is Role.PRIMARY
                and not (held.dual_primary and peer.dual_primary)
            ):
                return "State change failed: Multiple primaries not allowed by config"
            held.role = Role.PRIMARY
        else:
            held.role = Role.ATTACHED
        self.check(f"{host} holds {volume.name}")
        return ""

    def let_go(self, host: str, volume: AnyVolume) -> None:
        held = self.machines[host].held[volume.name]
        held.role = _at_rest(volume)
        self.check(f"{host} lets go of {volume.name}")

    async def move_definition(self, uuid: str, source: str, target: str) -> str:
        """libvirt's offline migration: the target defines first, the source undefines last. '' = success."""
        here, there = self.machines[source], self.machines[target]
        if not there.powered:
            return "failed to connect to remote libvirt uri"
        if uuid in there.domains and there.domains[uuid].process:
            return "domain is active on the target"
        there.domains[uuid] = Domain(DomainState.SHUTOFF, process=False)
        self.check(f"{self.guests[uuid].name} is defined on {target}")
        await asyncio.sleep(0.05)
        if not there.powered or not here.powered:
            return "the connection broke"
        here.domains.pop(uuid, None)
        self.check(f"{self.guests[uuid].name} is undefined on {source}")
        return ""

    def start_guest(self, host: str, uuid: str) -> str:
        """'' or why libvirt cannot."""
        spec, machine = self.guests[uuid], self.machines[host]
        if (spec.name, host) in self.boots_not_on:
            return "the CPU is incompatible with host CPU"
        for volume in spec.volumes:
            if machine.held[volume.name].role not in (Role.PRIMARY, Role.ATTACHED):
                return f"could not open {volume.name}"
        for other in self.machines.values():
            self._other_disk(spec, other, machine)
            if other.name != host and uuid in other.domains:
                self.violate(f"I1: {spec.name} is started on {host}, and {other.name} defines it too")
        machine.domains[uuid] = Domain(DomainState.RUNNING, process=True, ran=True)
        self.check(f"{spec.name} is started on {host}")
        return ""

    def _other_disk(self, spec: GuestSpec, other: Machine, machine: Machine) -> None:
        for volume in spec.volumes:
            theirs, ours = other.held.get(volume.name), machine.held[volume.name]
            taken = theirs is not None and theirs.role in (Role.PRIMARY, Role.ATTACHED)
            if theirs is not None and taken and theirs.identity != ours.identity:
                self.violate(f"I9: {spec.name} starts on {machine.name} from another disk")

    def stop_guest(self, host: str, uuid: str) -> None:
        """The guest has powered itself off; its storage stays as it is."""
        self.machines[host].domains[uuid] = Domain(DomainState.SHUTOFF, process=False)
        self.check(f"{self.guests[uuid].name} is shut off on {host}")

    def allow_two(self, host: str, volume: AnyVolume, *, allowed: bool) -> str:
        held, peer = self.machines[host].held[volume.name], self._peer(host, volume)
        if not allowed and peer is not None and peer.role is held.role is Role.PRIMARY:
            return "both are primary"
        held.dual_primary = allowed
        self.check(f"{host} sets two primaries of {volume.name} to {allowed}")
        return ""

    async def migrate(self, uuid: str, source: str, target: str) -> str:
        """libvirt's peer-to-peer migration: goes on whatever happens to agents and daemon. '' = success."""
        here, there = self.machines[source], self.machines[target]
        domain = here.domains[uuid]
        domain.job = True
        try:
            spec = self.guests[uuid]
            for volume in spec.volumes:
                if there.held[volume.name].role not in (Role.PRIMARY, Role.ATTACHED):
                    return f"could not open {volume.name} on {target}"
            there.domains[uuid] = Domain(DomainState.PAUSED_INCOMING, process=True)
            self._same_disks(spec, here, there)
            self.check(f"{spec.name} copies from {source} to {target}")
            await asyncio.sleep(self.copy_s)
            if not there.powered or uuid not in there.domains:
                return "connection to the target was lost"
            if uuid in self.migration_error:
                del there.domains[uuid]
                return self.migration_error.pop(uuid)
            domain.state = DomainState.PAUSED
            self.check(f"{spec.name} switches over")
            await asyncio.sleep(0.1)
            there.domains[uuid] = Domain(DomainState.RUNNING, process=True, ran=True)
            self.check(f"{spec.name} runs on {target}")
            await asyncio.sleep(0.3)  # the source's QEMU takes its time to go
            del here.domains[uuid]
            self.check(f"{spec.name} is gone from {source}")
            return self.lie  # noqa: TRY300 - the finally clause belongs to all of it
        except asyncio.CancelledError:
            if uuid in there.domains and there.domains[uuid].state is DomainState.PAUSED_INCOMING:
                del there.domains[uuid]
            if domain.state is DomainState.PAUSED:
                domain.state = DomainState.RUNNING
            raise
        finally:
            domain.job = False

    def _same_disks(self, spec: GuestSpec, here: Machine, there: Machine) -> None:
        for volume in spec.volumes:
            if here.held[volume.name].identity != there.held[volume.name].identity:
                self.violate(f"I9: {spec.name} opens another disk on {there.name}")

    def cut(self, host: str, *, with_bmc: bool = False) -> None:
        """Power loss: every process ends at once, runtime options of DRBD are gone; the BMC too, or not."""
        machine = self.machines[host]
        if with_bmc:
            self.bmc_dead.add(host)
        for uuid, domain in machine.domains.items():
            if domain.state in RUNS:
                self.excused.add(uuid)
            copying = self.copying.get(uuid)
            if copying is not None and domain.ran and not copying.done():
                copying.cancel()
        machine.powered = machine.agent = False
        machine.domains = {
            u: Domain(DomainState.SHUTOFF, process=False)
            for u, d in machine.domains.items()
            if d.ran or d.state is DomainState.SHUTOFF
        }
        for held in machine.held.values():
            held.dual_primary = False
            held.role = _at_rest(held.volume)
        self.check(f"{host} loses power")

    def power_on(self, host: str) -> None:
        machine = self.machines[host]
        self.bmc_dead.discard(host)
        self.away.discard(host)
        if not machine.powered:
            machine.powered = machine.agent = True
            machine.boot += 1
        self.trace.append(f"{host} has power")

    # -- invariants -------------------------------------------------------------------------------

    def violate(self, what: str) -> None:
        self.violations.append(what)

    def check(self, event: str) -> None:
        """Compare the whole world with the invariants. Called after every change."""
        self.trace.append(event)
        self.catch_up()
        for uuid, spec in self.guests.items():
            running = self.where(spec.name)
            if len(running) > 1:
                self.violate(f"I1: {spec.name} runs on {running} ({event})")
            alive = [
                m.domains[uuid] for m in self.machines.values() if uuid in m.domains and m.domains[uuid].ran
            ]
            if not any(d.process for d in alive) and uuid not in self.excused | self.consented:
                self.violate(f"I5: {spec.name} runs nowhere ({event})")
        for machine in self.machines.values():
            self._check_disks(machine, event)

    def _check_disks(self, machine: Machine, event: str) -> None:
        for uuid, domain in machine.domains.items():
            for volume in self.guests[uuid].volumes:
                held = machine.held.get(volume.name)
                if domain.process and (held is None or held.role not in (Role.PRIMARY, Role.ATTACHED)):
                    self.violate(f"I11: a QEMU on {machine.name} lost {volume.name} ({event})")
        for held in machine.held.values():
            owner = next(
                s for s in self.guests.values() if any(v.name == held.volume.name for v in s.volumes)
            )
            if held.dual_primary and not self.window_allowed(owner.uuid):
                self.violate(
                    f"I6: {held.volume.name} on {machine.name} outside of a journalled window ({event})"
                )


def _at_rest(volume: AnyVolume) -> Role:
    return Role.SECONDARY if isinstance(volume, DrbdVolume) else Role.DETACHED
