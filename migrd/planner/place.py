"""Which guest goes where: greedy, spread by memory, most constrained guest first, never overcommitted.

Pure and deterministic: equal clusters give equal plans in whatever order hosts and guests are listed.
Greedy is not exhaustive. When a guest finds no room, one guest placed before is moved elsewhere if that
helps; when that fails too, the guest is reported with the memory that is left on each target.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from migrd.model import Guest, Host
from migrd.planner.checks import Case, Reasons, check_memory, possible_targets, target_reasons
from migrd.planner.room import Room


@dataclass(slots=True)
class Options:
    """Where one guest could go for all that memory leaves open."""

    guest: Guest
    possible: list[str]

    @property
    def order(self) -> tuple[int, int, str]:
        """Fewest choices first (a DRBD guest has one), then the largest."""
        return (len(self.possible), -self.guest.memory_bytes, self.guest.uuid)


@dataclass(slots=True)
class Placement:
    targets: dict[str, str] = field(default_factory=dict)  # uuid -> host
    homeless: list[Options] = field(default_factory=list)


def options(case: Case, guest: Guest, candidates: Iterable[Host]) -> Options:
    return Options(guest, sorted(possible_targets(case, guest, candidates)))


def place(wanted: Sequence[Options], room: Room) -> Placement:
    """Targets for as many as find one. Writes what it promised into `room`."""
    placement = Placement()
    placed: dict[str, Options] = {}
    for want in sorted(wanted, key=lambda want: want.order):
        target = _emptiest(want, room) or _make_room(want, placed, placement, room)
        if target is None:
            placement.homeless.append(want)
            continue
        room.take(want.guest, target)
        placement.targets[want.guest.uuid] = target
        placed[want.guest.uuid] = want
    return placement


def verdicts_of(case: Case, want: Options, candidates: Iterable[Host], room: Room) -> dict[str, Reasons]:
    """Candidate -> why not, memory included; candidates that would do are left out.

    Worked out only for a guest without a place: the words cost more than the verdicts.
    """
    possible = set(want.possible)
    verdicts: dict[str, Reasons] = {}
    for target in candidates:
        if target.name in possible:
            reasons = check_memory(case, want.guest, target, room)
        else:
            reasons = target_reasons(case, want.guest, target)
        if reasons:
            verdicts[target.name] = reasons
    return verdicts


def _emptiest(want: Options, room: Room) -> str | None:
    fitting = [name for name in want.possible if room.fits(want.guest, name)]
    if not fitting:
        return None
    return min(fitting, key=lambda name: (room.load_after(want.guest, name), name))


def _make_room(want: Options, placed: dict[str, Options], placement: Placement, room: Room) -> str | None:
    """Send one guest placed before to another of its targets, the smallest that is enough."""
    possible = set(want.possible)
    movable = sorted(
        (other for uuid, other in placed.items() if placement.targets[uuid] in possible),
        key=lambda other: (other.guest.memory_bytes, other.guest.uuid),
    )
    for other in movable:
        target = placement.targets[other.guest.uuid]
        if want.guest.memory_bytes > room.free_bytes(target) + other.guest.memory_bytes:
            continue
        elsewhere = [name for name in other.possible if name != target and room.fits(other.guest, name)]
        if elsewhere:
            new = min(elsewhere, key=lambda name: (room.load_after(other.guest, name), name))
            room.give_back(other.guest, target)
            room.take(other.guest, new)
            placement.targets[other.guest.uuid] = new
            return target
    return None
