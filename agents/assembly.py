"""One agent put together from its parts, without a listener: what HTTP serves and the simulator calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from agents.arrivals import Arrivals, libvirt_port
from agents.attempts.migration import Pace
from agents.attempts.runner import Attempts, OnEnd, touched_kinds
from agents.attempts.storage_steps import Drivers
from agents.config import AgentConfig
from agents.discovery import Discover
from agents.events import Hub
from agents.host_facts import HostFacts, look
from agents.hypervisor.words import Hypervisor
from agents.inventory import Identity, Inventory
from agents.ledger import Ledger
from agents.protocol import Attempt, AttemptReport
from agents.service import Service
from agents.streams.words import Streams
from agents.volumes import VolumeLooks
from storage.driver import InUse


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
    streams: Streams
    discover: Discover
    in_use: InUse
    tool_versions: dict[str, str]
    agent_version: str
    pace: Pace = field(default_factory=Pace)
    host_facts: Callable[[], HostFacts] = look


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The assembled parts. `loops` makes them work, `service` answers for them."""

    config: AgentConfig
    parts: Parts
    inventory: Inventory
    attempts: Attempts
    hub: Hub
    service: Service
    arrivals: Arrivals


def assemble(
    config: AgentConfig,
    parts: Parts,
    *,
    ledger: Ledger,
    on_end: OnEnd,
    on_look: Callable[[float], None],
    stream: str = "",
) -> Agent:
    """Nothing runs yet. `on_end`, `on_look`: for metrics; `stream` names this life's event stream."""
    limits = config.limits
    hub = Hub(queue_max=limits.event_queue, subscribers_max=limits.subscribers, stream=stream)
    volumes = VolumeLooks(parts.drivers, deadline_s=limits.inspect_deadline_s)
    inventory = _inventory(config, parts, ledger=ledger, hub=hub, volumes=volumes, on_look=on_look)

    def ended(attempt: Attempt, report: AttemptReport, took_s: float) -> None:
        on_end(attempt, report, took_s)
        hub.attempt(report)
        inventory.poke(kinds=touched_kinds(attempt, parts.drivers))

    attempts = Attempts(
        ledger=ledger,
        hypervisor=parts.hypervisor,
        drivers=parts.drivers,
        streams=parts.streams,
        in_use=parts.in_use,
        on_end=ended,
        attempts_max=limits.attempts,
        migrations_max=limits.migrations,
        storage_deadline_s=limits.storage_deadline_s,
        pace=parts.pace,
    )
    service = Service(
        inventory=inventory,
        attempts=attempts,
        hypervisor=parts.hypervisor,
        volumes=volumes,
        in_use=parts.in_use,
        hub=hub,
    )
    return Agent(
        config=config,
        parts=parts,
        inventory=inventory,
        attempts=attempts,
        hub=hub,
        service=service,
        arrivals=Arrivals(parts.hypervisor, parts.streams, port=libvirt_port(config.migration_uri)),
    )


def _inventory(
    config: AgentConfig,
    parts: Parts,
    *,
    ledger: Ledger,
    hub: Hub,
    volumes: VolumeLooks,
    on_look: Callable[[float], None],
) -> Inventory:
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
        hub=hub,
        epoch=lambda: ledger.highest_epoch,
        inventory_s=config.inventory_s,
        storage_s=config.storage_s,
        host_facts=parts.host_facts,
        on_look=on_look,
    )


@asynccontextmanager
async def loops(agent: Agent, **more: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """The background loops, and `more` of them. The TaskGroup cancels the body when one of them dies."""
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(agent.parts.hypervisor.run(), name="hypervisor"),
            group.create_task(agent.attempts.run(ready), name="attempts"),
            group.create_task(agent.inventory.run(), name="inventory"),
            group.create_task(agent.arrivals.run(), name="arrivals"),
            group.create_task(_heartbeat(agent.hub, agent.config.heartbeat_s), name="heartbeat"),
            *(group.create_task(loop, name=name) for name, loop in more.items()),
        ]
        await ready.wait()
        yield
        for task in tasks:
            task.cancel()


async def _heartbeat(hub: Hub, heartbeat_s: float) -> None:
    """Its own task: it depends on nothing but the event loop."""
    while True:
        hub.heartbeat()
        await asyncio.sleep(heartbeat_s)
