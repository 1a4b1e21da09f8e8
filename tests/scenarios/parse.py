"""The text of a scenario: start state, what happens to it, and what is expected. Pure.

    # covers: I5, field-notes 1
    hosts h1 h2 h3=4GiB
    guest web iscsi h1 2GiB copy 10
    guest db drbd h1 h2
    at 0 drain h1 --power-off
    when "migrate db copies" +0.5 cut h2 for 20
    expect
      ...
    end
      ...

Every mistake raises ScenarioError with file and line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from tests.scenarios.deeds import DEEDS, Deed, DeedError, read_deed

GIB = 1 << 30
KINDS = ("drbd", "iscsi", "iscsi-qemu")
SECTIONS = ("expect", "end", "healed")
COPY_S = 3.0  # how long a guest's memory takes, unless its line says otherwise
SETTINGS = ("per-source", "per-target", "deadline", "seed")


class ScenarioError(Exception):
    """A file cannot be understood: which, where, and what would be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestLine:
    name: str
    kind: str
    host: str
    peer: str = ""
    memory_bytes: int = GIB
    copy_s: float = COPY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """A deed and when it is done: `at_s` after the start, or `after_s` after the event `on`."""

    line: int
    deed: Deed
    at_s: float | None = None
    on: str = ""
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    invariants: frozenset[str]  # I1..I20
    cases: frozenset[int]  # of the field notes' list "cases to survive"
    hosts: Mapping[str, int]  # name -> memory in bytes
    guests: tuple[GuestLine, ...]
    cues: tuple[Cue, ...]
    settings: Mapping[str, float] = field(default_factory=dict)
    lasts_s: float = 0.0
    brief: bool = False  # only what is out of the ordinary is told of single moves
    unhealed: bool = False  # the end is parked on purpose: faults are not healed, liveness is not asked for
    allowed: tuple[str, ...] = ()  # violations that a human of the story brings about: "I1: web"
    expected: str = ""


def parse(name: str, text: str) -> Scenario:
    """Read one file."""
    return _Reader(name).read(text)


