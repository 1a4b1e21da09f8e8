"""One UML lab for the whole session: booting it costs more than most stories.

Every story makes its own guests, leaves the hosts up and the cluster healthy, and removes its guests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.cluster import MOVER, MOVER_DIRTY_MIB_S, Cluster
from tests.lab.labctl import LabCtl


@pytest.fixture(scope="session")
def lab_session() -> Iterator[LabCtl]:
    ctl = LabCtl("test")
    ctl.lab("down")  # what an interrupted run may have left
    try:
        ctl.up_said = ctl.said("up", "--hosts", "3")
        ctl.lab("deploy")
        ctl.env = ctl.lab("env")["migrctl"]
        yield ctl
    finally:
        ctl.lab("down")


@pytest.fixture(scope="module")
def moving(lab_session: LabCtl) -> Iterator[Cluster]:
    """One guest, `MOVER`, that every story of a module moves: making one takes longer than a move."""
    world = Cluster(lab_session)
    try:
        world.guest(MOVER, "h1", "drbd", peer="h2", dirty=MOVER_DIRTY_MIB_S)
        yield world
    finally:
        world.tidy()


@pytest.fixture
def cluster(lab_session: LabCtl) -> Iterator[Cluster]:
    """The session's lab; afterwards no guest and no drained host."""
    world = Cluster(lab_session)
    try:
        yield world
    finally:
        world.tidy()
