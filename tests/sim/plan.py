"""From a seed to a run: a random cluster, random operations, random faults at random times. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from migrd.retention import Keep
from tests.sim.world import GIB

HEAL_AT_S = 40.0
COLD = 3  # seeds that leave this when divided by four have cold moves
UNHEARD = 1  # ... and those switch-overs whose end is not heard of
AIMED = 2  # ... and those faults that are aimed at one moment of one move
HANGS = (4, 14)  # divided by sixteen: disks that hang
PAIRED = (
    2,
    3,
    5,
    6,
    8,
    12,
)  # divided by 32: faults in rare pairs; no kept seed leaves one
FORGETS = 9  # divided by sixteen: a journal that keeps next to nothing of what has ended
_KINDS = (
    *(("drbd",),) * 4,
    *(("iscsi",),) * 3,
    *(("iscsi-qemu",),) * 2,
    ("drbd", "drbd"),
    ("drbd", "iscsi"),
    ("iscsi", "iscsi", "iscsi-qemu"),
)


@dataclass(frozen=True, slots=True)
class GuestPlan:
    name: str
    kinds: tuple[str, ...]  # of its volumes: "drbd", "iscsi", "iscsi-qemu"
    host: str
    peer: str = ""  # drbd
    memory_bytes: int = GIB
    wrong_on: str = ""  # a host on which the same name opens another disk (I9)
    off: str = ""  # shut off: "rest", or "held", with its disks at hand on its host


@dataclass(frozen=True, slots=True)
class Deed:
    """One command or fault. `arguments` are those of the method of Sim that `what` names.

    `at_s` counts from the start, or from the moment when the journal has `writes` transactions: so faults
    meet operations at work.
    """

    at_s: float
    what: str
    arguments: tuple[object, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    writes: int = 0

    def __str__(self) -> str:
        options = " ".join(f"{name}={value}" for name, value in self.options.items())
        after = f" after write {self.writes}:" if self.writes else ""
        return f"{self.at_s:7.2f}{after} {self.what} {' '.join(map(str, self.arguments))} {options}".rstrip()


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    hosts: tuple[str, ...]
    guests: tuple[GuestPlan, ...]
    deeds: tuple[Deed, ...]
    heal_at_s: float = HEAL_AT_S
    undrain: bool = True  # at the end, everything drained is brought back
    auto_demote: bool = True  # of DRBD: what its last opener closes is secondary
    keep: int = Keep().operations  # ended operations in the journal

    def __str__(self) -> str:
        guests = [
            f"  {g.name} {'+'.join(g.kinds)} on {g.host}"
            + (f", peer {g.peer}" if g.peer else "")
            + (f", wrong disk on {g.wrong_on}" if g.wrong_on else "")
            + (f", shut off, disks {g.off}" if g.off else "")
            for g in self.guests
        ]
        deeds = [f"  {deed}" for deed in self.deeds]
        more = [f"heals at {self.heal_at_s:g} s"]
        more += [f"keeps {self.keep} ended operations"] if self.keep != Keep().operations else []
        more += [] if self.auto_demote else ["DRBD does not demote by itself"]
        return "\n".join([f"seed {self.seed}: {' '.join(self.hosts)}; {', '.join(more)}", *guests, *deeds])


def plan(seed: int) -> Plan:
    """The same seed, the same plan, on every interpreter."""
    rng = random.Random(f"{seed}:plan")
    hosts = tuple(f"h{n}" for n in range(1, rng.choice((2, 3, 3, 3, 4, 5)) + 1))
    guests = tuple(_guest(rng, hosts, number) for number in range(1, rng.choice((1, 2, 2, 3, 4, 6, 8)) + 1))
    commands = _commands(rng, hosts, guests)
    work_s = [deed.at_s for deed in commands]
    number = rng.choice((0, 1, 2, 2, 3, 4, 6, 8))
    faults = [deed for _ in range(number) for deed in _fault(rng, hosts, guests, work_s)]
    deeds = sorted((*commands, *faults), key=lambda deed: deed.at_s)
    made = Plan(seed=seed, hosts=hosts, guests=guests, deeds=tuple(deeds), undrain=rng.random() < 0.5)
    if seed % 16 in HANGS:
        return _with_hanging_disks(made)
    if seed % 32 in PAIRED:
        return _with_paired_faults(made)
    if seed % 16 == FORGETS:
        return _with_short_memory(made)
    variant = {COLD: _with_cold_moves, UNHEARD: _with_lost_answers, AIMED: _with_aimed_faults}
    return variant.get(seed % 4, lambda same: same)(made)


def _with_hanging_disks(made: Plan) -> Plan:
    """The same plan, often without its other faults, with disks under journal and ledgers that do not answer
    for a while; some fail then, and some daemons die over it. Dice of their own, as below."""
    rng = random.Random(f"{made.seed}:hang")
    deeds = [deed for _ in range(rng.choice((1, 1, 2))) for deed in _hang(rng, made)]
    calm = tuple(deed for deed in made.deeds if deed.what in _COMMANDS)
    kept = calm if rng.random() < 0.5 else made.deeds
    return replace(made, deeds=(*kept, *deeds), heal_at_s=2 * HEAL_AT_S)


def _with_paired_faults(made: Plan) -> Plan:
    """On the same cluster one command, and what takes away the very thing that it leans on next; by turns."""
    rng = random.Random(f"{made.seed}:paired")
    guest = rng.choice([each for each in made.guests if each.peer] or made.guests)
    to = guest.peer or rng.choice([host for host in made.hosts if host != guest.host])
    at_s = rng.uniform(0.5, 3.0)
    move = Deed(at_s, "migrate", (guest.name, to))
    turn = made.seed // 32 * len(PAIRED) + PAIRED.index(made.seed % 32)
    match turn % 11:
        case 0:  # nobody can say whether the power is off
            deeds = [
                Deed(0.0, "bmc", (guest.host, "dead")),
                Deed(at_s, "drain", (guest.host,), {"power_off": True}),
            ]
        case 1:  # its old home loses count of the definition's move, and may fall silent as it says so
            moves, told = 9, 10  # rows of the journal by then
            dies_s, for_s = rng.uniform(0.1, 2.0), rng.uniform(60.0, 150.0)
            deeds = [
                Deed(0.0, "slow_definition", (guest.name, rng.uniform(14.0, 40.0))),
                Deed(at_s, "migrate", (guest.name, to), {"cold": True}),
                Deed(dies_s, "kill_agent", (guest.host,), writes=moves),
                Deed(dies_s + 0.3, "start_agent", (guest.host,), writes=moves),
            ]
            match rng.choice(("silent", "silent", "cancel", "cancel", "waits")):
                case "silent":
                    deeds.append(Deed(0.0, "partition", (guest.host,), writes=told))
                    deeds.append(Deed(for_s, "unpartition", (guest.host,), writes=told))
                case "cancel":
                    deeds.append(Deed(rng.uniform(0.0, 20.0), "cancel_some", writes=told))
                case _:
                    pass
        case 2:  # two primaries are allowed by hand, which no report tells yet
            deeds = [Deed(at_s - rng.uniform(0.02, 0.4), "window_by_hand", (guest.name,)), move]
        case 3:  # a row of the move hangs, and is durable or not
            at_write, for_s = rng.randrange(4, 16), rng.uniform(11.0, 40.0)
            deeds = [
                move,
                Deed(0.0, "disk", ("migrd", "hang"), writes=at_write),
                Deed(for_s, "disk", ("migrd", ""), writes=at_write),
            ]
        case 4:  # a request is held back until its operation has given it up and ended
            opens = 4  # rows of the journal by then
            held_s = rng.uniform(0.3, 1.5)
            deeds = [
                move,
                Deed(0.0, "lossy", (rng.choice((guest.host, to)),), {"late": 1.0}, writes=opens),
                Deed(held_s, "unpartition", (guest.host,), writes=opens),
                Deed(held_s, "unpartition", (to,), writes=opens),
                Deed(held_s + rng.uniform(0.0, 2.0), "cancel_some", writes=opens),
            ]
        case 5:  # a cancel comes while the guest is being started
            moved = 11  # rows of the journal by then
            deeds = [
                Deed(at_s, "migrate", (guest.name, to), {"cold": True}),
                Deed(rng.uniform(0.0, 0.5), "cancel_some", writes=moved),
            ]
        case 6:  # the host reboots while it waits for the guest to shut down
            asks = 5  # rows of the journal by then
            lost_s = rng.uniform(0.0, 0.5)
            deeds = [
                Deed(at_s, "migrate", (guest.name, to), {"cold": True}),
                Deed(lost_s, "cut", (guest.host,), writes=asks),
                Deed(lost_s + rng.uniform(1.0, 15.0), "power_on", (guest.host,), writes=asks),
            ]
        case 7:  # its home loses its power before libvirt's Confirm, at times with writes nobody else has
            deeds = [Deed(0.0, "cut_in_switch_over", (guest.name, "source", "confirm")), move]
            deeds += [Deed(0.0, "fork", (guest.name,))] if rng.random() < 0.5 else []
        case 8:  # replication breaks while memory is copied, whoever watches it by then
            copies = 8  # rows of the journal by then
            breaks_s, dies_s = rng.uniform(0.3, 3.0), rng.uniform(0.1, 1.0)
            deeds = [
                move,
                Deed(breaks_s + dies_s, "cut_replication", (guest.host, to), writes=copies),
                Deed(breaks_s + dies_s + 20.0, "heal_link", (guest.host, to), writes=copies),
            ]
            if rng.random() < 0.5:
                deeds.append(Deed(dies_s, "kill_agent", (guest.host,), writes=copies))
                deeds.append(Deed(dies_s + 0.2, "start_agent", (guest.host,), writes=copies))
        case 9:  # libvirtd of the target dies as soon as the guest runs there
            deeds = [Deed(0.0, "libvirtd_dies", (guest.name,)), move]
        case _:  # its first row does, and whoever asks is told after a while that nobody knows
            deeds = [
                Deed(at_s - 0.2, "disk", ("migrd", "hang")),
                move,
                Deed(at_s + rng.uniform(16.0, 40.0), "disk", ("migrd", "")),
            ]
    return replace(made, deeds=tuple(deeds), heal_at_s=3 * HEAL_AT_S)


def _with_short_memory(made: Plan) -> Plan:
    """The same plan, often without its other faults, and many moves more; hardly any of them is kept once it
    has ended, and the daemon dies over forgetting. Dice of their own, as below."""
    rng = random.Random(f"{made.seed}:forget")
    moves = [
        Deed(rng.uniform(0.0, 70.0), "migrate", (rng.choice(made.guests).name, rng.choice(made.hosts)))
        for _ in range(rng.randrange(4, 10))
    ]
    deaths = []
    for _ in range(rng.choice((1, 2, 3))):
        at_s = rng.uniform(0.0, 60.0)
        deaths += [
            Deed(at_s, "kill_tidying", (rng.choice((1, 1, 2)), rng.choice(("before", "after")))),
            Deed(at_s + rng.uniform(25.0, 40.0), "start_daemon"),
        ]
    if rng.random() < 0.4:  # no room for forgetting, either
        full_s = rng.uniform(0.0, 70.0)
        deaths += [
            Deed(full_s, "disk", ("migrd", rng.choice(("full", "io", "late")))),
            Deed(full_s + rng.uniform(5.0, 35.0), "disk", ("migrd", "")),
        ]
    calm = tuple(deed for deed in made.deeds if deed.what in _COMMANDS)
    kept = calm if rng.random() < 0.6 else made.deeds
    return replace(made, deeds=(*kept, *moves, *deaths), heal_at_s=100.0, keep=rng.choice((1, 1, 2, 4)))


def _hang(rng: random.Random, made: Plan) -> list[Deed]:
    """One disk, from a moment of work on, or from just before a command asks for its first row."""
    where = "migrd" if rng.random() < 0.75 else rng.choice(made.hosts)
    at_write, at_s = rng.randrange(1, rng.choice((15, 50))), rng.expovariate(3.0)
    if rng.random() < 0.4:
        asked_s = rng.choice([deed.at_s for deed in made.deeds if deed.what in _COMMANDS] or [0.0])
        at_write, at_s = 0, max(0.0, asked_s - rng.uniform(0.0, 0.5))
    for_s = rng.choice((3.0, 12.0, 25.0, 50.0)) * rng.uniform(0.7, 1.3)
    after = rng.choice(("", "", "full", "io", "late"))
    deeds = [Deed(at_s, "disk", (where, "hang")), Deed(at_s + for_s, "disk", (where, after))]
    if after:
        deeds.append(Deed(at_s + for_s + 6.0, "disk", (where, "")))
    if rng.random() < 0.4:
        kill_s = at_s + rng.uniform(0.0, for_s)
        back_s = kill_s + rng.choice((1.0, 10.0))
        deeds += [Deed(kill_s, "kill_daemon", (0,)), Deed(back_s, "start_daemon")]
    return [replace(deed, writes=at_write) for deed in deeds]


def _with_lost_answers(made: Plan) -> Plan:
    """The same plan, often without its faults, with switch-overs that take long, and links that break in the
    instant when one ends. Dice of their own, as below."""
    rng = random.Random(f"{made.seed}:unheard")
    lost = [guest.name for guest in made.guests if rng.random() < 0.5]
    slow = [guest.name for guest in made.guests if rng.random() < 0.5]
    deeds = [
        *(Deed(0.0, "lose_answer", (name, rng.choice((1.0, 10.0, 40.0, 40.0)))) for name in lost),
        *(Deed(0.0, "slow_switch_over", (name, rng.uniform(1.5, 8.0))) for name in slow),
    ]
    calm = tuple(deed for deed in made.deeds if deed.what in _COMMANDS)
    kept = calm if rng.random() < 0.7 else made.deeds
    return replace(made, deeds=(*deeds, *kept), heal_at_s=2 * HEAL_AT_S)


def _with_aimed_faults(made: Plan) -> Plan:
    """On the same cluster one move, and a fault that meets a moment of it which chance hardly ever finds.

    What else was planned comes later, if at all. Dice of their own, as below.
    """
    rng = random.Random(f"{made.seed}:aimed")
    guest = rng.choice(made.guests)
    to = guest.peer or rng.choice([host for host in made.hosts if host != guest.host])
    if made.seed % 8 != AIMED:
        return replace(made, deeds=tuple(_aimed_cold(rng, guest, to)), auto_demote=rng.random() < 0.5)
    move = Deed(rng.uniform(0.0, 3.0), "migrate", (guest.name, to))
    later = [replace(deed, at_s=deed.at_s + 20.0) for deed in made.deeds] if rng.random() < 0.3 else []
    return replace(made, deeds=(*_aimed(rng, made, guest, to), move, *later), heal_at_s=2 * HEAL_AT_S)


def _aimed(rng: random.Random, made: Plan, guest: GuestPlan, to: str) -> list[Deed]:
    copies = (
        8 if guest.peer else 5 if set(guest.kinds) == {"iscsi-qemu"} else 6
    )  # rows of the journal by then
    match rng.choice(("power", "power", "both", "forked", "twice", "deaf", "adopted", "stale")):
        case "power":
            moment = (
                rng.choice(("source", "source", "target")),
                rng.choice(("switch", "confirm", "confirm")),
            )
            return [Deed(0.0, "cut_in_switch_over", (guest.name, *moment))]
        case "both":  # it moved, and both hosts reboot before anybody has looked
            return [
                Deed(0.0, "cut_in_switch_over", (guest.name, "source", "confirm")),
                Deed(rng.uniform(0.5, 8.0), "cut", (to,), writes=copies),
            ]
        case "forked":
            lost = Deed(0.0, "cut_in_switch_over", (guest.name, "source", "confirm"))
            return [Deed(0.0, "fork", (guest.name,)), *([lost] if rng.random() < 0.5 else [])]
        case "twice":
            dies = Deed(0.0, "libvirtd_dies", (guest.name,))
            if rng.random() < 0.5:
                return [dies]
            return [  # nobody holds its connections
                dies,
                Deed(0.0, "kill_agent", (to,), writes=copies),
                Deed(45.0, "start_agent", (to,), writes=copies),
            ]
        case "deaf":
            return [
                Deed(0.0, "ignore_aborts", (guest.name, rng.uniform(20.0, 100.0))),
                Deed(rng.uniform(0.0, 3.0), "cancel_some", writes=copies),
            ]
        case "adopted":  # the agent's next life has to watch what the last one began
            dies_s = rng.uniform(0.1, 1.0)
            breaks_s = dies_s + rng.uniform(0.5, 3.0)
            cut = Deed(breaks_s, "cut_replication", (guest.host, to), writes=copies)
            return [
                Deed(dies_s, "kill_agent", (guest.host,), writes=copies),
                Deed(dies_s + 0.2, "start_agent", (guest.host,), writes=copies),
                *([cut] if guest.peer else []),
            ]
        case _:  # an abort of the dead daemon arrives after the new one has spoken
            return [
                Deed(0.1, "lossy", (guest.host,), {"late": 0.6}, writes=copies),
                Deed(rng.uniform(0.2, 1.0), "cancel_some", writes=copies),
                Deed(1.2, "kill_daemon", writes=copies),
                Deed(1.3, "unpartition", (guest.host,), writes=copies),
                Deed(1.4, "start_daemon", writes=copies),
            ]


def _aimed_cold(rng: random.Random, guest: GuestPlan, to: str) -> list[Deed]:
    """One cold move: what happens to its source, or to the operator's mind, at one of its rows."""
    at_write, moment_s = rng.randrange(5, 26), rng.uniform(0.0, 0.6)
    back_s = moment_s + rng.uniform(5.0, 25.0)
    match rng.choice(("cancel", "silent", "reboot", "both", "slow", "slow")):
        case "slow":  # nobody hears how the move of the definition ends, and it takes long
            dies_s = rng.uniform(0.1, 2.0)
            moves = 9  # rows of the journal by then
            faults = [
                Deed(0.0, "slow_definition", (guest.name, rng.uniform(14.0, 24.0))),
                Deed(dies_s, "kill_agent", (guest.host,), writes=moves),
                Deed(dies_s + 2.0, "start_agent", (guest.host,), writes=moves),
                Deed(dies_s + 3.0, "cancel_some", writes=moves),
            ]
        case "cancel":
            faults = [Deed(moment_s, "cancel_some", writes=at_write)]
        case "silent":
            faults = [
                Deed(moment_s, "partition", (guest.host,), writes=at_write),
                Deed(back_s, "unpartition", (guest.host,), writes=at_write),
            ]
        case "reboot":
            faults = [
                Deed(moment_s, "cut", (guest.host,), writes=at_write),
                Deed(back_s, "power_on", (guest.host,), writes=at_write),
            ]
        case _:
            faults = [
                Deed(moment_s, "cancel_some", writes=at_write),
                Deed(moment_s + 0.2, "libvirt_down", (rng.choice((guest.host, to)), 8.0), writes=at_write),
            ]
    return [*faults, Deed(0.5, "migrate", (guest.name, to), {"cold": True})]


