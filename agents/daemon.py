"""The running agent: everything in one TaskGroup. A loop that dies takes the agent with it; systemd starts
it again, and the ledger tells it what it was doing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from aiohttp import web

from agents.assembly import Agent, Parts, assemble, loops
from agents.attempts.runner import Attempts
from agents.config import AgentConfig, Listen
from agents.events import Hub
from agents.inventory import Inventory
from agents.ledger import Ledger, only_user
from agents.listening import told_with
from agents.metrics import AgentCollector, Metrics
from agents.notify import feed_watchdog, notify, watchdog_s
from agents.server import Api, metrics_application
from agents.tls import on_refused_handshake

log = structlog.get_logger()

STORAGE_GRACE_S = 10.0
SHUTDOWN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A started agent, as its tests see it."""

    port: int
    metrics_port: int | None
    attempts: Attempts
    inventory: Inventory
    hub: Hub
    metrics: Metrics


async def serve(config: AgentConfig, tls: ssl.SSLContext, parts: Parts) -> None:
    """Run until SIGTERM or SIGINT.

    Raises LedgerError (another agent runs on it), or in an ExceptionGroup ListenError, or what a loop that
    died raised.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with only_user(config.state_dir):
        await _until(stop, config, tls, parts)


async def _until(stop: asyncio.Event, config: AgentConfig, tls: ssl.SSLContext, parts: Parts) -> None:
    async with running(config, tls, parts) as agent:
        log.info("agent ready", host=config.host, port=agent.port, version=parts.agent_version)
        notify("READY=1")
        await stop.wait()
        log.info("agent stopping", running=len(agent.attempts.running))
        notify("STOPPING=1")
    log.info("agent stopped")


@asynccontextmanager
async def running(config: AgentConfig, tls: ssl.SSLContext, parts: Parts) -> AsyncIterator[Running]:
    """A running agent; leaving it stops it cleanly: migrations go on and are adopted by the next life."""
    limits, metrics = config.limits, Metrics()
    ledger = await Ledger.open(
        config.state_dir / "ledger.sqlite", keep_rows=limits.ledger_rows, keep_days=limits.ledger_days
    )
    try:
        agent = assemble(
            config,
            parts,
            ledger=ledger,
            on_end=metrics.attempt_ended,
            on_look=metrics.inventory_seconds.observe,
        )
        _fill_metrics(metrics, agent, ledger)
        on_refused_handshake(tls, lambda reason, detail: _refused(metrics, reason, detail))
        api = Api(agent.service, metrics, frozenset(config.allowed_clients))
        period_s = watchdog_s()
        more = {"watchdog": feed_watchdog(period_s)} if period_s is not None else {}
        async with loops(agent, **more):
            async with _http(config, tls, api) as (port, metrics_port):
                yield Running(
                    port=port,
                    metrics_port=metrics_port,
                    attempts=agent.attempts,
                    inventory=agent.inventory,
                    hub=agent.hub,
                    metrics=metrics,
                )
                agent.hub.close()
            await agent.attempts.drain(STORAGE_GRACE_S)
    finally:
        await parts.hypervisor.close()
        await ledger.close()


@asynccontextmanager
async def _http(config: AgentConfig, tls: ssl.SSLContext, api: Api) -> AsyncIterator[tuple[int, int | None]]:
    """Both listeners; yields their ports."""
    async with contextlib.AsyncExitStack() as stack:
        port = await _listen(stack, api.application(), "listen", config.listen, tls)
        metrics_port = None
        if config.metrics_listen is not None:
            alone = metrics_application(api)
            metrics_port = await _listen(stack, alone, "metrics_listen", config.metrics_listen, None)
        yield port, metrics_port


async def _listen(
    stack: contextlib.AsyncExitStack,
    app: web.Application,
    key: str,
    listen: Listen,
    tls: ssl.SSLContext | None,
) -> int:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, keepalive_timeout=75.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, listen.address, listen.port, ssl_context=tls, reuse_address=True)
    with told_with(key, f"{listen.address} port {listen.port}"):
        await site.start()
    return int(runner.addresses[0][1])


def _fill_metrics(metrics: Metrics, agent: Agent, ledger: Ledger) -> None:
    metrics.started.set(time.time())
    metrics.info.info({"version": agent.parts.agent_version})
    metrics.registry.register(
        AgentCollector(
            report=lambda: agent.inventory.latest,
            trouble=lambda: agent.parts.hypervisor.trouble,
            migrations=lambda: agent.attempts.migrations,
            subscribers=lambda: agent.hub.subscribers,
            epoch=lambda: ledger.highest_epoch,
        )
    )


def _refused(metrics: Metrics, reason: str, detail: str) -> None:
    metrics.auth_failures.labels(reason).inc()
    log.warning("client refused in the TLS handshake", reason=reason, detail=detail)
