"""A real agent is taken into a running daemon's view over mTLS, and let go without a trace."""

from __future__ import annotations

import asyncio

from agents.client import AgentClient
from agents.tls import client_context
from migrd.host_config import HostConfig
from migrd.members import Members
from migrd.model import HostState
from migrd.watch import ClusterView
from tests.agents.conftest import Certificates, StartWorld


async def test_an_added_host_is_heard_and_a_removed_one_is_hung_up_on(
    start: StartWorld, certificates: Certificates
) -> None:
    context = client_context(certificates.migrd)
    members = Members(
        {},
        connect=lambda name, host: AgentClient.https(name, host.agent, context),
        secret_problem=lambda _: "",
    )
    view = ClusterView(members.agents, administrative=dict, on_change=lambda _: None)
    members.watched_by(view)
    async with start() as world, asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        loops = [tasks.create_task(view.run()), tasks.create_task(members.run())]
        members.take("h1", HostConfig(agent=world.url))
        assert await view.settled(30.0) == ()
        while view.cluster().hosts["h1"].state is not HostState.ONLINE:  # noqa: ASYNC110 - a view, no event
            await asyncio.sleep(0.05)
        assert view.cluster().hosts["h1"].claimed == "h1"
        assert world.agent.hub.subscribers == 1
        members.drop("h1")
        assert view.cluster().hosts == {}
        while world.agent.hub.subscribers:  # noqa: ASYNC110 - the other side's count
            await asyncio.sleep(0.05)
        for loop in loops:
            loop.cancel()
    await members.close()
