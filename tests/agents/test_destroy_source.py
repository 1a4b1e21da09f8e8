"""The daemon saw the guest run on the target: what libvirt keeps of it here ends, nothing else (I1, I5)."""

from __future__ import annotations

import asyncio

import libvirt
import pytest

from agents.attempts.control import Control
from agents.attempts.migration import Pace, adopt, migrate
from agents.client import AttemptNotSeen, StaleEpoch
from agents.hypervisor import libvirt_migrate
from agents.hypervisor.words import Job, MigrateRequest
from agents.protocol import (
    Attempt,
    AttemptReport,
    DomainState,
    MigrateDomain,
    MigrationProgress,
    Outcome,
    UndefineDomain,
)
from storage.errors import Refused, Retryable, Unknown
from tests.agents.conftest import StartWorld, World
from tests.agents.fakes import FakeHypervisor, FakeStreams, running

COMMAND = MigrateDomain(uuid="u", target_uri="qemu+tls://h2/system", target_address="tcp://10.0.1.12")
MOVE = Attempt(operation="op", step="migrate", attempt=1, epoch=3, command=COMMAND)


class Unheard(FakeHypervisor):
    """libvirt waits for an answer that does not come; then it gives up, and lets the guest run."""

    def __init__(self) -> None:
        super().__init__(running("u"))
        self.gives_up = asyncio.Event()

    async def migrate(self, request: MigrateRequest) -> None:
        self.set_state("u", DomainState.PAUSED, "migration")
        await self.gives_up.wait()
        if self.domains["u"].facts.state is not DomainState.SHUTOFF:
            self.set_state("u", DomainState.RUNNING, "migration canceled")
        raise Unknown("libvirt: internal error: client socket is closed")


async def ended(world: World) -> AttemptReport:
    report = await world.client.wait("op", "migrate", 1, 10)
    assert report.outcome is not Outcome.RUNNING
    return report


async def handed_over(world: World) -> AttemptReport:
    """Submitted, and seen to be paused."""
    await world.client.submit(MOVE)
    async with asyncio.timeout(5):
        while True:
            report = await world.client.wait("op", "migrate", 1, 0.02)
            if report.result.progress is not None and report.result.progress.handing_over_s > 0:
                return report


async def shut_off(hypervisor: FakeHypervisor) -> None:
    async with asyncio.timeout(5):
        while hypervisor.domains["u"].facts.state is not DomainState.SHUTOFF:  # noqa: ASYNC110 - a fake
            await asyncio.sleep(0.01)


async def test_the_pause_is_told_and_grows(start: StartWorld) -> None:
    async with start(Unheard()) as world:
        first = await handed_over(world)
        await asyncio.sleep(0.1)
        later = await world.client.wait("op", "migrate", 1, 0.0)
        assert first.result.progress is not None
        assert later.result.progress is not None
        assert later.result.progress.handing_over_s >= first.result.progress.handing_over_s + 0.1


async def test_a_copy_that_goes_on_tells_no_pause(start: StartWorld) -> None:
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.migration_steps, hypervisor.step_s = 10, 0.05
    async with start(hypervisor) as world:
        await world.client.submit(MOVE)
        report = await world.client.wait("op", "migrate", 1, 0.3)
        assert report.result.progress is not None
        assert report.result.progress.handing_over_s == 0
        assert (await ended(world)).result.progress.handing_over_s == 0  # type: ignore[union-attr]


async def test_i1_the_paused_guest_ends_before_libvirt_lets_it_run_again(start: StartWorld) -> None:
    hypervisor = Unheard()
    async with start(hypervisor) as world:
        await handed_over(world)
        report = await world.client.destroy_source("op", "migrate", 1, epoch=3)
        assert report.outcome is Outcome.RUNNING, "the attempt goes on until libvirt's call ends"
        await shut_off(hypervisor)
        hypervisor.gives_up.set()
        report = await ended(world)
        assert report.outcome is Outcome.UNKNOWN, "a call that was interfered with proves nothing by itself"
        assert "seen to run on the target" in report.reasons[0]
        assert hypervisor.calls.count("destroy outgoing u") == 1


async def test_the_pause_is_not_told_any_more_when_the_attempt_has_ended(start: StartWorld) -> None:
    hypervisor = Unheard()
    async with start(hypervisor) as world:
        await handed_over(world)
        hypervisor.gives_up.set()
        progress = (await ended(world)).result.progress
        assert progress is None or progress.handing_over_s == 0


async def test_a_libvirt_that_hangs_elsewhere_does_not_hold_the_order_up(start: StartWorld) -> None:
    """An abort, a look at the job: each has up to ten seconds, of the thirty that there are."""

    class Hung(Unheard):
        async def job(self, uuid: str) -> Job | None:
            await self.gives_up.wait()
            return None

    hypervisor = Hung()
    async with start(hypervisor) as world:
        await handed_over(world)
        await world.client.abort("op", "migrate", 1, epoch=3)
        await world.client.destroy_source("op", "migrate", 1, epoch=3)
        await shut_off(hypervisor)
        hypervisor.gives_up.set()
        await ended(world)


