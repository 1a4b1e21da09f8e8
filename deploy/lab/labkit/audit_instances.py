"""How many instances of one guest ran at once, told from what the guest network saw. Pure.

One instance is a serial machine: within one boot it acknowledges each record once, in rising order, and
after a new boot the old one is silent for ever. So the acknowledgements of one guest are split into
*runs*, each of which one instance could have sent; two runs whose lifetimes overlap are two instances,
and so are two runs of one boot. A live migration is one run that changes its port; a restart is a new
run, of a new boot, after the end of the old one.

A second, independent sign does not need the guest's disk or workload: roll calls (echo requests to the
broadcast MAC), which every running instance answers on its own port.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

INFLIGHT_NS = 500_000_000  # a frame may be this late behind a younger one that took another way
ROLL_CALL_ANSWER_NS = 500_000_000  # half the interval: an answer later than this says nothing
_RECENT = 256  # acknowledgements remembered per run: 12 s at 20 records/s
_MAX_RUNS = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """One acknowledgement as the observer heard it."""

    time_ns: int
    port: str
    boot: str
    seq: int
    mono_ns: int = 0


@dataclass(slots=True)
class _Run:
    port: str
    boot: str
    first_ns: int
    last_ns: int
    last_seq: int
    # seq -> (time heard, guest's clock), in the order of arrival
    recent: OrderedDict[int, tuple[int, int]] = field(default_factory=OrderedDict)

    def take(self, seen: Seen) -> None:
        self.recent[seen.seq] = (seen.time_ns, seen.mono_ns)
        if len(self.recent) > _RECENT:
            self.recent.popitem(last=False)

    def extend(self, seen: Seen) -> None:
        self.port = seen.port
        self.last_ns = max(self.last_ns, seen.time_ns)
        self.last_seq = seen.seq
        self.take(seen)

    def heard_twice(self, seen: Seen) -> bool:
        """The very same frame, duplicated on the way: two instances never agree on the nanosecond."""
        return self.recent.get(seen.seq, (0, -1))[1] == seen.mono_ns

    def overtaken(self, seen: Seen) -> bool:
        """A frame that is late but was never heard: sent before the run went on, so it belongs to it."""
        if seen.seq > self.last_seq or seen.seq in self.recent:
            return False
        passed = [time_ns for seq, (time_ns, _) in self.recent.items() if seq > seen.seq]
        older_known = any(seq < seen.seq for seq in self.recent) or len(self.recent) < _RECENT
        return older_known and bool(passed) and seen.time_ns - min(passed) <= INFLIGHT_NS


class InstanceCounter:
    """Feed it every acknowledgement and every roll call's answer of one guest; `maximum` is the verdict.

    Bounded: at most 16 runs of 256 remembered acknowledgements; the longest silent run is forgotten first.
    """

    def __init__(self) -> None:
        self.maximum = 0
        self.boots = 0
        self.heard_twice = 0
        self.evidence: list[str] = []
        self._runs: list[_Run] = []
        self._roll_call = 0
        self._roll_call_sent_ns = 0
        self._answered: set[str] = set()
        self._answered_before: set[str] = set()

    def add(self, seen: Seen) -> None:
        """Take one acknowledgement; they come in the order in which they were heard."""
        self.maximum = max(self.maximum, 1)
        same_boot = [run for run in self._runs if run.boot == seen.boot]
        if any(run.heard_twice(seen) for run in same_boot):
            self.heard_twice += 1
            return
        # A run goes on at its own port if it can; only else is this a run that has moved.
        ahead = [run for run in same_boot if run.last_seq < seen.seq]
        ahead.sort(key=lambda run: (run.port == seen.port, run.last_seq))
        if ahead:
            self._extend(ahead[-1], seen)
            return
        for run in same_boot:
            if run.overtaken(seen):
                run.take(seen)
                return
        self._start(seen)

    def roll_call(self, number: int, sent_ns: int) -> None:
        """A new roll call goes out; they are numbered 1, 2, 3 ..."""
        self._answered_before = self._answered if number == self._roll_call + 1 else set()
        self._answered = set()
        self._roll_call = number
        self._roll_call_sent_ns = sent_ns

    def answer(self, number: int, time_ns: int, port: str) -> None:
        """An answer to a roll call.

        The same two ports must answer two roll calls in a row: the target of a migration may answer
        one that was sent while it was still waiting, but never when the source answers the next one.
        """
        self.maximum = max(self.maximum, 1)
        if number != self._roll_call or time_ns - self._roll_call_sent_ns > ROLL_CALL_ANSWER_NS:
            return
        self._answered.add(port)
        both = self._answered & self._answered_before
        self._raise(len(both), f"{time_ns / 1e9:.6f} two roll calls answered on {', '.join(sorted(both))}")

    def _start(self, seen: Seen) -> None:
        if any(run.boot == seen.boot for run in self._runs):
            # The same memory went on twice from one moment, even if one of the two stopped at once.
            last = max(run.last_seq for run in self._runs if run.boot == seen.boot)
            self._raise(2, f"{seen.time_ns / 1e9:.6f} {seen.port}: record {seen.seq} anew, {last} was before")
        else:
            self.boots += 1
        if len(self._runs) >= _MAX_RUNS:
            self._runs.remove(min(self._runs, key=lambda run: run.last_ns))
        run = _Run(seen.port, seen.boot, seen.time_ns, seen.time_ns, seen.seq)
        run.take(seen)
        self._runs.append(run)
        self._count(run, seen.time_ns)

    def _extend(self, run: _Run, seen: Seen) -> None:
        since = run.last_ns
        run.extend(seen)
        self._count(run, since)

    def _count(self, run: _Run, since_ns: int) -> None:
        """`run` is known to have lived from `since_ns` until now: who else spoke in that time?"""
        others = [other for other in self._runs if other is not run]
        for other in others:
            if since_ns <= other.last_ns <= run.last_ns:
                moment = other.last_ns
                alive = sum(1 for one in others if one.first_ns <= moment <= one.last_ns)
                where = ", ".join(sorted({one.port for one in [run, *others] if one.last_ns >= since_ns}))
                self._raise(1 + alive, f"{moment / 1e9:.6f} acknowledgements interleave: {where}")

    def _raise(self, instances: int, why: str) -> None:
        if instances > max(1, self.maximum):
            self.evidence.append(why)
        self.maximum = max(self.maximum, instances)


def instances_max(observations: list[Seen]) -> int:
    """The most instances that ran at once, for acknowledgements in the order in which they were heard."""
    counter = InstanceCounter()
    for seen in observations:
        counter.add(seen)
    return counter.maximum
