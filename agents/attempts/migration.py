"""Migrate one guest from this host, watch it, abort it when asked or late, and say what is certain.

DONE is said only if libvirt reported success *and* the guest is gone or shut off here. Everything that is
not proved is Unknown: the daemon then looks at both hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import structlog

from agents.attempts.control import Control
from agents.attempts.mirror import Mirror
from agents.attempts.outcomes import Ended
from agents.attempts.storage_steps import Drivers
from agents.attempts.switch_over import SwitchOver
from agents.hypervisor.words import DomainFacts, Hypervisor, Job, MigrateRequest
from agents.protocol import AttemptResult, DomainState, MigrateDomain, MigrationProgress, Outcome
from agents.streams.words import Streams
from storage.errors import Failed, OutcomeError, Refused, Retryable, Unknown

log = structlog.get_logger()

MOVABLE = (DomainState.RUNNING, DomainState.BLOCKED, DomainState.PAUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Times of the watching, in seconds; tests use shorter ones."""

    poll_s: float = 0.5
    first_poll_s: float = 0.1
    abort_grace_s: float = 60.0  # from the first abort to giving up on an answer
    settle_s: float = 10.0  # for the source to be gone after a success
    figures_s: float = 0.2  # for the event with the final figures
    blind_s: float = 60.0  # how long a followed job may be out of sight
    mirror_look_s: float = 5.0  # deadline of one look at the replication
    switch_over_s: float = 2.0  # a guest paused for so long, and a target silent for so long: see switch_over


def reasons_not_to_migrate(facts: DomainFacts) -> tuple[str, ...]:
    """What makes a live migration from here impossible, as the guest stands."""
    if facts.state is DomainState.ABSENT:
        return (f"domain {facts.uuid} is not on this host",)
    if facts.state not in MOVABLE:
        return (f"domain {facts.uuid} is {facts.state} ({facts.reason}): there is nothing to migrate live",)
    return ()


async def migrate(
    command: MigrateDomain,
    hypervisor: Hypervisor,
    drivers: Drivers,
    streams: Streams,
    *,
    control: Control,
    pace: Pace,
) -> Ended:
    """Run the command. Raises Refused, Retryable, Failed (nothing was sent), Unknown (look at both hosts)."""
    mirror = Mirror(command, drivers, look_s=pace.mirror_look_s)
    sight = await mirror.look()
    if sight.apart:
        raise Refused(*sight.apart)
    if sight.blind:
        raise Retryable(*sight.blind)
    facts = await hypervisor.facts(command.uuid)
    reasons = reasons_not_to_migrate(facts)
    if reasons:
        raise Refused(*reasons)
    if facts.job:
        raise Retryable(f"domain {command.uuid}: another libvirt job runs on it")
    if control.abort.is_set():
        raise Failed("aborted before it began")
    switch_over = SwitchOver(command, hypervisor, streams, control=control, patience_s=pace.switch_over_s)
    watch = _Watch(command, hypervisor, mirror, switch_over, control=control, pace=pace)
    request = MigrateRequest(
        uuid=command.uuid,
        target_uri=command.target_uri,
        target_address=command.target_address,
        downtime_limit_ms=command.downtime_limit_ms,
        bandwidth_bps=command.bandwidth_bps,
        unwanted=lambda: bool(watch.why_aborted),
    )
    call = asyncio.create_task(hypervisor.migrate(request))
    try:
        await watch.until_ended(call)
        await call
    except Unknown as error:
        await watch.follow()
        raise Unknown(*watch.what_was_done, *error.reasons) from None
    except (Refused, Retryable, Failed) as error:
        if watch.what_was_done:  # such a call proves less than one that failed by itself
            raise Unknown(*watch.what_was_done, *error.reasons) from None
        raise
    finally:
        call.cancel()  # a thread that hangs in the call keeps its connection, not this attempt
        watch.close()
    await _source_gone(command.uuid, hypervisor, pace)
    return Ended(outcome=Outcome.DONE, result=AttemptResult(progress=await watch.final_figures()))


async def adopt(
    command: MigrateDomain,
    hypervisor: Hypervisor,
    drivers: Drivers,
    streams: Streams,
    *,
    control: Control,
    pace: Pace,
    why: str,
) -> Ended:
    """Follow a migration that another attempt, or a former life of this agent, began, until its job ends.

    `why`: in words, for whoever looks at both hosts then. Always raises Unknown.
    """
    mirror = Mirror(command, drivers, look_s=pace.mirror_look_s)
    switch_over = SwitchOver(command, hypervisor, streams, control=control, patience_s=pace.switch_over_s)
    watch = _Watch(command, hypervisor, mirror, switch_over, control=control, pace=pace)
    try:
        await watch.follow()
    finally:
        watch.close()
    control.latest = await watch.final_figures()  # if it moved, the daemon still learns its downtime
    raise Unknown(*watch.what_was_done, f"{why}: look at both hosts")


