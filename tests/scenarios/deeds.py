"""What can be done in a scenario: commands to migrd, faults, and what humans and guests do behind its back.

One table: name -> words, options, what it does. A deed that lasts takes `for SECONDS` and is taken back then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agents.protocol import DomainState
from migrd.control import MigrateRequest
from migrd.engine import Settings
from storage.words import DrbdVolume
from tests.sim.drbd import Resource
from tests.sim.process import DaemonProcess
from tests.sim.sim import Sim
from tests.sim.world import Domain, Guest

GIB = 1 << 30


class DeedError(ValueError):
    """Not a deed, or not with these words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """One line's deed. `for_s` None: for good."""

    name: str
    words: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    for_s: float | None = None

    def __str__(self) -> str:
        options = [f"{name}={value}" if value else name for name, value in self.options.items()]
        lasts = [] if self.for_s is None else [f"for {self.for_s:g}"]
        return " ".join([self.name, *self.words, *options, *lasts])


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`takes`: "host", "guest" or "word" for each word. `undo` takes a deed back after its `for`."""

    do: Callable[[Sim, Deed], Any]  # a coroutine: a command that is answered later
    takes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    undo: Callable[[Sim, Deed], Any] | None = None


def read_deed(words: list[str], hosts: set[str], guests: set[str]) -> Deed:
    """Raises DeedError."""
    name, *rest = words
    kind = DEEDS.get(name)
    if kind is None:
        raise DeedError(f"no deed is called {name}; there are {', '.join(sorted(DEEDS))}")
    for_s = None
    if len(rest) >= 2 and rest[-2] == "for":
        if kind.undo is None:
            raise DeedError(f"{name} cannot be taken back: no `for`")
        for_s = float(rest[-1])
        rest = rest[:-2]
    options = {}
    while rest and (rest[-1].startswith("--") or "=" in rest[-1]):
        option, _, value = rest.pop().partition("=")
        if option not in kind.options:
            raise DeedError(f"{name} has no option {option}; it has {', '.join(kind.options) or 'none'}")
        options[option] = value
    usage = " ".join([name, *(each.upper() for each in kind.takes), *(f"[{o}]" for o in kind.options)])
    if len(rest) != len(kind.takes):
        raise DeedError(f"{' '.join(words)}: it is {usage}")
    for word, what in zip(rest, kind.takes, strict=True):
        if (what == "host" and word not in hosts) or (what == "guest" and word not in guests):
            raise DeedError(f"there is no {what} {word}: {usage}")
    return Deed(name=name, words=tuple(rest), options=dict(reversed(options.items())), for_s=for_s)


# -- commands -------------------------------------------------------------------------------------


async def _migrate(sim: Sim, deed: Deed) -> None:
    await sim.migrate(deed.words[0], to=deed.options.get("--to"))


async def _drain(sim: Sim, deed: Deed) -> None:
    allow = tuple(filter(None, deed.options.get("--allow-stop", "").split(",")))
    await sim.drain(deed.words[0], power_off="--power-off" in deed.options, allow_stop=allow)


async def _undrain(sim: Sim, deed: Deed) -> None:
    await sim.undrain(deed.words[0], restore="--restore" in deed.options)


async def _power(sim: Sim, deed: Deed) -> None:
    await sim.power(*deed.words)


async def _cancel(sim: Sim, deed: Deed) -> None:
    await sim.cancel(_latest(sim, deed))


async def _resume(sim: Sim, deed: Deed) -> None:
    await sim.resume(_latest(sim, deed))


def _latest(sim: Sim, deed: Deed) -> str:
    """`cancel drain h1`: the newest operation of that kind and subject."""
    kind, subject = deed.words
    found = [o.id for o in sim.operations() if (o.kind, o.subject) == (kind, subject)]
    if not found:
        raise DeedError(f"{deed}: there is no {kind} {subject} yet")
    return found[-1]


# -- faults ---------------------------------------------------------------------------------------


def _shares(deed: Deed) -> dict[str, float]:
    return {name.replace("-", "_"): float(value) for name, value in deed.options.items()}


def _partition(sim: Sim, deed: Deed) -> None:
    """Without a word nothing goes through; `heard=daemon`: only what the agent says still arrives."""
    heard = deed.options.get("heard", "")
    sim.partition(deed.words[0], to_agent=heard == "agent", to_daemon=heard == "daemon")


def _no_trouble(sim: Sim, deed: Deed) -> None:
    sim.trouble(deed.words[0], **dict.fromkeys(_shares(deed), 0.0))


def _login(sim: Sim, deed: Deed) -> None:
    host, guest, how = deed.words
    for volume in sim.world.guest(guest).volumes:
        sim.world.no_login[host, volume.name] = how


def _login_works(sim: Sim, deed: Deed) -> None:
    host, guest, _ = deed.words
    for volume in sim.world.guest(guest).volumes:
        sim.world.no_login.pop((host, volume.name), None)


def _reboot(sim: Sim, deed: Deed) -> None:
    """A crash that comes back by itself: its guests are gone, as with a loss of power."""
    sim.cut(deed.words[0])
    sim.power_on(deed.words[0])


def _all_links(sim: Sim, deed: Deed, change: Callable[[str, str], None]) -> None:
    for other in sim.world.machines:
        if other != deed.words[0]:
            change(deed.words[0], other)


# -- DRBD, as it is found or left by others -------------------------------------------------------


def _resource(sim: Sim, guest: str) -> Resource:
    volume = sim.world.guest(guest).volumes[0]
    assert isinstance(volume, DrbdVolume), f"{guest} has no DRBD disk"
    return sim.world.resources[volume.name]


def _syncing(sim: Sim, deed: Deed) -> None:
    """This host's replica is being filled from the other one."""
    guest, host = deed.words
    resource = _resource(sim, guest)
    resource.mine(host).inconsistent = resource.syncing = True
    sim.world.changed(resource.name, "resync begins")


