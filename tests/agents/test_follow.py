"""An adopted migration: whose job is followed, whose is aborted, and when it is given up (I20)."""

from __future__ import annotations

import asyncio

import pytest

from agents.attempts.control import Control
from agents.attempts.migration import Pace, adopt
from agents.hypervisor import states
from agents.hypervisor.words import Job
from agents.protocol import MigrateDomain, MigrationProgress
from storage.errors import Unknown
from tests.agents.fakes import FakeHypervisor, FakeStreams, running

OURS = Job(outgoing=True, progress=MigrationProgress(memory_total_bytes=9))
ARRIVAL = Job(outgoing=False, foreign=True, progress=MigrationProgress())
NAMELESS = Job(outgoing=False, progress=MigrationProgress())
PACE = Pace(poll_s=0.02, abort_grace_s=0.2, blind_s=0.2, figures_s=0.0)


async def follow(
    hypervisor: FakeHypervisor, control: Control, *, deadline_s: float = 30.0
) -> tuple[str, ...]:
    """The reasons it ended with; adopting always ends Unknown."""
    command = MigrateDomain(uuid="u", target_uri="a", target_address="b", deadline_s=deadline_s)
    with pytest.raises(Unknown) as caught:
        async with asyncio.timeout(5):
            await adopt(command, hypervisor, {}, FakeStreams(), control=control, pace=PACE, why="taken up")
    return tuple(caught.value.reasons)


def with_job(job: Job) -> FakeHypervisor:
    hypervisor = FakeHypervisor(running("u", job=True))
    hypervisor.set_job("u", job)
    return hypervisor


async def test_a_job_of_another_kind_is_neither_waited_for_nor_aborted() -> None:
    hypervisor, control = with_job(ARRIVAL), Control()
    control.abort.set()
    assert "taken up" in (await follow(hypervisor, control))[0]
    assert hypervisor.calls == []


async def test_a_job_that_became_another_one_is_not_aborted() -> None:
    """Ours was seen, ended, and somebody's snapshot runs by the time the daemon asks to abort."""
    hypervisor, control = with_job(OURS), Control()
    following = asyncio.create_task(follow(hypervisor, control))
    await asyncio.sleep(0.1)
    assert control.latest == OURS.progress
    hypervisor.set_job("u", ARRIVAL)
    control.abort.set()
    await following
    assert "abort u" not in hypervisor.calls


async def test_i20_a_job_that_libvirt_does_not_name_is_waited_for_within_bounds_and_never_aborted() -> None:
    hypervisor, control = with_job(NAMELESS), Control()
    reasons = await follow(hypervisor, control, deadline_s=0.2)
    assert "still runs on the domain" in reasons[0]
    assert hypervisor.calls == []


async def test_i20_ours_is_aborted_at_its_deadline_and_given_up_after_the_grace() -> None:
    hypervisor, control = with_job(OURS), Control()
    reasons = await follow(hypervisor, control, deadline_s=0.2)
    assert "longer than 0.2 s" in reasons[0]
    assert "abort u" in hypervisor.calls


def test_which_jobs_are_foreign() -> None:
    assert not states.is_foreign({"type": 2})
    assert not states.is_foreign({"type": 2, "operation": 0})
    assert not states.is_foreign({"type": 2, "operation": states.OPERATION_MIGRATION_OUT})
    assert states.is_foreign(states.ARRIVAL)
    assert states.is_foreign({"type": 1, "operation": 6})
