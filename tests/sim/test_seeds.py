"""Random runs: fresh seeds, the kept ones, and that a seed means one trace, on any interpreter."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.run import run_seed

REPOSITORY = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("seeds.txt")
FRESH_RUNS = int(os.environ.get("SIM_FRESH_RUNS", "500"))
BATCHES = 10


def kept() -> list[int]:
    lines = (line.partition("#")[0].strip() for line in KEPT.read_text().splitlines())
    return [int(line) for line in lines if line]


def first_fresh() -> int:
    """The same in every worker of one test run, fresh in the next one."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    return random.Random(run).randrange(1 << 40)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_fresh_seeds(batch: int) -> None:
    size = FRESH_RUNS // BATCHES
    first = first_fresh() + batch * size
    print(f"first seed {first}, {size} runs")
    for seed in range(first, first + size):
        verdict = run_seed(seed)
        assert not verdict.failure, verdict.failure


def test_kept_seeds() -> None:
    for seed in kept():
        verdict = run_seed(seed)
        assert not verdict.failure, verdict.failure


def test_the_same_seed_is_the_same_trace() -> None:
    seeds = range(2000, 2012)
    here = [run_seed(seed).digest for seed in seeds]
    assert len(set(here)) == len(here)
    assert [run_seed(seed).digest for seed in reversed(seeds)] == here[::-1]


def test_the_same_seed_is_the_same_trace_in_another_interpreter() -> None:
    """Hashes of strings differ there, and with them the order of sets."""
    program = "from tests.sim.run import run_seed\nfor s in range(2000, 2012): print(run_seed(s).digest)"
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("1", "4711")
    ]
    assert said[0] == said[1] != ""
