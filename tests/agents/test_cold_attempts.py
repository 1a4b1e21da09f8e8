"""A cold move's steps through the whole agent: each guard of its own, whatever the daemon believes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agents.hypervisor.verdicts import OPERATION_FAILED, move_verdict, start_verdict
from agents.protocol import (
    Attempt,
    AttemptReport,
    Command,
    DomainState,
    MoveDefinition,
    Outcome,
    SettleDomain,
    StartDomain,
)
from storage.errors import Failed, Refused, Retryable, Unknown
from storage.words import DrbdVolume, Handover, OtherVolume, Role, Side
from tests.agents.conftest import StartWorld, World
from tests.agents.fakes import FakeDriver, FakeHypervisor, running

R0 = DrbdVolume(resource="r0", volume_nr=0, minor=0, nodes=("h1", "h2"))
HANDOVER = Handover(operation="op", domain_uuid="u", side=Side.TARGET, peer_node="h1")
START = StartDomain(handover=HANDOVER, volumes=(R0,))
SETTLE = SettleDomain(uuid="u")
MOVE = MoveDefinition(uuid="u", target_uri="qemu+tls://h2/system", target_address="tcp://10.0.1.12")


def shut_off(*, persistent: bool = True) -> FakeHypervisor:
    guest = running("u")
    facts = replace(guest.facts, state=DomainState.SHUTOFF, reason="shutdown", persistent=persistent)
    return FakeHypervisor(replace(guest, facts=facts))


async def end_of(world: World, command: Command) -> AttemptReport:
    await world.client.submit(Attempt(operation="op", step="s", attempt=1, epoch=1, command=command))
    async with asyncio.timeout(10.0):
        return await world.client.wait("op", "s", 1, 10.0)


async def test_a_definition_moves_and_is_gone_here(start: StartWorld) -> None:
    async with start(shut_off()) as world:
        assert (await end_of(world, MOVE)).outcome is Outcome.DONE
        assert world.hypervisor.domains == {}
        assert world.hypervisor.calls == ["move u qemu+tls://h2/system tcp://10.0.1.12"]


@pytest.mark.parametrize("state", [state for state in DomainState if state is not DomainState.SHUTOFF])
async def test_i1_only_a_shut_off_definition_moves(start: StartWorld, state: DomainState) -> None:
    hypervisor = shut_off()
    hypervisor.set_state("u", state)
    if state is DomainState.ABSENT:
        hypervisor.domains.clear()
    async with start(hypervisor) as world:
        ended = await end_of(world, MOVE)
        assert ended.outcome is Outcome.REFUSED
        assert world.hypervisor.calls == []


@pytest.mark.parametrize("command", [MOVE, START], ids=["move", "start"])
async def test_i11_a_qemu_that_proc_still_shows_is_waited_for(start: StartWorld, command: Command) -> None:
    async with start(shut_off(), FakeDriver(role=Role.PRIMARY)) as world:
        world.in_use.running.add("u")
        ended = await end_of(world, command)
        assert ended.outcome is Outcome.REFUSED
        assert "its QEMU still exists" in ended.reasons[0]
        assert world.hypervisor.calls == []


async def test_a_definition_that_is_here_and_at_rest_is_settled(start: StartWorld) -> None:
    async with start(shut_off()) as world:
        assert (await end_of(world, SETTLE)).outcome is Outcome.DONE
        assert world.hypervisor.calls == ["settle u"]


async def test_i16_one_that_has_left_this_host_meanwhile_is_not(start: StartWorld) -> None:
    async with start(FakeHypervisor()) as world:
        assert (await end_of(world, SETTLE)).outcome is Outcome.RETRYABLE


async def test_i16_nor_one_whose_job_libvirt_has_not_ended(start: StartWorld) -> None:
    moving = shut_off()
    moving.cold_error = Retryable("libvirt: Timed out during operation: cannot acquire state change lock")
    async with start(moving) as world:
        ended = await end_of(world, SETTLE)
        assert ended.outcome is Outcome.RETRYABLE
        assert "state change lock" in ended.reasons[0]


async def test_a_transient_guest_has_nothing_to_move(start: StartWorld) -> None:
    async with start(shut_off(persistent=False)) as world:
        assert (await end_of(world, MOVE)).outcome is Outcome.REFUSED


async def test_a_success_that_leaves_the_definition_here_is_not_believed(start: StartWorld) -> None:
    hypervisor = shut_off()
    hypervisor.leave_source = True
    async with start(hypervisor) as world:
        assert (await end_of(world, MOVE)).outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("role", [Role.PRIMARY, Role.ATTACHED])
async def test_a_guest_starts_where_its_volumes_are_held(start: StartWorld, role: Role) -> None:
    async with start(shut_off(), FakeDriver(role=role)) as world:
        assert (await end_of(world, START)).outcome is Outcome.DONE
        assert world.hypervisor.domains["u"].facts.state is DomainState.RUNNING


@pytest.mark.parametrize("role", [Role.SECONDARY, Role.DETACHED, Role.UNKNOWN])
async def test_i9_i19_without_its_volumes_no_guest_starts(start: StartWorld, role: Role) -> None:
    async with start(shut_off(), FakeDriver(role=role)) as world:
        ended = await end_of(world, START)
        assert ended.outcome is Outcome.REFUSED
        assert "does not hold it" in ended.reasons[0]
        assert world.hypervisor.calls == []


async def test_every_reason_against_a_start_is_told_at_once(start: StartWorld) -> None:
    other = OtherVolume(path="/var/a.img", reason="it is a local file")
    async with start() as world:
        ended = await end_of(world, StartDomain(handover=HANDOVER, volumes=(R0, other)))
        assert ended.outcome is Outcome.REFUSED
        assert len(ended.reasons) == 3


async def test_a_guest_that_runs_here_already_is_done_and_not_started_twice(start: StartWorld) -> None:
    async with start(FakeHypervisor(running("u"))) as world:
        assert (await end_of(world, START)).outcome is Outcome.DONE
        assert world.hypervisor.calls == []


async def test_a_start_that_libvirt_refuses_has_failed(start: StartWorld) -> None:
    hypervisor = shut_off()
    hypervisor.cold_error = Failed("libvirt: the CPU is incompatible with host CPU")
    async with start(hypervisor, FakeDriver(role=Role.PRIMARY)) as world:
        ended = await end_of(world, START)
        assert ended.outcome is Outcome.FAILED
        assert "incompatible" in ended.reasons[0]


def test_what_an_error_of_a_cold_call_proves() -> None:
    """The target defines first: after most errors the definition may be on both hosts."""
    lost = "operation failed: Failed to connect to remote libvirt URI qemu+tls://h2/system"
    assert isinstance(move_verdict(OPERATION_FAILED, lost, DomainState.SHUTOFF), Retryable)
    assert isinstance(move_verdict(OPERATION_FAILED, lost, DomainState.UNKNOWN), Unknown)
    assert isinstance(move_verdict(OPERATION_FAILED, "the stream broke", DomainState.SHUTOFF), Unknown)
    assert isinstance(move_verdict(1, "internal error", DomainState.ABSENT), Unknown)
    assert isinstance(start_verdict(1, "qemu unexpectedly closed the monitor", DomainState.SHUTOFF), Failed)
    assert not isinstance(start_verdict(1, "no answer", DomainState.RUNNING), Failed | Refused)
