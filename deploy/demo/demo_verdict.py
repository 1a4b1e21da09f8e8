"""What the observer must have seen for the demo, or a lab test, to pass. Pure: reports in, faults out.

A report is what `lab audit report -o json` says. Silence is never taken for good news: a guest that was never
heard, or is not heard any more, is a fault like one that was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OUTAGE_LIMIT_MS = 2000.0
NO_RECORD_LIMIT_MS = 5000.0  # a record waits for a processor more often than a ping does

Row = Mapping[str, Any]


def moves_of(operations: Sequence[Row], guests: Iterable[str]) -> dict[str, list[Row]]:
    """Every completed move of each guest, oldest first; `operations` are newest first, as migrd has them."""
    found: dict[str, list[Row]] = {name: [] for name in guests}
    for row in reversed(operations):
        if row["kind"] == "migrate" and row["state"] == "done" and row["subject"] in found:
            found[row["subject"]].append(row)
    return found


def path_of(home: str, moves: Sequence[Row]) -> str:
    """Where a guest has been: "h1 > h2 > h1"."""
    return " > ".join([home, *(move["target"] for move in moves)])


def lost(row: Row) -> int:
    """Records that are not, or not as they were, where they were acknowledged to be."""
    return int(row["missing"] + row["reordered"] + row["corrupt"])


def path_faults(name: str, home: str, moves: Sequence[Row]) -> list[str]:
    """The demo's story: away from home once, and back."""
    targets = [move["target"] for move in moves]
    if len(targets) == 2 and targets[0] != home and targets[1] == home:
        return []
    return [f"{name} did not go away from {home} and come back: {path_of(home, moves)}"]


def observer_faults(report: Row) -> list[str]:
    """An observer that missed something itself cannot say that nothing happened."""
    found = []
    if report["frames_dropped"]:
        found.append(f"the observer lost {report['frames_dropped']} frames before it could read them")
    if report["probes_unsent"]:
        found.append(f"the observer could not send {report['probes_unsent']} of its probes")
    return found


def guest_faults(name: str, early: Row, late: Row, outage_limit_ms: float = OUTAGE_LIMIT_MS) -> list[str]:
    """What is held against one guest; `late` was taken some records after `early`, when all was over."""
    found = []
    if late["instances_max"] != 1:
        why = "; ".join(late["instances_evidence"])
        found.append(f"{name} ran {late['instances_max']} times at once{f': {why}' if why else ''}")
    if late["boots"] != 1:
        found.append(f"{name} was started {late['boots']} times where 1 was right")
    if late["acked"] == 0 or lost(late):
        found.append(f"{name}: {late['acked']} records acknowledged, {lost(late)} of them lost or damaged")
    if late["acked_again"] > late["heard_twice"]:
        found.append(f"{name} acknowledged {late['acked_again']} records more than once")
    if late["memory_faults"]:
        found.append(f"{name}: {late['memory_faults']} pages of its memory lost what was written to them")
    if late["acked"] <= early["acked"]:
        found.append(
            f"{name} writes no more records: {early['acked']}, and some seconds later {late['acked']}"
        )
    return found + _silences(name, late, outage_limit_ms)


def _silences(name: str, row: Row, limit_ms: float) -> list[str]:
    found = []
    if row["probes_answered"] == 0:
        found.append(f"{name} never answered a ping, so nothing is known about its outages")
    if row["outage_now"]:
        found.append(f"{name} does not answer pings now")
    if row["outage_max_ms"] > limit_ms:
        found.append(f"{name} was out of reach for {row['outage_max_ms']:.0f} ms (limit {limit_ms:.0f})")
    # A guest whose disk hangs still answers pings. Between two records there is always one interval.
    ack_limit_ms = max(limit_ms, NO_RECORD_LIMIT_MS) + 1000 / row["records_per_s"]
    if row["ack_gap_max_ms"] > ack_limit_ms:
        said = f"wrote no record for {row['ack_gap_max_ms']:.0f} ms (limit {ack_limit_ms:.0f})"
        found.append(f"{name} {said}")
    return found


def audit_faults(
    names: Iterable[str], early: Row, late: Row, outage_limit_ms: float = OUTAGE_LIMIT_MS
) -> list[str]:
    """Everything that two reports hold against these guests, and against the observer."""
    found = observer_faults(late)
    for name in names:
        if name not in early["guests"] or name not in late["guests"]:
            found.append(f"{name} was not observed")
        else:
            found += guest_faults(name, early["guests"][name], late["guests"][name], outage_limit_ms)
    return found


def verdict(home: str, moves: Mapping[str, Sequence[Row]], early: Row, late: Row) -> list[str]:
    """Everything that is wrong with the demo; empty if nobody noticed anything."""
    found = audit_faults(moves, early, late)
    for name, done in moves.items():
        found += path_faults(name, home, done)
    return found
