"""A real agent on loopback: real TLS, SQLite and HTTP; a fake hypervisor and fake storage behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agents.assembly import Parts
from agents.attempts.migration import Pace
from agents.client import AgentClient
from agents.config import AgentConfig, Limits, Listen
from agents.daemon import Running
from agents.daemon import running as run_agent
from agents.tls import TlsFiles, client_context, server_context
from tests.agents.fakes import FakeDiscover, FakeDriver, FakeHypervisor, FakeInUse, FakeStreams
from tests.certs import issue, make_ca


@dataclass(frozen=True)
class Certificates:
    """One authority; `stranger` is signed by another one."""

    agent: TlsFiles
    migrd: TlsFiles
    neighbour: TlsFiles
    stranger: TlsFiles


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    ours, theirs = tmp_path_factory.mktemp("pki"), tmp_path_factory.mktemp("other-pki")
    make_ca(ours)
    make_ca(theirs)
    stranger = issue(theirs, "migrd")
    return Certificates(
        agent=issue(ours, "h1", ["127.0.0.1", "localhost"]),
        migrd=issue(ours, "migrd"),
        neighbour=issue(ours, "h2", ["127.0.0.1"]),
        stranger=TlsFiles(cert=stranger.cert, key=stranger.key, ca=ours / "ca.pem"),
    )


@dataclass
class World:
    """A started agent and what stands behind it."""

    agent: Running
    client: AgentClient
    hypervisor: FakeHypervisor
    driver: FakeDriver
    in_use: FakeInUse
    config: AgentConfig

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.agent.port}"


StartWorld = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def start(certificates: Certificates, tmp_path: Path) -> StartWorld:
    """`async with start(hypervisor=..., driver=...) as world`: an agent, and its allowed client."""

    @asynccontextmanager
    async def start_world(
        hypervisor: FakeHypervisor | None = None,
        driver: FakeDriver | None = None,
        *,
        limits: Limits | None = None,
        storage_s: float = 0.2,
        metrics_listen: Listen | None = None,
    ) -> AsyncIterator[World]:
        hypervisor, driver = hypervisor or FakeHypervisor(), driver or FakeDriver()
        in_use = FakeInUse()
        config = AgentConfig(
            host="h1",
            tls=certificates.agent,
            allowed_clients=("migrd",),
            migration_uri="qemu+tls://h1/system",
            migration_address="tcp://10.0.1.11",
            listen=Listen(address="127.0.0.1", port=0),
            metrics_listen=metrics_listen,
            state_dir=tmp_path / "state",
            heartbeat_s=0.1,
            inventory_s=0.2,
            storage_s=storage_s,
            limits=limits or Limits(),
        )
        parts = Parts(
            hypervisor=hypervisor,
            drivers={"drbd": driver, "iscsi": driver},
            streams=FakeStreams(),
            discover=FakeDiscover(),
            in_use=in_use,
            tool_versions={"drbd-utils": "9.22.0"},
            agent_version="0.0.test",
            pace=Pace(poll_s=0.1, first_poll_s=0.02, settle_s=0.3),
        )
        async with run_agent(config, server_context(config.tls), parts) as agent:
            url = f"https://127.0.0.1:{agent.port}"
            async with AgentClient.https("h1", url, client_context(certificates.migrd)) as client:
                yield World(agent, client, hypervisor, driver, in_use, config)

    return start_world