def _with_cold_moves(made: Plan) -> Plan:
    """The same plan, and cold moves on top of it, from dice of their own: no other seed shifts."""
    rng = random.Random(f"{made.seed}:cold")
    guests = tuple(
        replace(guest, off=rng.choice(("rest", "held")) if rng.random() < 0.2 else "")
        for guest in made.guests
    )
    moves = [deed for _ in range(rng.choice((1, 2, 3))) for deed in _cold_move(rng, made.hosts, guests)]
    work_s = [deed.at_s for deed in moves]
    faults = [deed for _ in range(rng.choice((0, 1, 2))) for deed in _fault(rng, made.hosts, guests, work_s)]
    deeds = sorted((*made.deeds, *moves, *faults), key=lambda deed: deed.at_s)
    return replace(made, guests=guests, deeds=tuple(deeds), auto_demote=rng.random() < 0.5)


def _cold_move(rng: random.Random, hosts: tuple[str, ...], guests: tuple[GuestPlan, ...]) -> list[Deed]:
    """`migrctl migrate GUEST --cold`, and what guests, libvirt and people can do about it."""
    guest, at_s = rng.choice(guests), rng.uniform(0.0, 12.0)
    to = rng.choice((None, guest.peer or rng.choice(hosts), rng.choice(hosts)))
    deeds = [Deed(at_s, "migrate", (guest.name, to), {"cold": True})]
    if rng.random() < 0.2:
        deeds.append(Deed(0.0, "deaf", (guest.name, rng.choice(("once", "never", "late")))))
    if rng.random() < 0.2:
        deeds.append(Deed(0.0, "boots_not", (guest.name, to or guest.peer or rng.choice(hosts))))
    if rng.random() < 0.2:
        deeds.append(Deed(rng.uniform(0.0, 3.0), "virsh_start", (guest.name,), writes=rng.randrange(5, 30)))
    if rng.random() < 0.4:
        deeds.append(Deed(rng.uniform(0.0, 1.0), "cancel_some", writes=rng.randrange(4, 30)))
    if rng.random() < 0.5:  # while the definition is on its way, if it is the first one
        end = rng.choice((guest.host, to or guest.peer or rng.choice(hosts)))
        at_write, moment_s = rng.randrange(6, 13), rng.uniform(0.0, 0.8)
        if rng.random() < 0.5:
            deeds.append(Deed(moment_s, "libvirt_down", (end, rng.uniform(0.2, 8.0)), writes=at_write))
        else:
            deeds.append(Deed(moment_s, "kill_agent", (end,), writes=at_write))
            back_s = moment_s + rng.choice((0.3, 2.0, 12.0))
            deeds.append(Deed(back_s, "start_agent", (end,), writes=at_write))
    return deeds


