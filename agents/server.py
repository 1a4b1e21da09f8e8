"""The agent's HTTP server: mTLS, bounded bodies, problem documents, and the event stream."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from aiohttp import web

from agents import metrics as metrics_module
from agents import problems
from agents.attempts.runner import Attempts, DomainBusyError, Key, TooManyAttemptsError
from agents.events import Hub, TooManySubscribers
from agents.hypervisor.words import DomainFacts, Hypervisor
from agents.inventory import Inventory
from agents.ledger import DifferentCommandError, LedgerError, StaleEpochError
from agents.metrics import Metrics
from agents.problems import Problem
from agents.protocol import (
    Abort,
    Attempt,
    AttemptReport,
    DomainState,
    Observation,
    Observe,
    Outcome,
    Preflight,
    PreflightReport,
)
from agents.tls import certificate_names
from agents.volumes import VolumeLooks
from agents.wire import MAX_BODY_BYTES, BadDocument, dump, read_request
from storage.driver import InUse
from storage.errors import OutcomeError, Retryable

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()

MAX_WAIT_S = 30.0
BODY_DEADLINE_S = 15.0


class ProblemError(Exception):
    """Answer with this problem document."""

    def __init__(self, status: int, kind: str, title: str, detail: str = "", *errors: str) -> None:
        super().__init__(title)
        self.problem = Problem(type=kind, title=title, status=status, detail=detail, errors=errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the handlers work with."""

    inventory: Inventory
    attempts: Attempts
    hypervisor: Hypervisor
    volumes: VolumeLooks
    in_use: InUse
    hub: Hub
    metrics: Metrics
    allowed_clients: frozenset[str]


