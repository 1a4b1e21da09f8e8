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
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from aiohttp import web

from agents.attempts.migration import Pace
from agents.attempts.runner import Attempts
from agents.attempts.storage_steps import Drivers
from agents.config import AgentConfig, Listen
from agents.discovery import Discover
from agents.events import Hub
from agents.hypervisor.words import Hypervisor
from agents.inventory import Identity, Inventory
from agents.ledger import Ledger
from agents.metrics import AgentCollector, Metrics
from agents.notify import feed_watchdog, notify, watchdog_s
from agents.protocol import Attempt, AttemptReport
from agents.server import Api, Services, heartbeat, metrics_application
from agents.tls import on_refused_handshake
from agents.volumes import VolumeLooks
from storage.driver import InUse

log = structlog.get_logger()

STORAGE_GRACE_S = 10.0
SHUTDOWN_S = 2.0


class RunnableHypervisor(Hypervisor, Protocol):
    """A hypervisor with a loop of its own (LibvirtHypervisor.run) and an end."""

    async def run(self) -> None:
        """Keep the connection until cancelled; raise when only a new process helps."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What differs between a real host, a test and the simulator."""

    hypervisor: RunnableHypervisor
    drivers: Drivers
    discover: Discover
    in_use: InUse
    tool_versions: dict[str, str]
    agent_version: str
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A started agent, as its tests see it."""

    port: int
    metrics_port: int | None
    attempts: Attempts
    inventory: Inventory
    hub: Hub
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class _Core:
    """What every part is built on."""

    config: AgentConfig
    parts: Parts
    ledger: Ledger
    hub: Hub
    metrics: Metrics


async def serve(config: AgentConfig, tls: ssl.SSLContext, parts: Parts) -> None:
    """Run until SIGTERM or SIGINT. Raises what a loop that died raised, or OSError (port taken)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
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
        hub = Hub(queue_max=limits.event_queue, subscribers_max=limits.subscribers)
        core = _Core(config=config, parts=parts, ledger=ledger, hub=hub, metrics=metrics)
        volumes = VolumeLooks(parts.drivers, deadline_s=limits.inspect_deadline_s)
        inventory = _inventory(core, volumes)
        attempts = _attempts(core, inventory)
        _fill_metrics(core, inventory, attempts)
        services = Services(
            inventory=inventory,
            attempts=attempts,
            hypervisor=parts.hypervisor,
            volumes=volumes,
            in_use=parts.in_use,
            hub=hub,
            metrics=metrics,
            allowed_clients=frozenset(config.allowed_clients),
        )
        on_refused_handshake(tls, lambda reason: _refused(metrics, reason))
        async with _loops(config, parts, attempts, inventory, hub):
            async with _http(config, tls, Api(services)) as (port, metrics_port):
                yield Running(
                    port=port,
                    metrics_port=metrics_port,
                    attempts=attempts,
                    inventory=inventory,
                    hub=hub,
                    metrics=metrics,
                )
                hub.close()
            await attempts.drain(STORAGE_GRACE_S)
    finally:
        await parts.hypervisor.close()
        await ledger.close()


@asynccontextmanager
async def _loops(
    config: AgentConfig, parts: Parts, attempts: Attempts, inventory: Inventory, hub: Hub
) -> AsyncIterator[None]:
    """The background loops. The TaskGroup cancels the body when one of them dies."""
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(parts.hypervisor.run(), name="hypervisor"),
            group.create_task(attempts.run(ready), name="attempts"),
            group.create_task(inventory.run(), name="inventory"),
            group.create_task(heartbeat(hub, config.heartbeat_s), name="heartbeat"),
        ]
        period_s = watchdog_s()
        if period_s is not None:
            tasks.append(group.create_task(feed_watchdog(period_s), name="watchdog"))
        await ready.wait()
        yield
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def _http(config: AgentConfig, tls: ssl.SSLContext, api: Api) -> AsyncIterator[tuple[int, int | None]]:
    """Both listeners; yields their ports."""
    async with contextlib.AsyncExitStack() as stack:
        port = await _listen(stack, api.application(), config.listen, tls)
        metrics_port = None
        if config.metrics_listen is not None:
            metrics_port = await _listen(stack, metrics_application(api), config.metrics_listen, None)
        yield port, metrics_port


async def _listen(
    stack: contextlib.AsyncExitStack, app: web.Application, listen: Listen, tls: ssl.SSLContext | None
) -> int:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, keepalive_timeout=75.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, listen.address, listen.port, ssl_context=tls, reuse_address=True)
    await site.start()
    return int(runner.addresses[0][1])


def _inventory(core: _Core, volumes: VolumeLooks) -> Inventory:
    config, parts, ledger = core.config, core.parts, core.ledger
    return Inventory(
        identity=Identity(
            host=config.host,
            agent_version=parts.agent_version,
            tool_versions=parts.tool_versions,
            migration_uri=config.migration_uri,
            migration_address=config.migration_address,
        ),
        hypervisor=parts.hypervisor,
        volumes=volumes,
        discover=parts.discover,
        hub=core.hub,
        epoch=lambda: ledger.highest_epoch,
        inventory_s=config.inventory_s,
        storage_s=config.storage_s,
        on_look=core.metrics.inventory_seconds.observe,
    )


def _attempts(core: _Core, inventory: Inventory) -> Attempts:
    def ended(attempt: Attempt, report: AttemptReport, took_s: float) -> None:
        core.metrics.attempt_ended(attempt, report, took_s)
        core.hub.attempt(report)
        inventory.poke(storage=True)

    limits = core.config.limits
    return Attempts(
        ledger=core.ledger,
        hypervisor=core.parts.hypervisor,
        drivers=core.parts.drivers,
        in_use=core.parts.in_use,
        on_end=ended,
        attempts_max=limits.attempts,
        migrations_max=limits.migrations,
        storage_deadline_s=limits.storage_deadline_s,
        pace=core.parts.pace,
    )


def _fill_metrics(core: _Core, inventory: Inventory, attempts: Attempts) -> None:
    core.metrics.started.set(time.time())
    core.metrics.info.info({"version": core.parts.agent_version})
    core.metrics.registry.register(
        AgentCollector(
            report=lambda: inventory.latest,
            trouble=lambda: core.parts.hypervisor.trouble,
            migrations=lambda: attempts.migrations,
            subscribers=lambda: core.hub.subscribers,
            epoch=lambda: core.ledger.highest_epoch,
        )
    )


def _refused(metrics: Metrics, reason: str) -> None:
    metrics.auth_failures.labels(reason).inc()
    log.warning("client refused in the TLS handshake", reason=reason)
