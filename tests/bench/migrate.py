"""migrd against plain virsh on the same guests, alternating, in one run: python -m tests.bench.migrate

Hosts are network namespaces that share this machine's kernel; guests run under TCG with a disk on QEMU's own
iSCSI. Seconds of one run say little on a shared machine; ratios within the run do.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial

from tests.bench.measures import Repeats, RoundSpoilt, Tally, asked_strict, note, p95
from tests.bench.ring import Ring
from tests.lab.labctl import LabCtl

MEASURES = ("migrate_ratio", "migrate_extra_s", "drain_first_move_s", "drain8_ratio", "drain8_first_move_s")
PAIRS = 10
FIRST_MOVES = 20  # drains of one guest: enough for a p95
DRAIN_ROUNDS = 5
GUEST = "g1"
GUESTS = tuple(f"g{n}" for n in range(1, 9))
PARALLEL = (1, 2, 3, 4, 8)  # what xargs -P is tried with; the best one is the opponent


class Walk:
    """Two hosts, and on which of them the guests are."""

    def __init__(self) -> None:
        self.here, self.there = "h1", "h2"

    def turn(self) -> None:
        self.here, self.there = self.there, self.here

    def find(self, ring: Ring) -> None:
        """Begin where the guest is, whatever happened before."""
        if ring.where(GUEST) == self.there:
            self.turn()


def step(walk: Walk, go: Callable[[str, str], float]) -> float:
    """One way. The guests are over there afterwards, also when the figure is worth nothing."""
    try:
        return go(walk.here, walk.there)
    finally:
        walk.turn()


def pairs(ring: Ring, tally: Tally, repeats: Repeats, walk: Walk) -> None:
    """The same guest, there and back by each tool, which of them goes first alternating.

    There and back, because the two directions were seen to differ by half: a pair in which each tool had one
    of them would say more about the hosts than about the tools.
    """
    walk.find(ring)
    ours, theirs = [], []

    def migrd() -> float:
        return sum(step(walk, partial(ring.migrd, GUEST)) for _ in range(2)) / 2

    def virsh() -> float:
        return sum(step(walk, partial(ring.virsh, [GUEST])) for _ in range(2)) / 2

    def one(number: int) -> tuple[float, float]:
        if number % 2 == 0:
            return migrd(), virsh()
        second = virsh()
        return migrd(), second

    for number in range(PAIRS):
        a, b = repeats.until_sound(f"pair {number + 1}", partial(one, number))
        note(f"pair {number + 1} of {PAIRS}: migrd {a:.3f} s, virsh {b:.3f} s")
        ours.append(a)
        theirs.append(b)
    both = list(zip(ours, theirs, strict=True))
    tally.say("migrate_ratio", statistics.median(a / b for a, b in both), "1", 1.10, PAIRS)
    tally.say("migrate_extra_s", statistics.median(a - b for a, b in both), "s", 0.5, PAIRS)


def first_moves(ring: Ring, tally: Tally, walk: Walk) -> None:
    """From the request for a drain to its first migrate call, of a host with one guest."""
    walk.find(ring)
    seen = []

    def one(here: str, _there: str) -> float:
        took_s, first_s = ring.drain([GUEST], here)
        seen.append(first_s)
        return took_s

    for number in range(FIRST_MOVES):
        took_s = step(walk, one)
        note(
            f"drain {number + 1} of {FIRST_MOVES}: first call after {seen[-1]:.3f} s, done in {took_s:.3f} s"
        )
    tally.say("drain_first_move_s", p95(seen), "s", 1.0, FIRST_MOVES)


def best_parallel(ring: Ring, repeats: Repeats, walk: Walk) -> int:
    """The fastest -P, by one run in each direction; one that fails again and again is no opponent."""
    took_s: dict[int, float] = {}
    for parallel in PARALLEL:

        def one(parallel: int = parallel) -> float:
            return step(walk, lambda here, there: ring.virsh(GUESTS, here, there, parallel))

        try:
            both = [repeats.until_sound(f"xargs -P {parallel}", one) for _ in range(2)]
        except RoundSpoilt as error:
            note(f"xargs -P {parallel} is left out: {error}")
            continue
        took_s[parallel] = statistics.median(both)
        note(f"xargs -P {parallel}: {took_s[parallel]:.3f} s")
    return min(took_s, key=lambda parallel: took_s[parallel])


def drains(ring: Ring, tally: Tally, repeats: Repeats, walk: Walk, parallel: int) -> None:
    """Drains of eight guests against xargs -P: there and back each, which goes first alternating."""
    ours, theirs = [], []
    firsts: list[float] = []

    def drain(here: str, _there: str) -> float:
        took_s, first_s = ring.drain(GUESTS, here)
        firsts.append(first_s)
        return took_s

    def migrd() -> float:
        return sum(step(walk, drain) for _ in range(2)) / 2

    def xargs() -> float:
        return (
            sum(step(walk, lambda here, there: ring.virsh(GUESTS, here, there, parallel)) for _ in range(2))
            / 2
        )

    def one(number: int) -> tuple[float, float]:
        if number % 2 == 0:
            return migrd(), xargs()
        second = xargs()
        return migrd(), second

    for number in range(DRAIN_ROUNDS):
        a, b = repeats.until_sound(f"drain {number + 1}", partial(one, number))
        note(f"drain {number + 1} of {DRAIN_ROUNDS}: migrd {a:.3f} s, xargs -P {parallel} {b:.3f} s")
        ours.append(a)
        theirs.append(b)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    tally.say("drain8_ratio", ratio, "1", 1.05, DRAIN_ROUNDS)
    tally.say("drain8_first_move_s", max(firsts), "s", 1.0, len(firsts))


def add(lab: LabCtl, guest: str, host: str, other: str) -> None:
    lab.lab("guest", "add", guest, "--host", host, "--disk", "iscsi-qemu")
    lab.lab("guest", "admit", guest, "--host", other)  # virsh, unlike migrd, needs the secret there first


def run(tally: Tally, lab: LabCtl | None = None) -> None:
    """One guest first, alone on the machine; the seven others only for the drains."""
    lab = lab or LabCtl("bench")
    repeats, walk = Repeats(), Walk()
    with tally.taking(*MEASURES):
        lab.lab("down")
        try:
            lab.lab("up", "--hosts", "2", "--host-kind", "netns")
            lab.env = lab.lab("deploy")
            add(lab, GUEST, walk.here, walk.there)
            ring = Ring(lab)
            with tally.taking():
                pairs(ring, tally, repeats, walk)
            with tally.taking():
                first_moves(ring, tally, walk)
            walk.find(ring)
            for guest in GUESTS[1:]:
                add(lab, guest, walk.here, walk.there)
            parallel = best_parallel(ring, repeats, walk)
            lab.lab(
                "deploy", "--moves", str(parallel)
            )  # the same number at once: what is compared is the rest
            drains(Ring(lab), tally, Repeats(), walk, parallel)
        finally:
            lab.lab("down")


def main() -> int:
    strict = asked_strict()
    tally = Tally()
    run(tally)
    return tally.exit_code(strict=strict)


if __name__ == "__main__":
    sys.exit(main())
