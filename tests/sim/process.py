"""The two kinds of production process, run in lives: what is not on the disk dies with each life."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from agents.assembly import Parts, assemble, loops
from agents.attempts.migration import Pace
from agents.client import AgentClient
from agents.config import AgentConfig
from agents.ledger import Ledger, LedgerError
from agents.tls import TlsFiles
from migrd.assembly import assemble as assemble_core
from migrd.controller import Controller
from migrd.engine import Settings
from migrd.journal import Journal
from migrd.planner import Policy
from migrd.ports import JournalError, NullObserver, PowerPort
from migrd.watch import WatchPolicy
from tests.core.vloop import Life, LoopClock, VirtualLoop
from tests.sim.disk import Disk, DiskExecutor
from tests.sim.drivers import drivers
from tests.sim.host import Effects, Host, Trouble
from tests.sim.hypervisor import SimHypervisor
from tests.sim.migration import Migrations
from tests.sim.network import Network, Server
from tests.sim.streams import SimStreams
from tests.sim.world import Machine, World

WRITE_S = 0.002
RESTART_S = 1.0  # systemd's RestartSec
JOURNAL = Path("/sim/journal.sqlite3")
LEDGER = Path("/sim/ledger.sqlite")
NO_FILE = Path("/nonexistent")
TLS = TlsFiles(cert=NO_FILE, key=NO_FILE, ca=NO_FILE)


class Process:
    """One life after the other. A life that ends by itself is restarted, as systemd does."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.life: Life | None = None
        self.lives = 0
        self.graves: list[Life] = []
        self.began_s = 0.0  # of this life, or since it goes on after a stall
        self._wanted = False
        self.on_death: Callable[[], None] = lambda: None

    @property
    def alive(self) -> bool:
        return self.life is not None

    @property
    def at_work_since_s(self) -> float:
        """Since when it could have noticed what happens; infinity while it cannot."""
        able = self.life is not None and not self.life.stalled
        return self.began_s if able else float("inf")

    def start(self) -> None:
        """Begin a life. One that is going on goes on, and is no longer to be killed."""
        self._wanted = True
        if self.life is not None:
            self.life.steps_left = None
        else:
            self.lives += 1
            self.began_s = self.world.loop.time()
            life = self.life = Life(name=f"{self.name}/{self.lives}")
            self.world.trace.note("process", self.name, f"starts (life {self.lives})")
            life.spawn(self._live(life))

    def kill(self, why: str = "kill -9") -> None:
        """From this very callback on, nothing of it runs any more. Safe to repeat."""
        self._wanted = False
        self._bury(why)

    def kill_after(self, steps: int) -> None:
        """Kill it after so many more of its callbacks: at any await."""
        if self.life is not None:
            self.life.steps_left = steps
            self.life.on_last_step = self.kill

    def stall(self, for_s: float) -> None:
        """SIGSTOP and, later, SIGCONT: its sockets and timers wait for it."""
        life = self.life
        if life is not None and not life.stalled:
            life.stalled = True
            self.world.trace.note("fault", self.name, f"stalls for {for_s:.1f} s")
            self.world.later(for_s, self._go_on, life)

    def unstall(self) -> None:
        if self.life is not None:
            self._go_on(self.life)

    def _go_on(self, life: Life) -> None:
        if life.stalled and not life.dead:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            life.thaw(loop)
            self.began_s = loop.time()
            self.world.trace.note("fault", self.name, "goes on")

    def _bury(self, why: str) -> None:
        life, self.life = self.life, None
        if life is not None:
            life.end()
            self.graves.append(life)
            self.world.trace.note("process", self.name, f"dies: {why}")
            self.died()
            self.on_death()

    def died(self) -> None:
        """What the kernel does about it."""

    def main(self, life: Life) -> Coroutine[Any, Any, None]:
        raise NotImplementedError

    async def _live(self, life: Life) -> None:
        try:
            await self.main(life)
            why = "ended"
        except (LedgerError, JournalError) as error:
            why = str(error)
        except Exception as error:  # whatever a daemon can die of is told here
            why = f"a bug: {error!r}"
            self.world.trace.violate("I15", f"{self.name} died of {_causes(error)}")
        if self.life is life:
            self._bury(why)
            if self._wanted:
                self.world.later(RESTART_S, self._again)

    def _again(self) -> None:
        if self._wanted:
            self.start()


