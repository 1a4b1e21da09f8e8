"""make sim [SEED=n] [RUNS=n] [BLOW='story: what']: many seeds on two processes, or one seed with its story,
or one run of the exhaustive ones.

Progress on stderr; the last line on stdout is "N passed, N failed". Exit code 1 if any failed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

from tests.sim.exhaust import Blow, End, Story, awaits, gaps, kills, play, strike
from tests.sim.exhaust_stories import STORIES
from tests.sim.plan import plan
from tests.sim.run import Verdict, run_seed

WORKERS = 2
BATCH = 25
PROGRESS_EVERY_S = 5.0
SHOWN = 5  # stories of failed seeds printed in full


def many(first: int, runs: int, workers: int = WORKERS) -> list[Verdict]:
    """Run `runs` seeds from `first` on; failed ones are told as they come."""
    failed: list[Verdict] = []
    done, began_s, told_s = 0, time.monotonic(), time.monotonic()
    with ProcessPoolExecutor(max_workers=workers) as pool:
        for verdict in pool.map(run_seed, range(first, first + runs), chunksize=BATCH):
            done += 1
            if verdict.failure:
                failed.append(verdict)
                _tell(verdict, story=len(failed) <= SHOWN)
            if time.monotonic() - told_s > PROGRESS_EVERY_S:
                told_s = time.monotonic()
                rate = done / (told_s - began_s)
                print(f"{done}/{runs}, {len(failed)} failed, {rate:.0f} runs/s", file=sys.stderr, flush=True)
    return failed


def _tell(verdict: Verdict, *, story: bool) -> None:
    first = verdict.failure.split("\n\n")[1].splitlines()[0]
    print(f"seed {verdict.seed}: {first}")
    if story:
        print(verdict.failure)
    print(f"make sim SEED={verdict.seed}", flush=True)


def one(seed: int) -> Verdict:
    """Run one seed and tell what it did."""
    print(plan(seed))
    verdict = run_seed(seed)
    took = f"{verdict.virtual_s:.0f} virtual s, {verdict.cpu_s:.3f} s of CPU"
    print(f"{verdict.events} events in {took}, trace {verdict.digest}")
    return verdict


def chosen_blow(words: str) -> tuple[Story, Blow, End]:
    """Of an exhaustive story, with its undisturbed end. Raises ValueError: there is no such thing."""
    name, _, what = words.partition(": ")
    story = next((each for each in STORIES if each.name == name), None)
    if story is None:
        raise ValueError(f"no story is called {name!r}; there are {', '.join(each.name for each in STORIES)}")
    undisturbed = play(story)
    all_of_it = (*kills(undisturbed), *gaps(undisturbed), *awaits(undisturbed))
    blow = next((each for each in all_of_it if str(each) == what), None)
    if blow is None:
        raise ValueError(f"{what!r} does not happen in {name}; for example: {all_of_it[0]}, {all_of_it[-1]}")
    return story, blow, undisturbed


def main(arguments: Iterable[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seed", type=int, help="the only seed, or the first one of --runs")
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--blow", help="STORY: WHAT, as a failure of tests/sim/test_exhaustive.py prints it")
    options = parser.parse_args(list(arguments))
    if options.blow is not None:
        if options.seed is not None or options.runs:
            parser.error("--blow is a run of its own: no --seed, no --runs")
        try:
            found = chosen_blow(options.blow)
        except ValueError as error:
            parser.error(str(error))
        failure = strike(*found)
        print(failure or options.blow)
        print(f"{0 if failure else 1} passed, {1 if failure else 0} failed")
        return 1 if failure else 0
    if options.seed is not None and options.runs <= 1:
        verdict = one(options.seed)
        if verdict.failure:
            print(verdict.failure)
        print(f"{0 if verdict.failure else 1} passed, {1 if verdict.failure else 0} failed")
        return 1 if verdict.failure else 0
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 40)
    runs = options.runs or 500
    print(f"first seed {first}, {runs} runs", flush=True)
    failed = many(first, runs)
    print(f"{runs - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
