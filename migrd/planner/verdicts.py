"""From reasons to blockers: what the operator reads. Equal reasons of many targets become one line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from migrd.model import Blocker, Guest
from migrd.planner.checks import Reason, Reasons

SHOWN_TARGETS = 8  # a reason that more targets share is one blocker that names the first few


def of_guest(guest: Guest, reasons: Iterable[Reason]) -> list[Blocker]:
    return [_blocker(guest, "", reason) for reason in dict.fromkeys(reasons)]


def of_targets(guest: Guest, verdicts: Mapping[str, Reasons]) -> list[Blocker]:
    """`verdicts`: target -> why not. Blockers in the order of the targets' names, widest reasons first."""
    if not verdicts:
        nowhere = Reason("there is no other host to try", "see migrctl hosts")
        return [_blocker(guest, "", nowhere)]
    shared: dict[str, dict[str, Reason]] = {}
    for target in sorted(verdicts):
        for reason in verdicts[target]:
            shared.setdefault(reason.text, {}).setdefault(target, reason)
    found = []
    for text in sorted(shared, key=lambda text: (-len(shared[text]), text)):
        found += _fold(guest, shared[text], of=len(verdicts))
    return found


def _fold(guest: Guest, targets: Mapping[str, Reason], *, of: int) -> list[Blocker]:
    first = next(iter(targets.values()))
    if 1 < len(targets) == of:
        return [_blocker(guest, "", first, targets)]
    if len(targets) > SHOWN_TARGETS:
        return [_blocker(guest, _some(targets), first, targets)]
    return [_blocker(guest, target, reason) for target, reason in targets.items()]


def _some(targets: Collection[str]) -> str:
    names = list(targets)
    return f"{', '.join(names[:3])} and {len(names) - 3} more"


def _blocker(
    guest: Guest, target: str, reason: Reason, targets: Mapping[str, Reason] | None = None
) -> Blocker:
    remedy = reason.remedy
    if targets is not None and len({each.remedy for each in targets.values()}) > 1:
        remedy += " (likewise for the others)"
    return Blocker(guest=guest.uuid, name=guest.name, target=target, reason=reason.text, remedy=remedy)
