"""Who belongs to the cluster while the daemon runs: takes hosts in and lets them go, without a restart.

Decides nothing (`migrd.roster` does) and keeps nothing (the journal does). One host is one agent client, one
BMC at most, and one watch; all three come and go together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from agents.client import AgentClient
from migrd.host_config import HostConfig
from migrd.power import Power
from migrd.roster import shadowed
from migrd.watch import ClusterView

log = structlog.get_logger("migrd.members")


class Members:
    """Implements `migrd.ports.MembersPort`. `agents` is shared: whoever holds it sees hosts come and go."""

    def __init__(
        self,
        fixed: Mapping[str, HostConfig],
        *,
        connect: Callable[[str, HostConfig], AgentClient],
        secret_problem: Callable[[Path], str],
    ) -> None:
        self.fixed = fixed
        self.agents = {name: connect(name, host) for name, host in fixed.items()}
        self.power = Power({name: host.bmc for name, host in fixed.items() if host.bmc is not None})
        self._connect = connect
        self._secret_problem = secret_problem
        self._view: ClusterView | None = None
        self._gone: asyncio.Queue[AgentClient] = asyncio.Queue()  # at most one per removal

    def watched_by(self, view: ClusterView) -> None:
        """Once, before the first host comes: the view was built over `agents`."""
        self._view = view

    def problems(self, host: HostConfig) -> list[str]:
        """What is wrong with the files that `host` names, on this machine and now."""
        if host.bmc is None:
            return []
        reason = self._secret_problem(host.bmc.password_file)
        return [f"bmc.password_file: {host.bmc.password_file}: {reason}"] if reason else []

    def take(self, name: str, host: HostConfig) -> None:
        """Follow the host from now on; the file's word is not overruled."""
        why = shadowed(self.fixed, name, host)
        if why:
            log.warning("added host is not followed", host=name, reason=why)
            return
        assert self._view is not None, "watched_by comes first"
        agent = self.agents[name] = self._connect(name, host)
        if host.bmc is not None:
            self.power.add(name, host.bmc)
        self._view.add(name, agent, has_bmc=host.bmc is not None)

    def drop(self, name: str) -> None:
        """Let the host go. Its connections are closed by `run`."""
        if name in self.fixed or name not in self.agents:
            return
        assert self._view is not None
        self._view.remove(name)
        self.power.remove(name)
        self._gone.put_nowait(self.agents.pop(name))

    async def run(self) -> None:
        """Closes what hosts that have gone leave behind. Never returns."""
        while True:
            agent = await self._gone.get()
            await agent.close()

    async def close(self) -> None:
        """At the daemon's end: no connection stays open."""
        while not self._gone.empty():
            await self._gone.get_nowait().close()
        for agent in self.agents.values():
            await agent.close()