def _causes(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_causes(each) for each in error.exceptions)
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{error!r} at {' > '.join(frames[-4:])}"


class AgentProcess(Process):
    """agents.assembly on one machine; its disk outlives it."""

    def __init__(
        self, world: World, machine: Machine, migrations: Migrations, net: Network, rng: random.Random
    ) -> None:
        super().__init__(world, f"agent {machine.name}")
        self.machine = machine
        self.disk = Disk()
        self.trouble = Trouble()
        self.effects = Effects(kill=self.kill)
        self._migrations = migrations
        self._net = net
        self._rng = rng
        net.add(machine.name)

    @property
    def at_work_since_s(self) -> float:
        return super().at_work_since_s if self.trouble == Trouble() else float("inf")

    def died(self) -> None:
        self.machine.listeners.clear()
        self._net.died(self.machine.name)

    def running_attempts(self) -> int:
        """Attempts without an end in the ledger on its disk."""
        database = self.disk.connect_again(LEDGER)
        return int(database.execute("select count(*) from attempts where ended_s is null").fetchone()[0])

    async def main(self, life: Life) -> None:
        name = self.machine.name
        config = AgentConfig(
            host=name,
            tls=TLS,
            allowed_clients=("migrd",),
            migration_uri=f"qemu+tls://{name}/system",
            migration_address=f"tcp://{name}",
            heartbeat_s=1.0,
            inventory_s=5.0,
            storage_s=8.0,
        )
        ledger = await Ledger.open(
            LEDGER,
            executor=DiskExecutor(self._rng, WRITE_S, self.disk),
            connect=self.disk.connect,
            wall=LoopClock().wall,
        )
        host = Host(
            self.world,
            self._migrations,
            self.machine,
            life=life,
            rng=self._rng,
            trouble=self.trouble,
            effects=self.effects,
        )
        parts = Parts(
            hypervisor=SimHypervisor(host),
            drivers=drivers(host),
            streams=SimStreams(host),
            discover=host.discover,
            in_use=host.in_use,
            tool_versions={},
            agent_version="sim",
            pace=Pace(),
            host_facts=host.facts,
        )
        agent = assemble(
            config,
            parts,
            ledger=ledger,
            on_end=lambda attempt, report, _took_s: self.world.trace.note(
                "ledger", name, f"{attempt.operation}/{attempt.step}/{attempt.attempt} {report.outcome}"
            ),
            on_look=lambda _took_s: None,
            stream=f"{self.name}/{self.lives}",
        )
        async with loops(agent):
            self._net.listen(Server(host=name, life=life, service=agent.service))
            await asyncio.Event().wait()


class DaemonProcess(Process):
    """migrd.assembly. `controller` is the living daemon's; None while there is none that is ready."""

    def __init__(
        self,
        world: World,
        net: Network,
        rng: random.Random,
        *,
        power: Callable[[], PowerPort],
        settings: Settings,
    ) -> None:
        super().__init__(world, "migrd")
        self.disk = Disk()
        self.controller: Controller | None = None
        self._net = net
        self._rng = rng
        self._power = power
        self._settings = settings

    def died(self) -> None:
        self.controller = None

    async def main(self, life: Life) -> None:
        journal = await Journal.open(
            JOURNAL,
            executor=DiskExecutor(self._rng, WRITE_S, self.disk),
            connect=self.disk.connect,
            lock_file=self.disk.lock,
            life=lambda: f"life{self.lives}",
        )
        agents = {host: AgentClient(host, self._net.transport(host)) for host in self.world.machines}
        view, controller = assemble_core(
            agents,
            journal=journal,
            power=self._power(),
            with_bmc=tuple(self.world.machines),
            policy=Policy(memory_reserve_bytes=0, memory_reserve_ratio=0.0),
            watch=WatchPolicy(tick_s=1.0),
            settings=self._settings,
            observer=NullObserver(),
            clock=LoopClock(),
            share=self._rng.random,
        )
        await controller.recover()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(view.run(), name="view")
            tasks.create_task(controller.run(), name="controller")
            await view.settled(15.0)
            self.controller = controller


__all__ = ["JOURNAL", "LEDGER", "AgentProcess", "DaemonProcess", "Process"]
