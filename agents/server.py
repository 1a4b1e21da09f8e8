"""The agent's HTTP server: mTLS, bounded bodies, the event stream. What is answered is agents.service's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from agents import metrics as metrics_module
from agents import problems
from agents.metrics import Metrics
from agents.problems import Problem
from agents.service import ProblemError, Reply, Service, of_problem
from agents.tls import certificate_names
from agents.wire import MAX_BODY_BYTES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()

BODY_DEADLINE_S = 15.0


class Api:
    """The handlers. One instance serves one agent."""

    def __init__(self, service: Service, metrics: Metrics, allowed_clients: frozenset[str]) -> None:
        self._service = service
        self._metrics = metrics
        self._allowed_clients = allowed_clients

    def application(self) -> web.Application:
        """The application to run behind TLS."""
        app = web.Application(
            middlewares=[self._answer_problems, self._check_client], client_max_size=MAX_BODY_BYTES
        )
        app.add_routes(
            [
                web.get("/v1/report", self._ask),
                web.get("/v1/events", self._events),
                web.post("/v1/preflight", self._ask),
                web.post("/v1/observe", self._ask),
                web.post("/v1/attempts", self._ask),
                web.get("/v1/attempts/{operation}/{step}/{attempt}", self._ask),
                web.post("/v1/attempts/{operation}/{step}/{attempt}/abort", self._ask),
                web.post("/v1/attempts/{operation}/{step}/{attempt}/destroy-source", self._ask),
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
            response = _response(of_problem(error.problem))
        except web.HTTPException as error:
            response = _response(of_problem(_of_http(error)))
        except web.RequestPayloadError as error:
            title = "The body cannot be decoded"
            problem = Problem(type=problems.BAD_REQUEST, title=title, status=400, detail=str(error))
            response = _response(of_problem(problem))
        except Exception:
            log.exception("request failed by a bug", path=request.path)
            problem = Problem(type=problems.INTERNAL, title="Internal error", status=500)
            response = _response(of_problem(problem))
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "unknown"
        self._metrics.requests.labels(route, str(response.status)).inc()
        return response

    @web.middleware
    async def _check_client(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The authority signs agents too; only the names in allowed_clients may command."""
        certificate = request.transport.get_extra_info("peercert") if request.transport else None
        names = certificate_names(certificate)
        if not names & self._allowed_clients:
            self._metrics.auth_failures.labels("name").inc()
            log.warning("client refused: name not allowed", names=sorted(names)[:5], peer=request.remote)
            raise ProblemError(
                403, problems.FORBIDDEN, "Not an allowed client", "add its name to allowed_clients"
            )
        return await handler(request)

    # -- handlers --------------------------------------------------------------------------------

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request) if request.method == "POST" else b""
        return _response(await self._service.answer(request.method, request.raw_path, body))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport

        def drop() -> None:
            self._metrics.subscribers_dropped.inc()
            log.warning("event stream dropped: the listener lags", peer=request.remote)
            if transport is not None:
                transport.abort()  # its write buffer is full: a polite end would wait for it

        subscription = self._service.subscribe(drop)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        try:
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):  # the listener has gone
                async for line in subscription:
                    await response.write(line)
        finally:
            self._service.hub.unsubscribe(subscription)
        return response

    async def _healthz(self, _request: web.Request) -> web.StreamResponse:
        """200 while the event loop lives and the first look has been made; libvirt's trouble is named."""
        ready = self._service.inventory.latest is not None
        trouble = self._service.hypervisor.trouble
        return web.json_response(
            {"status": "ok" if ready else "starting", "libvirt_ok": trouble is None, "trouble": trouble},
            status=200 if ready else 503,
        )

    async def metrics(self, _request: web.Request) -> web.StreamResponse:
        """Prometheus text format."""
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": metrics_module.CONTENT_TYPE}
        )


def metrics_application(api: Api) -> web.Application:
    """/metrics alone, for the plain listener of `metrics_listen`."""
    app = web.Application()
    app.add_routes([web.get("/metrics", api.metrics)])
    return app


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            return await request.read()
    except TimeoutError:
        raise ProblemError(408, problems.BAD_REQUEST, "The body did not arrive in time") from None


def _response(reply: Reply) -> web.Response:
    return web.Response(body=reply.body, status=reply.status, content_type=reply.content_type)


def _of_http(error: web.HTTPException) -> Problem:
    """aiohttp's own refusals: no route, wrong method, body too large."""
    kinds = {404: problems.NOT_FOUND, 405: problems.METHOD_NOT_ALLOWED, 413: problems.TOO_LARGE}
    return Problem(
        type=kinds.get(error.status, problems.BAD_REQUEST), title=error.reason, status=error.status
    )