class Api:
    """The handlers. One instance serves one agent."""

    def __init__(self, services: Services) -> None:
        self._do = services

    def application(self) -> web.Application:
        """The application to run behind TLS."""
        app = web.Application(
            middlewares=[self._answer_problems, self._check_client], client_max_size=MAX_BODY_BYTES
        )
        app.add_routes(
            [
                web.get("/v1/report", self._report),
                web.get("/v1/events", self._events),
                web.post("/v1/preflight", self._preflight),
                web.post("/v1/observe", self._observe),
                web.post("/v1/attempts", self._submit),
                web.get("/v1/attempts/{operation}/{step}/{attempt}", self._wait),
                web.post("/v1/attempts/{operation}/{step}/{attempt}/abort", self._abort),
                web.get("/healthz", self._healthz),
                web.get("/metrics", self.metrics),
            ]
        )
        return app

    # -- middlewares -----------------------------------------------------------------------------

    @web.middleware
    async def _answer_problems(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except ProblemError as error:
            response = _problem(error.problem)
        except web.HTTPException as error:
            response = _problem(_of_http(error))
        except Exception:
            log.exception("request failed by a bug", path=request.path)
            response = _problem(Problem(type=problems.INTERNAL, title="Internal error", status=500))
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "unknown"
        self._do.metrics.requests.labels(route, str(response.status)).inc()
        return response

    @web.middleware
    async def _check_client(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The authority signs agents too; only the names in allowed_clients may command."""
        certificate = request.transport.get_extra_info("peercert") if request.transport else None
        names = certificate_names(certificate)
        if not names & self._do.allowed_clients:
            self._do.metrics.auth_failures.labels("name").inc()
            log.warning("client refused: name not allowed", names=sorted(names)[:5], peer=request.remote)
            raise ProblemError(
                403, problems.FORBIDDEN, "Not an allowed client", "add its name to allowed_clients"
            )
        return await handler(request)

    # -- reads -----------------------------------------------------------------------------------

    async def _report(self, _request: web.Request) -> web.StreamResponse:
        report = await self._do.inventory.fresh()
        if report is None:
            raise ProblemError(503, problems.UNAVAILABLE, "No report yet", "the agent has just started")
        return _json(report)

    async def _preflight(self, request: web.Request) -> web.StreamResponse:
        question = await _body(request, Preflight)
        try:
            cpus = [await self._do.hypervisor.cpu_reasons(cpu) for cpu in question.cpus]
        except Retryable as error:
            raise ProblemError(503, problems.UNAVAILABLE, "libvirt cannot be asked", str(error)) from None
        volumes = await asyncio.gather(*(self._do.volumes.reach(volume) for volume in question.volumes))
        return _json(PreflightReport(cpus=tuple(cpus), volumes=tuple(volumes)))

    async def _observe(self, request: web.Request) -> web.StreamResponse:
        question = await _body(request, Observe)
        facts, process, volumes = await asyncio.gather(
            self._facts(question.uuid),
            self._qemu_process(question.uuid),
            self._do.volumes.inspect(question.volumes),
        )
        by_name = {report.volume.name: report for report in volumes}
        return _json(
            Observation(
                uuid=question.uuid,
                state=facts.state,
                reason=facts.reason,
                persistent=facts.persistent,
                qemu_process=process,
                job=facts.job,
                volumes=tuple(by_name[volume.name] for volume in question.volumes),
            )
        )

    async def _facts(self, uuid: str) -> DomainFacts:
        try:
            return await self._do.hypervisor.facts(uuid)
        except Retryable as error:
            return DomainFacts(uuid=uuid, state=DomainState.UNKNOWN, reason=str(error), job=True)

    async def _qemu_process(self, uuid: str) -> bool | None:
        try:
            return await self._do.in_use(uuid)
        except OutcomeError:
            return None

    # -- attempts --------------------------------------------------------------------------------

    async def _submit(self, request: web.Request) -> web.StreamResponse:
        attempt = await _body(request, Attempt)
        return _attempt(await _answered(self._do.attempts.submit(attempt)))

    async def _wait(self, request: web.Request) -> web.StreamResponse:
        key = _key(request)
        try:
            wait_s = min(max(float(request.query.get("wait_s", "0")), 0.0), MAX_WAIT_S)
        except ValueError:
            wait_s = math.nan
        if math.isnan(wait_s):
            raise ProblemError(400, problems.BAD_REQUEST, "Bad request", "", "wait_s: not a number")
        return _known(key, await _answered(self._do.attempts.wait(key, wait_s)))

    async def _abort(self, request: web.Request) -> web.StreamResponse:
        key = _key(request)
        question = await _body(request, Abort)
        return _known(key, await _answered(self._do.attempts.abort(key, question.epoch)))

    # -- streams and health ------------------------------------------------------------------------

    async def _events(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport

        def drop() -> None:
            self._do.metrics.subscribers_dropped.inc()
            log.warning("event stream dropped: the listener lags", peer=request.remote)
            if transport is not None:
                transport.abort()  # its write buffer is full: a polite end would wait for it

        try:
            subscription = self._do.hub.subscribe(drop, self._do.inventory.latest)
        except TooManySubscribers as error:
            raise ProblemError(429, problems.TOO_MANY, "Too many event streams", str(error)) from None
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        try:
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):  # the listener has gone
                async for line in subscription:
                    await response.write(line)
        finally:
            self._do.hub.unsubscribe(subscription)
        return response

    async def _healthz(self, _request: web.Request) -> web.StreamResponse:
        """200 while the event loop lives and the first look has been made; libvirt's trouble is named."""
        ready = self._do.inventory.latest is not None
        trouble = self._do.hypervisor.trouble
        return web.json_response(
            {"status": "ok" if ready else "starting", "libvirt_ok": trouble is None, "trouble": trouble},
            status=200 if ready else 503,
        )

    async def metrics(self, _request: web.Request) -> web.StreamResponse:
        """Prometheus text format."""
        return web.Response(
            body=self._do.metrics.render(), headers={"Content-Type": metrics_module.CONTENT_TYPE}
        )


def metrics_application(api: Api) -> web.Application:
    """/metrics alone, for the plain listener of `metrics_listen`."""
    app = web.Application()
    app.add_routes([web.get("/metrics", api.metrics)])
    return app


async def heartbeat(hub: Hub, heartbeat_s: float) -> None:
    """Its own task: it depends on nothing but the event loop."""
    while True:
        hub.heartbeat()
        await asyncio.sleep(heartbeat_s)


async def _answered(call: Awaitable[T]) -> T:
    """The problem document for each reason not to begin."""
    try:
        return await call
    except StaleEpochError as error:
        raise ProblemError(409, problems.STALE_EPOCH, "Stale epoch", str(error)) from None
    except DifferentCommandError as error:
        raise ProblemError(409, problems.DIFFERENT_COMMAND, "Id already used", str(error)) from None
    except DomainBusyError as error:
        raise ProblemError(409, problems.DOMAIN_BUSY, "Domain busy", str(error)) from None
    except TooManyAttemptsError as error:
        raise ProblemError(429, problems.TOO_MANY, "Too many attempts", str(error)) from None
    except LedgerError as error:
        raise ProblemError(503, problems.UNAVAILABLE, "Nothing can be begun", str(error)) from None


async def _body(request: web.Request, cls: type[T]) -> T:
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            data = await request.read()
        return read_request(cls, data)
    except TimeoutError:
        raise ProblemError(408, problems.BAD_REQUEST, "The body did not arrive in time") from None
    except BadDocument as error:
        raise ProblemError(400, problems.BAD_REQUEST, "Bad request", "", *error.errors) from None


def _key(request: web.Request) -> Key:
    info = request.match_info
    if not info["attempt"].isascii() or not info["attempt"].isdecimal() or len(info["attempt"]) > 9:
        raise ProblemError(400, problems.BAD_REQUEST, "Bad request", "", "attempt: not a number")
    return info["operation"], info["step"], int(info["attempt"])


def _known(key: Key, report: AttemptReport | None) -> web.Response:
    if report is None:
        name = "/".join(map(str, key))
        raise ProblemError(404, problems.UNKNOWN_ATTEMPT, "Unknown attempt", f"no record of attempt {name}")
    return _attempt(report)


def _attempt(report: AttemptReport) -> web.Response:
    return _json(report, status=202 if report.outcome is Outcome.RUNNING else 200)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=dump(value), status=status, content_type="application/json")


def _problem(problem: Problem) -> web.Response:
    return web.Response(body=dump(problem), status=problem.status, content_type=problems.CONTENT_TYPE)


def _of_http(error: web.HTTPException) -> Problem:
    """aiohttp's own refusals: no route, wrong method, body too large."""
    kinds = {404: problems.NOT_FOUND, 405: problems.METHOD_NOT_ALLOWED, 413: problems.TOO_LARGE}
    return Problem(
        type=kinds.get(error.status, problems.BAD_REQUEST), title=error.reason, status=error.status
    )
