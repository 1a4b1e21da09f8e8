"""Questions about placement, answered from a fresh snapshot: plans, targets, what is left, may it go off.

Gathers what the pure planner needs and holds promises, so that two answers given at the same time do not
promise the same memory twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from agents.protocol import AnyVolume, HostReport
from migrd.model import Cluster, Facts, Guest, Host, HostState, Plan
from migrd.ports import Clock, InterviewerPort, PlannerPort, PowerPort, Target, ViewPort
from migrd.safety import Reports
from migrd.sagas.commands import Choose
from migrd.sagas.events import (
    Chosen,
    ColdRequested,
    HostChecked,
    LeftGuest,
    MigrateRequested,
    PowerChecked,
    Surveyed,
)
from storage.errors import OutcomeError, Refused
from storage.words import DrbdVolume, Health, OtherVolume, VolumeReport

HELD_S = 30.0  # a promise given to a saga that has not journalled its move by then is void
REREAD_S = 15.0
REREAD_AT_ONCE = 32
MOMENT_S = 1.0  # reports further apart do not show one moment
MOMENT_ROUNDS = 3

Among = Collection[str] | None  # hosts to look at; None = all
T = TypeVar("T")


class Placement:
    """`in_flight`: guests that open operations move, uuid -> target."""

    def __init__(
        self,
        *,
        view: ViewPort,
        interviewer: InterviewerPort,
        planner: PlannerPort,
        clock: Clock,
        in_flight: Callable[[], Mapping[str, str]],
        powered_off: Callable[[], Collection[str]],
        power: PowerPort,
    ) -> None:
        self._view = view
        self._power = power
        self._dark: set[str] = set()  # silent, and without power when their BMC was asked
        self._darkened: tuple[Cluster, frozenset[str], Cluster] | None = None  # view, dark hosts, together
        self._interviewer = interviewer
        self._planner = planner
        self._clock = clock
        self._in_flight = in_flight
        self._powered_off = powered_off
        self._lock = asyncio.Lock()
        self._held: dict[str, tuple[str, float]] = {}
        self._checked: dict[str, tuple[VolumeReport, ...]] = {}  # what a host had when it was checked last

    async def plan_drain(self, host: str, allow_stop: Collection[str]) -> Plan:
        """The plan for a drain that would begin now."""
        async with self._lock:
            plan = await self._plan_drain(host, allow_stop, self._shortlist(host))
            if plan.refusals or plan.blockers:
                await self._look_again(host)
                plan = await self._plan_drain(host, allow_stop)
            return plan

    async def _plan_drain(self, host: str, allow_stop: Collection[str], short: Among = None) -> Plan:
        async def plan(among: Among) -> Plan:
            facts = await self._ask(host, among=among)
            return self._planner.plan_drain(
                self._cluster(), host, facts, allow_stop=allow_stop, promised=self._promised(), among=among
            )

        return await _short_then_all(plan, short, _is_final)

    async def plan_migrate(self, guest: Guest, to: str | None, *, cold: bool = False) -> Plan:
        """The plan for one move that would begin now; `to`: the only target that is wanted."""
        async with self._lock:
            short = self._shortlist(guest.host, guest.uuid) if to is None else None
            plan = await self._plan_migrate(guest, to, cold, short)
            if plan.refusals or plan.blockers:
                await self._look_again(guest.host, to or "")
                plan = await self._plan_migrate(guest, to, cold)
            return plan

    async def _plan_migrate(self, guest: Guest, to: str | None, cold: bool, short: Among = None) -> Plan:
        async def plan(among: Among) -> Plan:
            facts = await self._ask(guest.host, guest.uuid, cold=cold, among=among if to is None else (to,))
            return self._planner.plan_migrate(
                self._cluster(), guest.uuid, to, facts, promised=self._promised(), cold=cold, among=among
            )

        return await _short_then_all(plan, short, lambda made: bool(made.moves or made.refusals))

    async def choose(self, command: Choose) -> Chosen:
        """A target for one guest, held for it until its move is journalled."""
        async with self._lock:
            short = self._shortlist(command.source, command.guest, command.exclude)
            chosen = await self._choose(command, short)
            if not chosen.target:
                others = [g.host for g in self._view.cluster().instances(command.guest)]
                silent = await self._look_again(command.source, command.to, *others)
                chosen = await self._choose(command)
                if chosen.gone and command.source in silent:  # not seen is not gone (I19)
                    return replace(chosen, gone=False, reasons=(silent[command.source],))
            if chosen.target:
                self._held[command.guest] = (chosen.target, self._clock.monotonic())
            return chosen

    async def _choose(self, command: Choose, short: Among = None) -> Chosen:
        here = self._view.cluster().on_host(command.guest, command.source)
        if here is None or not here.state.has_process:
            reason = f"the guest {'is no longer' if here is None else 'does not run'} on {command.source}"
            return Chosen(guest=command.guest, target="", reasons=(reason,), gone=True)

        async def choose(among: Among) -> Target:
            facts = await self._ask(command.source, command.guest, among=among)
            return self._planner.choose(
                self._cluster(),
                command.guest,
                facts,
                promised=self._promised(),
                exclude=command.exclude,
                among=among,
            )

        if command.to:
            target = await choose((command.to,))
        else:
            target = await _short_then_all(choose, short, lambda found: bool(found.host))
        return Chosen(guest=command.guest, target=target.host, reasons=target.reasons)

    def _shortlist(self, host: str, guest: str = "", exclude: Collection[str] = ()) -> Among:
        return self._planner.shortlist(
            self._cluster(), host, guest, promised=self._promised(), exclude=exclude
        )

    async def _ask(self, host: str, guest: str = "", *, cold: bool = False, among: Among = None) -> Facts:
        cluster = self._cluster()
        questions = self._planner.questions(cluster, host, guest, cold=cold, among=among)
        return await self._interviewer.ask(cluster, questions)

    async def _look_again(self, *hosts: str) -> dict[str, str]:
        """Nobody is refused on old news: a report is up to seconds old, and a job that it shows may be over.

        Returns hosts that did not answer, or whose libvirt did not, and why. Such a host stays as it was
        seen, unless its BMC says that it has no power.
        """
        known = self._view.cluster().hosts
        names = [host for host in dict.fromkeys(hosts) if host in known]
        silent = {}
        for name, report in zip(names, await asyncio.gather(*map(self._reread, names)), strict=True):
            if isinstance(report, str):
                silent[name] = report
            elif not report.libvirt_ok:
                silent[name] = f"libvirt on {name} does not answer"
        dark = [name for name in silent if self._power.has(name)]
        states = await asyncio.gather(*map(self._power.status, dark))
        self._dark |= {name for name, state in zip(dark, states, strict=True) if state == "off"}
        return silent

    def _cluster(self) -> Cluster:
        """The view; what a host without power had is gone. Once it is heard, its own word counts."""
        cluster = self._view.cluster()
        self._dark = {
            name
            for name in self._dark
            if name in cluster.hosts and cluster.hosts[name].observed is not HostState.ONLINE
        }
        if not self._dark:
            return cluster
        seen = self._darkened
        if seen is None or seen[0] is not cluster or seen[1] != self._dark:  # its indexes are kept with it
            hosts = {name: replace(cluster.hosts[name], state=HostState.OFF) for name in self._dark}
            darkened = replace(cluster, hosts={**cluster.hosts, **hosts})
            seen = self._darkened = (cluster, frozenset(self._dark), darkened)
        return seen[2]

    def volumes_of(self, guest: str) -> tuple[AnyVolume, ...]:
        """What drivers can let go of, as the newest reports name it."""
        found = self._view.cluster().instances(guest)
        volumes = dict.fromkeys(volume for each in found for volume in each.volumes)
        return tuple(volume for volume in volumes if not isinstance(volume, OtherVolume))

    def hold(self, moves: Iterable[tuple[str, str]]) -> None:
        """Promise memory to moves (uuid, target) that are about to be journalled."""
        for guest, target in moves:
            self._held[guest] = (target, self._clock.monotonic())

    def release(self, guests: Iterable[str]) -> None:
        """The moves are journalled, or will not be: the promises are void."""
        for guest in guests:
            self._held.pop(guest, None)

    def _promised(self) -> dict[str, str]:
        now_s = self._clock.monotonic()
        self._held = {g: held for g, held in self._held.items() if now_s - held[1] < HELD_S}
        return {**{guest: target for guest, (target, _) in self._held.items()}, **self._in_flight()}

    def request(self, guest: str, source: str, target: str, **more: object) -> MigrateRequested:
        """The first row of a move, from the newest snapshot. Raises Refused when something is not known."""
        found, here, there = self._ends(guest, source, target)
        return MigrateRequested(
            guest=guest,
            name=found.name,
            source=source,
            source_node=here.node,
            target=target,
            target_node=there.node,
            target_uri=there.migration_uri,
            target_address=there.migration_address,
            volumes=found.volumes,
            **more,  # type: ignore[arg-type]  # the policy's figures, by name
        )

    def cold_request(
        self, guest: str, source: str, target: str, *, asked_target: str | None, may_stop: bool
    ) -> ColdRequested:
        """The same for a cold move, whose way back needs the source's own door. Raises Refused."""
        found, here, there = self._ends(guest, source, target)
        if not here.migration_uri or not here.node:
            raise Refused(f"{source} has not told where migrations go")
        return ColdRequested(
            guest=guest,
            name=found.name,
            source=source,
            source_node=here.node,
            source_uri=here.migration_uri,
            source_address=here.migration_address,
            target=target,
            target_node=there.node,
            target_uri=there.migration_uri,
            target_address=there.migration_address,
            volumes=found.volumes,
            may_stop=may_stop,
            autostart=found.autostart,
            asked_target=asked_target,
        )

    def _ends(self, guest: str, source: str, target: str) -> tuple[Guest, Host, Host]:
        """The guest, where it is, and where it goes."""
        cluster = self._view.cluster()
        found = cluster.on_host(guest, source)
        if found is None:
            raise Refused(f"the guest is no longer on {source}")
        reasons = [f"host {name} is not known" for name in (source, target) if name not in cluster.hosts]
        if reasons:
            raise Refused(*reasons)
        there = cluster.hosts[target]
        if not there.migration_uri or not there.node:
            raise Refused(f"{target} has not told where migrations go")
        return found, cluster.hosts[source], there

    # -- asked of the hosts themselves, now -------------------------------------------------------

    async def survey(self, host: str) -> Surveyed:
        """What the host says that it has, past all caches."""
        report = await self._reread(host)
        if isinstance(report, str):
            return Surveyed(guests=(), reasons=(report,))
        if not report.libvirt_ok:
            return Surveyed(guests=(), reasons=(f"libvirt on {host} does not answer",))
        return Surveyed(
            guests=tuple(LeftGuest(guest=d.uuid, name=d.name, state=d.state) for d in report.domains)
        )

    async def check_power_off(self, host: str) -> PowerChecked:
        """I12, from reports and volumes of this very moment. A host whose power is off has nothing to say."""
        reports, unheard = await self._moment([each.name for each in self._askable(host)])
        self._checked.pop(host, None)
        if host in reports:
            self._checked[host] = reports[host][0].volumes
        return self._judge(host, reports, unheard)

    async def check_power_off_again(self, host: str) -> PowerChecked:
        """The same once its replicas have left their peers, which may take long.

        A copy without a connection knows only of itself. So those of the host count as they were when it was
        checked, and its peers say anew what became of theirs.
        """
        before = self._checked.pop(host, None)
        if before is None:
            return PowerChecked(reasons=(f"{host}: its replicas have left without a check",))
        nodes = {node for each in before if isinstance(each.volume, DrbdVolume) for node in each.volume.nodes}
        names = [each.name for each in self._askable(host) if each.name == host or each.node in nodes]
        reports, unheard = await self._moment(names)
        if host in reports:
            own, age_s = reports[host]
            reports = {**reports, host: (replace(own, volumes=before), age_s)}
        return self._judge(host, reports, unheard)

    def _askable(self, host: str) -> list[Host]:
        """The host itself, and all that have power as far as migrd has decided."""
        off = self._powered_off()
        return [each for name, each in self._view.cluster().hosts.items() if name == host or name not in off]

    def _judge(self, host: str, reports: Reports, unheard: Collection[str]) -> PowerChecked:
        reasons = self._planner.reasons_not_to_power_off(host, reports, sorted(unheard))
        return PowerChecked(reasons=tuple(reasons))

    async def _moment(self, names: Collection[str]) -> tuple[Reports, Collection[str]]:
        """What these hosts say now, each with its age in seconds, and who does not answer.

        While one slow host answers, what the others said grows old: they are asked again, a bounded number
        of times. What is too old even then is for the verdict to refuse.
        """
        reports: dict[str, tuple[HostReport, float]] = {}
        unheard: set[str] = set()
        for _ in range(MOMENT_ROUNDS):
            await self._ask_all(names, reports, unheard)
            now_s = self._clock.monotonic()
            names = [name for name, (_, at_s) in reports.items() if now_s - at_s > MOMENT_S]
            if not names:
                break
        return {name: (report, now_s - at_s) for name, (report, at_s) in reports.items()}, unheard

    async def _ask_all(
        self, names: Collection[str], reports: dict[str, tuple[HostReport, float]], unheard: set[str]
    ) -> None:
        """Reports of `names` with the time of their arrival, or `unheard`."""
        slots = asyncio.Semaphore(REREAD_AT_ONCE)

        async def ask(name: str) -> None:
            async with slots:
                report = await self._reread(name, storage=True)
            if isinstance(report, str):
                reports.pop(name, None)
                unheard.add(name)
            else:
                reports[name] = (report, self._clock.monotonic())

        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(ask(name), name=f"report of {name}")

    async def check_host(self, host: str, number: int) -> HostChecked:
        """Is it whole again: heard, libvirt answering, its replicas current?"""
        return HostChecked(reasons=await self._not_whole(host), number=number)

    async def _not_whole(self, host: str) -> tuple[str, ...]:
        found = self._view.cluster().hosts.get(host)
        if found is None:
            return (f"host {host} is unknown",)
        if found.observed is not HostState.ONLINE:
            return (f"{host} is {found.observed}",)
        report = await self._reread(host, storage=True)
        if isinstance(report, str):
            return (report,)
        reasons = [] if report.libvirt_ok else [f"libvirt on {host} does not answer"]
        cluster = self._view.cluster()
        reported = {each.volume.name for each in report.volumes}
        expected = {
            each.volume.name
            for peer in cluster.hosts.values()
            for each in peer.volumes.values()
            if peer.name != host and isinstance(each.volume, DrbdVolume) and report.node in each.volume.nodes
        }
        # Early after boot no resource is up yet, and a host that reports none would look whole.
        reasons += [f"{host} does not report its copy of {name} yet" for name in sorted(expected - reported)]
        for each in report.volumes:
            if isinstance(each.volume, DrbdVolume) and each.health is not Health.OK:
                told = "; ".join(each.problems)
                reasons.append(
                    f"{each.volume.name} on {host} is {each.health}" + (f": {told}" if told else "")
                )
        return tuple(reasons)

    async def _reread(self, host: str, *, storage: bool = False) -> HostReport | str:
        try:
            async with asyncio.timeout(REREAD_S):
                return await self._view.reread(host, storage=storage)
        except OutcomeError as error:
            return str(error)
        except TimeoutError:
            return f"{host} did not answer within {REREAD_S:g} s"
        except KeyError:
            return f"{host} is not configured"


async def _short_then_all(
    plan: Callable[[Among], Awaitable[T]], short: Among, good: Callable[[T], bool]
) -> T:
    """With a shortlist first; what is refused with it is planned again with every host."""
    if short is not None:
        made = await plan(short)
        if good(made):
            return made
    return await plan(None)


def _is_final(plan: Plan) -> bool:
    """Every guest moves, or the host itself is the reason why none does.

    A guest that would be stopped may have a place on a host that was left out (I5).
    """
    return bool(plan.refusals) or not (plan.blockers or plan.stops)


def find_guest(cluster: Cluster, name: str) -> tuple[Guest, ...]:
    """By uuid or name: the instance that runs, or where it is defined; several only for several guests."""
    uuids = sorted({guest.uuid for guest in (*cluster.instances(name), *cluster.called(name))})
    found = [cluster.instance(uuid) for uuid in uuids]
    return tuple(guest for guest in found if guest is not None)