def _guest(rng: random.Random, hosts: tuple[str, ...], number: int) -> GuestPlan:
    kinds = rng.choice(_KINDS)
    host, peer = rng.sample(hosts, 2)
    drbd = "drbd" in kinds
    wrong_on = rng.choice([h for h in hosts if h != host]) if rng.random() < 0.05 else ""
    return GuestPlan(
        name=f"g{number}",
        kinds=kinds,
        host=host,
        peer=peer if drbd else "",
        memory_bytes=rng.choice((1, 1, 2, 4)) * GIB,
        wrong_on=(peer if drbd else wrong_on) if wrong_on else "",
    )


def _commands(rng: random.Random, hosts: tuple[str, ...], guests: tuple[GuestPlan, ...]) -> list[Deed]:
    deeds = []
    for _ in range(rng.choice((1, 2, 3, 4))):
        at_s = rng.uniform(0.0, 15.0)
        match rng.choice(("migrate", "migrate", "migrate", "drain", "drain", "drain-off", "power")):
            case "migrate":
                to = rng.choice((None, *hosts))
                guest = rng.choice(guests)
                deeds.append(Deed(at_s, "migrate", (guest.name, to)))
                if rng.random() < 0.1:  # seen by no report yet, perhaps
                    before_s = max(0.0, at_s - rng.uniform(0.1, 4.0))
                    deeds.append(Deed(before_s, "window_by_hand", (guest.name,)))
                if guest.peer and rng.random() < 0.25:  # while it copies, if it is the first one
                    ends, at_write = (guest.host, guest.peer), rng.randrange(7, 12)
                    deeds.append(Deed(rng.uniform(0.0, 2.0), "cut_replication", ends, writes=at_write))
            case "power":
                host = rng.choice(hosts)
                deeds.append(Deed(at_s, "power", (host, "off")))
                if rng.random() < 0.3:  # of a host that cannot say what runs on it
                    deeds.append(Deed(max(0.0, at_s - 0.5), "partition", (host,)))
                    deeds.append(Deed(at_s + rng.uniform(10.0, 30.0), "unpartition", (host,)))
                deeds.append(Deed(at_s + rng.uniform(1.0, 30.0), "power", (host, "on")))
            case drain:
                host = rng.choice(hosts)
                allow = tuple(g.name for g in guests if rng.random() < 0.1)
                options = {"power_off": drain == "drain-off", "allow_stop": allow}
                deeds.append(Deed(at_s, "drain", (host,), options))
                if drain == "drain-off" and rng.random() < 0.4:
                    mode = rng.choice(("dead", "garbage", "deaf", "slow"))
                    deeds.append(Deed(at_s, "bmc", (host, mode)))
                    deeds.append(Deed(at_s + rng.uniform(2.0, 40.0), "bmc", (host, "")))
                if drain == "drain-off" and rng.random() < 0.4:  # is its copy the only one by now?
                    other = rng.choice([h for h in hosts if h != host])
                    what, whom = rng.choice((("cut", (other,)), ("cut_link", (host, other))))
                    deeds.append(Deed(rng.uniform(0.0, 1.0), what, whom, writes=rng.randrange(5, 45)))
                if rng.random() < 0.5:
                    restore = rng.random() < 0.7
                    back_s = at_s + rng.uniform(5.0, 25.0)
                    deeds.append(Deed(back_s, "undrain", (host,), {"restore": restore}))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        wish = rng.choice(("cancel_some", "cancel_late", "resume_some"))
        at_s = rng.uniform(0.0, rng.choice((0.1, 3.0)))
        deeds.append(Deed(at_s, wish, writes=rng.randrange(1, 60)))
    return deeds


