"""I16: the daemon dies at every journal write, an agent around every side effect; the end is the same."""

from __future__ import annotations

import pytest

from migrd.operations import OperationState
from tests.sim.exhaust import Story, kills, play, same
from tests.sim.sim import BrokenError, Sim


def drbd(sim: Sim) -> None:
    _machines(sim)
    sim.world.add_drbd("g", "h1", "h2")


def iscsi(sim: Sim) -> None:
    _machines(sim)
    sim.world.add_iscsi("g", "h1")


def both(sim: Sim) -> None:
    _machines(sim)
    sim.world.add_drbd("db", "h1", "h2")
    sim.world.add_iscsi("web", "h1")


def _machines(sim: Sim) -> None:
    for name in ("h1", "h2", "h3"):
        sim.world.add_machine(name)


async def migrate(sim: Sim) -> str:
    return await sim.migrate("g", "h2")


async def drain(sim: Sim) -> str:
    return await sim.drain("h1", power_off=True)


async def undrain(sim: Sim) -> str:
    return await sim.undrain("h1", restore=True)


STORIES = (
    Story("migrate-drbd", drbd, migrate, may_be_undone=True),
    Story("migrate-iscsi", iscsi, migrate, may_be_undone=True),
    Story("drain-drbd", drbd, drain, drained="h1"),
    Story("drain-iscsi", iscsi, drain, drained="h1"),
    Story("drain-both", both, drain, drained="h1"),
    Story("undrain-drbd", drbd, undrain, before=drain),
    Story("undrain-iscsi", iscsi, undrain, before=drain),
)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_every_kill_converges(story: Story) -> None:
    undisturbed = play(story)
    assert undisturbed.state is OperationState.DONE
    wrong = []
    for kill in kills(undisturbed):
        try:
            end = play(story, kill)
        except BrokenError as error:
            wrong.append(f"{story.name}, {kill}: {error}")
            continue
        if not same(story, end, undisturbed):
            wrong.append(f"{story.name}, {kill}: ended as {end}, undisturbed as {undisturbed}")
    assert not wrong, f"{len(wrong)} kills went wrong, the first: {wrong[0]}"
