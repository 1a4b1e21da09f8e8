"""What a bench has measured: JSON lines on stdout, nothing else there; how it goes on is told on stderr."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

MAX_REPEATS = 5  # of rounds in which the opponent failed
EXIT_MISSED = 1  # with --strict
EXIT_NOT_TAKEN = 2


class RoundSpoilt(Exception):  # noqa: N818 - a state of the world
    """Something outside what is measured went wrong: the round says nothing, and can be done again."""


def note(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclass
class Tally:
    """The measures taken, the goals missed, and what could not be measured."""

    missed: list[str] = field(default_factory=list)
    not_taken: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def say(self, name: str, value: float, unit: str, goal: float, runs: int, *, digits: int = 3) -> None:
        """One line. A goal that was missed is a figure like any other: `ok` tells it."""
        ok = value <= goal
        line = {
            "name": name, "value": round(value, digits), "unit": unit, "goal": goal, "ok": ok, "runs": runs,
        }  # fmt: skip
        print(json.dumps(line), flush=True)
        self.taken.append(name)
        if not ok:
            self.missed.append(name)

    @contextmanager
    def taking(self, *names: str) -> Iterator[None]:
        """Whatever breaks inside, the other measures are still taken; these are then named as missing."""
        try:
            yield
        except Exception as error:  # a bench that stops at the first trouble tells less than it knows
            note(f"{type(error).__name__}: {error}")
        for name in names:
            if name not in self.taken:
                note(f"{name} could not be measured")
                self.not_taken.append(name)

    def exit_code(self, *, strict: bool) -> int:
        """0: everything was measured, whatever the figures; `strict` asks for the goals as well."""
        if self.not_taken:
            return EXIT_NOT_TAKEN
        return EXIT_MISSED if strict and self.missed else 0


class Repeats:
    """Does spoilt rounds again, a bounded number of times in all."""

    def __init__(self, at_most: int = MAX_REPEATS) -> None:
        self._left = at_most

    def until_sound(self, what: str, one: Callable[[], T]) -> T:
        """The first result that is not spoilt. Raises RoundSpoilt when there were too many."""
        while True:
            try:
                return one()
            except RoundSpoilt as error:
                if self._left == 0:
                    raise
                self._left -= 1
                note(f"{what}: discarded and done again ({self._left} repeats left): {error}")


def p95(values: Sequence[float]) -> float:
    """Nearest rank; of fewer than 20 values that is the worst one."""
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


def asked_strict(arguments: Sequence[str] | None = None) -> bool:
    """The command line of every bench."""
    parser = argparse.ArgumentParser(
        description="Figures as JSON lines on stdout. Exit 0: every measure was taken; 2: one was not."
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when a goal was missed")
    return bool(parser.parse_args(arguments).strict)