def _fault(
    rng: random.Random, hosts: tuple[str, ...], guests: tuple[GuestPlan, ...], work_s: list[float]
) -> list[Deed]:
    """A fault and, mostly, its end. Times cluster where the work is."""
    if rng.random() < 0.7:
        writes = rng.randrange(1, rng.choice((15, 50)))
        deeds = _fault_at(rng, hosts, guests, rng.expovariate(3.0))
        return [replace(deed, writes=writes) for deed in deeds]
    at_s = rng.choice((*(each + rng.expovariate(0.5) for each in work_s), rng.uniform(0.0, 35.0)))
    return _fault_at(rng, hosts, guests, at_s)


def _fault_at(
    rng: random.Random, hosts: tuple[str, ...], guests: tuple[GuestPlan, ...], at_s: float
) -> list[Deed]:
    end_s = at_s + rng.choice((0.3, 2.0, 6.0, 12.0, 25.0)) * rng.uniform(0.5, 1.5)
    host = rng.choice(hosts)
    other = rng.choice([h for h in hosts if h != host])
    steps = rng.choice((0, rng.randrange(1, 40), rng.randrange(1, 400)))
    match rng.choice(_FAULTS):
        case "daemon":
            return [Deed(at_s, "kill_daemon", (steps,)), Deed(end_s, "start_daemon")]
        case "agent":
            return [Deed(at_s, "kill_agent", (host, steps)), Deed(end_s, "start_agent", (host,))]
        case "cut":
            return [Deed(at_s, "cut", (host,)), Deed(end_s, "power_on", (host,))]
        case "libvirt":
            return [Deed(at_s, "libvirt_down", (host, end_s - at_s))]
        case "partition":
            ways = rng.choice(({}, {}, {"to_agent": True}, {"to_daemon": True}))
            return [Deed(at_s, "partition", (host,), ways), Deed(end_s, "unpartition", (host,))]
        case "lossy":
            shares = {
                "lose_request": rng.choice((0.0, 0.2)),
                "lose_reply": rng.choice((0.0, 0.3, 0.6)),
                "duplicate": rng.choice((0.0, 0.3)),
                "late": rng.choice((0.0, 0.1, 0.3)),
                "delay_s": rng.choice((0.003, 0.05, 0.5)),
            }
            return [Deed(at_s, "lossy", (host,), shares), Deed(end_s, "unpartition", (host,))]
        case "stream":
            return [Deed(at_s, "break_stream", (host,))]
        case "link":
            return [Deed(at_s, "cut_link", (host, other)), Deed(end_s, "heal_link", (host, other))]
        case "disk":
            where, fault = rng.choice(("migrd", host)), rng.choice(("full", "io", "late"))
            return [Deed(at_s, "disk", (where, fault)), Deed(end_s, "disk", (where, ""))]
        case "bmc":
            mode = rng.choice(("dead", "garbage", "deaf", "slow"))
            return [Deed(at_s, "bmc", (host, mode)), Deed(end_s, "bmc", (host, ""))]
        case "lie":
            return [Deed(at_s, "lie")]
        case "stale":  # what the dead daemon sent arrives after the new one has spoken
            kill_s, back_s = at_s + rng.uniform(0.0, 1.0), at_s + rng.uniform(1.0, 4.0)
            held = [Deed(at_s, "lossy", (each,), {"late": 0.8}) for each in hosts]
            heard = [Deed(kill_s + 0.1, "unpartition", (each,)) for each in hosts]
            return [*held, Deed(kill_s, "kill_daemon", (0,)), *heard, Deed(back_s, "start_daemon")]
        case "stall":
            if rng.random() < 0.5:
                return [Deed(at_s, "stall_daemon", (end_s - at_s,))]
            return [Deed(at_s, "stall_agent", (host, end_s - at_s))]
        case "replication":
            mirrored = [guest for guest in guests if guest.peer]
            if mirrored and rng.random() < 0.7:  # and memory still gets through
                ends = (found := rng.choice(mirrored)).host, found.peer
                return [Deed(at_s, "cut_replication", ends), Deed(end_s, "heal_link", ends)]
            return [Deed(at_s, "drop_replication", (host,))]
        case "guest":
            name = rng.choice(guests).name
            if rng.random() < 0.5:
                return [Deed(at_s, "stops_by_itself", (name,))]
            return [Deed(at_s, "suspend", (name, end_s - at_s))]
        case _:
            shares = {
                "tool_hangs": rng.choice((0.0, 0.2)),
                "tool_lost": rng.choice((0.0, 0.3)),
                "libvirt_slow": rng.choice((0.0, 0.2)),
                "look_hangs": rng.choice((0.0, 0.0, 0.1)),
            }
            quiet = dict.fromkeys(shares, 0.0)
            return [Deed(at_s, "trouble", (host,), shares), Deed(end_s, "trouble", (host,), quiet)]


_COMMANDS = ("migrate", "drain", "undrain")
_FAULTS = (
    *("daemon",) * 4,
    *("agent",) * 4,
    *("cut",) * 2,
    *("libvirt",) * 2,
    *("partition",) * 3,
    *("lossy",) * 3,
    "stream",
    *("link",) * 2,
    "disk",
    "bmc",
    "lie",
    *("stall",) * 2,
    *("stale",) * 2,
    *("replication",) * 2,
    "guest",
    *("trouble",) * 2,
)
