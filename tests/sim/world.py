"""The hardware: machines with power, QEMU processes, DRBD resources, LUNs, links, BMCs.

It guards nothing that migrd has to guard, and refuses only what kernel, libvirt or BMC refuse. Every change
goes through `changed`, which notes it and has the invariants checked. Nothing here belongs to a simulated
process: a migration goes on when agents and daemon die.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field

from agents.protocol import AnyVolume, DomainState, MigrationProgress
from storage.words import DrbdVolume, IscsiQemuVolume, IscsiVolume, Role
from tests.sim.drbd import Replica, Resource
from tests.sim.trace import Trace

GIB = 1 << 30
EXECUTES = (DomainState.RUNNING, DomainState.BLOCKED)
LAST_POLL_S = 1.0  # the agent looks at the replication every half second, and the look takes time
RECONNECT_S = (0.3, 2.0)
FOLLOWS_S = (0.2, 3.0)  # from the power button to the guest's end
LATE_S = (20.0, 280.0)
BOOT_GUEST_S = (0.1, 1.0)  # until QEMU executes it
LETS_GO_S = 0.5  # from the look for openers to the logout, at most
RESYNC_S = (1.0, 6.0)
BOOT_S = (4.0, 12.0)
AUTOSTARTS_AFTER_S = 0.5


@dataclass
class Domain:
    """A libvirt domain on one host. `ran`: its QEMU has executed the guest here."""

    state: DomainState
    reason: str
    process: bool
    persistent: bool = True
    ran: bool = False
    job: str = ""  # "out", "in"
    progress: MigrationProgress = field(default_factory=MigrationProgress)


@dataclass
class Cold:
    """Guests that move cold, as the journal on disk has it: that is the operator's consent (I5)."""

    asked: set[str] = field(default_factory=set)  # a shutdown of theirs was issued once
    down: set[str] = field(default_factory=set)  # ... by a move that has not ended: they may be down
    going: set[str] = field(default_factory=set)  # ... and its end is not known yet


@dataclass(frozen=True)
class Guest:
    uuid: str
    name: str
    volumes: tuple[AnyVolume, ...]
    memory_bytes: int = GIB


@dataclass
class Machine:
    name: str
    node: str
    memory_bytes: int
    powered: bool = True
    booted: bool = True  # its operating system is up
    boot: int = 1
    libvirt_up: bool = True
    libvirt_since_s: float = 0.0  # when it came up last
    libvirt_lives: int = 0  # how often it came up
    domains: dict[str, Domain] = field(default_factory=dict)
    ending: set[str] = field(
        default_factory=set
    )  # guests whose QEMU libvirt has forgotten and the kernel not
    sessions: set[str] = field(default_factory=set)  # iSCSI LUNs by volume name
    unheard_aborts: int = 0  # on their way to its libvirt
    heard_abort_s: float = 0.0
    bmc: str = ""  # "", "dead", "garbage", "deaf" (accepts, does nothing), "slow"
    listeners: list[Callable[[str | None], None]] = field(default_factory=list)  # libvirt's events

    def has_process(self, uuid: str) -> bool:
        domain = self.domains.get(uuid)
        return uuid in self.ending or (domain is not None and domain.process)


