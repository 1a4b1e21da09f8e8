"""How long a guest did not answer. Pure: times are nanoseconds, and come from the caller.

An outage is the time between the last answer before a silence and the first one after it, less one probe
interval; silences of up to 50 ms are not counted. Nothing is counted before the first answer.
The time of an *answer* counts, not of its probe: probes that waited in a queue while the guest stood still
are all answered at once afterwards, and would else hide the whole outage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INTERVAL_NS = 10_000_000  # unless `audit start --every` says otherwise
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


class GapMeter:
    """The longest time without a new record: a guest whose disk hangs still answers pings.

    Feed it every record when it is acknowledged for the first time. Nothing counts before the first one.
    """

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._longest_ns = 0
        self._longest_at_ns = 0

    def record(self, time_ns: int) -> None:
        """A record was acknowledged. One that was overtaken on its way changes nothing."""
        self._longest_ns, self._longest_at_ns = self._until(time_ns)
        self._last_ns = max(self._last_ns or 0, time_ns)

    def report(self, now_ns: int) -> dict[str, Any]:
        """Up to now; `ack_gap_at`, when it began, is seconds since the epoch."""
        longest_ns, at_ns = self._until(now_ns)
        return {"ack_gap_max_ms": round(longest_ns / 1e6, 1), "ack_gap_at": round(at_ns / 1e9, 3)}

    def _until(self, time_ns: int) -> tuple[int, int]:
        known = (self._longest_ns, self._longest_at_ns)
        return known if self._last_ns is None else max(known, (time_ns - self._last_ns, self._last_ns))


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
