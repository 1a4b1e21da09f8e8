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


def iscsi_qemu(sim: Sim) -> None:
    _machines(sim)
    sim.world.add_iscsi_qemu("g", "h1")


def drbd_that_stays_primary(sim: Sim) -> None:
    sim.world.auto_demote = False
    drbd(sim)


def drbd_off(sim: Sim) -> None:
    drbd(sim)
    sim.world.shut_off("g")


def iscsi_off(sim: Sim) -> None:
    iscsi(sim)
    sim.world.shut_off("g")


def iscsi_held(sim: Sim) -> None:
    iscsi(sim)
    sim.world.shut_off("g", held=True)


def iscsi_qemu_off(sim: Sim) -> None:
    iscsi_qemu(sim)
    sim.world.shut_off("g")


def drbd_boots_not(sim: Sim) -> None:
    drbd(sim)
    sim.boots_not("g", "h2")


def iscsi_boots_not(sim: Sim) -> None:
    iscsi(sim)
    sim.boots_not("g", "h2")


def drbd_unheard(sim: Sim) -> None:
    drbd(sim)
    sim.lose_answer("g", 120.0)


def iscsi_unheard(sim: Sim) -> None:
    iscsi(sim)
    sim.lose_answer("g", 120.0)


def _machines(sim: Sim) -> None:
    for name in ("h1", "h2", "h3"):
        sim.world.add_machine(name)


async def migrate(sim: Sim) -> str:
    return await sim.migrate("g", "h2")


async def move_cold(sim: Sim) -> str:
    return await sim.migrate("g", "h2", cold=True)


async def drain(sim: Sim) -> str:
    return await sim.drain("h1", power_off=True)


async def undrain(sim: Sim) -> str:
    return await sim.undrain("h1", restore=True)


STORIES = (
    Story("migrate-drbd", drbd, migrate, may_be_undone=True),
    Story("migrate-iscsi", iscsi, migrate, may_be_undone=True),
    Story("migrate-drbd-unheard", drbd_unheard, migrate, may_be_undone=True),
    Story("migrate-iscsi-unheard", iscsi_unheard, migrate, may_be_undone=True),
    Story("drain-drbd", drbd, drain, drained="h1"),
    Story("drain-iscsi", iscsi, drain, drained="h1"),
    Story("drain-both", both, drain, drained="h1"),
    Story("undrain-drbd", drbd, undrain, before=drain),
    Story("undrain-iscsi", iscsi, undrain, before=drain),
    Story("cold-drbd", drbd, move_cold, may_be_undone=True),
    Story("cold-drbd-that-stays-primary", drbd_that_stays_primary, move_cold, may_be_undone=True),
    Story("cold-iscsi", iscsi, move_cold, may_be_undone=True),
    Story("cold-iscsi-qemu", iscsi_qemu, move_cold, may_be_undone=True),
    Story("cold-drbd-boots-not", drbd_boots_not, move_cold, may_be_undone=True, comes_home=True),
    Story("cold-iscsi-boots-not", iscsi_boots_not, move_cold, may_be_undone=True, comes_home=True),
    Story("cold-off-drbd", drbd_off, move_cold, may_be_undone=True),
    Story("cold-off-iscsi", iscsi_off, move_cold, may_be_undone=True),
    Story("cold-off-iscsi-held", iscsi_held, move_cold, may_be_undone=True),
    Story("cold-off-iscsi-qemu", iscsi_qemu_off, move_cold, may_be_undone=True),
)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_every_kill_converges(story: Story) -> None:
    undisturbed = play(story)
    assert undisturbed.state is (OperationState.UNDONE if story.comes_home else OperationState.DONE)
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
