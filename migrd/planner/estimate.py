"""How long moves take, from memory and bandwidth alone: a lower bound for people, not a promise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from migrd.model import Move
from migrd.planner.policy import Policy

SHUTDOWN_AND_BOOT_S = 30.0


def move_s(memory_bytes: int, policy: Policy) -> float:
    """One guest that has the link for itself."""
    return policy.move_overhead_s + copied_bytes(memory_bytes, policy) / policy.bandwidth_bps


def cold_s(policy: Policy, *, rests: bool) -> float:
    """A guest without its memory. How long guests take to shut down and boot differs most: a usual figure."""
    return policy.move_overhead_s + (0.0 if rests else SHUTDOWN_AND_BOOT_S)


def copied_bytes(memory_bytes: int, policy: Policy) -> float:
    return memory_bytes * (1 + policy.dirtied_ratio)


def moves_s(moves: Iterable[Move], memory: Mapping[str, int], policy: Policy) -> float:
    """max(busiest source out, busiest target in, longest move); `memory`: uuid -> bytes.

    Moves of one host share its link, so their copies add up; their overheads overlap in its slots.
    """
    ends: dict[tuple[str, str], tuple[float, int]] = {}
    longest = 0.0
    for move in moves:
        longest = max(longest, move.estimate_s)
        copy_s = copied_bytes(memory[move.guest], policy) / policy.bandwidth_bps
        for end in (("out", move.source), ("in", move.target)):
            total_s, count = ends.get(end, (0.0, 0))
            ends[end] = (total_s + copy_s, count + 1)
    slots = policy.per_host_moves
    busiest = (copy_s + policy.move_overhead_s * count / slots for copy_s, count in ends.values())
    return max((longest, *busiest))
