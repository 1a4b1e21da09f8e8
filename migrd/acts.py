"""Carries out a saga's commands at the agents, and brings every outcome back as one event.

Nothing is decided here. What an exception means is fixed by `storage.errors`; contact lost while an attempt
runs is "not ended, outcome unknown", never a failure. Raises Superseded alone: a newer daemon is master (I4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agents.client import AttemptNotSeen, StaleEpoch
from agents.mistakes import Seconds
from agents.protocol import (
    AnyVolume,
    Attempt,
    AttemptReport,
    ConnectReplicas,
    DisconnectReplicas,
    MigrationProgress,
    Observation,
    Observe,
    Outcome,
    ReleaseVolumes,
    ShutdownDomain,
)
from migrd.ports import AgentPort, Clock, PowerPort
from migrd.sagas.commands import Abort, Call, DestroySource, Follow, Look, LookAtSwitchOver, StopGuest
from migrd.sagas.events import Answered, Looked, StopAnswered, SwitchOverSeen
from storage.errors import Failed, OutcomeError, Refused, Retryable, Unknown
from storage.words import Handover, Side

OnProgress = Callable[[MigrationProgress], None]
Seen = tuple[Observation | None, tuple[str, ...]]
"""What one host shows of a guest; or None, and why."""

SIGNAL_TRIES = 5
REPLICAS_DEADLINE_S = 90.0


class Superseded(Exception):  # noqa: N818 - a state of the world
    """An agent obeys a newer epoch: another daemon is master, and this one must not command any more."""

    def __init__(self, stale: StaleEpoch) -> None:
        super().__init__(str(stale))
        self.highest = stale.highest


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the daemon waits for an agent. All in seconds."""

    poll_s: Seconds = 1.0  # one long poll: the age of migration progress
    switch_over_poll_s: Seconds = 0.25  # the same while a guest is paused for its switch-over: that is urgent
    lost_contact_s: Seconds = 20.0  # an attempt whose agent is silent for longer is "not ended, unknown"
    retry_s: Seconds = 0.5
    observe_s: Seconds = 20.0
    switch_over_look_s: Seconds = 3.0  # the same while a guest is paused for its switch-over
    stop_grace_s: Seconds = 30.0  # beyond the shutdown's own deadline


