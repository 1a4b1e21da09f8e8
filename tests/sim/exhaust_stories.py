"""The stories of the exhaustive runs: a cluster and one operation each, see tests.sim.exhaust."""

from __future__ import annotations

from tests.sim.exhaust import Story
from tests.sim.sim import Sim


def drbd(sim: Sim) -> None:
    _machines(sim)
    sim.world.add_drbd("g", "h1", "h2")


def drbd_small(sim: Sim) -> None:
    drbd(sim)
    _is_small(sim)


def iscsi(sim: Sim) -> None:
    _machines(sim)
    sim.world.add_iscsi("g", "h1")


def both(sim: Sim) -> None:
    _machines(sim)
    sim.world.add_drbd("db", "h1", "h2")
    sim.world.add_iscsi("web", "h1")


def iscsi_small(sim: Sim) -> None:
    iscsi(sim)
    _is_small(sim)


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


def _is_small(sim: Sim) -> None:
    """Its memory takes less than a second."""
    sim.migrations.copy_s[sim.world.guest("g").uuid] = 0.8


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


MIGRATE_SMALL = Story("migrate-drbd-small", drbd_small, migrate, may_be_undone=True)
MIGRATE_ISCSI_SMALL = Story("migrate-iscsi-small", iscsi_small, migrate, may_be_undone=True)
DRAIN_BOTH = Story("drain-both", both, drain, drained="h1")
STORIES = (
    MIGRATE_SMALL,
    MIGRATE_ISCSI_SMALL,
    Story("migrate-drbd", drbd, migrate, may_be_undone=True),
    Story("migrate-iscsi", iscsi, migrate, may_be_undone=True),
    Story("migrate-drbd-unheard", drbd_unheard, migrate, may_be_undone=True),
    Story("migrate-iscsi-unheard", iscsi_unheard, migrate, may_be_undone=True),
    Story("drain-drbd", drbd, drain, drained="h1"),
    Story("drain-iscsi", iscsi, drain, drained="h1"),
    DRAIN_BOTH,
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
