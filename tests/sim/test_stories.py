"""What random seeds have shown, told as stories: they stay when plans change."""

from __future__ import annotations

from tests.core.vloop import run
from tests.sim.quiet import quiet
from tests.sim.sim import Sim


def three(sim: Sim) -> None:
    for name in ("h1", "h2", "h3"):
        sim.world.add_machine(name)


def test_i12_one_slow_host_does_not_make_the_picture_of_the_others_old() -> None:
    """Seed 111: all hosts were asked at once, one of them stalled, and what the peer had said grew 8 s old."""

    async def story() -> None:
        async with Sim() as sim:
            three(sim)
            sim.world.add_drbd("g", "h1", "h2")
            await sim.start()
            operation = await sim.drain("h1", power_off=True)
            await sim.until(lambda: sim.where("g") == ["h2"] and not sim.world.machines["h1"].ending)
            sim.stall_agent("h3", 8.0)
            await sim.until(lambda: any("surveyed" in each.text for each in sim.trace.log))
            await sim.pass_time(1.5)
            sim.cut("h2")
            await sim.until(lambda: str(sim.operation(operation).state) in ("parked", "done"), at_most_s=60)  # type: ignore[union-attr]
            assert sim.operation(operation).state == "parked"  # type: ignore[union-attr]
            assert sim.world.machines["h1"].powered

    quiet()
    run(story())
