"""How long planning a drain takes: python -m tests.bench.plan; one JSON line per measure on stdout.

Pure code on a synthetic cluster: no IO is in the figure, so seconds are of CPU, and what else the machine
does disturbs them little. Facts are gathered before the clock starts: in the daemon they come from the hosts.
"""

from __future__ import annotations

import statistics
import sys
import time

from agents.protocol import AnyVolume
from migrd.model import Cluster, Facts
from migrd.planner import Policy, plan_drain
from storage.words import Role
from tests.bench.measures import Tally, asked_strict
from tests.planner.build import GIB, all_yes, cluster, drbd, guest, host, lun, report

RUNS = 15
POLICY = Policy()


def build(hosts: int, guests: int) -> Cluster:
    """Guests spread evenly; a third on DRBD with the next host, a third on a LUN, a third without a disk."""
    found = []
    copies: dict[str, dict[str, tuple[AnyVolume, Role]]] = {f"h{n:04}": {} for n in range(hosts)}
    for n in range(guests):
        here, there = f"h{n % hosts:04}", f"h{(n + 1) % hosts:04}"
        volumes: tuple[AnyVolume, ...] = ()
        if (n // hosts) % 3 == 0:
            volumes = (drbd(f"g{n}", f"node-{here}", f"node-{there}"),)
            copies[here][volumes[0].name] = (volumes[0], Role.PRIMARY)
            copies[there][volumes[0].name] = (volumes[0], Role.SECONDARY)
        elif (n // hosts) % 3 == 1:
            volumes = (lun(f"g{n}"),)
        found.append(guest(f"g{n}", here, gib=1 + n % 8, volumes=volumes))
    return cluster(
        [
            host(
                name,
                gib=512,
                memory_available_bytes=400 * GIB,
                volumes={key: report(volume, role) for key, (volume, role) in held.items()},
            )
            for name, held in copies.items()
        ],
        found,
    )


def measure(tally: Tally, name: str, before: Cluster, facts: Facts, *, goal_s: float, whole: bool) -> None:
    """`whole`: every guest finds a place; otherwise none does, and every reason is worked out."""
    took_s = []
    for _ in range(RUNS):
        began_s = time.process_time()
        plan = plan_drain(before, "h0000", facts, POLICY)
        took_s.append(time.process_time() - began_s)
        assert bool(plan.moves) == whole, "the bench plans what it says"
        assert bool(plan.blockers) != whole
    tally.say(name, statistics.median(took_s), "s", goal_s, RUNS, digits=5)


def run(tally: Tally) -> None:
    for hosts, guests, goal_s in ((300, 6_000, 0.1), (1_000, 20_000, 1.0)):
        name = f"plan_{hosts}x{guests}"
        with tally.taking(f"{name}_s", f"{name}_refused_s"):
            before = build(hosts, guests)
            facts = all_yes(drained_only(before))
            nothing = Facts(cpu={}, volume={})
            measure(tally, f"{name}_s", before, facts, goal_s=goal_s, whole=True)
            measure(tally, f"{name}_refused_s", before, nothing, goal_s=goal_s, whole=False)


def main() -> int:
    strict = asked_strict()
    tally = Tally()
    run(tally)
    return tally.exit_code(strict=strict)


def drained_only(before: Cluster) -> Cluster:
    """The guests that would move: only they are asked about."""
    return Cluster(hosts=before.hosts, guests=before.guests_on("h0000"))


if __name__ == "__main__":
    sys.exit(main())
