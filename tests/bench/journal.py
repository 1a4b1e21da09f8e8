"""How long a start needs to recover 10,000 operations: python -m tests.bench.journal; JSON lines on stdout.

The rows are those of a real drain and undrain (the production core on the fake world), told again and again
under new names: migrations on DRBD and iSCSI of 14 and 10 rows, drains and undrains with two children each.
The file is the one that a running daemon leaves: what has ended is condensed, the newest operations are not.
Timed: opening the file, checking every page and every row, and the state of every operation in memory. The
value is of the wall clock, as the goal is; the CPU seconds on stderr tell how much of it was waiting.
"""

from __future__ import annotations

import asyncio
import logging
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import structlog

from migrd.control import DrainRequest, UndrainRequest
from migrd.controller import Controller
from migrd.engine import Settings
from migrd.journal import Journal
from migrd.planner import Policy
from migrd.planning import BoundPlanner
from migrd.preflight import Interviewer
from migrd.retention import Keep
from migrd.sagas.events import EVENT, Event
from tests.bench.measures import Tally, asked_strict, note
from tests.core.fake_world import World
from tests.core.harness import Cluster3, FakePower, FakeView
from tests.core.vloop import run as run_story

OPERATIONS = 10_000
FRESH = 100  # ended since the daemon tidied last: folded from their rows
GOAL_S = 5.0
RUNS = 5


async def told() -> list[tuple[str, str]]:
    """(operation, payload) of two drains with power-off, and their undrains."""
    world = World()
    world.add_drbd("db", "h1", "h2")
    world.add_iscsi("web", "h1")
    async with Cluster3(world) as cluster:
        for _ in range(2):
            drained = await cluster.controller.drain("h1", DrainRequest(power_off=True))
            await cluster.until(drained.id)
            back = await cluster.controller.undrain("h1", UndrainRequest(restore=True))
            await cluster.until(back.id)
        return [(operation, payload) for operation, payload, _ in cluster.journal.rows]


def again(rows: list[tuple[str, str]], times: int) -> list[tuple[str, Event]]:
    """The same story `times` times, each time under the next numbers."""
    per_story = len({operation for operation, _ in rows if "." not in operation})
    found = []
    for n in range(times):

        def later(match: re.Match[str], n: int = n) -> str:
            return f"op-{int(match[1]) + n * per_story:06d}"

        for operation, payload in rows:
            name = re.sub(r"op-(\d{6})", later, operation)
            found.append((name, EVENT.validate_json(re.sub(r"op-(\d{6})", later, payload))))
    return found


def controller(journal: Journal) -> Controller:
    world = World()
    view = FakeView(world, {})
    return Controller(
        view=view,
        interviewer=Interviewer({}),
        planner=BoundPlanner(Policy()),
        agents={},
        journal=journal,
        power=FakePower(world),
        settings=Settings(keep=Keep(operations=2 * OPERATIONS)),
    )


async def write(path: Path, rows: list[tuple[str, Event]]) -> tuple[int, int]:
    """As a daemon would have left it; (operations, rows)."""
    journal = await Journal.open(path)
    at_s = time.time()
    names = list(dict.fromkeys(operation for operation, _ in rows))
    fresh = set(names[-FRESH:])
    for old in (True, False):
        some = [row for row in rows if (row[0] not in fresh) == old]
        for first in range(0, len(some), 1000):
            await asyncio.gather(
                *(journal.append(name, event, at_s) for name, event in some[first : first + 1000])
            )
        if old:
            core = controller(journal)
            await core.recover()
            await core._engine.tidy()
    await journal.close()
    return len(names), len(rows)


async def recover(path: Path) -> tuple[float, int]:
    began_s = time.perf_counter()
    journal = await Journal.open(path)
    core = controller(journal)
    await core.recover()
    took_s = time.perf_counter() - began_s
    count = len(core.operations(limit=2 * OPERATIONS))
    await journal.close()
    return took_s, count


def measure(tally: Tally) -> None:
    """Writes the journal once, then starts on it a few times, by the wall clock."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    rows = run_story(told())
    story = len({operation for operation, _ in rows})
    with tempfile.TemporaryDirectory(prefix="migrd-bench-") as folder:
        path = Path(folder) / "journal"
        operations, written = asyncio.run(write(path, again(rows, -(-OPERATIONS // story))))
        size = path.stat().st_size
        took_s, cpu_s = [], []
        for _ in range(RUNS):
            began_s = time.process_time()
            seconds, found = asyncio.run(recover(path))
            cpu_s.append(time.process_time() - began_s)
            assert found == operations >= OPERATIONS, "the bench recovers what it says"
            took_s.append(seconds)
    note(
        f"journal: {operations} operations, {written} rows, {size / (1 << 20):.1f} MiB, "
        f"{statistics.median(cpu_s):.3f} CPU s"
    )
    tally.say("journal_recovery_10k_s", statistics.median(took_s), "s", GOAL_S, RUNS)


def run(tally: Tally) -> None:
    with tally.taking("journal_recovery_10k_s"):
        measure(tally)


if __name__ == "__main__":
    strict = asked_strict()
    alone = Tally()
    run(alone)
    sys.exit(alone.exit_code(strict=strict))