async def test_an_agent_that_has_restarted_obeys_the_order_too() -> None:
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.set_state("u", DomainState.PAUSED, "migration")
    hypervisor.set_job("u", Job(outgoing=True, progress=MigrationProgress()))
    control = Control()
    following = asyncio.create_task(
        adopt(
            COMMAND,
            hypervisor,
            {},
            FakeStreams(),
            control=control,
            pace=Pace(poll_s=0.02, figures_s=0.0),
            why="taken up",
        )
    )
    await asyncio.sleep(0.1)
    assert control.progress is not None
    assert control.progress.handing_over_s > 0
    control.destroy_source.set()
    await shut_off(hypervisor)
    hypervisor.set_job("u", None)
    with pytest.raises(Unknown, match="seen to run on the target"):
        await following


async def test_names_that_cannot_be_resolved_do_not_hide_the_pause() -> None:
    class Nameless(FakeStreams):
        async def addresses(self, host: str) -> frozenset[str]:
            raise Retryable(f"{host}: no such name")

    control, hypervisor = Control(), Unheard()
    moving = asyncio.create_task(
        migrate(
            COMMAND, hypervisor, {}, Nameless(), control=control, pace=Pace(poll_s=0.02, first_poll_s=0.02)
        )
    )
    async with asyncio.timeout(5):
        while control.paused_at_s is None:  # noqa: ASYNC110 - a fake
            await asyncio.sleep(0.01)
    hypervisor.gives_up.set()
    with pytest.raises(Unknown):
        await moving


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (DomainState.RUNNING, "migration canceled"),
        (DomainState.RUNNING, "booted"),
        (DomainState.PAUSED, "user"),
        (DomainState.PAUSED_INCOMING, "migration"),
    ],
)
async def test_i5_an_order_that_comes_late_ends_nothing(
    start: StartWorld, state: DomainState, reason: str
) -> None:
    hypervisor = Unheard()
    async with start(hypervisor) as world:
        await handed_over(world)
        hypervisor.set_state("u", state, reason)
        await world.client.destroy_source("op", "migrate", 1, epoch=3)
        await asyncio.sleep(0.2)
        assert hypervisor.domains["u"].facts.state is state
        hypervisor.gives_up.set()
        report = await ended(world)
        assert report.outcome is Outcome.UNKNOWN
        assert "not destroyed" in " ".join(report.reasons)


async def test_an_order_that_failed_is_tried_again_when_it_is_repeated(start: StartWorld) -> None:
    class Deaf(Unheard):
        async def destroy_outgoing(self, uuid: str) -> None:
            if self.calls.count("destroy outgoing u") == 0:
                self.calls.append("destroy outgoing u")
                raise Unknown("libvirt did not answer: the call did not return in 10 s")
            await super().destroy_outgoing(uuid)

    hypervisor = Deaf()
    async with start(hypervisor) as world:
        await handed_over(world)
        for _ in range(2):
            assert hypervisor.domains["u"].facts.state is DomainState.PAUSED
            await world.client.destroy_source("op", "migrate", 1, epoch=3)
            await asyncio.sleep(0.2)
        assert hypervisor.domains["u"].facts.state is DomainState.SHUTOFF


async def test_i4_an_order_of_a_stale_epoch_or_about_an_unknown_attempt_is_refused(start: StartWorld) -> None:
    hypervisor = Unheard()
    async with start(hypervisor) as world:
        await handed_over(world)
        with pytest.raises(StaleEpoch):
            await world.client.destroy_source("op", "migrate", 1, epoch=2)
        with pytest.raises(AttemptNotSeen):
            await world.client.destroy_source("op", "migrate", 2, epoch=3)
        await asyncio.sleep(0.2)
        assert hypervisor.domains["u"].facts.state is DomainState.PAUSED
        hypervisor.gives_up.set()
        await ended(world)
        assert (await world.client.destroy_source("op", "migrate", 1, epoch=3)).outcome is Outcome.UNKNOWN
        await asyncio.sleep(0.2)
        assert "destroy outgoing u" not in hypervisor.calls, "an attempt that has ended hears no order"


# -- libvirt's calls ---------------------------------------------------------------------------------


class Domain:
    """A domain as libvirt-python shows it. `fail`: method -> libvirt's error code."""

    def __init__(self, state: tuple[int, int], *, job: dict[str, object] | None = None) -> None:
        self.now = state
        self.job = job
        self.control = libvirt.VIR_DOMAIN_CONTROL_OK
        self.fail: dict[str, int] = {}
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            error = libvirt.libvirtError(name)
            error.err = (self.fail[name], 10, name, 2, "", None, None, -1, -1)
            raise error

    def lookupByUUIDString(self, _uuid: str) -> Domain:
        self._called("lookup")
        return self

    def state(self) -> tuple[int, int]:
        return self.now

    def UUIDString(self) -> str:
        return "u"

    def isPersistent(self) -> int:
        return 1

    def isActive(self) -> int:
        return 1

    def controlInfo(self) -> list[int]:
        return [self.control, 0, 0]

    def jobStats(self) -> dict[str, object]:
        if self.job is None:
            self.fail["jobStats"] = libvirt.VIR_ERR_OPERATION_UNSUPPORTED
            self._called("jobStats")
        assert self.job is not None
        return self.job

    def undefineFlags(self, _flags: int) -> None:
        """Waits for the migrate call, until its own deadline (seen on 9.0)."""
        self._called("undefine")

    def destroy(self) -> None:
        self._called("destroy")


