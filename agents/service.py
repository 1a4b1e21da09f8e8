"""What an agent answers, whatever carries the question: HTTP (agents.server) or a simulated network.

`answer(method, target, body)` routes, reads, acts and writes; it never raises. The paths are those of
agents.protocol.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import structlog

from agents import problems
from agents.attempts.runner import Attempts, DomainBusyError, Key, TooManyAttemptsError
from agents.events import Hub, Subscription, TooManySubscribers
from agents.hypervisor.words import DomainFacts, Hypervisor
from agents.inventory import Inventory
from agents.ledger import DifferentCommandError, LedgerError, StaleEpochError
from agents.problems import Problem
from agents.protocol import (
    Abort,
    Attempt,
    AttemptReport,
    DestroySource,
    DomainState,
    HostReport,
    Observation,
    Observe,
    Outcome,
    Preflight,
    PreflightReport,
)
from agents.volumes import VolumeLooks
from agents.wire import BadDocument, dump, read_request
from storage.driver import InUse
from storage.errors import OutcomeError, Retryable

T = TypeVar("T")

log = structlog.get_logger()

MAX_WAIT_S = 30.0
JSON = "application/json"


class ProblemError(Exception):
    """Answer with this problem document."""

    def __init__(
        self, status: int, kind: str, title: str, detail: str = "", *errors: str, epoch: int = 0
    ) -> None:
        super().__init__(title)
        self.problem = Problem(
            type=kind, title=title, status=status, detail=detail, errors=errors, epoch=epoch
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back: HTTP status, JSON body, and its content type."""

    status: int
    body: bytes
    content_type: str = JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The questions of agents.protocol, answered from the parts of one agent."""

    inventory: Inventory
    attempts: Attempts
    hypervisor: Hypervisor
    volumes: VolumeLooks
    in_use: InUse
    hub: Hub

    async def answer(self, method: str, target: str, body: bytes) -> Reply:
        """Answer one question; `target` is the path with its query. A problem is an answer, too."""
        try:
            return await self._route(method, target, body)
        except ProblemError as error:
            return of_problem(error.problem)
        except Exception:
            log.exception("request failed by a bug", path=target)
            return of_problem(Problem(type=problems.INTERNAL, title="Internal error", status=500))

    def subscribe(self, on_drop: Callable[[], None]) -> Subscription:
        """A new event stream; end it with `hub.unsubscribe`. Raises ProblemError."""
        try:
            return self.hub.subscribe(on_drop, self.inventory.latest)
        except TooManySubscribers as error:
            raise ProblemError(429, problems.TOO_MANY, "Too many event streams", str(error)) from None

    async def _route(self, method: str, target: str, body: bytes) -> Reply:  # noqa: PLR0911 - a table
        path, query = _split(target)
        match method, *path:
            case "GET", "v1", "report":
                return _json(await self._report(storage=query.get("storage") == "1"))
            case "POST", "v1", "preflight":
                return _json(await self._preflight(_read(Preflight, body)))
            case "POST", "v1", "observe":
                return _json(await self._observe(_read(Observe, body)))
            case "POST", "v1", "attempts":
                wait_s = _wait_s(query.get("wait_s", "0"))
                return _attempt(await _answered(self.attempts.submit(_read(Attempt, body), wait_s)))
            case "GET", "v1", "attempts", operation, step, number:
                key, wait_s = _key(operation, step, number), _wait_s(query.get("wait_s", "0"))
                return _known(key, await _answered(self.attempts.wait(key, wait_s)))
            case "POST", "v1", "attempts", operation, step, number, "abort":
                key, question = _key(operation, step, number), _read(Abort, body)
                return _known(key, await _answered(self.attempts.abort(key, question.epoch)))
            case "POST", "v1", "attempts", operation, step, number, "destroy-source":
                key, epoch = _key(operation, step, number), _read(DestroySource, body).epoch
                return _known(key, await _answered(self.attempts.destroy_source(key, epoch)))
        raise ProblemError(404, problems.NOT_FOUND, "Not Found")

    # -- reads -----------------------------------------------------------------------------------

    async def _report(self, *, storage: bool) -> HostReport:
        report = await self.inventory.fresh(storage=storage)
        if report is None:
            raise ProblemError(503, problems.UNAVAILABLE, "No report yet", "the agent has just started")
        return report

    async def _preflight(self, question: Preflight) -> PreflightReport:
        try:
            cpus = [await self.hypervisor.cpu_reasons(cpu) for cpu in question.cpus]
        except Retryable as error:
            raise ProblemError(503, problems.UNAVAILABLE, "libvirt cannot be asked", str(error)) from None
        volumes = await asyncio.gather(*(self.volumes.reach(volume) for volume in question.volumes))
        return PreflightReport(cpus=tuple(cpus), volumes=tuple(volumes))

    async def _observe(self, question: Observe) -> Observation:
        facts, process, volumes = await asyncio.gather(
            self._facts(question.uuid),
            self._qemu_process(question.uuid),
            self.volumes.inspect(question.volumes),
        )
        by_name = {report.volume.name: report for report in volumes}
        return Observation(
            uuid=question.uuid,
            state=facts.state,
            reason=facts.reason,
            persistent=facts.persistent,
            qemu_process=process,
            job=facts.job,
            volumes=tuple(by_name[volume.name] for volume in question.volumes),
        )

    async def _facts(self, uuid: str) -> DomainFacts:
        try:
            return await self.hypervisor.facts(uuid)
        except Retryable as error:
            return DomainFacts(uuid=uuid, state=DomainState.UNKNOWN, reason=str(error), job=True)

    async def _qemu_process(self, uuid: str) -> bool | None:
        try:
            return await self.in_use(uuid)
        except OutcomeError:
            return None


def of_problem(problem: Problem) -> Reply:
    """A problem document as an answer."""
    return Reply(problem.status, dump(problem), problems.CONTENT_TYPE)


async def _answered(call: Awaitable[T]) -> T:
    """The problem document for each reason not to begin."""
    try:
        return await call
    except StaleEpochError as error:
        title, highest = "Stale epoch", error.highest
        raise ProblemError(409, problems.STALE_EPOCH, title, str(error), epoch=highest) from None
    except DifferentCommandError as error:
        raise ProblemError(409, problems.DIFFERENT_COMMAND, "Id already used", str(error)) from None
    except DomainBusyError as error:
        raise ProblemError(409, problems.DOMAIN_BUSY, "Domain busy", str(error)) from None
    except TooManyAttemptsError as error:
        raise ProblemError(429, problems.TOO_MANY, "Too many attempts", str(error)) from None
    except LedgerError as error:
        raise ProblemError(503, problems.UNAVAILABLE, "Nothing can be begun", str(error)) from None


def _split(target: str) -> tuple[list[str], dict[str, str]]:
    parts = urlsplit(target)
    path = [unquote(part) for part in parts.path.split("/")[1:]]
    return path, {name: values[0] for name, values in parse_qs(parts.query).items()}


def _read(cls: type[T], body: bytes) -> T:
    try:
        return read_request(cls, body)
    except BadDocument as error:
        raise ProblemError(400, problems.BAD_REQUEST, "Bad request", "", *error.errors) from None


def _key(operation: str, step: str, number: str) -> Key:
    if not number.isascii() or not number.isdecimal() or len(number) > 9:
        raise ProblemError(400, problems.BAD_REQUEST, "Bad request", "", "attempt: not a number")
    return operation, step, int(number)


def _wait_s(text: str) -> float:
    """How long the caller would wait for the end of an attempt; 0 when it does not say."""
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = math.nan
    if math.isnan(wait_s):
        raise ProblemError(400, problems.BAD_REQUEST, "Bad request", "", "wait_s: not a number")
    return min(max(wait_s, 0.0), MAX_WAIT_S)


def _known(key: Key, report: AttemptReport | None) -> Reply:
    if report is None:
        name = "/".join(map(str, key))
        raise ProblemError(404, problems.UNKNOWN_ATTEMPT, "Unknown attempt", f"no record of attempt {name}")
    return _attempt(report)


def _attempt(report: AttemptReport) -> Reply:
    return _json(report, status=202 if report.outcome is Outcome.RUNNING else 200)


def _json(value: object, status: int = 200) -> Reply:
    return Reply(status, dump(value))