def _synced(sim: Sim, deed: Deed) -> None:
    resource = _resource(sim, deed.words[0])
    resource.synced()
    sim.world.changed(resource.name, "in sync")


def _split(sim: Sim, deed: Deed) -> None:
    """Split brain: both copies have writes that the other one has not."""
    resource = _resource(sim, deed.words[0])
    resource.disconnect(sim.trace.now_s)
    for number, replica in enumerate(resource.replicas.values()):
        resource.wrote_alone(replica.host, 1000 + number)
        replica.standalone = True
    sim.world.changed(resource.name, "split brain")


def _discard(sim: Sim, deed: Deed) -> None:
    """An operator decides: this host's copy is thrown away, and filled from the other one (I8)."""
    guest, host = deed.words
    resource = _resource(sim, guest)
    loser, winner = resource.mine(host), resource.peer(host)
    loser.generation, loser.older = 1, frozenset()
    winner.older |= {1}
    loser.standalone = winner.standalone = False
    sim.world.try_connect(resource)


def _drop_replication(sim: Sim, deed: Deed) -> None:
    """DRBD gives the connection up; memory streams, on another network, go on."""
    sim.world.drop_link(_resource(sim, deed.words[0]), "ping timeout")


def _replicates(sim: Sim, deed: Deed) -> None:
    sim.world.try_connect(_resource(sim, deed.words[0]))


def _flag(sim: Sim, deed: Deed) -> None:
    """Somebody allows two primaries by hand, and forgets it."""
    guest, host = deed.words
    _resource(sim, guest).set_flag(host, allowed=True)
    sim.world.changed(host, f"two primaries of {guest} are allowed by hand")


def _unflag(sim: Sim, deed: Deed) -> None:
    guest, host = deed.words
    _resource(sim, guest).set_flag(host, allowed=False)
    sim.world.changed(host, f"two primaries of {guest} are disallowed by hand")


def _reconnect(sim: Sim, deed: Deed) -> None:
    """An operator has compared both copies: two primaries are disallowed by hand, and both sides connect."""
    resource = _resource(sim, deed.words[0])
    for replica in resource.replicas.values():
        if not sim.world.executes(sim.world.machines[replica.host], sim.world.owner(resource.name).uuid):
            resource.demote(replica.host, open_by="")
    for replica in resource.replicas.values():
        resource.set_flag(replica.host, allowed=False)
    sim.world.connect_by_hand(resource)


def _wrong_disk(sim: Sim, deed: Deed) -> None:
    guest, host = deed.words
    sim.world.wrong_disk(host, sim.world.guest(guest))


# -- humans at a host, and the guest itself -------------------------------------------------------


def _domain(sim: Sim, guest: Guest) -> tuple[str, Domain]:
    """Where it runs, or else where its QEMU has run."""
    for host in sim.where(guest.name):
        return host, sim.world.machines[host].domains[guest.uuid]
    for host, machine in sim.world.machines.items():
        domain = machine.domains.get(guest.uuid)
        if domain is not None and domain.process and domain.ran:
            return host, domain
    raise DeedError(f"{guest.name} runs nowhere")


def _virsh_start(sim: Sim, deed: Deed) -> None:
    guest, host = deed.words
    sim.world.start_by_hand(host, sim.world.guest(guest).uuid)


def _shutdown(sim: Sim, deed: Deed) -> None:
    """`virsh shutdown`, or `poweroff` inside: QEMU ends when the guest has ended."""
    guest = sim.world.guest(deed.words[0])
    sim.world.excused.add(guest.uuid)
    sim.world.ask_to_stop(_domain(sim, guest)[0], guest.uuid)