class _Watch:
    """Polls one migration: progress out, abort in. `close()` ends the watches beside it."""

    def __init__(
        self,
        command: MigrateDomain,
        hypervisor: Hypervisor,
        mirror: Mirror,
        switch_over: SwitchOver,
        *,
        control: Control,
        pace: Pace,
    ) -> None:
        self._command = command
        self._hypervisor = hypervisor
        self._control = control
        self._pace = pace
        self._limit_set = False
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._late_at = loop.time() + command.deadline_s
        self._give_up_at: float | None = None
        self.why_aborted: tuple[str, ...] = ()
        self._destroyed: tuple[str, ...] = ()
        self._apart = asyncio.create_task(mirror.until_apart(pace.poll_s))
        self._asked = asyncio.create_task(control.abort.wait())
        self._switch_over = switch_over
        self._watching = asyncio.create_task(switch_over.watch(pace.poll_s))
        self._obeying = asyncio.create_task(self._obey())

    @property
    def what_was_done(self) -> tuple[str, ...]:
        """To a migration that has failed since."""
        return (*self.why_aborted, *self._switch_over.why_cut, *self._destroyed)

    def close(self) -> None:
        """Nobody watches the replication and the target any more, and no order is heard."""
        for task in (self._apart, self._asked, self._watching, self._obeying):
            task.cancel()
        self._control.paused_at_s = None  # what is told from now on is the end

    async def until_ended(self, call: asyncio.Task[None]) -> None:
        """Return when the call has ended. Raises Unknown when it did not end long after an abort."""
        wait_s = self._pace.first_poll_s
        while True:
            await self._wait_for(call, wait_s)
            if call.done():
                return
            wait_s = min(wait_s * 2, self._pace.poll_s)
            await self._step()

    async def _wait_for(self, task: asyncio.Task[Any], wait_s: float | None = None) -> None:
        """Return when it has ended, after `wait_s`, or when an abort has become due: it must not wait."""
        waiting = {task} if self.why_aborted else {task, self._apart, self._asked}
        await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)

    async def follow(self) -> None:
        """Return when the domain has no outgoing job any more, or could not be seen for `blind_s`.

        A job of another kind is somebody else's: ours has ended, and theirs is neither waited for nor
        aborted. One that libvirt does not name may be ours: it is waited for, and never aborted. Raises
        Unknown when the deadline is long past whatever was seen (I20).
        """
        blind_since: float | None = None
        give_up_at = self._late_at + self._pace.abort_grace_s
        while self._now() <= give_up_at:
            try:
                job = await self._look()
                if job is None or job.foreign:
                    return
                blind_since = None
                if job.outgoing:
                    await self._maybe_abort()
            except Retryable:
                blind_since = blind_since if blind_since is not None else self._now()
                if self._now() - blind_since >= self._pace.blind_s:
                    return
            await asyncio.sleep(self._pace.poll_s)
        raise Unknown(
            *self.what_was_done,
            f"a job still runs on the domain after {self._command.deadline_s:g} s and a grace",
        )

    async def final_figures(self) -> MigrationProgress | None:
        """libvirt's final figures with the real downtime; the last ones seen if the event did not come."""
        found = await self._hypervisor.last_job(self._command.uuid, wait_s=self._pace.figures_s)
        return found or self._control.latest

    async def _step(self) -> None:
        await self._maybe_abort()
        look = asyncio.create_task(self._look())
        try:
            await self._wait_for(look)
            if not look.done():  # libvirt can take seconds to tell of a job, and has another ear for an abort
                await self._maybe_abort()
            with contextlib.suppress(Retryable):  # the migration goes on whether it can be watched or not
                await look
        finally:
            look.cancel()

    async def _look(self) -> Job | None:
        """The job that is there. Tells the progress of ours, and sets the downtime limit on first sight."""
        uuid = self._command.uuid
        job = await self._hypervisor.job(uuid)
        if job is not None and job.outgoing:
            self._control.latest = job.progress
            if not self._limit_set:
                with contextlib.suppress(Refused):  # it ended in this instant
                    await self._hypervisor.set_downtime(uuid, self._command.downtime_limit_ms)
                self._limit_set = True
        return job

    async def _obey(self) -> None:
        """Never returns. Beside everything else: an abort that hangs must not hold the order up."""
        while True:
            await self._control.destroy_source.wait()
            self._control.destroy_source.clear()  # the daemon repeats it for as long as it sees the same
            try:
                await self._destroy_source()
            except Exception:  # a bug must not end the watch
                log.exception("the source's QEMU was not destroyed", uuid=self._command.uuid)

    async def _destroy_source(self) -> None:
        uuid = self._command.uuid
        # Said before it is done: libvirt's answer may be here before ours.
        self._destroyed = ("the guest was seen to run on the target: its QEMU here was told to end",)
        try:
            await self._hypervisor.destroy_outgoing(uuid)
        except OutcomeError as error:
            self._destroyed = (*self._destroyed, *error.reasons)
            log.warning("the source's QEMU was not destroyed", uuid=uuid, reasons=error.reasons)
        else:
            log.warning("the source's QEMU was destroyed: the guest runs on the target", uuid=uuid)

    async def _maybe_abort(self) -> None:
        """Ask again at every poll until the job has ended; give up `abort_grace_s` after the first time."""
        if not self.why_aborted:
            if self._control.abort.is_set():
                self.why_aborted = ("aborted on request",)
            elif self._now() > self._late_at:
                self.why_aborted = (f"aborted: it took longer than {self._command.deadline_s:g} s",)
            elif self._apart.done():
                self.why_aborted = ("aborted: the target's copy may miss writes (I7)", *self._apart.result())
            else:
                return
            self._give_up_at = self._now() + self._pace.abort_grace_s
        if self._give_up_at is not None and self._now() > self._give_up_at:
            raise Unknown(*self.why_aborted, "libvirt did not end the migration after the abort")
        with contextlib.suppress(Retryable):
            await self._hypervisor.abort(self._command.uuid)


async def _source_gone(uuid: str, hypervisor: Hypervisor, pace: Pace) -> None:
    """The second half of DONE. Raises Unknown when the guest is still seen here, or cannot be looked for."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + pace.settle_s
    seen = "libvirt did not answer"
    while True:
        with contextlib.suppress(Retryable):
            facts = await hypervisor.facts(uuid)
            if facts.state in (DomainState.ABSENT, DomainState.SHUTOFF):
                return
            seen = f"on this host the guest is {facts.state} ({facts.reason})"
        if loop.time() >= ends:
            raise Unknown("libvirt reported success", seen)
        await asyncio.sleep(0.05)
