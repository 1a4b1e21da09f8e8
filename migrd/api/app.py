"""The aiohttp application: the route table behind three middlewares.

Outermost: count and log; then problem documents; then the token, before any body byte is read.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import HttpVersion11, hdrs, web
from pydantic import TypeAdapter

from migrd.api import problems
from migrd.api.answer import Answer, adapter
from migrd.api.context import API, DESCRIPTION, Api
from migrd.api.events import STREAMS, Streams
from migrd.api.openapi import document
from migrd.api.problems import UNAUTHORIZED, ProblemError
from migrd.api.routes import ROUTES, Route

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger("migrd.api")


def build_app(api: Api) -> web.Application:
    """The whole surface over `api.control`. Serve it with migrd.api.server."""
    app = web.Application(
        middlewares=[_count, _problems, _authenticate], client_max_size=api.limits.body_bytes
    )
    app[API] = api
    app[STREAMS] = Streams()
    app[DESCRIPTION] = json.dumps(document(api.version)).encode()
    app.on_shutdown.append(app[STREAMS].close)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, _handler(route), expect_handler=_expect)
    return app


def _handler(route: Route) -> Next:
    adapters: dict[int, TypeAdapter[Any]] = {
        status: adapter(answer) for status, answer in route.answers.items() if answer is not None
    }

    async def handle(request: web.Request) -> web.StreamResponse:
        answer = await route.handler(request, request.app[API])
        if not isinstance(answer, Answer):
            return answer
        body = adapters[answer.status].dump_json(answer.value)
        headers = {"Cache-Control": "no-store", **answer.headers}
        return web.Response(body=body, status=answer.status, content_type="application/json", headers=headers)

    return handle


async def _expect(request: web.Request) -> None:
    """Of the Expect header. Runs outside of the middlewares, so a wrong one is told by _problems."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # as aiohttp's own handler does


def _template(request: web.Request) -> str:
    """The path template: a label with few values. A path nobody serves is 'none'."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical


@web.middleware
async def _count(request: web.Request, handler: Next) -> web.StreamResponse:
    api = request.app[API]
    started = time.perf_counter()
    status = 499  # the client went before there was an answer
    try:
        answer = await handler(request)
        status = answer.status
        return answer
    finally:
        duration_s = time.perf_counter() - started
        api.observer.request(_method(request), _template(request), status, duration_s)
        write = log.debug if request.method in (hdrs.METH_GET, hdrs.METH_HEAD) else log.info
        write(
            "request",
            method=request.method,
            path=request.path,
            status=status,
            remote=request.remote,
            duration_s=round(duration_s, 4),
        )


def _method(request: web.Request) -> str:
    """A label with few values, whatever a client invents."""
    return request.method if request.method in hdrs.METH_ALL else "other"


@web.middleware
async def _problems(request: web.Request, handler: Next) -> web.StreamResponse:
    try:
        if request.headers.get(hdrs.EXPECT, "100-continue").lower() != "100-continue":
            raise web.HTTPExpectationFailed  # noqa: TRY301 - one way to say why not
        return await handler(request)
    except Exception as error:
        verdict = problems.verdict_of(error)
        if verdict is None:
            log.exception("bug in a handler", method=request.method, path=request.path)
            verdict = problems.internal()
        return problems.response(verdict, request.path)


@web.middleware
async def _authenticate(request: web.Request, handler: Next) -> web.StreamResponse:
    api = request.app[API]
    if _template(request) not in _PUBLIC:
        scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        token = given.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""
        # Constant time: how much of a guess is right must not be measurable.
        if not hmac.compare_digest(token, api.token):
            reason = "wrong" if token else "missing"
            api.observer.auth_failure(reason)
            log.warning("request refused", reason=f"token {reason}", remote=request.remote, path=request.path)
            raise ProblemError(
                401,
                UNAUTHORIZED,
                f"the bearer token is {reason}",
                "send 'Authorization: Bearer TOKEN' with the token of the daemon's token_file"
                " (migrctl: --token-file or MIGRD_TOKEN_FILE)",
                headers={"WWW-Authenticate": 'Bearer realm="migrd"'},
            )
    return await handler(request)


_PUBLIC = frozenset(route.path for route in ROUTES if route.public)
