"""What an agent finds on its host: libvirt, storage drivers, /proc. One set per life of the agent.

Every call takes time and can find its process killed before or after what it does. The guards are those of
the real libvirt_hypervisor and drivers, as far as the daemon's safety could lean on them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from agents.discovery import Needs
from agents.host_facts import HostFacts
from agents.hypervisor.words import DomainFull
from storage.errors import Unknown
from tests.core.vloop import Life
from tests.sim.migration import Migrations
from tests.sim.world import Machine, World

CALL_S = 0.004
TOOL_S = 0.08
HANG_S = 20.0


@dataclass
class Trouble:
    """What is wrong with one host's tools. Each is a share of calls, 0 to 1."""

    tool_hangs: float = 0.0  # a storage command does not end in time; its effect happens or not
    tool_lost: float = 0.0  # ... ends in an error although it did its work
    libvirt_slow: float = 0.0  # a call takes seconds
    look_hangs: float = 0.0  # a volume does not tell its state in time


@dataclass
class Effects:
    """Counts what an agent does to the world, and kills it where a test wants it: "before" or "after" N."""

    number: int = 0
    kill_at: tuple[int, str] | None = None
    kill: Callable[[], None] = lambda: None
    seen: list[str] = field(default_factory=list)

    def reached(self, when: str) -> bool:
        """True: the process has just been killed here."""
        if self.kill_at == (self.number, when):
            self.kill_at = None
            self.kill()
            return True
        return False


class Host:
    """One machine as a process on it sees it."""

    def __init__(
        self,
        world: World,
        migrations: Migrations,
        machine: Machine,
        *,
        life: Life,
        rng: random.Random,
        trouble: Trouble,
        effects: Effects,
    ) -> None:
        self.world = world
        self.migrations = migrations
        self.machine = machine
        self.life = life
        self.rng = rng
        self.trouble = trouble
        self.effects = effects

    @property
    def name(self) -> str:
        return self.machine.name

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * (0.5 + self.rng.random()))

    async def look(self) -> None:
        """A read of a storage tool. Raises Unknown when it hangs past its deadline."""
        if self.rng.random() < self.trouble.look_hangs:
            await self.pause(HANG_S / 2)
            raise Unknown("the storage tool did not answer by its deadline")
        await self.pause(CALL_S)

    async def act(self, what: str, effect: Callable[[], str]) -> str:
        """One side effect: it happens at one instant, and its process can die right before or after it."""
        said = self._act(what, effect)
        if said is None:
            await self._gone()
        return said or ""

    def _act(self, what: str, effect: Callable[[], str]) -> str | None:
        """None: the process died over it."""
        self.effects.number += 1
        self.effects.seen.append(what)
        if self.effects.reached("before"):
            return None
        said = effect()
        return None if self.effects.reached("after") else said

    async def tool(self, what: str, effect: Callable[[], str]) -> str:
        """A storage tool: a process of its own, which runs on when the agent stalls and ends when it dies.

        Raises Unknown when it hangs past its deadline, or is killed after its work.
        """
        acted: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def work() -> None:
            if self.life.dead:
                return
            said = self._act(what, effect)
            if said is not None and not acted.done():
                acted.set_result(said)

        hangs = self.rng.random() < self.trouble.tool_hangs
        if not hangs or self.rng.random() < 0.5:
            self.world.later(TOOL_S * (0.5 + self.rng.random()), work)
        if hangs:
            await self.pause(HANG_S)
            raise Unknown(f"{what}: not ended by its deadline")
        said = await acted
        if self.rng.random() < self.trouble.tool_lost:
            raise Unknown(f"{what}: the tool was killed")
        await self.pause(TOOL_S / 4)
        return said

    @staticmethod
    async def _gone() -> None:
        """The process is dead: nothing of it runs any more."""
        await asyncio.get_running_loop().create_future()

    # -- /proc -----------------------------------------------------------------------------------

    async def in_use(self, domain_uuid: str) -> bool:
        """storage.driver.InUse."""
        await self.pause(CALL_S)
        return self.machine.has_process(domain_uuid)

    async def discover(self, domain: DomainFull) -> Needs:
        """agents.discovery.Discover: no XML to read here."""
        guest = self.world.guests[domain.facts.uuid]
        return Needs(
            memory_bytes=guest.memory_bytes,
            vcpus=1,
            volumes=guest.volumes,
            bridges=("br0",),
            cpu_xml='<domain type="kvm"><cpu mode="custom"/></domain>',
            cold_blockers=(),
        )

    def facts(self) -> HostFacts:
        used = sum(
            self.world.guests[uuid].memory_bytes for uuid, d in self.machine.domains.items() if d.process
        )
        return HostFacts(
            node=self.machine.node,
            boot_id=f"{self.name}-{self.machine.boot}",
            cpu_model="sim",
            cpu_threads=8,
            arch="x86_64",
            memory_total_bytes=self.machine.memory_bytes,
            memory_available_bytes=self.machine.memory_bytes - used,
            bridges=("br0",),
            versions={},
            problems=(),
        )