def rewritten(text: str, told: str) -> str:
    """The file with what was told in place of what it expected."""
    kept = []
    for line in text.splitlines():
        if line.strip() in SECTIONS:
            break
        kept.append(line)
    return "\n".join(kept).rstrip() + "\n" + told


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        self.covers: tuple[frozenset[str], frozenset[int]] | None = None
        self.hosts: dict[str, int] = {}
        self.guests: list[GuestLine] = []
        self.cues: list[Cue] = []
        self.settings: dict[str, float] = {}
        self.lasts_s = 0.0
        self.flags: set[str] = set()
        self.allowed: list[str] = []
        self.names: set[str] = set()  # of guests

    def read(self, text: str) -> Scenario:
        lines = text.splitlines()
        expected = ""
        for self.number, line in enumerate(lines, start=1):
            if line.strip() in SECTIONS:
                expected = "\n".join(lines[self.number - 1 :]) + "\n"
                break
            if line.startswith("# covers:") and self.covers is not None:
                self._wrong("what is covered is said already")
            elif line.startswith("# covers:"):
                self.covers = self._covers(line.removeprefix("# covers:"))
            words = self._split(line)
            if words:
                self._line(words)
        if self.covers is None:
            self._wrong("no line says what is covered: # covers: I5, field-notes 1")
        if not self.cues:
            self._wrong("nothing happens: no `at` and no `when`")
        return Scenario(
            name=self.name,
            invariants=self.covers[0],
            cases=self.covers[1],
            hosts=self.hosts,
            guests=tuple(self.guests),
            cues=tuple(self.cues),
            settings=self.settings,
            lasts_s=self.lasts_s,
            brief="brief" in self.flags,
            unhealed="unhealed" in self.flags,
            allowed=tuple(self.allowed),
            expected=expected,
        )

    def _wrong(self, what: str) -> NoReturn:
        raise ScenarioError(f"{self.name}:{self.number}: {what}")

    def _covers(self, text: str) -> tuple[frozenset[str], frozenset[int]]:
        """`I5, field-notes 6 (KubeVirt #5482: left behind): words`."""
        invariants, cases = set(), set()
        for each in re.sub(r"\([^)]*\)", "", text).partition(":")[0].split(","):
            if re.fullmatch(r"I([1-9]|1\d|20)", each.strip()):
                invariants.add(each.strip())
            elif found := re.fullmatch(r"field-notes ([1-9]|1[0-2])", each.strip()):
                cases.add(int(found[1]))
            else:
                wrong = f"{each.strip()!r} is neither an invariant nor a case"
                self._wrong(f"{wrong}: # covers: I5, field-notes 1: words")
        return frozenset(invariants), frozenset(cases)

    def _split(self, line: str) -> list[str]:
        try:
            return shlex.split(line, comments=True)
        except ValueError as error:
            raise ScenarioError(f"{self.name}:{self.number}: {error}") from None

    def _line(self, words: list[str]) -> None:
        match words:
            case ["hosts", *hosts] if hosts:
                for host in hosts:
                    name, _, memory = host.partition("=")
                    self.hosts[name] = self._memory(memory or "16GiB")
            case ["guest", name, kind, host, *rest]:
                self._guest(name, kind, host, rest)
            case ["set", setting, value] if setting in SETTINGS:
                self.settings[setting] = self._number(value)
            case ["set", setting, *_]:
                self._wrong(f"there is no setting {setting} VALUE; there are {', '.join(SETTINGS)}")
            case ["lasts", seconds]:
                self.lasts_s = self._number(seconds)
            case ["brief" | "unhealed" as flag]:
                self.flags.add(flag)
            case ["allow", invariant, about]:
                self.allowed.append(f"{invariant}: {about}")
            case ["at", seconds, *deed] if deed:
                self.cues.append(Cue(line=self.number, at_s=self._number(seconds), deed=self._deed(deed)))
            case ["when", event, *deed] if deed:
                after_s = 0.0
                if deed[0].startswith("+"):
                    after_s = self._number(deed.pop(0)[1:])
                self.cues.append(Cue(line=self.number, on=event, after_s=after_s, deed=self._deed(deed)))
            case _:
                self._wrong(
                    f"not understood: {' '.join(words)!r}; a line is hosts, guest, set, lasts, brief, "
                    "unhealed, allow, at SECONDS DEED, or when EVENT [+SECONDS] DEED"
                )

    def _guest(self, name: str, kind: str, host: str, rest: list[str]) -> None:
        if kind not in KINDS:
            self._wrong(f"{name}: no kind of disk is called {kind}; there are {', '.join(KINDS)}")
        peer, memory_bytes, copy_s = "", GIB, COPY_S
        if kind == "drbd":
            if not rest:
                self._wrong(f"guest {name} drbd HOST PEER: the peer is missing")
            peer = rest.pop(0)
        for each in (host, peer) if peer else (host,):
            if each not in self.hosts:
                self._wrong(f"{name}: there is no host {each}; say `hosts {each}` before")
        while rest:
            word = rest.pop(0)
            if word == "copy" and rest:
                copy_s = self._number(rest.pop(0))
            elif word.endswith("GiB"):
                memory_bytes = self._memory(word)
            else:
                self._wrong(f"guest {name}: {word} is neither NGiB nor copy SECONDS")
        self.names.add(name)
        self.guests.append(
            GuestLine(name=name, kind=kind, host=host, peer=peer, memory_bytes=memory_bytes, copy_s=copy_s)
        )

    def _deed(self, words: list[str]) -> Deed:
        try:
            deed = read_deed(words, set(self.hosts), self.names)
        except DeedError as error:
            raise ScenarioError(f"{self.name}:{self.number}: {error}") from None
        if deed.name == "create":
            self.names.add(deed.words[0])
        return deed

    def _number(self, word: str) -> float:
        try:
            return float(word)
        except ValueError:
            raise ScenarioError(f"{self.name}:{self.number}: {word!r} is not a number") from None

    def _memory(self, word: str) -> int:
        if not re.fullmatch(r"\d+GiB", word):
            self._wrong(f"{word!r} is no amount of memory: 4GiB")
        return int(word.removesuffix("GiB")) * GIB


__all__ = ["DEEDS", "Cue", "GuestLine", "Scenario", "ScenarioError", "parse", "rewritten"]