def _destroy(sim: Sim, deed: Deed) -> None:
    guest, host = sim.world.guest(deed.words[0]), deed.words[1]
    sim.world.excused.add(guest.uuid)
    sim.world.end_process(host, guest.uuid, keep=True, reason="destroyed")


def _undefine(sim: Sim, deed: Deed) -> None:
    guest, host = deed.words
    sim.world.undefine_by_hand(host, sim.world.guest(guest).uuid)


def _suspend(sim: Sim, deed: Deed) -> None:
    _pause(sim, deed, "user", "is suspended by hand")


def _storage_gone(sim: Sim, deed: Deed) -> None:
    """Its disk's server is away: QEMU pauses the guest at its first I/O error, wherever it runs."""
    _pause(sim, deed, "ioerror", "is paused: its storage is gone")


def _pause(sim: Sim, deed: Deed, reason: str, what: str) -> None:
    guest = sim.world.guest(deed.words[0])
    host, domain = _domain(sim, guest)
    domain.state, domain.reason = DomainState.PAUSED, reason
    sim.world.changed(host, f"{guest.name} {what}", uuid=guest.uuid)


def _goes_on(sim: Sim, deed: Deed) -> None:
    """`virsh resume`, by hand or by what watches the storage."""
    guest = sim.world.guest(deed.words[0])
    host, domain = _domain(sim, guest)
    domain.state, domain.reason = DomainState.RUNNING, "unpaused"
    sim.world.changed(host, f"{guest.name} is resumed by hand", uuid=guest.uuid)


def _autostart(sim: Sim, deed: Deed) -> None:
    """`virsh autostart`, on whichever host it is defined."""
    sim.world.autostart.add(sim.world.guest(deed.words[0]).uuid)


def _virsh_migrate(sim: Sim, deed: Deed) -> None:
    """`virsh migrate --p2p` by somebody who has logged the target in before."""
    guest, target = sim.world.guest(deed.words[0]), deed.words[1]
    for volume in guest.volumes:
        if volume.kind == "iscsi":
            sim.world.machines[target].sessions.add(volume.name)
    sim.migrations.begin(guest.uuid, _domain(sim, guest)[0], target)


def _logout(sim: Sim, deed: Deed) -> None:
    """Somebody tidies up what is not needed there any more."""
    guest, host = deed.words
    sim.world.machines[host].sessions -= {volume.name for volume in sim.world.guest(guest).volumes}


def _create(sim: Sim, deed: Deed) -> None:
    """Somebody defines and starts a new guest by hand."""
    name, host = deed.words
    guest = sim.world.add_iscsi(name, host, int(deed.options.get("memory", "1GiB").removesuffix("GiB")) * GIB)
    sim.world.changed(host, f"{name} is created by hand", uuid=guest.uuid)


# -- a second daemon ------------------------------------------------------------------------------


def old_daemon(sim: Sim) -> DaemonProcess | None:
    """The one that `old-daemon` has started."""
    return getattr(sim, "old_daemon", None)


def _old_daemon(sim: Sim, deed: Deed) -> None:
    """migrd starts on another machine too, from an early copy of the journal: its epoch is 1 again."""
    old = DaemonProcess(
        sim.world, sim.network, random.Random("old"), power=sim.bmcs.power, settings=Settings()
    )
    sim.old_daemon = old  # type: ignore[attr-defined]
    old.start()


def _old_daemon_ends(sim: Sim, deed: Deed) -> None:
    old = old_daemon(sim)
    assert old is not None
    old.kill("stopped by an operator")
    sim.daemon.graves += old.graves  # unwound with the others at the end


async def _old_migrate(sim: Sim, deed: Deed) -> None:
    """Somebody's migrctl still talks to the old one."""
    old = old_daemon(sim)
    assert old is not None
    assert old.life is not None
    controller = old.controller
    assert controller is not None, "the old daemon is not up yet"
    await old.life.spawn(controller.migrate(deed.words[0], MigrateRequest()), name="old migrate")


