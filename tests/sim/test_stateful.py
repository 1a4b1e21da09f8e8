"""Whatever operators and faults do, in whatever order: hypothesis chooses, and shrinks what breaks.

One Sim per example. A rule is a command or a fault and a while of virtual time, in which other work goes on;
commands are not waited for, so the next rule can strike in their middle. At the end all heals and converges.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from migrd.control import NotFound
from migrd.operations import OperationState
from migrd.ports import JournalReadOnly
from storage.errors import Refused, Unknown
from tests.core.vloop import VirtualLoop
from tests.sim.converge import converge, start_stopped
from tests.sim.quiet import quiet
from tests.sim.sim import BrokenError, Sim

T = TypeVar("T")

HOSTS = ("h1", "h2", "h3")
GUESTS = ("g1", "g2", "g3")
KINDS = st.sampled_from(("drbd", "iscsi", "iscsi-qemu"))
HOST = st.sampled_from(HOSTS)
GUEST = st.sampled_from(GUESTS)
A_WHILE_S = st.sampled_from((0.02, 0.1, 0.3, 1.0, 3.0, 10.0))
STEPS = st.integers(0, 200)  # callbacks until a process is killed: at any await
BROKEN_S = st.sampled_from((0.5, 3.0, 12.0))


class Operators(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        quiet()
        gc.disable()  # nothing must depend on when garbage is found
        self._runner = asyncio.Runner(loop_factory=VirtualLoop)
        self._commands: list[asyncio.Task[None]] = []
        self._broken = False
        self.sim: Sim | None = None

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the loop go on until `work` is done."""
        try:
            return self._runner.run(work)
        except BrokenError:
            self._broken = True
            raise

    # -- the cluster -----------------------------------------------------------------------------

    @initialize(
        seed=st.integers(0, 1 << 16),
        kinds=st.tuples(KINDS, KINDS, KINDS),
        homes=st.tuples(HOST, HOST, HOST),
    )
    def begin(self, seed: int, kinds: tuple[str, ...], homes: tuple[str, ...]) -> None:
        self._run(self._begin(seed, kinds, homes))

    async def _begin(self, seed: int, kinds: tuple[str, ...], homes: tuple[str, ...]) -> None:
        sim = self.sim = Sim(seed=seed)
        for host in HOSTS:
            sim.world.add_machine(host)
        for guest, kind, home in zip(GUESTS, kinds, homes, strict=True):
            match kind:
                case "drbd":
                    peer = HOSTS[(HOSTS.index(home) + 1) % len(HOSTS)]
                    sim.world.add_drbd(guest, home, peer)
                case "iscsi":
                    sim.world.add_iscsi(guest, home)
                case _:
                    sim.world.add_iscsi_qemu(guest, home)
        await sim.start()

    def _ask(self, command: Coroutine[Any, Any, str], for_s: float) -> None:
        self._run(self._asked(command, for_s))

    async def _asked(self, command: Coroutine[Any, Any, str], for_s: float) -> None:
        self._commands.append(asyncio.create_task(_answered(command)))
        await self._now.pass_time(for_s)

    def _fault(self, strike: Callable[[], object], for_s: float) -> None:
        self._run(self._struck(strike, for_s))

    async def _struck(self, strike: Callable[[], object], for_s: float) -> None:
        strike()
        await self._now.pass_time(for_s)

    @property
    def _now(self) -> Sim:
        assert self.sim is not None
        return self.sim

    # -- operators -------------------------------------------------------------------------------

    @rule(guest=GUEST, to=st.sampled_from((None, *HOSTS)), for_s=A_WHILE_S)
    def migrate(self, guest: str, to: str | None, for_s: float) -> None:
        self._ask(self._now.migrate(guest, to), for_s)

    @rule(guest=GUEST, to=st.sampled_from((None, *HOSTS)), for_s=A_WHILE_S)
    def migrate_cold(self, guest: str, to: str | None, for_s: float) -> None:
        self._ask(self._now.migrate(guest, to, cold=True), for_s)

    @rule(host=HOST, off=st.booleans(), stop=st.sampled_from(((), (), GUESTS)), for_s=A_WHILE_S)
    def drain(self, host: str, off: bool, stop: tuple[str, ...], for_s: float) -> None:
        self._ask(self._now.drain(host, power_off=off, allow_stop=stop), for_s)

    @rule(host=HOST, restore=st.booleans(), for_s=A_WHILE_S)
    def undrain(self, host: str, restore: bool, for_s: float) -> None:
        self._ask(self._now.undrain(host, restore=restore), for_s)

    @rule(host=HOST, action=st.sampled_from(("on", "off")), for_s=A_WHILE_S)
    def power(self, host: str, action: str, for_s: float) -> None:
        self._ask(self._now.power(host, action), for_s)

    @precondition(lambda self: self.sim is not None and bool(self.sim.open_operations()))
    @rule(which=st.integers(0, 7), for_s=A_WHILE_S)
    def cancel(self, which: int, for_s: float) -> None:
        found = self._now.open_operations()
        self._ask(self._now.cancel(found[which % len(found)].id), for_s)

    @precondition(lambda self: self.sim is not None and bool(_parked(self.sim)))
    @rule(which=st.integers(0, 7), for_s=A_WHILE_S)
    def resume(self, which: int, for_s: float) -> None:
        found = _parked(self._now)
        self._ask(self._now.resume(found[which % len(found)]), for_s)

    @precondition(lambda self: self.sim is not None and self.sim.controller is not None)
    @rule()
    def start_what_has_stopped(self) -> None:
        """`virsh start` by a person, who looks where an operation works before."""
        self._run(start_stopped(self._now))

    @rule(guest=GUEST, for_s=A_WHILE_S)
    def somebody_says_poweroff(self, guest: str, for_s: float) -> None:
        self._fault(lambda: self._now.stops_by_itself(guest), for_s)

    @rule(guest=GUEST, broken_s=BROKEN_S, for_s=A_WHILE_S)
    def suspend(self, guest: str, broken_s: float, for_s: float) -> None:
        self._fault(lambda: self._now.suspend(guest, broken_s), for_s)

    @rule(for_s=st.sampled_from((1.0, 10.0, 60.0)))
    def wait(self, for_s: float) -> None:
        self._run(self._now.pass_time(for_s))

    # -- faults ----------------------------------------------------------------------------------

    @rule(steps=STEPS, for_s=A_WHILE_S)
    def kill_daemon(self, steps: int, for_s: float) -> None:
        self._fault(lambda: self._now.kill_daemon(steps), for_s)

    @rule(for_s=A_WHILE_S)
    def start_daemon(self, for_s: float) -> None:
        self._fault(self._now.start_daemon, for_s)

    @rule(host=HOST, steps=STEPS, for_s=A_WHILE_S)
    def kill_agent(self, host: str, steps: int, for_s: float) -> None:
        self._fault(lambda: self._now.kill_agent(host, steps), for_s)

    @rule(host=HOST, for_s=A_WHILE_S)
    def start_agent(self, host: str, for_s: float) -> None:
        self._fault(lambda: self._now.start_agent(host), for_s)

    @rule(host=HOST, for_s=A_WHILE_S)
    def cut(self, host: str, for_s: float) -> None:
        self._fault(lambda: self._now.cut(host), for_s)

    @rule(host=HOST, for_s=A_WHILE_S)
    def power_on(self, host: str, for_s: float) -> None:
        self._fault(lambda: self._now.power_on(host), for_s)

    @rule(host=HOST, way=st.sampled_from(("", "to_agent", "to_daemon")), for_s=A_WHILE_S)
    def partition(self, host: str, way: str, for_s: float) -> None:
        self._fault(lambda: self._now.partition(host, **({way: True} if way else {})), for_s)

    @rule(host=HOST, for_s=A_WHILE_S)
    def unpartition(self, host: str, for_s: float) -> None:
        self._fault(lambda: self._now.unpartition(host), for_s)

    @rule(host=HOST, broken_s=BROKEN_S, for_s=A_WHILE_S)
    def libvirt_down(self, host: str, broken_s: float, for_s: float) -> None:
        self._fault(lambda: self._now.libvirt_down(host, broken_s), for_s)

    @rule(
        where=st.sampled_from(("migrd", *HOSTS)),
        fault=st.sampled_from(("", "", "full", "io", "late", "hang")),
        for_s=A_WHILE_S,
    )
    def disk(self, where: str, fault: Any, for_s: float) -> None:
        self._fault(lambda: self._now.disk(where, fault), for_s)

    @rule(host=HOST, mode=st.sampled_from(("", "", "dead", "garbage", "deaf", "slow")), for_s=A_WHILE_S)
    def bmc(self, host: str, mode: str, for_s: float) -> None:
        self._fault(lambda: self._now.bmc(host, mode), for_s)

    @rule(host=HOST, next_one=st.integers(1, 2), cut=st.booleans(), for_s=A_WHILE_S)
    def link(self, host: str, next_one: int, cut: bool, for_s: float) -> None:
        other = HOSTS[(HOSTS.index(host) + next_one) % len(HOSTS)]
        act = self._now.cut_link if cut else self._now.heal_link
        self._fault(lambda: act(host, other), for_s)

    @rule(who=st.sampled_from(("migrd", *HOSTS)), broken_s=BROKEN_S, for_s=A_WHILE_S)
    def stall(self, who: str, broken_s: float, for_s: float) -> None:
        if who == "migrd":
            self._fault(lambda: self._now.stall_daemon(broken_s), for_s)
        else:
            self._fault(lambda: self._now.stall_agent(who, broken_s), for_s)

    @rule(for_s=A_WHILE_S)
    def heal(self, for_s: float) -> None:
        self._fault(self._now.heal, for_s)

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def nothing_is_violated(self) -> None:
        if self.sim is not None:
            self._run(self._check(self.sim))

    @staticmethod
    async def _check(sim: Sim) -> None:
        """In the loop, whose time the daemon asks for."""
        sim.check()

    def teardown(self) -> None:
        try:
            if self.sim is not None:
                self._run(self._end(self.sim))
        finally:
            self._runner.close()
            gc.enable()
            gc.collect(1)

    async def _end(self, sim: Sim) -> None:
        async with sim:
            for command in self._commands:
                command.cancel()
            if not self._broken:
                await converge(sim)
                sim.check_end()


async def _answered(command: Coroutine[Any, Any, str]) -> None:
    try:
        await command
    except (Refused, NotFound, JournalReadOnly, Unknown):
        return  # said so in the trace: it may make no sense by then


def _parked(sim: Sim) -> list[str]:
    return [each.id for each in sim.open_operations() if each.state is OperationState.PARKED]


TestOperators = Operators.TestCase
TestOperators.settings = settings(
    max_examples=100,
    stateful_step_count=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
