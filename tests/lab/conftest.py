"""One UML lab per pytest process: booting it costs more than most stories.

Every story makes its own guests, leaves the hosts up and the cluster healthy, and removes its guests. So
files can be dealt to labs side by side, of which `make lab-test` has two. The stories of one file stay
together, since they may share a guest or a lab of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.cluster import MOVER, MOVER_DIRTY_MIB_S, Cluster
from tests.lab.labctl import LabCtl

# Files as `--dist loadfile` deals them: the longest first, so that two labs come to their end together.
# What is not named follows them, as collected.
LONGEST_FIRST = (
    "test_drain.py",
    "test_faults.py",
    "test_chaos.py",
    "test_cold.py",
    "test_killed_daemon.py",
    "test_lost_target.py",
    "test_lost_answer.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (*LONGEST_FIRST, item.path.name).index(item.path.name))


@pytest.fixture(scope="session")
def lab_session(worker_id: str) -> Iterator[LabCtl]:
    ctl = LabCtl("test" if worker_id == "master" else f"test{worker_id}")  # testgw0, testgw1
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