PAUSED_MIGRATION = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)
LEAVES: dict[str, object] = {"type": 2, "operation": libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT}


def acts(domain: Domain) -> list[str]:
    return [call for call in domain.calls if call.startswith(("undefine", "destroy"))]


def test_the_qemu_goes_and_nothing_else() -> None:
    domain = Domain(PAUSED_MIGRATION, job=LEAVES)
    libvirt_migrate.destroy_outgoing(domain, "u")
    assert acts(domain) == ["destroy"]


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID])
def test_a_qemu_that_has_ended_meanwhile_is_no_error(code: int) -> None:
    domain = Domain(PAUSED_MIGRATION, job=LEAVES)
    domain.fail["destroy"] = code
    libvirt_migrate.destroy_outgoing(domain, "u")
    gone = Domain(PAUSED_MIGRATION)
    gone.fail["lookup"] = libvirt.VIR_ERR_NO_DOMAIN
    libvirt_migrate.destroy_outgoing(gone, "u")
    assert acts(gone) == []


def test_an_order_that_is_repeated_finds_nothing_to_do() -> None:
    domain = Domain((libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED))
    libvirt_migrate.destroy_outgoing(domain, "u")
    assert acts(domain) == []


def test_i19_a_job_that_libvirt_does_not_name_is_no_departure() -> None:
    domain = Domain(PAUSED_MIGRATION, job=LEAVES)
    domain.control = libvirt.VIR_DOMAIN_CONTROL_OCCUPIED
    with pytest.raises(Refused, match="does not say"):
        libvirt_migrate.destroy_outgoing(domain, "u")
    assert acts(domain) == []


def test_any_other_error_is_told() -> None:
    domain = Domain(PAUSED_MIGRATION, job=LEAVES)
    domain.fail["destroy"] = libvirt.VIR_ERR_INTERNAL_ERROR
    with pytest.raises(libvirt.libvirtError):
        libvirt_migrate.destroy_outgoing(domain, "u")


@pytest.mark.parametrize(
    ("state", "job"),
    [
        ((libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_MIGRATION_CANCELED), LEAVES),
        ((libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER), LEAVES),
        (PAUSED_MIGRATION, None),  # an arrival: libvirt tells no statistics of it
    ],
)
def test_i5_only_a_guest_that_leaves_and_is_paused_for_it_is_destroyed(
    state: tuple[int, int], job: dict[str, object] | None
) -> None:
    domain = Domain(state, job=job)
    with pytest.raises(Refused, match="not destroyed"):
        libvirt_migrate.destroy_outgoing(domain, "u")
    assert acts(domain) == []


# -- the definition, afterwards ------------------------------------------------------------------------


async def removed(world: World) -> AttemptReport:
    command = UndefineDomain(uuid="u")
    await world.client.submit(
        Attempt(operation="op", step="undefine-source", attempt=1, epoch=1, command=command)
    )
    return await world.client.wait("op", "undefine-source", 1, 10)


async def test_a_definition_that_was_left_behind_goes_and_one_that_is_gone_is_fine(start: StartWorld) -> None:
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.set_state("u", DomainState.SHUTOFF, "destroyed")
    async with start(hypervisor) as world:
        assert (await removed(world)).outcome is Outcome.DONE
        assert "u" not in hypervisor.domains
    async with start(FakeHypervisor()) as world:
        assert (await removed(world)).outcome is Outcome.DONE
        assert world.hypervisor.calls == []


@pytest.mark.parametrize(
    "state", [DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTDOWN, DomainState.UNKNOWN]
)
async def test_i1_no_definition_of_a_guest_that_may_have_a_process_goes(
    start: StartWorld, state: DomainState
) -> None:
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.set_state("u", state, "unknown")
    async with start(hypervisor) as world:
        report = await removed(world)
        assert report.outcome is Outcome.REFUSED
        assert "not shut off" in report.reasons[0]
        assert "u" in hypervisor.domains


async def test_i11_a_qemu_that_proc_still_shows_keeps_its_definition(start: StartWorld) -> None:
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.set_state("u", DomainState.SHUTOFF, "destroyed")
    async with start(hypervisor) as world:
        world.in_use.running.add("u")
        report = await removed(world)
        assert report.outcome is Outcome.REFUSED
        assert "its QEMU still exists" in report.reasons[0]
