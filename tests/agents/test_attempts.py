"""Attempts through the whole agent: migrations that succeed, fail, hang and are aborted; sweeps; storage."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from agents.attempts.domain_steps import RAN_HERE
from agents.attempts.outcomes import merge
from agents.config import Limits
from agents.hypervisor.words import Job
from agents.protocol import (
    Attempt,
    AttemptReport,
    CloseWindow,
    Command,
    DomainState,
    MigrateDomain,
    MigrationProgress,
    OpenWindow,
    Outcome,
    PrepareVolumes,
    ReleaseVolumes,
    ShutdownDomain,
    SweepTarget,
)
from storage.errors import Failed, Refused, Retryable, Unknown
from storage.words import DrbdVolume, Handover, OtherVolume, Side
from tests.agents.conftest import StartWorld, World
from tests.agents.fakes import FakeHypervisor, running

R0, R1 = (DrbdVolume(resource=name, volume_nr=0, minor=0, nodes=("h1", "h2")) for name in ("r0", "r1"))


def attempt(command: Command, step: str = "s", number: int = 1) -> Attempt:
    return Attempt(operation="op", step=step, attempt=number, epoch=1, command=command)


def move(uuid: str = "u", **changes: Any) -> MigrateDomain:
    return MigrateDomain(
        uuid=uuid, target_uri="qemu+tls://h2/system", target_address="tcp://10.0.1.12", **changes
    )


def handover(uuid: str = "u") -> Handover:
    return Handover(operation="op", domain_uuid=uuid, side=Side.SOURCE, peer_node="h2")


async def end_of(world: World, command: Command, step: str = "s", number: int = 1) -> AttemptReport:
    """Submit and wait."""
    await world.client.submit(attempt(command, step, number))
    report = await world.client.wait("op", step, number, 10.0)
    assert report.outcome is not Outcome.RUNNING
    return report


# -- migrations ------------------------------------------------------------------------------------


async def test_a_migration_is_done_when_the_guest_has_left(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u"))) as world:
        report = await end_of(world, move())
        assert (report.outcome, report.reasons) == (Outcome.DONE, ())
        assert report.result.progress is not None
        assert report.result.progress.downtime_ms == 123
        sample = world.agent.metrics.registry.get_sample_value
        assert sample("migrd_agent_migration_downtime_seconds_count") == 1
        labels = {"kind": "migrate-domain", "outcome": "done"}
        assert sample("migrd_agent_attempts_total", labels) == 1


async def test_progress_is_seen_while_it_runs_and_the_limit_is_set(start: StartWorld) -> None:
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.migration_steps, hypervisor.step_s = 10, 0.1
    async with start(hypervisor) as world:
        await world.client.submit(attempt(move(downtime_limit_ms=250)))
        report = await world.client.wait("op", "s", 1, 0.5)
        assert report.outcome is Outcome.RUNNING
        assert report.result.progress is not None
        assert report.result.progress.memory_total_bytes > 0
        await world.client.wait("op", "s", 1, 10)
        assert hypervisor.calls.count("downtime u 250") == 1


async def test_success_with_the_guest_still_here_is_unknown(start: StartWorld) -> None:
    """The word of the migrate call is not enough (Nova)."""
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.leave_source = True
    async with start(hypervisor) as world:
        report = await end_of(world, move())
        assert report.outcome is Outcome.UNKNOWN
        assert report.reasons[0] == "libvirt reported success"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Unknown("connection broke"), Outcome.UNKNOWN),
        (Refused("CPU does not fit"), Outcome.REFUSED),
        (Retryable("target's libvirtd is away"), Outcome.RETRYABLE),
        (Failed("no"), Outcome.FAILED),
        (ZeroDivisionError("bug"), Outcome.UNKNOWN),
    ],
)
async def test_errors_of_the_migrate_call(start: StartWorld, error: Exception, outcome: Outcome) -> None:
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.migrate_error = error
    async with start(hypervisor) as world:
        assert (await end_of(world, move())).outcome is outcome
        assert "u" in hypervisor.domains


@pytest.mark.parametrize(
    ("state", "job", "outcome"),
    [
        (DomainState.ABSENT, False, Outcome.REFUSED),
        (DomainState.SHUTOFF, False, Outcome.REFUSED),
        (DomainState.PAUSED_INCOMING, False, Outcome.REFUSED),
        (DomainState.UNKNOWN, False, Outcome.REFUSED),
        (DomainState.RUNNING, True, Outcome.RETRYABLE),
    ],
)
async def test_what_cannot_be_moved_is_not_tried(
    start: StartWorld, state: DomainState, job: bool, outcome: Outcome
) -> None:
    async with start() as world:
        if state is not DomainState.ABSENT:
            world.hypervisor.set_state("u", state, job=job)
        assert (await end_of(world, move())).outcome is outcome
        assert world.hypervisor.calls == []


async def test_an_abort_is_asked_for_and_the_outcome_is_left_to_observation(start: StartWorld) -> None:
    """I5: the guest stays on the source, running."""
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.migration_steps, hypervisor.step_s = 200, 0.05
    async with start(hypervisor) as world:
        await world.client.submit(attempt(move()))
        await asyncio.sleep(0.2)
        await world.client.abort("op", "s", 1, epoch=1)
        report = await world.client.wait("op", "s", 1, 10)
        assert report.outcome is Outcome.UNKNOWN
        assert report.reasons[0] == "aborted on request"
        assert hypervisor.domains["u"].facts.state is DomainState.RUNNING


async def test_i20_a_migration_past_its_deadline_is_aborted(start: StartWorld) -> None:
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.migration_steps, hypervisor.step_s = 200, 0.05
    async with start(hypervisor) as world:
        report = await end_of(world, move(deadline_s=0.3))
        assert report.outcome is Outcome.UNKNOWN
        assert "longer than 0.3 s" in report.reasons[0]
        assert "abort u" in hypervisor.calls


async def test_one_attempt_at_a_time_per_guest_and_many_guests_at_once(start: StartWorld) -> None:
    hypervisor = FakeHypervisor(running("u"), running("v"), running("w"))
    hypervisor.migration_steps, hypervisor.step_s = 20, 0.05
    async with start(hypervisor, limits=Limits(migrations=2)) as world:
        await world.client.submit(attempt(move("u"), "a"))
        with pytest.raises(Retryable, match="op/a/1 runs on it"):
            await world.client.submit(attempt(SweepTarget(uuid="u"), "b"))
        assert (await world.client.submit(attempt(move("v"), "c"))).outcome is Outcome.RUNNING
        with pytest.raises(Retryable, match="2 migrations leave this host"):
            await world.client.submit(attempt(move("w"), "d"))
        for step in "ac":
            assert (await world.client.wait("op", step, 1, 10)).outcome is Outcome.DONE
        assert (await end_of(world, move("w"), "d")).outcome is Outcome.DONE


async def test_the_same_attempt_submitted_at_once_begins_once(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u"))) as world:
        await asyncio.gather(*(world.client.submit(attempt(move())) for _ in range(8)))
        assert (await world.client.wait("op", "s", 1, 10)).outcome is Outcome.DONE
        assert world.hypervisor.calls.count("migrate u") == 1


async def test_i16_a_migration_is_adopted_after_a_restart_and_left_to_observation(start: StartWorld) -> None:
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.migration_steps, hypervisor.step_s = 400, 0.05
    async with start(hypervisor) as world:
        await world.client.submit(attempt(move()))
        await asyncio.sleep(0.1)
    reborn = FakeHypervisor(running("u", job=True))
    progress = MigrationProgress(memory_total_bytes=100, memory_remaining_bytes=40)
    reborn.set_job("u", Job(outgoing=True, progress=progress))
    async with start(reborn) as world:
        await asyncio.sleep(0.1)
        report = await world.client.submit(attempt(move()))
        assert report.outcome is Outcome.RUNNING
        assert report.result.progress == progress
        with pytest.raises(Retryable):
            await world.client.submit(attempt(SweepTarget(uuid="u"), "other"))
        reborn.set_job("u", None)
        report = await world.client.wait("op", "s", 1, 10)
        assert report.outcome is Outcome.UNKNOWN
        assert "restarted" in report.reasons[0]
        assert reborn.calls == ["downtime u 300"]


async def test_i7_a_migration_whose_attempt_was_given_up_is_taken_up_and_not_begun_again(
    start: StartWorld,
) -> None:
    hypervisor = FakeHypervisor(running("u", job=True))
    hypervisor.set_job("u", Job(outgoing=True, progress=MigrationProgress()))
    async with start(hypervisor) as world:
        report = await world.client.submit(attempt(move(under_way=True)))
        assert report.outcome is Outcome.RUNNING
        await asyncio.sleep(0.1)
        hypervisor.set_job("u", None)
        report = await world.client.wait("op", "s", 1, 10)
        assert report.outcome is Outcome.UNKNOWN
        assert report.reasons == ("this migration was taken up on its way: look at both hosts",)
        assert hypervisor.calls == ["downtime u 300"]


async def test_i16_one_that_nobody_wants_any_more_is_aborted_when_it_is_taken_up(start: StartWorld) -> None:
    hypervisor = FakeHypervisor(running("u", job=True))
    hypervisor.set_job("u", Job(outgoing=True, progress=MigrationProgress()))
    async with start(hypervisor) as world:
        await world.client.submit(attempt(move(under_way=True, unwanted=True)))
        await asyncio.sleep(0.1)
        assert "abort u" in hypervisor.calls
        hypervisor.set_job("u", None)
        report = await world.client.wait("op", "s", 1, 10)
        assert report.reasons[0] == "aborted on request"


# -- sweep and shutdown ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        state
        for state in DomainState
        if state not in (DomainState.ABSENT, DomainState.SHUTOFF, DomainState.PAUSED_INCOMING)
    ],
)
async def test_i1_i5_what_may_run_or_have_run_here_is_never_swept(
    start: StartWorld, state: DomainState
) -> None:
    async with start() as world:
        world.hypervisor.set_state("u", state, "migration")
        report = await end_of(world, SweepTarget(uuid="u"))
        assert report.outcome is Outcome.REFUSED
        assert world.hypervisor.calls == []
        assert "u" in world.hypervisor.domains


@pytest.mark.parametrize("reason", RAN_HERE)
async def test_i5_the_definition_of_a_guest_that_ran_here_stays(start: StartWorld, reason: str) -> None:
    async with start() as world:
        world.hypervisor.set_state("u", DomainState.SHUTOFF, reason)
        assert (await end_of(world, SweepTarget(uuid="u"))).outcome is Outcome.REFUSED
        assert "u" in world.hypervisor.domains


async def test_a_left_over_arrival_and_its_definition_go(start: StartWorld) -> None:
    async with start() as world:
        world.hypervisor.set_state("u", DomainState.PAUSED_INCOMING, "migration", job=True)
        assert (await end_of(world, SweepTarget(uuid="u"))).outcome is Outcome.DONE
        assert world.hypervisor.calls == ["destroy u", "undefine u"]
        assert (await end_of(world, SweepTarget(uuid="u"), "again")).outcome is Outcome.DONE


async def test_i1_an_arrival_that_completes_meanwhile_is_not_killed(start: StartWorld) -> None:
    async with start() as world:
        world.hypervisor.set_state("u", DomainState.PAUSED_INCOMING, "migration", job=True)
        await world.client.submit(attempt(SweepTarget(uuid="u")))
        await asyncio.sleep(0.3)
        world.hypervisor.set_state("u", DomainState.RUNNING, "migrated")
        report = await world.client.wait("op", "s", 1, 10)
        assert report.outcome is Outcome.REFUSED
        assert world.hypervisor.calls == []


async def test_shutdown_asks_and_waits(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u"))) as world:
        assert (await end_of(world, ShutdownDomain(uuid="u"))).outcome is Outcome.DONE
        assert world.hypervisor.calls == ["shutdown u"]


async def test_i5_a_guest_that_ignores_the_shutdown_is_not_destroyed(start: StartWorld) -> None:
    class Deaf(FakeHypervisor):
        async def shutdown(self, uuid: str) -> None:
            self.calls.append(f"shutdown {uuid}")

    async with start(Deaf(running("u"))) as world:
        report = await end_of(world, ShutdownDomain(uuid="u", deadline_s=0.3))
        assert report.outcome is Outcome.UNKNOWN
        assert world.hypervisor.calls == ["shutdown u"]
        assert world.hypervisor.domains["u"].facts.state is DomainState.RUNNING


async def test_a_crashed_guest_whose_qemu_is_kept_has_not_stopped(start: StartWorld) -> None:
    """on_crash=preserve: its QEMU still holds memory and disks, so neither "done" nor a wait is right."""

    class Panics(FakeHypervisor):
        async def shutdown(self, uuid: str) -> None:
            self.calls.append(f"shutdown {uuid}")
            self.set_state(uuid, DomainState.CRASHED, "panicked")

    async with start(Panics(running("u"))) as world:
        report = await end_of(world, ShutdownDomain(uuid="u"))
        assert report.outcome is Outcome.REFUSED
        assert "virsh destroy u" in report.reasons[0]


# -- storage -----------------------------------------------------------------------------------------


async def test_prepare_brings_the_identity_of_every_volume(start: StartWorld) -> None:
    async with start() as world:
        report = await end_of(world, PrepareVolumes(handover=handover(), volumes=(R1, R0)))
        assert report.outcome is Outcome.DONE
        assert [v.identity for v in report.result.volumes] == ["id of drbd:r1/0", "id of drbd:r0/0"]


async def test_i6_what_was_opened_is_known_even_if_another_volume_failed(start: StartWorld) -> None:
    async with start() as world:
        world.driver.fail[("open", "drbd:r1/0")] = Refused("r1 is not connected")
        report = await end_of(world, OpenWindow(handover=handover(), volumes=(R0, R1)))
        assert report.outcome is Outcome.FAILED
        assert report.reasons == ("r1 is not connected",)
        assert [each.volume for each in report.result.before] == ["drbd:r0/0"]
        await world.client.report()
        closed = await end_of(
            world, CloseWindow(handover=handover(), volumes=(R0, R1), before=report.result.before), "close"
        )
        assert closed.outcome is Outcome.DONE
        assert world.driver.open_windows == set()


async def test_all_reasons_of_all_volumes_come_at_once(start: StartWorld) -> None:
    async with start() as world:
        world.driver.fail[("prepare", "drbd:r0/0")] = Refused("r0 is syncing", "r0 is suspended")
        other = OtherVolume(path="/x", reason="a local file")
        report = await end_of(world, PrepareVolumes(handover=handover(), volumes=(R0, other)))
        assert report.outcome is Outcome.REFUSED
        assert report.reasons == ("r0 is syncing", "r0 is suspended", "other:/x: a local file")


async def test_i20_a_driver_that_never_answers_ends_as_unknown(start: StartWorld) -> None:
    async with start(limits=Limits(storage_deadline_s=0.2)) as world:
        world.driver.block = asyncio.Event()
        report = await end_of(world, PrepareVolumes(handover=handover(), volumes=(R0,)))
        assert report.outcome is Outcome.UNKNOWN
        world.driver.block.set()


async def test_i17_an_unforeseen_error_does_not_carry_its_text(start: StartWorld) -> None:
    async with start() as world:
        world.driver.fail[("release", "drbd:r0/0")] = ValueError("password=hunter2")
        report = await end_of(world, ReleaseVolumes(handover=handover(), volumes=(R0,)))
        assert report.outcome is Outcome.UNKNOWN
        assert "hunter2" not in str(report)


async def test_the_traceback_that_an_outcome_points_to_is_in_the_log(start: StartWorld) -> None:
    with structlog.testing.capture_logs() as lines:
        async with start() as world:
            world.driver.fail[("release", "drbd:r0/0")] = ValueError("bug")
            report = await end_of(world, ReleaseVolumes(handover=handover(), volumes=(R0, R1)))
    assert report.reasons == ("internal error in the agent (ValueError); its log has the traceback",)
    (line,) = [line for line in lines if line["event"] == "storage driver failed by a bug"]
    assert line["volume"] == "drbd:r0/0"
    assert isinstance(line["exc_info"], ValueError)


@pytest.mark.parametrize(
    ("errors", "outcome"),
    [
        ([], Outcome.DONE),
        ([None, None], Outcome.DONE),
        ([Refused("a"), Refused("b")], Outcome.REFUSED),
        ([None, Refused("b")], Outcome.FAILED),
        ([Refused("a"), Retryable("b")], Outcome.REFUSED),
        ([None, Retryable("b")], Outcome.RETRYABLE),
        ([Failed("a"), Retryable("b")], Outcome.FAILED),
        ([Failed("a"), Unknown("b"), None], Outcome.UNKNOWN),
        ([Failed("a"), KeyError("b")], Outcome.UNKNOWN),
    ],
)
def test_one_outcome_for_several_volumes(errors: list[BaseException | None], outcome: Outcome) -> None:
    assert merge(errors)[0] is outcome
    assert len(merge(errors)[1]) == sum(error is not None for error in errors)