DEEDS: Mapping[str, Kind] = {
    "migrate": Kind(do=_migrate, takes=("guest",), options=("--to",)),
    "drain": Kind(do=_drain, takes=("host",), options=("--power-off", "--allow-stop")),
    "undrain": Kind(do=_undrain, takes=("host",), options=("--restore",)),
    "power": Kind(do=_power, takes=("host", "word")),
    "cancel": Kind(do=_cancel, takes=("word", "word")),
    "resume": Kind(do=_resume, takes=("word", "word")),
    # processes and machines
    "kill-daemon": Kind(do=lambda s, _: s.kill_daemon(), undo=lambda s, _: s.start_daemon()),
    "kill-agent": Kind(
        do=lambda s, d: s.kill_agent(d.words[0]),
        takes=("host",),
        undo=lambda s, d: s.start_agent(d.words[0]),
    ),
    "libvirt-down": Kind(
        do=lambda s, d: s.libvirt_down(d.words[0], d.for_s or 1e6),
        takes=("host",),
        undo=lambda s, d: s.libvirt_back(d.words[0]),
    ),
    "cut": Kind(do=lambda s, d: s.cut(d.words[0]), takes=("host",), undo=lambda s, d: s.power_on(d.words[0])),
    "power-on": Kind(do=lambda s, d: s.power_on(d.words[0]), takes=("host",)),
    "reboot": Kind(do=_reboot, takes=("host",)),
    "bmc": Kind(
        do=lambda s, d: s.bmc(*d.words), takes=("host", "word"), undo=lambda s, d: s.bmc(d.words[0], "")
    ),
    "disk": Kind(
        do=lambda s, d: s.disk(*d.words),  # type: ignore[arg-type]  # "full", "io", "hang"
        takes=("word", "word"),
        undo=lambda s, d: s.disk(d.words[0], ""),
    ),
    "slow-tools": Kind(
        do=lambda s, d: s.trouble(d.words[0], **_shares(d)),
        takes=("host",),
        options=("tool-hangs", "tool-lost", "libvirt-slow"),
        undo=_no_trouble,
    ),
    "lie": Kind(do=lambda s, _: s.lie()),
    "lose-answer": Kind(
        do=lambda s, d: s.lose_answer(d.words[0], float(d.words[1])), takes=("guest", "word")
    ),
    "ignore-aborts": Kind(
        do=lambda s, d: s.ignore_aborts(d.words[0], float(d.words[1])), takes=("guest", "word")
    ),
    "libvirtd-dies": Kind(do=lambda s, d: s.libvirtd_dies(d.words[0]), takes=("guest",)),
    "fork": Kind(do=lambda s, d: s.fork(d.words[0]), takes=("guest",)),
    "cut-in-switch-over": Kind(
        do=lambda s, d: s.cut_in_switch_over(*d.words), takes=("guest", "word", "word")
    ),
    "login": Kind(do=_login, takes=("host", "guest", "word"), undo=_login_works),
    "old-daemon": Kind(do=_old_daemon, undo=_old_daemon_ends),
    "old-migrate": Kind(do=_old_migrate, takes=("guest",)),
    # networks
    "partition": Kind(
        do=_partition,
        takes=("host",),
        options=("heard",),
        undo=lambda s, d: s.unpartition(d.words[0]),
    ),
    "lossy": Kind(
        do=lambda s, d: s.lossy(d.words[0], **_shares(d)),
        takes=("host",),
        options=("lose-request", "lose-reply", "duplicate", "late", "delay-s"),
        undo=lambda s, d: s.unpartition(d.words[0]),
    ),
    "break-stream": Kind(do=lambda s, d: s.break_stream(d.words[0]), takes=("host",)),
    "cut-link": Kind(
        do=lambda s, d: s.cut_link(*d.words),
        takes=("host", "host"),
        undo=lambda s, d: s.heal_link(*d.words),
    ),
    "isolate": Kind(
        do=lambda s, d: _all_links(s, d, s.cut_link),
        takes=("host",),
        undo=lambda s, d: _all_links(s, d, s.heal_link),
    ),
    # disks as others leave them
    "wrong-disk": Kind(do=_wrong_disk, takes=("guest", "host")),
    "syncing": Kind(do=_syncing, takes=("guest", "host"), undo=_synced),
    "storage-gone": Kind(do=_storage_gone, takes=("guest",), undo=_goes_on),
    "split-brain": Kind(do=_split, takes=("guest",)),
    "drop-replication": Kind(do=_drop_replication, takes=("guest",), undo=_replicates),
    "discard": Kind(do=_discard, takes=("guest", "host")),
    "reconnect": Kind(do=_reconnect, takes=("guest",)),
    "flag": Kind(do=_flag, takes=("guest", "host"), undo=_unflag),
    # humans
    "virsh-start": Kind(do=_virsh_start, takes=("guest", "host")),
    "virsh-shutdown": Kind(do=_shutdown, takes=("guest",)),
    "poweroff-inside": Kind(do=_shutdown, takes=("guest",)),
    "virsh-destroy": Kind(do=_destroy, takes=("guest", "host")),
    "virsh-undefine": Kind(do=_undefine, takes=("guest", "host")),
    "virsh-suspend": Kind(do=_suspend, takes=("guest",), undo=_goes_on),
    "virsh-autostart": Kind(do=_autostart, takes=("guest",)),
    "virsh-migrate": Kind(do=_virsh_migrate, takes=("guest", "host")),
    "logout": Kind(do=_logout, takes=("guest", "host")),
    "create": Kind(do=_create, takes=("word", "host"), options=("memory",)),
}
