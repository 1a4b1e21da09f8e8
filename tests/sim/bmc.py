"""The machines' BMCs behind a fake `ipmitool`: the production Power asks, the world's power obeys."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from migrd.power import Bmc, Power
from storage.errors import Unknown
from storage.run import Completed
from tests.sim.world import World

PASSWORD = Path(__file__).with_name("bmc.password")
ANSWER_S = 0.3


class Bmcs:
    """Implements storage.run.Runner for ipmitool's argv. `on_off(host, told_s)`: before the power goes."""

    def __init__(self, world: World, rng: random.Random, on_off: Callable[[str, float], None]) -> None:
        self._world = world
        self._rng = rng
        self._on_off = on_off
        self.off_by_migrd: set[str] = set()

    def power(self) -> Power:
        bmcs = {
            name: Bmc(address=name, user="migrd", password_file=PASSWORD) for name in self._world.machines
        }
        return Power(bmcs, runner=self)

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        host, verb = argv[argv.index("-H") + 1], argv[-1]
        machine = self._world.machines[host]
        await asyncio.sleep(ANSWER_S * (0.5 + self._rng.random()))
        if machine.bmc == "dead":
            await asyncio.sleep(deadline_s)
            raise Unknown("ipmitool: not ended by its deadline")
        if machine.bmc == "garbage":
            return Completed(tuple(argv), 0, "Chassis Power is \x00?\n", "")
        if verb == "status":
            word = "on" if machine.powered else "off"
            return Completed(tuple(argv), 0, f"Chassis Power is {word}\n", "")
        self._world.trace.note("command", host, f"BMC is told: {verb}")
        if machine.bmc != "deaf":
            delay_s = self._rng.uniform(2.0, 6.0) if machine.bmc == "slow" else 0.0
            if verb == "off":
                self._world.later(delay_s, self._off, host, self._world.loop.time())
            else:
                self._world.later(delay_s, self._on, host)
        word = "Down/Off" if verb == "off" else "Up/On"
        return Completed(tuple(argv), 0, f"Chassis Power Control: {word}\n", "")

    def _off(self, host: str, told_s: float) -> None:
        if self._world.machines[host].powered:
            self._on_off(host, told_s)
            self.off_by_migrd.add(host)
            self._world.power_off(host, "BMC")

    def _on(self, host: str) -> None:
        self.off_by_migrd.discard(host)
        self._world.power_on(host)
