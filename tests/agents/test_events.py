"""The event stream: hello, heartbeats whatever hangs, changes, and listeners that lag."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from dataclasses import replace

import aiohttp
import pytest

from agents.client import AgentClient
from agents.config import Limits
from agents.events import Hub, TooManySubscribers
from agents.protocol import Attempt, DomainState, Event, SweepTarget
from agents.tls import client_context
from storage.errors import Refused, Retryable
from tests.agents.conftest import Certificates, StartWorld
from tests.agents.fakes import FakeHypervisor, running


async def collect(client: AgentClient, seconds: float) -> list[tuple[float, Event]]:
    """Events with the time they came."""
    found: list[tuple[float, Event]] = []
    try:
        async with asyncio.timeout(seconds):
            async for event in client.events():
                found.append((time.monotonic(), event))
    except TimeoutError:
        pass
    return found


async def test_the_stream_begins_with_hello_and_beats(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u"))) as world:
        await world.client.report()
        found = [event for _, event in await collect(world.client, 1.0)]
        assert found[0].kind == "hello"
        assert found[0].report is not None
        assert found[0].report.domains[0].uuid == "u"
        assert [event.kind for event in found].count("heartbeat") >= 5
        assert len({event.stream for event in found}) == 1
        numbers = [event.seq for event in found]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_i20_a_hung_libvirt_stops_neither_heartbeat_nor_report(start: StartWorld) -> None:
    """The call blocks a real thread; the agent goes on beating and says that libvirt is away."""
    hypervisor = FakeHypervisor(running("u"))
    hang = threading.Event()
    async with start(hypervisor) as world:
        await world.client.report()
        hypervisor.blocking = hang.wait  # type: ignore[assignment]  # the returned bool is not used
        try:
            found = await collect(world.client, 2.5)
            beats = [at for at, event in found if event.kind == "heartbeat"]
            gaps = [later - earlier for earlier, later in itertools.pairwise(beats)]
            assert len(beats) >= 15
            assert max(gaps) < 1.0
            began = time.monotonic()
            report = await world.client.report()
            assert time.monotonic() - began < 6
            assert not report.libvirt_ok
            assert report.domains[0].state is DomainState.UNKNOWN
        finally:
            hypervisor.blocking = None
            hang.set()
        await asyncio.sleep(1.0)
        report = await world.client.report()
        assert report.libvirt_ok
        assert report.domains[0].state is DomainState.RUNNING


async def test_changes_of_guests_are_told(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u"))) as world:
        await world.client.report()
        listening = asyncio.create_task(collect(world.client, 1.5))
        await asyncio.sleep(0.4)
        world.hypervisor.set_state("u", DomainState.PAUSED, "user")
        await asyncio.sleep(0.4)
        del world.hypervisor.domains["u"]
        world.hypervisor.changes.tell("u")
        found = [event for _, event in await listening]
        states = [event.domain.state for event in found if event.domain]
        assert states == [DomainState.PAUSED]
        assert [event.domain_gone for event in found if event.domain_gone] == ["u"]


async def test_the_end_of_an_attempt_is_told(start: StartWorld) -> None:
    async with start() as world:
        listening = asyncio.create_task(collect(world.client, 1.0))
        await asyncio.sleep(0.3)
        await world.client.submit(
            Attempt(operation="o", step="s", attempt=1, epoch=1, command=SweepTarget(uuid="u"))
        )
        found = [event.attempt for _, event in await listening if event.attempt]
        assert [(each.operation, each.step, each.outcome.value) for each in found] == [("o", "s", "done")]


async def test_a_planned_exit_ends_the_stream_at_once(start: StartWorld, certificates: Certificates) -> None:
    async with start() as world:
        client = AgentClient.https("h1", world.url, client_context(certificates.migrd))
        listening = asyncio.create_task(collect(client, 30))
        await asyncio.sleep(0.3)
    with pytest.raises(Retryable, match="ended its event stream"):
        await asyncio.wait_for(listening, 3)
    await client.close()


async def test_i20_streams_are_limited(start: StartWorld) -> None:
    async with start(limits=Limits(subscribers=1)) as world:
        listening = asyncio.create_task(collect(world.client, 2))
        await asyncio.sleep(0.3)
        with pytest.raises((Retryable, Refused), match="event streams"):
            await anext(world.client.events())
        await listening
        await asyncio.sleep(0.5)  # the agent learns at its next heartbeat that the listener has gone
        assert (await anext(world.client.events())).kind == "hello"


async def test_i20_a_listener_that_does_not_read_is_dropped(
    start: StartWorld, certificates: Certificates
) -> None:
    """It fills its socket, lags behind, and is cut off; nobody else notices."""
    big = FakeHypervisor(replace(running("u"), xml="x" * 100_000))
    async with start(big, limits=Limits(event_queue=20)) as world:
        connector = aiohttp.TCPConnector(ssl=client_context(certificates.migrd))
        async with (
            aiohttp.ClientSession(connector=connector, read_bufsize=1024) as session,
            session.get(world.url + "/v1/events") as response,
        ):
            assert response.status == 200
            await world.client.report()
            report = world.agent.inventory.latest
            assert report is not None
            for _ in range(3000):
                world.agent.hub.report(report)
                if world.agent.hub.subscribers == 0:
                    break
                await asyncio.sleep(0.001)
            assert world.agent.hub.subscribers == 0
            assert world.agent.hub.dropped == 1
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await response.read()
        assert (await anext(world.client.events())).kind == "hello"


def test_the_hub_is_bounded() -> None:
    dropped: list[str] = []
    hub = Hub(queue_max=3, subscribers_max=1)
    hub.subscribe(lambda: dropped.append("x"), None)
    with pytest.raises(TooManySubscribers):
        hub.subscribe(lambda: None, None)
    for _ in range(3):
        hub.heartbeat()
    assert dropped == ["x"]
    assert hub.subscribers == 0
