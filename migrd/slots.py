"""Which waiting moves may begin: so many per host as source and as target, fair between drains. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One migration, waiting or in flight. `group`: its drain, or itself when an operator asked for it."""

    operation: str
    group: str
    source: str
    target: str
    order: int  # when it was asked for
    turn: int = 0  # its number among the moves of its group


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    per_source: int = 2
    per_target: int = 2

    def __post_init__(self) -> None:
        if self.per_source < 1 or self.per_target < 1:
            raise ValueError("at least one move per host must be allowed")


def admit(waiting: Iterable[Slot], running: Iterable[Slot], caps: Caps) -> list[str]:
    """Operations that may begin now, in order. The drain with the fewest moves in flight goes first.

    Of drains with equally many, the one that has had the fewest turns: when a single slot comes free none has
    a move in flight, and the order of asking alone would give it to the first drain until that is done.
    """
    sources: Counter[str] = Counter()
    targets: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    for slot in running:
        sources[slot.source] += 1
        targets[slot.target] += 1
        groups[slot.group] += 1
    admitted: list[str] = []
    left = sorted(waiting, key=lambda slot: slot.order)
    while True:
        fitting = [
            slot
            for slot in left
            if sources[slot.source] < caps.per_source and targets[slot.target] < caps.per_target
        ]
        if not fitting:
            return admitted
        chosen = min(fitting, key=lambda slot: (groups[slot.group], slot.turn, slot.order))
        admitted.append(chosen.operation)
        left.remove(chosen)
        sources[chosen.source] += 1
        targets[chosen.target] += 1
        groups[chosen.group] += 1
