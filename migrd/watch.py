"""Follows every agent and keeps the newest picture of the cluster: `ClusterView`.

One supervised task pair per host: one reads the event stream and nothing else, so that a slow report never
ages a heartbeat; the other reads whole reports when something may have been missed. Nothing here decides:
folding and states are in `migrd.hosts`, changes in `migrd.changes`. Runs on one event loop; its clock is
the loop's, so a loop in virtual time can run it.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol

from agents.mistakes import Mistake, MistakesError, Seconds
from agents.protocol import Event, HostReport
from migrd.changes import Census, Change, host_change, report_changes
from migrd.hosts import (
    Followed,
    Thresholds,
    follow,
    guest_of,
    host_of,
    host_state,
    identity_problems,
    kept,
    next_turn_s,
    observed_state,
)
from migrd.model import Cluster, Guest, Host, HostState
from storage.errors import OutcomeError, Retryable

MAX_MISSED_EVENTS = 10_000  # kept while a report is under way; more than that: the report is read again


class Agent(Protocol):
    """The part of `agents.client.AgentClient` that is needed here. Raises storage.errors only."""

    async def report(self, *, storage: bool = False) -> HostReport: ...

    def events(self) -> AsyncIterator[Event]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPolicy:
    thresholds: Thresholds = field(default_factory=Thresholds)
    silence_s: Seconds = 5.0  # a stream without a line for that long is given up and opened again
    read_deadline_s: Seconds = 20.0  # for one whole report
    preflight_deadline_s: Seconds = 5.0  # for all candidates together, who are asked at once
    refresh_s: Seconds = 10.0  # a report older than this is read again, whatever the events said
    backoff_base_s: Seconds = 0.2
    backoff_cap_s: Seconds = 5.0
    tick_s: Seconds = 0.5  # how often states are compared, so that silence becomes a change
    double_after_s: Seconds = 3.0  # two hosts running one guest for longer is no migration's hand-over

    def __post_init__(self) -> None:
        if self.backoff_base_s > self.backoff_cap_s:
            message = "must be at most backoff_cap_s"
            raise MistakesError([Mistake(("backoff_base_s",), message, (("backoff_cap_s",),))])


def backoff_s(failures: int, share: float, policy: WatchPolicy) -> float:
    """Exponential, bounded, jittered: `share` in [0, 1) picks a point in the upper half of the range."""
    reach = min(policy.backoff_cap_s, policy.backoff_base_s * 2.0 ** min(failures, 30))
    return reach * (0.5 + share / 2)


class _Watch:
    """What is known of one host, and the two loops that learn it."""

    def __init__(self, name: str, agent: Agent, view: ClusterView) -> None:
        self.name = name
        self.agent = agent
        self.followed = Followed()
        self.heard_s: float | None = None
        self.read_s: float | None = None
        self.tried = asyncio.Event()  # heard of, or failed, at least once
        self.trouble = ""  # why there is no stream just now
        self.guests: tuple[Guest, ...] = ()
        self.gone = False  # removed: a report that was under way must not bring it back
        self._view = view
        self._stale = asyncio.Event()
        self._logs: dict[object, list[Event]] = {}
        self._shown: tuple[HostReport | None, HostState, HostState, tuple[str, ...], Host] | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name=f"stream of {self.name}")
            tasks.create_task(self._refresh(), name=f"reports of {self.name}")

    async def _follow(self) -> None:
        failures = 0
        policy = self._view.policy
        while True:
            try:
                events = aiter(self.agent.events())
                while True:
                    async with asyncio.timeout(policy.silence_s):
                        event = await anext(events)
                    failures = 0
                    self._take(event)
            except (OutcomeError, TimeoutError, StopAsyncIteration) as error:
                self.trouble = str(error) or "its event stream fell silent"
                self._view.touch(self.name)
            self.tried.set()
            await asyncio.sleep(backoff_s(failures, self._view.share(), policy))
            failures += 1

    def _take(self, event: Event) -> None:
        if self.gone:
            return
        if self.trouble or not self._shown_as_heard():
            self._view.touch(self.name)
        self.heard_s = self._view.now()
        self.trouble = ""
        before = self.followed.report
        self.followed, missed = follow(self.followed, event)
        if missed:
            self._stale.set()
        for log in self._logs.values():
            log.append(event)
        if event.kind == "attempt" and event.attempt is not None:
            text = f"{self.name}: {event.attempt.operation}/{event.attempt.step} {event.attempt.outcome}"
            self._view.emit(Change(kind="attempt", message=text, host=self.name, attempt=event.attempt))
        if self.followed.report is not before:
            self._news(before)

    async def _refresh(self) -> None:
        """Whole reports: at once after a gap, else every `refresh_s` while the host is heard."""
        policy = self._view.policy
        failures = 0
        while True:
            try:
                async with asyncio.timeout(policy.refresh_s):
                    await self._stale.wait()
            except TimeoutError:
                if self.trouble or self.heard_s is None or not self._old():
                    continue
            self._stale.clear()
            try:
                await self.read(policy.read_deadline_s)
                failures = 0
            except OutcomeError:
                # The stream tells whether the host is there; here it only matters to ask again.
                self._stale.set()
                await asyncio.sleep(backoff_s(failures, self._view.share(), policy))
                failures += 1

    def _old(self) -> bool:
        return self.read_s is None or self._view.now() - self.read_s >= self._view.policy.refresh_s

    async def read(self, deadline_s: float, *, storage: bool = False) -> HostReport:
        """The whole report, now; also kept. Raises storage.errors, Retryable at the deadline."""
        key = object()
        log = self._logs[key] = []
        try:
            async with asyncio.timeout(deadline_s):
                report = await self.agent.report(storage=storage)
        except TimeoutError:
            raise Retryable(f"{self.name}: no report within {deadline_s:g} s") from None
        finally:
            del self._logs[key]
        self._keep(report, log)
        return report

    def _keep(self, report: HostReport, log: list[Event]) -> None:
        """Take a report over, and fold again what the stream said while it was under way.

        Otherwise an old report would hide a newer event. The other way round heals by itself: every
        change has its event, and the last one wins.
        """
        before = self.followed.report
        if self.gone:
            return
        if before is not None and before.boot_id == report.boot_id and report.observed_s < before.observed_s:
            return  # two reads crossed; the newer one is here already
        stream, seq = self.followed.stream, self.followed.seq
        folded = Followed(report=kept(before, report))
        for event in log[:MAX_MISSED_EVENTS]:
            folded, _ = follow(folded, event)
        if len(log) > MAX_MISSED_EVENTS:
            self._stale.set()
        self.followed = Followed(stream=stream, seq=seq, report=folded.report)
        self.heard_s = self.read_s = self._view.now()
        self._news(before)

    def _news(self, before: HostReport | None) -> None:
        report = self.followed.report
        if report is None:
            return
        if before is None or before.domains is not report.domains:
            self.guests = tuple(guest_of(domain, self.name) for domain in report.domains)
        self.tried.set()
        self._view.touch(self.name)
        self._view.learned(self.name, before, report)

    def _shown_as_heard(self) -> bool:
        return self._shown is not None and self._shown[2] in (HostState.ONLINE, HostState.DEGRADED)

    def age_s(self, now_s: float) -> float | None:
        """Since it was last heard; None = never, or nothing is known of it yet."""
        return None if self.heard_s is None or self.followed.report is None else now_s - self.heard_s

    def observed(self, now_s: float, *, doubtful: bool) -> HostState:
        report = self.followed.report
        return observed_state(
            self.age_s(now_s),
            libvirt_ok=report is not None and report.libvirt_ok,
            doubtful=doubtful,
            thresholds=self._view.policy.thresholds,
        )

    def host(self, state: HostState, observed: HostState, doubts: tuple[str, ...]) -> Host:
        """Built anew only when something is different."""
        report = self.followed.report
        extra = list(doubts)
        if self.trouble:
            extra.append(f"no connection to its agent: {self.trouble}")
        if state is HostState.OFF and observed is HostState.ONLINE:
            extra.append(f"migrd powered it off, and its agent is heard again: migrctl undrain {self.name}")
        problems = tuple(extra)
        shown = self._shown
        if shown is None or shown[0] is not report or shown[1:4] != (state, observed, problems):
            host = host_of(self.name, report, state, observed=observed)
            host = replace(
                host, problems=(*problems, *host.problems), has_bmc=self.name in self._view.with_bmc
            )
            shown = self._shown = (report, state, observed, problems, host)
        return shown[4]


class ClusterView:
    """The newest picture of all hosts. `run()` follows them until cancelled; every read is a plain call."""

    def __init__(
        self,
        agents: Mapping[str, Agent],
        *,
        administrative: Callable[[], Mapping[str, HostState]],
        on_change: Callable[[Change], None],
        policy: WatchPolicy | None = None,
        with_bmc: Collection[str] = (),
        share: Callable[[], float] = random.random,
    ) -> None:
        self.policy = policy or WatchPolicy()
        self.with_bmc = set(with_bmc)
        self.share = share
        self.emit = on_change
        self._administrative = administrative
        self._watches = {name: _Watch(name, agent, self) for name, agent in sorted(agents.items())}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._census = Census()
        self._doubts: dict[str, tuple[str, ...]] = {}
        self._identities_judged = True  # each against all others: once per snapshot, not once per report
        self._guests: tuple[Guest, ...] | None = ()
        self._snapshot = Cluster(hosts={}, guests=())
        self._decided: Mapping[str, HostState] = {}
        self._touched = set(self._watches)  # hosts that the snapshot may show otherwise than they are
        self._good_until_s = 0.0  # from then on silence alone may have changed any host
        self._shown: dict[str, HostState] = {}
        self._doubles: dict[str, float] = {}

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Never returns. An error in here is a bug and ends it, and with it the daemon."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for watch in self._watches.values():
                self._start(tasks, watch)
            tasks.create_task(self._tick(), name="watch states")

    def _start(self, tasks: asyncio.TaskGroup, watch: _Watch) -> None:
        self._running[watch.name] = tasks.create_task(watch.run(), name=f"watch {watch.name}")

    def add(self, name: str, agent: Agent, *, has_bmc: bool) -> None:
        """Follow one host more, from now on. Its name must be new."""
        assert name not in self._watches, f"{name} is followed already"
        if has_bmc:
            self.with_bmc.add(name)
        watch = _Watch(name, agent, self)
        self.touch(name)
        self._watches = dict(sorted({**self._watches, name: watch}.items()))
        if self._tasks is not None:
            self._start(self._tasks, watch)

    def remove(self, name: str) -> None:
        """Follow a host no longer; nothing of it is kept. Raises KeyError for one that is not followed."""
        self._watches.pop(name).gone = True
        running = self._running.pop(name, None)
        if running is not None:
            running.cancel()  # it belongs to the TaskGroup of `run`, which waits for its end
        self.with_bmc.discard(name)
        self._census.forget(name)
        self._shown.pop(name, None)
        self._guests = None
        self.touch(name)
        self._identities_judged = False

    def touch(self, *hosts: str) -> None:
        """They have to be judged anew before the next snapshot."""
        self._touched.update(hosts)

    async def settled(self, deadline_s: float) -> tuple[str, ...]:
        """Wait until every host was heard of or has failed once; names of those that did neither in time."""
        waits = [asyncio.create_task(watch.tried.wait()) for watch in self._watches.values()]
        try:
            if waits:
                await asyncio.wait(waits, timeout=deadline_s)
        finally:
            for wait in waits:
                wait.cancel()
        return tuple(name for name, watch in self._watches.items() if not watch.tried.is_set())

    def cluster(self) -> Cluster:
        """The same object until something changes: at a thousand hosts most calls find nothing new.

        A host changes by what it says (`touch`), by a decision of the journal, or by its silence, and that
        not before `_good_until_s`.
        """
        now_s = self.now()
        if not self._identities_judged:
            self._judge_identities()
        decided = self._administrative()
        if decided != self._decided:
            names = decided.keys() | self._decided.keys()
            self.touch(*(name for name in names if decided.get(name) != self._decided.get(name)))
            self._decided = dict(decided)
        if now_s >= self._good_until_s:
            self.touch(*self._watches)
            self._good_until_s = math.inf
        if self._touched or self._guests is None:
            self._take_snapshot(now_s)
        return self._snapshot

    def _take_snapshot(self, now_s: float) -> None:
        before = self._snapshot
        changed = {}
        for name in self._touched & self._watches.keys():
            watch = self._watches[name]
            doubts = self._doubts.get(name, ())
            observed = watch.observed(now_s, doubtful=bool(doubts))
            host = watch.host(host_state(observed, self._decided.get(name)), observed, doubts)
            if host is not before.hosts.get(name):
                changed[name] = host
            turn_s = next_turn_s(watch.age_s(now_s), self.policy.thresholds)
            self._good_until_s = min(self._good_until_s, now_s + turn_s)
        gone = before.hosts.keys() - self._watches.keys()
        self._touched = set()
        if self._guests is None:
            self._guests = tuple(chain.from_iterable(watch.guests for watch in self._watches.values()))
        if changed or gone or self._guests is not before.guests:
            known = {**before.hosts, **changed}
            hosts = {name: known[name] for name in self._watches} if changed or gone else before.hosts
            self._snapshot = Cluster(hosts=hosts, guests=self._guests)

    def silent_s(self) -> dict[str, float]:
        """Host -> seconds since it was last heard; without those never heard."""
        now_s = self.now()
        return {
            name: max(0.0, now_s - watch.heard_s)
            for name, watch in self._watches.items()
            if watch.heard_s is not None
        }

    async def reread(self, host: str, *, storage: bool = False, deadline_s: float = 10.0) -> HostReport:
        """Ask the host now, e.g. with `storage` before its power is cut (I12). Raises storage.errors."""
        return await self._watches[host].read(deadline_s, storage=storage)

    def xml_of(self, uuid: str) -> str | None:
        """The newest definition known, also of a guest whose host is silent; None = never seen."""
        found = [
            (domain.state.has_process, watch.heard_s or 0.0, domain.xml)
            for watch in self._watches.values()
            if watch.followed.report is not None
            for domain in watch.followed.report.domains
            if domain.uuid == uuid and domain.xml
        ]
        return max(found)[2] if found else None

    def learned(self, host: str, before: HostReport | None, report: HostReport) -> None:
        """A watch has a new report."""
        if before is None or before.domains != report.domains:
            self._guests = None
            changes = self._census.update(host, report)
        else:
            changes = []
        if before is None or _identity(before) != _identity(report):
            self._identities_judged = False
        for change in (*report_changes(host, before, report), *changes):
            self.emit(change)

    def _judge_identities(self) -> None:
        reports = {n: w.followed.report for n, w in self._watches.items() if w.followed.report is not None}
        before, self._doubts = self._doubts, identity_problems(reports)
        self._identities_judged = True
        self.touch(*before, *self._doubts)

    async def _tick(self) -> None:
        while True:
            self._compare()
            await asyncio.sleep(self.policy.tick_s)

    def _compare(self) -> None:
        cluster = self.cluster()
        for name, host in cluster.hosts.items():
            before = self._shown.get(name, HostState.UNKNOWN)
            if host.state is not before:
                self._shown[name] = host.state
                self.emit(host_change(name, before, host.state, {name: host.problems}))
        self._alarm_doubles(cluster)

    def _alarm_doubles(self, cluster: Cluster) -> None:
        """One guest running on two hosts that are both heard (I1). Said once, until it is over."""
        now_s = self.now()
        fresh = {name for name, host in cluster.hosts.items() if host.observed is HostState.ONLINE}
        doubles = {
            uuid: hosts for uuid, hosts in self._census.doubles().items() if len(fresh & set(hosts)) > 1
        }
        for uuid in [uuid for uuid in self._doubles if uuid not in doubles]:
            del self._doubles[uuid]
        for uuid, hosts in doubles.items():
            since_s = self._doubles.setdefault(uuid, now_s)
            if now_s - since_s >= self.policy.double_after_s:
                self._doubles[uuid] = float("inf")
                text = f"guest {uuid} runs on {' and '.join(hosts)}: stop one by hand, nothing here will"
                self.emit(Change(kind="alert", message=text, host=hosts[0], guest=uuid))


def _identity(report: HostReport) -> tuple[str, str, str, int]:
    return report.host, report.node, report.boot_id, report.protocol