class World:
    """`check` is called after every change, with nothing running in between."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: random.Random, trace: Trace) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.machines: dict[str, Machine] = {}
        self.guests: dict[str, Guest] = {}
        self.resources: dict[str, Resource] = {}
        self.wrong_lun: set[tuple[str, str]] = set()  # (host, volume): the name opens another LUN there
        self.no_login: dict[tuple[str, str], str] = {}  # (host, volume): "chap" is final, "down" may pass
        self.cut_links: set[frozenset[str]] = set()
        self.excused: set[str] = set()  # guests that a fault, not migrd, has stopped
        self.consented: set[str] = set()  # guests that an operator allowed to be stopped
        self.cold = Cold()
        self.off: set[str] = set()  # guests that are shut off, and are to stay so
        self.deaf: dict[
            str, str
        ] = {}  # guests and what they do when asked to shut down: "once", "never", "late"
        self.boot_s = BOOT_GUEST_S
        self.slow_talk_s: dict[str, float] = {}  # guests and how long each answer takes while they move cold
        self.will_stop: set[str] = set()  # guests that were asked, and have yet to follow
        self._letting_go: dict[tuple[str, str], float] = {}  # (host, volume): since when
        self.autostart: set[str] = set()  # guests that libvirtd starts with a host on which they are defined
        self.boots_not: set[tuple[str, str]] = set()  # (host, guest): its start fails there
        self.auto_demote = True  # DRBD 9: the last close demotes; False, DRBD 8.4: a primary stays one
        self.twice: set[str] = set()  # guests that libvirt itself has let run on two hosts
        self.restarted: set[str] = set()  # of those, the ones that somebody has started again since
        self.check: Callable[[str], None] = lambda _what: None
        self.on_power: Callable[[str, bool], None] = lambda _host, _up: None  # its OS is up / all is gone
        self.link_changed: Callable[[], None] = lambda: None
        self.on_cold_act: Callable[[str, str, str], None] = lambda _what, _host, _uuid: None
        self.libvirtd_dies: Callable[[str], None] = lambda _host: None  # kill -9, and systemd restarts it
        self.watched_since: Callable[[str], float] = lambda _host: 0.0  # how long its agent has been at work
        self.led_since: Callable[[str, str], float] = lambda _source, _target: 0.0  # see Sim
        self._context = Context()
        self._generation = 1
        self._volumes = 0

    # -- building --------------------------------------------------------------------------------

    def add_machine(self, name: str, memory_bytes: int = 16 * GIB) -> Machine:
        machine = self.machines[name] = Machine(name=name, node=f"{name}.sim", memory_bytes=memory_bytes)
        return machine

    def add_drbd(self, name: str, host: str, peer: str, memory_bytes: int = GIB) -> Guest:
        return self.add_guest(name, host, ("drbd",), peer=peer, memory_bytes=memory_bytes)

    def add_iscsi(self, name: str, host: str, memory_bytes: int = GIB) -> Guest:
        return self.add_guest(name, host, ("iscsi",), memory_bytes=memory_bytes)

    def add_iscsi_qemu(self, name: str, host: str, memory_bytes: int = GIB) -> Guest:
        return self.add_guest(name, host, ("iscsi-qemu",), memory_bytes=memory_bytes)

    def add_guest(
        self, name: str, host: str, kinds: Sequence[str], *, peer: str = "", memory_bytes: int = GIB
    ) -> Guest:
        """A running guest with one volume of each of `kinds`; `peer` holds the other copy of DRBD ones."""
        volumes = tuple(self._volume(kind, host, peer) for kind in kinds)
        uuid = f"00000000-0000-4000-8000-{len(self.guests) + 1:012d}"
        guest = self.guests[uuid] = Guest(uuid=uuid, name=name, volumes=volumes, memory_bytes=memory_bytes)
        domain = Domain(DomainState.RUNNING, "booted", process=True, ran=True)
        self.machines[host].domains[uuid] = domain
        return guest

    def _volume(self, kind: str, host: str, peer: str) -> AnyVolume:
        self._volumes += 1
        number = self._volumes
        iqn, portal = f"iqn.2026-11.sim:{number}", "10.0.0.5:3260"
        match kind:
            case "drbd":
                nodes = (self.machines[host].node, self.machines[peer].node)
                volume = DrbdVolume(resource=f"r{number}", volume_nr=0, minor=number, nodes=nodes)
                resource = Resource(volume=volume, replicas={h: Replica(host=h) for h in (host, peer)})
                resource.mine(host).role = Role.PRIMARY
                self.resources[volume.name] = resource
                return volume
            case "iscsi":
                device = f"/dev/disk/by-path/sim-{number}"
                lun = IscsiVolume(portal=portal, iqn=iqn, lun=0, device=device)
                self.machines[host].sessions.add(lun.name)
                return lun
            case _:
                return IscsiQemuVolume(portal=portal, iqn=iqn, lun=0)

    def shut_off(self, name: str, *, held: bool = False) -> None:
        """The guest does not run when the story begins. `held`: its host has its disks all the same."""
        guest = self.guest(name)
        self.off.add(guest.uuid)
        for machine in self.machines.values():
            if guest.uuid in machine.domains:
                machine.domains[guest.uuid] = Domain(DomainState.SHUTOFF, "unknown", process=False)
            if not held:
                machine.sessions -= {volume.name for volume in guest.volumes}
        for volume in guest.volumes:
            if isinstance(volume, DrbdVolume) and (self.auto_demote or not held):
                for replica in self.resources[volume.name].replicas.values():
                    replica.role = Role.SECONDARY

    def wrong_disk(self, host: str, guest: Guest) -> None:
        """On this host the names of the guest's disks open other disks (I9)."""
        for volume in guest.volumes:
            if isinstance(volume, DrbdVolume):
                self.resources[volume.name].identity[host] = f"another disk than {volume.name}"
            else:
                self.wrong_lun.add((host, volume.name))

    # -- queries ---------------------------------------------------------------------------------

    def guest(self, name: str) -> Guest:
        return next(guest for guest in self.guests.values() if name in (guest.name, guest.uuid))

    def where(self, name: str) -> list[str]:
        """Hosts on which the guest executes."""
        uuid = self.guest(name).uuid
        return [m.name for m in self.machines.values() if self.executes(m, uuid)]

    def defined(self, name: str) -> list[str]:
        """Hosts whose libvirt knows the guest, running or not."""
        uuid = self.guest(name).uuid
        return [m.name for m in self.machines.values() if uuid in m.domains]

    @staticmethod
    def executes(machine: Machine, uuid: str) -> bool:
        domain = machine.domains.get(uuid)
        return domain is not None and domain.process and domain.state in EXECUTES

    def holds(self, host: str, volume: AnyVolume) -> bool:
        """Could a QEMU on this host write to the volume?"""
        match volume:
            case DrbdVolume():
                resource = self.resources[volume.name]
                return host in resource.replicas and resource.mine(host).role is Role.PRIMARY
            case IscsiVolume():
                return volume.name in self.machines[host].sessions
            case _:
                return (host, volume.name) not in self.no_login

    def identity(self, host: str, volume: AnyVolume) -> str:
        """What a QEMU on this host would open."""
        if isinstance(volume, DrbdVolume):
            resource = self.resources[volume.name]
            return resource.identity.get(host, volume.name)
        return f"naa.{volume.name}" + ("-other" if (host, volume.name) in self.wrong_lun else "")

    def linked(self, one: str, other: str) -> bool:
        """Do both have power, and does the network between them work?"""
        powered = self.machines[one].powered and self.machines[other].powered
        return powered and frozenset((one, other)) not in self.cut_links

    def lost_writes(self, uuid: str, *, left: str, on: str) -> list[str]:
        """DRBD resources of the guest whose copy on `left` has writes that the one on `on` lacks."""
        found = []
        for volume in self.guests[uuid].volumes:
            resource = self.resources.get(volume.name)
            if resource is None or not {left, on} <= set(resource.replicas):
                continue
            mine, other = resource.mine(on), resource.mine(left)
            if other.generation not in (mine.generation, *mine.older):
                found.append(resource.name)
        return found

    def owner(self, volume_name: str) -> Guest:
        return next(g for g in self.guests.values() if any(v.name == volume_name for v in g.volumes))

    # -- changing --------------------------------------------------------------------------------

    def changed(self, subject: str, what: str, *, uuid: str = "") -> None:
        """Something is different now: note it, check everything, let libvirt tell its listeners."""
        self.trace.note("world", subject, what)
        self.check(f"{subject}: {what}")
        machine = self.machines.get(subject)
        if uuid and machine is not None and machine.libvirt_up:
            for listener in list(machine.listeners):
                listener(uuid)

    def between(self, bounds: tuple[float, float]) -> float:
        return self.rng.uniform(*bounds)

    def later(self, delay_s: float, what: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """A thing of the world: it happens whoever has died."""
        return self.loop.call_later(delay_s, lambda: what(*args), context=self._context)

    # -- domains ---------------------------------------------------------------------------------

    def touched(self, host: str, uuid: str, what: str) -> None:
        """An agent acts on the guest. Of one that runs twice nobody but a person knows which is right."""
        if uuid in self.twice:
            self.trace.violate("I1", f"{self.guests[uuid].name} runs twice, and {host} does: {what}")

    def end_wrong_one_by_hand(self, host: str, uuid: str) -> None:
        """`virsh destroy` of the instance that a person takes for the wrong one."""
        if uuid in self.twice:
            self.end_process(host, uuid, keep=True, reason="destroyed")

    def end_process(self, host: str, uuid: str, *, keep: bool, reason: str = "shutdown") -> None:
        """QEMU gets its end; the kernel reaps it a moment later. `keep`: the definition stays."""
        machine = self.machines[host]
        domain = machine.domains.pop(uuid)
        if keep:
            machine.domains[uuid] = Domain(DomainState.SHUTOFF, reason, process=False, ran=domain.ran)
        self.twice.discard(uuid)
        if domain.process:
            machine.ending.add(uuid)
            self.later(self.between((0.0, 0.4)), self._reaped, host, uuid, keep)
        self.changed(host, f"QEMU of {self.guests[uuid].name} ends ({reason})", uuid=uuid)
        if keep:
            self.link_changed()  # a migration of it has nothing left to send

    def _reaped(self, host: str, uuid: str, stopped: bool) -> None:
        machine = self.machines[host]
        if uuid not in machine.ending:
            return
        machine.ending.discard(uuid)
        if stopped:
            self._closed(host, uuid)
        self.changed(host, f"QEMU of {self.guests[uuid].name} is gone", uuid=uuid)

    def ask_to_stop(self, host: str, uuid: str) -> None:
        """ACPI: the guest shuts down by itself, some time later."""
        domain = self.machines[host].domains[uuid]
        domain.state, domain.reason = DomainState.SHUTDOWN, "user"
        self.restarted.discard(uuid)
        self.changed(host, f"{self.guests[uuid].name} begins to shut down", uuid=uuid)
        self.later(self.between((0.5, 4.0)), self._stopped, host, uuid)

    def may_be_down(self, uuid: str) -> bool:
        """By consent, or because a fault of the story has stopped it."""
        if uuid in self.excused | self.off | self.cold.down:
            return True
        return uuid in self.consented and uuid not in self.restarted

    def runs_again(self, uuid: str) -> None:
        """It was started: from now on nothing of the past excuses that it is down."""
        self.excused.discard(uuid)
        self.off.discard(uuid)
        self.restarted.add(uuid)

    def press_power_button(self, host: str, uuid: str) -> None:
        """ACPI as it is: to libvirt the guest just runs until it has followed, if it does.

        Followed late, or asked by a request that came late, it may go down when nobody expects it any more; a
        person starts it then, as the operation's last words say.
        """
        late = uuid not in self.cold.going
        self.changed(host, f"the power button of {self.guests[uuid].name} is pressed", uuid=uuid)
        match self.deaf.get(uuid, ""):
            case "never":
                return
            case "once":
                del self.deaf[uuid]
            case "late" if uuid not in self.will_stop:
                self._will_stop(host, uuid, self.between(LATE_S), late=True)
            case _ if uuid not in self.will_stop:
                self._will_stop(host, uuid, self.between(FOLLOWS_S), late=late)

    def _will_stop(self, host: str, uuid: str, after_s: float, *, late: bool) -> None:
        self.will_stop.add(uuid)
        self.later(after_s, self._follows, host, uuid, late)

    def _follows(self, host: str, uuid: str, late: bool) -> None:
        self.will_stop.discard(uuid)
        domain = self.machines[host].domains.get(uuid)
        if domain is None or domain.state not in (DomainState.RUNNING, DomainState.PAUSED):
            return
        if domain.state is DomainState.PAUSED:
            self._will_stop(host, uuid, 1.0, late=True)  # suspended, or on its way to another host
            return
        self.restarted.discard(uuid)
        if late:
            self.excused.add(uuid)
        domain.state, domain.reason = DomainState.SHUTDOWN, "user"
        self.changed(host, f"{self.guests[uuid].name} shuts down", uuid=uuid)
        self.later(self.between((0.05, 1.0)), self._stopped, host, uuid)

    def _stopped(self, host: str, uuid: str) -> None:
        domain = self.machines[host].domains.get(uuid)
        if domain is not None and domain.process and domain.state is DomainState.SHUTDOWN:
            self.end_process(host, uuid, keep=True)

    def _closed(self, host: str, uuid: str) -> None:
        """The last opener of a DRBD device is gone: auto-promote's counterpart demotes it."""
        for volume in self.guests[uuid].volumes:
            if isinstance(volume, DrbdVolume) and self.auto_demote:
                self.resources[volume.name].mine(host).role = Role.SECONDARY

    def start_by_hand(self, host: str, uuid: str) -> None:
        """`virsh start` by an operator, with the disk work that goes before."""
        machine = self.machines[host]
        for volume in self.guests[uuid].volumes:
            if isinstance(volume, IscsiVolume):
                machine.sessions.add(volume.name)
            elif isinstance(volume, DrbdVolume):
                refused = self.resources[volume.name].promote(host)
                assert not refused, refused
        machine.domains[uuid] = Domain(DomainState.RUNNING, "booted", process=True, ran=True)
        self.begins_to_execute(host, uuid)
        self.runs_again(uuid)
        self.changed(host, f"{self.guests[uuid].name} is started by hand", uuid=uuid)

    def lets_go(self, host: str, volume: AnyVolume) -> None:
        """A logout begins with a look. Who opens the disk after it loses it: the kernel holds no LUN."""
        self._letting_go[host, volume.name] = self.loop.time()

    def openable(self, machine: Machine, uuid: str) -> bool:
        """Would a careful person start it here, with the disk work that goes before?"""
        for volume in self.guests[uuid].volumes:
            here = (machine.name, volume.name)
            if here in self.wrong_lun or here in self.no_login:
                return False
            if self.loop.time() - self._letting_go.get(here, -LETS_GO_S) < LETS_GO_S:
                return False
            if isinstance(volume, DrbdVolume):
                resource = self.resources[volume.name]
                if machine.name not in resource.replicas or machine.name in resource.identity:
                    return False
                mine, peer = resource.mine(machine.name), resource.peer(machine.name)
                free = resource.connected and peer.role is not Role.PRIMARY
                if not mine.up or not free or not resource.current(machine.name):
                    return False
        return True

    def begins_to_execute(self, host: str, uuid: str, *, paused_s: float | None = None) -> None:
        """From now on the guest writes here. `paused_s`: when it paused elsewhere, on the loop's clock."""
        left_s = self.loop.time() if paused_s is None else paused_s
        for volume in self.guests[uuid].volumes:
            resource = self.resources.get(volume.name)
            if resource is None:
                continue
            if not resource.connected and 0.0 <= left_s - resource.lost_s < LAST_POLL_S:
                resource.forked = True  # it broke between the watch's last look and the switch-over
            if not resource.connected:
                self._generation += 1
                resource.wrote_alone(host, self._generation)

    # -- DRBD links ------------------------------------------------------------------------------

    def drop_link(self, resource: Resource, why: str) -> None:
        """Replication breaks off; whoever executes goes on writing alone."""
        if not resource.connected:
            return
        resource.disconnect(self.loop.time())
        resource.forked |= self.owner(resource.name).uuid in self.twice
        for host in resource.replicas:
            if self.executes(self.machines[host], self.owner(resource.name).uuid):
                self._generation += 1
                resource.wrote_alone(host, self._generation)
        self.changed(resource.name, f"disconnected: {why}")

    def try_connect(self, resource: Resource) -> None:
        """Both ends try until it works; called whenever an obstacle has gone."""
        first, second = resource.replicas.values()
        ready = first.up and second.up and self.linked(first.host, second.host)
        if resource.connected or not ready:
            return
        trouble = resource.connect()
        if trouble.startswith("Split-Brain") and not resource.forked:
            self.trace.violate("I8", f"{resource.name}: split brain")
        self.changed(resource.name, trouble or ("connected, resync" if resource.syncing else "connected"))
        if resource.syncing:
            self.later(self.between(RESYNC_S), self._resynced, resource)

    def _resynced(self, resource: Resource) -> None:
        if resource.connected and resource.syncing:
            resource.synced()
            self.changed(resource.name, "in sync")

    def reconnect_all(self) -> None:
        for resource in self.resources.values():
            if not resource.connected:
                self.later(self.between(RECONNECT_S), self.try_connect, resource)

    # -- links and power -------------------------------------------------------------------------

    def drop_replication(self, host: str) -> None:
        """DRBD's ping times out after half a second; TCP, and with it the memory stream, outlasts that."""
        self.trace.note("fault", host, "replication stutters")
        for resource in self.resources.values():
            if host in resource.replicas and resource.connected:
                self.drop_link(resource, "ping timeout")
                self.later(self.between(RECONNECT_S), self.try_connect, resource)

    def cut_replication(self, one: str, other: str) -> None:
        """The link carries memory, and DRBD no longer connects: a firewall rule, a full resync queue."""
        for resource in self.resources.values():
            if set(resource.replicas) == {one, other}:
                self.drop_link(resource, "replication is cut")

    def undefine_by_hand(self, host: str, uuid: str) -> None:
        """`virsh undefine` of what is shut off there."""
        found = self.machines[host].domains.get(uuid)
        if found is not None and found.state is DomainState.SHUTOFF:
            del self.machines[host].domains[uuid]
            self.changed(host, f"{self.guests[uuid].name} is undefined by hand", uuid=uuid)

    def window_by_hand(self, name: str) -> None:
        """`drbdadm net-options --allow-two-primaries=yes` by an operator, on both nodes."""
        for volume in self.guest(name).volumes:
            resource = self.resources.get(volume.name)
            if resource is None or not resource.connected or any(r.flag for r in resource.replicas.values()):
                continue
            resource.by_hand = True
            for replica in resource.replicas.values():
                replica.flag = True
            self.changed(resource.name, "two primaries are allowed by hand")

    def no_windows_by_hand(self) -> None:
        for resource in self.resources.values():
            if resource.by_hand:
                for replica in resource.replicas.values():
                    replica.flag = False
                resource.by_hand = False
                self.changed(resource.name, "two primaries are disallowed by hand")

    def adjust_by_hand(self, resource: Resource) -> None:
        """`drbdadm adjust`, and `drbdadm secondary` where nobody has it open, while it is not connected.

        Of a split brain the operator keeps the copy that the guest runs on, or was written last if it runs
        nowhere; the other one is discarded.
        """
        if resource.connected:
            return
        uuid = self.owner(resource.name).uuid
        runs = [host for host in resource.replicas if self.machines[host].has_process(uuid)]
        newest = max(resource.replicas.values(), key=lambda replica: replica.generation)
        for host, replica in resource.replicas.items():
            replica.flag = False
            if host in runs:
                continue
            replica.role = Role.SECONDARY
            peer = resource.peer(host)
            if peer.host in runs or (not runs and peer is newest):
                peer.older |= replica.older | ({replica.generation} - {peer.generation})
        self.changed(resource.name, "is adjusted by hand")

    def connect_by_hand(self, resource: Resource) -> None:
        """`drbdadm connect` on both nodes."""
        for replica in resource.replicas.values():
            replica.standalone = False
        self.try_connect(resource)

    def stops_by_itself(self, name: str) -> None:
        """Somebody in the guest says `poweroff`."""
        guest = self.guest(name)
        for host in self.where(name):
            if self.machines[host].domains[guest.uuid].state is DomainState.RUNNING:
                self.trace.note("fault", name, "shuts down from within")
                self.excused.add(guest.uuid)
                self.ask_to_stop(host, guest.uuid)

    def suspend(self, name: str, for_s: float) -> None:
        """`virsh suspend`, and `virsh resume` later. Not during a migration: libvirt refuses it then."""
        guest = self.guest(name)
        for host in self.where(name):
            domain = self.machines[host].domains[guest.uuid]
            if not domain.job:
                domain.state, domain.reason = DomainState.PAUSED, "user"
                self.changed(host, f"{name} is suspended by hand", uuid=guest.uuid)
                self.later(for_s, self.resume_by_hand, name)

    def resume_by_hand(self, name: str) -> None:
        uuid = self.guest(name).uuid
        for machine in self.machines.values():
            domain = machine.domains.get(uuid)
            if domain is not None and domain.state is DomainState.PAUSED and domain.reason == "user":
                domain.state, domain.reason = DomainState.RUNNING, "unpaused"
                self.changed(machine.name, f"{name} is resumed by hand", uuid=uuid)

    def cut_link(self, one: str, other: str) -> None:
        """Replication and memory streams between two hosts break."""
        self.cut_links.add(frozenset((one, other)))
        self.trace.note("fault", one, f"link to {other} is cut")
        for resource in self.resources.values():
            if set(resource.replicas) == {one, other}:
                self.drop_link(resource, "link cut")
        self.link_changed()

    def heal_link(self, one: str, other: str) -> None:
        self.cut_links.discard(frozenset((one, other)))
        self.trace.note("fault", one, f"link to {other} works again")
        self.reconnect_all()
        self.link_changed()

    def power_off(self, host: str, why: str) -> None:
        """Everything on it ends at once; definitions and data stay."""
        machine = self.machines[host]
        if not machine.powered:
            return
        lost = {uuid for uuid, domain in machine.domains.items() if domain.process and domain.ran}
        machine.powered = machine.booted = machine.libvirt_up = False
        machine.domains = {
            uuid: Domain(DomainState.SHUTOFF, "crashed" if d.ran else "unknown", process=False, ran=d.ran)
            for uuid, d in machine.domains.items()
            if d.persistent
        }
        self.excused |= {uuid for uuid in lost if not self.where(uuid)}
        self.twice -= lost
        machine.ending.clear()
        machine.sessions.clear()
        machine.listeners.clear()
        for resource in self.resources.values():
            if host in resource.replicas:
                self.drop_link(resource, f"{host} has no power")
                resource.power_lost(host, self.loop.time())
        self.changed(host, f"loses power ({why})")
        self.on_power(host, False)
        self.link_changed()

    def power_on(self, host: str) -> None:
        machine = self.machines[host]
        if machine.powered:
            return
        machine.powered = True
        machine.boot += 1
        self.changed(host, "has power")
        self.later(self.between(BOOT_S), self._booted, host, machine.boot)

    def _booted(self, host: str, boot: int) -> None:
        machine = self.machines[host]
        if not machine.powered or machine.boot != boot:
            return
        machine.booted = machine.libvirt_up = True
        machine.libvirt_since_s = self.loop.time()
        machine.libvirt_lives += 1
        self.changed(host, "has booted")
        for resource in self.resources.values():
            if host in resource.replicas:
                self.later(self.between((0.0, 3.0)), self._resource_up, host, boot, resource)
        self.on_power(host, True)
        for uuid in sorted(self.autostart & set(machine.domains)):
            self.later(AUTOSTARTS_AFTER_S, self._autostarts, host, boot, uuid)

    def _autostarts(self, host: str, boot: int, uuid: str) -> None:
        """libvirtd starts what is marked and has its disks at hand; nobody asks migrd."""
        machine, guest = self.machines[host], self.guests[uuid]
        if machine.boot != boot or not machine.powered or not all(self.holds(host, v) for v in guest.volumes):
            return
        if uuid in machine.domains and not machine.has_process(uuid):
            machine.domains[uuid] = Domain(DomainState.RUNNING, "booted", process=True, ran=True)
            self.begins_to_execute(host, uuid)
            self.runs_again(uuid)
            self.changed(host, f"{guest.name} is started with its host", uuid=uuid)

    def _resource_up(self, host: str, boot: int, resource: Resource) -> None:
        machine = self.machines[host]
        if machine.powered and machine.boot == boot:
            resource.mine(host).up = True
            self.changed(host, f"{resource.name} is up")
            self.later(self.between(RECONNECT_S), self.try_connect, resource)
