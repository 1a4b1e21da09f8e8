"""Hosts come and go while the daemon runs: client, BMC and watch together, and nothing is left open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from agents.client import AgentClient
from migrd.host_config import Bmc, HostConfig
from migrd.members import Members
from migrd.watch import ClusterView
from storage.errors import Retryable

H1, H4 = (
    HostConfig(agent="https://127.0.0.1:1"),
    HostConfig(agent="https://127.0.0.1:4", bmc=Bmc(address="b4", user="u", password_file=Path("/nowhere"))),
)


class Unused:
    """A Transport that nobody gets an answer from."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def call(
        self, method: str, target: str, body: bytes | None, *, changes: bool, extra_s: float
    ) -> tuple[int, bytes]:
        raise Retryable(f"{self.url}: nobody is there")

    async def lines(self) -> AsyncGenerator[bytes, None]:
        raise Retryable(f"{self.url}: nobody is there")
        yield b""

    async def close(self) -> None:
        return


class Client(AgentClient):
    def __init__(self, name: str, url: str) -> None:
        super().__init__(name, Unused(url))
        self.closed = 0
        self.gone = asyncio.Event()

    async def close(self) -> None:
        self.closed += 1
        self.gone.set()
        await super().close()


class House:
    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.members = Members({"h1": H1}, connect=self._connect, secret_problem=lambda path: f"{path.name}!")
        self.view = ClusterView(self.members.agents, administrative=dict, on_change=lambda _: None)
        self.members.watched_by(self.view)

    def _connect(self, name: str, host: HostConfig) -> Client:
        self.clients.append(Client(name, host.agent))
        return self.clients[-1]

    def hosts(self) -> tuple[list[str], list[str], list[str]]:
        """As the view, the holders of clients and the BMCs have them."""
        known = ("h1", "h4")
        view = list(self.view.cluster().hosts)
        return view, sorted(self.members.agents), [name for name in known if self.members.power.has(name)]


async def test_client_bmc_and_watch_come_and_go_together() -> None:
    house = House()
    async with asyncio.TaskGroup() as tasks:
        loops = [tasks.create_task(house.view.run()), tasks.create_task(house.members.run())]
        house.members.take("h4", H4)
        assert house.hosts() == (["h1", "h4"], ["h1", "h4"], ["h4"])
        assert house.view.cluster().hosts["h4"].has_bmc
        await asyncio.sleep(0.05)
        house.members.drop("h4")
        assert house.hosts() == (["h1"], ["h1"], [])
        await asyncio.wait_for(house.clients[1].gone.wait(), 10)
        assert "no BMC" in await house.members.power.status("h4")
        for loop in loops:
            loop.cancel()
    await house.members.close()
    assert [client.closed for client in house.clients] == [1, 1]


async def test_one_removed_at_the_very_end_is_closed_too() -> None:
    house = House()
    house.members.take("h4", H4)
    house.members.drop("h4")
    await house.members.close()
    assert [client.closed for client in house.clients] == [1, 1]


async def test_the_file_holds() -> None:
    """A name or an address of migrd.toml is not overruled by what was added before, nor dropped."""
    house = House()
    house.members.take("h1", H4)
    house.members.take("h4", H1)
    house.members.drop("h1")
    assert house.hosts() == (["h1"], ["h1"], [])
    assert [client.name for client in house.clients] == ["h1"]
    await house.members.close()


async def test_the_password_file_is_proved_as_in_the_file() -> None:
    house = House()
    assert house.members.problems(H1) == []
    assert house.members.problems(H4) == ["bmc.password_file: /nowhere: nowhere!"]
    await house.members.close()
