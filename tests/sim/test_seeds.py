"""Random runs: fresh seeds, the kept ones, and that a seed means one trace, on any interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sim.plan import Deed, plan
from tests.sim.run import run_plan, run_seed

REPOSITORY = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("seeds.txt")
FRESH_RUNS = int(os.environ.get("SIM_FRESH_RUNS", "500"))
BATCHES = 10


def kept() -> list[int]:
    lines = (line.partition("#")[0].strip() for line in KEPT.read_text().splitlines())
    return [int(line) for line in lines if line]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_fresh_seeds(batch: int, first_seed: int) -> None:
    size = FRESH_RUNS // BATCHES
    first = first_seed + batch * size
    print(f"first seed {first}, {size} runs")
    for seed in range(first, first + size):
        verdict = run_seed(seed)
        assert not verdict.failure, verdict.failure


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_first_fresh_seed_is_told_although_all_pass(workers: str) -> None:
    """In a run of its own, with one seed a batch: what -rP shows of the batches is what the summary says."""
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rP",
        "-n",
        workers,
        "tests/sim/test_seeds.py",
        "-k",
        "fresh_seeds",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    said = subprocess.run(
        argv,
        cwd=REPOSITORY,
        env={**environment, "SIM_FRESH_RUNS": str(BATCHES)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    told = re.findall(r"^fresh seeds: the first one was (\d+)$", said, re.MULTILINE)
    used = sorted(int(seed) for seed in re.findall(r"^first seed (\d+), 1 runs$", said, re.MULTILINE))
    assert used == [int(told[0]) + batch for batch in range(BATCHES)]


def test_kept_seeds() -> None:
    for seed in kept():
        verdict = run_seed(seed)
        assert not verdict.failure, verdict.failure


def test_what_falls_out_of_a_command_is_a_failure_of_its_seed() -> None:
    """A command of the operator that ends in no answer of migrd's own words: told, and can be repeated."""
    what = plan(2000)
    broken = Deed(at_s=1.0, what="drain", arguments=(what.hosts[0],), options={"power_off": 1, "host": "h1"})
    failure = run_plan(replace(what, deeds=(*what.deeds, broken))).failure
    assert failure.split("\n\n")[1].startswith("bug: TypeError(")
    assert "make sim SEED=2000\n\nTraceback" in failure


def test_the_same_seed_is_the_same_trace() -> None:
    seeds = range(2000, 2032)  # every class of plans
    here = [run_seed(seed).digest for seed in seeds]
    assert len(set(here)) == len(here)
    assert [run_seed(seed).digest for seed in reversed(seeds)] == here[::-1]


def test_the_same_seed_is_the_same_trace_in_another_interpreter() -> None:
    """Hashes of strings differ there, and with them the order of sets."""
    program = "from tests.sim.run import run_seed\nfor s in range(2000, 2032): print(run_seed(s).digest)"
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
