"""What the lab's verbs share: how one is declared, how it answers, how it reads a number."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

Answer = Callable[[argparse.Namespace], int]


def verb(
    verbs: Any, name: str, answer: Answer, text: str, *, json_answer: bool = True
) -> argparse.ArgumentParser:
    """Add a verb with its help and, unless told otherwise, `-o json`; `answer` returns the exit code."""
    made: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    made.set_defaults(answer=answer, output="text")
    if json_answer:
        made.add_argument("-o", "--output", choices=("text", "json"), default="text")
    return made


def say(args: argparse.Namespace, document: Any, text: str) -> int:
    """Answer on stdout: the JSON document with -o json, else the text. Returns exit code 0."""
    print(json.dumps(document, indent=1) if args.output == "json" else text)
    return 0


def note(line: str) -> None:
    """Progress goes to stderr, so that stdout holds answers only."""
    print(line, file=sys.stderr, flush=True)


def whole(low: int, high: int, unit: str) -> Callable[[str], int]:
    """An argparse type: a whole number from `low` to `high`; anything else is a usage error that says so."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {unit} from {low} to {high}")
        return value

    return read
