"""migrd against plain virsh on the same guests, alternating, in one run: python -m tests.bench.migrate

Hosts are network namespaces that share this machine's kernel; guests run under TCG with a disk on QEMU's own
iSCSI. Seconds of one run say little on a shared machine; ratios within the run do.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence

from tests.bench.api import Api
from tests.lab.labctl import LabCtl, until

PAIRS = 10
DRAIN_ROUNDS = 3
DRAIN_GUESTS = tuple(f"g{n}" for n in range(1, 9))
PARALLEL = (2, 4, 8)  # what xargs -P is tried with; the best one is the opponent
VIRSH = (
    "virsh",
    "-q",
    "-c",
    "qemu:///system",
    "migrate",
    "--live",
    "--p2p",
    "--persistent",
    "--undefinesource",
)


def say(name: str, value: float, unit: str, goal: float, runs: int) -> bool:
    ok = value <= goal
    line = {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "ok": ok, "runs": runs}
    print(json.dumps(line), flush=True)
    return ok


class Ring:
    """Two hosts between which guests go to and fro."""

    def __init__(self, lab: LabCtl) -> None:
        self.lab = lab
        self.api = Api(lab.env)
        self.storage = {h["name"]: h["storage"] for h in lab.lab("env")["hosts"]}

    def by_virsh(self, guests: Sequence[str], source: str, target: str, parallel: int) -> float:
        """Seconds for the loop an administrator would write; the shell is on the source host."""
        to = self.storage[target]
        command = f"{' '.join(VIRSH)} --migrateuri tcp://{to} {{}} qemu+tcp://{to}/system"
        # Timed by the shell on the host, so that the lab's own start-up is not held against virsh.
        loop = f"printf '%s\\n' {' '.join(guests)} | xargs -P {parallel} -I{{}} {command} >&2"
        script = f"began=$(date +%s%N); {loop} || exit; echo $(($(date +%s%N) - began))"
        done = self.lab.sh(source, "sh", "-c", script, deadline_s=600)
        if done.rc != 0:
            raise RuntimeError(f"virsh: exit {done.rc}: {done.err}")
        return int(done.out) / 1e9

    def by_migrd(self, guest: str, target: str) -> float:
        began_s = time.monotonic()
        self.api.work(f"/v1/vms/{guest}/migrate", {"to": target})
        return time.monotonic() - began_s

    def settle(self, guests: Sequence[str], host: str) -> None:
        """The daemon has seen where virsh put them: planning from old news is not what is measured."""

        def there() -> bool:
            seen = {vm["name"]: vm for vm in self.api.ask("GET", "/v1/vms")["vms"]}
            return all(seen[g]["host"] == host and not seen[g]["also_on"] for g in guests)

        until(f"{', '.join(guests)} on {host}", there, deadline_s=60, every_s=0.1)


def pairs(ring: Ring, guest: str) -> bool:
    """The same guest, A B A B; each tool goes in both directions equally often."""
    ours, theirs = [], []
    here, there = "h1", "h2"
    for number in range(PAIRS):
        for tool in ("migrd", "virsh") if number % 2 == 0 else ("virsh", "migrd"):
            ring.settle([guest], here)
            if tool == "migrd":
                ours.append(ring.by_migrd(guest, there))
            else:
                theirs.append(ring.by_virsh([guest], here, there, 1))
            here, there = there, here
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    extra = statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
    print(f"migrate: migrd {ours} virsh {theirs}", file=sys.stderr)
    return all(
        (say("migrate_ratio", ratio, "1", 1.10, PAIRS), say("migrate_extra_s", extra, "s", 0.5, PAIRS))
    )


def drains(ring: Ring) -> bool:
    """Drain of eight guests against the best xargs -P, alternating."""
    best = min(PARALLEL, key=lambda parallel: _there_and_back(ring, parallel))
    ring.lab.lab("deploy", "--moves", str(best))  # the same number at once: what is compared is the rest
    ring = Ring(ring.lab)  # the daemon was started anew
    ours, theirs, first = [], [], []
    for _ in range(DRAIN_ROUNDS):
        ring.settle(DRAIN_GUESTS, "h1")
        began_s = time.monotonic()
        operation = ring.api.work("/v1/hosts/h1/drain", {})
        ours.append(time.monotonic() - began_s)
        first.append(operation["first_call_at_s"] - operation["requested_at_s"])
        ring.api.work("/v1/hosts/h1/undrain", {})
        ring.settle(DRAIN_GUESTS, "h2")
        theirs.append(ring.by_virsh(DRAIN_GUESTS, "h2", "h1", best))
    print(f"drain8: migrd {ours} xargs -P {best} {theirs}", file=sys.stderr)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    fine = say("drain8_ratio", ratio, "1", 1.05, DRAIN_ROUNDS)
    return say("drain_first_move_s", _p95(first), "s", 1.0, DRAIN_ROUNDS) and fine


def _there_and_back(ring: Ring, parallel: int) -> float:
    ring.settle(DRAIN_GUESTS, "h1")
    took_s = ring.by_virsh(DRAIN_GUESTS, "h1", "h2", parallel)
    took_s += ring.by_virsh(DRAIN_GUESTS, "h2", "h1", parallel)
    return took_s


def _p95(values: Sequence[float]) -> float:
    """Nearest rank; of fewer than 20 values that is the worst one."""
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


def run(lab: LabCtl) -> bool:
    lab.lab("down")
    try:
        lab.lab("up", "--hosts", "2", "--host-kind", "netns")
        lab.env = lab.lab("deploy")
        for guest in DRAIN_GUESTS:
            lab.lab("guest", "add", guest, "--host", "h1", "--disk", "iscsi-qemu")
            lab.lab(
                "guest", "admit", guest, "--host", "h2"
            )  # virsh, unlike migrd, needs the secret there first
        ring = Ring(lab)
        fine = pairs(ring, DRAIN_GUESTS[0])
        return drains(ring) and fine
    finally:
        lab.lab("down")


def main() -> int:
    """0 = every goal met, 1 = not; a miss is a figure to report, never a reason to stop measuring."""
    return 0 if run(LabCtl("bench")) else 1


if __name__ == "__main__":
    sys.exit(main())
