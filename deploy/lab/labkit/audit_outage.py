"""How long a guest did not answer. Pure: times are nanoseconds, and come from the caller.

An outage is the time between the last answer before a silence and the first one after it, less one probe
interval; silences of up to 50 ms are not counted. Nothing is counted before the first answer.
The time of an *answer* counts, not of its probe: probes that waited in a queue while the guest stood still
are all answered at once afterwards, and would else hide the whole outage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INTERVAL_NS = 10_000_000
THRESHOLD_NS = 50_000_000
_KEPT = 20


@dataclass(frozen=True, slots=True)
class Outage:
    """One silence. `observer_late_ns`: how late the observer itself was at worst during it."""

    start_ns: int
    length_ns: int
    observer_late_ns: int

    def to_json(self) -> dict[str, Any]:
        """Milliseconds, and seconds since the epoch."""
        return {
            "at": round(self.start_ns / 1e9, 3),
            "ms": round(self.length_ns / 1e6, 1),
            "probe_late_ms": round(self.observer_late_ns / 1e6, 1),
        }


class OutageMeter:
    """Feed it every answer of one guest, in the order of arrival."""

    def __init__(self, interval_ns: int = INTERVAL_NS) -> None:
        self._interval_ns = interval_ns
        self.first_ns: int | None = None
        self.last_ns = 0
        self.answers = 0
        self.count = 0
        self.total_ns = 0
        self.longest: list[Outage] = []
        self._late_ns = 0

    def late(self, late_ns: int) -> None:
        """The observer sent its probe this much too late."""
        self._late_ns = max(self._late_ns, late_ns)

    def answer(self, time_ns: int) -> None:
        """The guest answered. An answer older than the last one (another port's queue) changes nothing."""
        self.answers += 1
        if self.first_ns is None:
            self.first_ns = self.last_ns = time_ns
        outage = self._silence(time_ns)
        if outage is not None:
            self.count += 1
            self.total_ns += outage.length_ns
            self.longest.append(outage)
            self.longest.sort(key=lambda one: -one.length_ns)
            del self.longest[_KEPT:]
        self.last_ns = max(self.last_ns, time_ns)
        self._late_ns = 0

    def report(self, now_ns: int) -> dict[str, Any]:
        """The figures up to now; a silence that still goes on is in all of them."""
        going_on = None if self.first_ns is None else self._silence(now_ns)
        found = [*self.longest, *([going_on] if going_on else [])]
        total_ns = self.total_ns + (going_on.length_ns if going_on else 0)
        worst = max(found, key=lambda one: one.length_ns, default=None)
        return {
            "outage_max_ms": round(worst.length_ns / 1e6, 1) if worst else 0.0,
            "outage_max_probe_late_ms": round(worst.observer_late_ns / 1e6, 1) if worst else 0.0,
            "outage_total_ms": round(total_ns / 1e6, 1),
            "outages": self.count + (1 if going_on else 0),
            "outage_now": going_on is not None,
            "outages_longest": [one.to_json() for one in found[:_KEPT]],
            "probes_answered": self.answers,
        }

    def _silence(self, until_ns: int) -> Outage | None:
        length = until_ns - self.last_ns - self._interval_ns
        return Outage(self.last_ns, length, self._late_ns) if length > THRESHOLD_NS else None