class Acts:
    """The agents, spoken to under one epoch."""

    def __init__(
        self,
        agents: Mapping[str, AgentPort],
        *,
        power: PowerPort,
        epoch: int,
        clock: Clock,
        patience: Patience,
    ) -> None:
        self._agents = agents
        self._power = power
        self._epoch = epoch
        self._clock = clock
        self._patience = patience

    async def call(self, operation: str, command: Call, on_progress: OnProgress) -> Answered:
        """Submit, then wait for the end."""
        attempt = Attempt(
            operation=operation,
            step=command.step,
            attempt=command.attempt,
            epoch=self._epoch,
            command=command.command,
        )
        report, ended = await self._attempt(command.host, attempt, command.deadline_s, on_progress)
        return _answer(command.side, report, ended)

    async def follow(self, operation: str, command: Follow, on_progress: OnProgress) -> Answered:
        """Wait for the end of what was submitted before."""
        name = AttemptReport(
            operation=operation, step=command.step, attempt=command.attempt, outcome=Outcome.UNKNOWN
        )
        report, ended = await self._until_end(command.host, name, command.deadline_s, on_progress)
        return _answer(command.side, report, ended)

    async def signal(self, operation: str, command: Abort | DestroySource) -> None:
        """Tell a running attempt something. Whether it helps is told by the attempt itself."""
        agent = self._agents.get(command.host)
        if agent is None:
            return
        tell = agent.abort if isinstance(command, Abort) else agent.destroy_source
        for _ in range(SIGNAL_TRIES):
            try:
                await tell(operation, command.step, command.attempt, epoch=self._epoch)
            except StaleEpoch as error:
                raise Superseded(error) from None
            except (Retryable, AttemptNotSeen):  # not seen: its submission may be on the way still
                await self._clock.sleep(self._patience.retry_s)
                continue
            except OutcomeError:
                return  # refused: nobody is there to be told
            else:
                return

    async def look(self, command: Look) -> Looked:
        """Both hosts at the same time; a host that does not answer is None, with the reason.

        Of such a host its BMC is asked: one that has no power keeps nobody waiting.
        """
        question = Observe(uuid=command.guest, volumes=command.volumes)
        within_s = self._patience.observe_s
        (source, no_source), (target, no_target) = await self._observe_both(command, question, within_s)
        silent = [
            (side, host)
            for side, host, seen in (
                (Side.SOURCE, command.source, source),
                (Side.TARGET, command.target, target),
            )
            if seen is None
        ]
        off = await asyncio.gather(*(self._is_off(host) for _, host in silent))
        return Looked(
            source=source,
            target=target,
            reasons=(*no_source, *no_target),
            off=tuple(side for (side, _), is_off in zip(silent, off, strict=True) if is_off),
            number=command.number,
        )

    async def look_at_switch_over(self, command: LookAtSwitchOver) -> SwitchOverSeen:
        """Both hosts at the same time, their volumes aside: it is urgent."""
        question = Observe(uuid=command.guest, volumes=())
        within_s = self._patience.switch_over_look_s
        (source, _), (target, _) = await self._observe_both(command, question, within_s)
        return SwitchOverSeen(attempt=command.attempt, source=source, target=target, number=command.number)

    async def _observe_both(
        self, command: Look | LookAtSwitchOver, question: Observe, within_s: float
    ) -> tuple[Seen, Seen]:
        return await asyncio.gather(
            self._observe(command.source, question, within_s),
            self._observe(command.target, question, within_s),
        )

    async def _is_off(self, host: str) -> bool:
        """Only a clean "off" is off; a BMC that lost its power with its host says nothing (I3)."""
        return self._power.has(host) and await self._power.status(host) == "off"

    async def stop(self, operation: str, command: StopGuest, volumes: tuple[AnyVolume, ...]) -> StopAnswered:
        """Ask a guest to shut down, with consent journalled before (I5); then let its disks go."""
        attempt = Attempt(
            operation=operation,
            step=f"stop-{command.guest}",
            attempt=command.attempt,
            epoch=self._epoch,
            command=ShutdownDomain(uuid=command.guest, deadline_s=command.deadline_s),
        )
        deadline_s = command.deadline_s + self._patience.stop_grace_s
        report, _ = await self._attempt(command.host, attempt, deadline_s, _ignore)
        if report.outcome is Outcome.DONE and volumes:
            report = await self._let_go(operation, command, volumes)
        return StopAnswered(
            guest=command.guest, attempt=command.attempt, outcome=report.outcome, reasons=report.reasons
        )

    async def _let_go(
        self, operation: str, command: StopGuest, volumes: tuple[AnyVolume, ...]
    ) -> AttemptReport:
        """A guest that has stopped leaves its DRBD primary and its sessions open; nobody else ends them."""
        handover = Handover(operation=operation, domain_uuid=command.guest, side=Side.SOURCE, peer_node="")
        attempt = Attempt(
            operation=operation,
            step=f"release-{command.guest}",
            attempt=command.attempt,
            epoch=self._epoch,
            command=ReleaseVolumes(handover=handover, volumes=volumes),
        )
        report, _ = await self._attempt(command.host, attempt, REPLICAS_DEADLINE_S, _ignore)
        return report

    async def replicas(self, operation: str, host: str, *, connected: bool, attempt: int) -> tuple[str, ...]:
        """Before a host's power goes its replicas leave their peers in good order; () or why they did not."""
        command = ConnectReplicas() if connected else DisconnectReplicas()
        asked = Attempt(
            operation=operation, step=command.kind, attempt=attempt, epoch=self._epoch, command=command
        )
        report, _ = await self._attempt(host, asked, REPLICAS_DEADLINE_S, _ignore)
        if report.outcome is Outcome.DONE:
            return ()
        return report.reasons or (f"{command.kind} on {host} ended: {report.outcome}",)

    async def _observe(self, host: str, question: Observe, within_s: float) -> Seen:
        agent = self._agents.get(host)
        if agent is None:
            return None, (f"{host} is not configured",)
        try:
            async with asyncio.timeout(within_s):
                return await agent.observe(question), ()
        except OutcomeError as error:
            return None, tuple(error.reasons) or (f"{host} did not answer",)
        except TimeoutError:
            return None, (f"{host} did not answer within {within_s:g} s",)

    async def _attempt(
        self, host: str, attempt: Attempt, deadline_s: float, on_progress: OnProgress
    ) -> tuple[AttemptReport, bool]:
        agent = self._agents.get(host)
        if agent is None:
            return _report(attempt, Outcome.REFUSED, f"{host} is not configured"), True
        try:
            report = await agent.submit(attempt, self._patience.poll_s)
        except StaleEpoch as error:
            raise Superseded(error) from None
        except Refused as error:
            return _report(attempt, Outcome.REFUSED, *error.reasons), True
        except Retryable as error:
            return _report(attempt, Outcome.RETRYABLE, *error.reasons), True
        except Failed as error:
            return _report(attempt, Outcome.FAILED, *error.reasons), True
        except Unknown:
            pass  # the reply was lost: the agent knows whether it saw the attempt
        else:
            if report.outcome is not Outcome.RUNNING:
                return report, True
            _tell(report, on_progress)
        return await self._until_end(host, _report(attempt, Outcome.UNKNOWN), deadline_s, on_progress)

    async def _until_end(
        self,
        host: str,
        name: AttemptReport,
        deadline_s: float,
        on_progress: OnProgress,
    ) -> tuple[AttemptReport, bool]:
        """The attempt's end; or (UNKNOWN, not ended) once contact is lost or the deadline has passed."""
        agent = self._agents.get(host)
        step, attempt = name.step, name.attempt
        if agent is None:
            return _report(name, Outcome.UNKNOWN, f"{host} is not configured"), False
        clock = self._clock
        begun_s = heard_s = clock.monotonic()
        poll_s = self._patience.poll_s
        while clock.monotonic() - begun_s < deadline_s:
            try:
                report = await agent.wait(name.operation, step, attempt, poll_s)
            except AttemptNotSeen:
                return _report(name, Outcome.RETRYABLE, f"{host} never saw {step}/{attempt}"), True
            except OutcomeError as error:
                if clock.monotonic() - heard_s >= self._patience.lost_contact_s:
                    return _report(name, Outcome.UNKNOWN, *error.reasons), False
                await clock.sleep(self._patience.retry_s)
                continue
            heard_s = clock.monotonic()
            _tell(report, on_progress)
            progress = report.result.progress
            paused = progress is not None and progress.handing_over_s > 0
            poll_s = self._patience.switch_over_poll_s if paused else self._patience.poll_s
            if report.outcome is not Outcome.RUNNING:
                return report, True
        return _report(name, Outcome.UNKNOWN, f"{step} on {host} has not ended in {deadline_s:g} s"), False


def _report(name: Attempt | AttemptReport, outcome: Outcome, *reasons: str) -> AttemptReport:
    return AttemptReport(
        operation=name.operation, step=name.step, attempt=name.attempt, outcome=outcome, reasons=reasons
    )


def _answer(side: Side, report: AttemptReport, ended: bool) -> Answered:
    progress = report.result.progress
    return Answered(
        side=side,
        step=report.step,
        attempt=report.attempt,
        outcome=report.outcome,
        ended=ended,
        reasons=report.reasons,
        volumes=report.result.volumes,
        downtime_ms=progress.downtime_ms if progress is not None else None,
    )


def _tell(report: AttemptReport, on_progress: OnProgress) -> None:
    if report.result.progress is not None:
        on_progress(report.result.progress)


def _ignore(_progress: MigrationProgress) -> None:
    return
