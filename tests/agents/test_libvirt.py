"""Real libvirt code: the test driver inside libvirt itself, and the numbers of its header files."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator

import libvirt
import pytest

from agents import cpu_question
from agents.hypervisor import libvirt_cold, libvirt_migrate, states, verdicts
from agents.hypervisor.libvirt_hypervisor import LibvirtHypervisor
from agents.hypervisor.libvirt_link import Link
from agents.hypervisor.libvirt_secrets import secret_xml
from agents.hypervisor.words import MigrateRequest
from agents.protocol import DomainState
from storage.calls import Lane, NoSlot, TimedOut
from storage.errors import OutcomeError, Refused, Retryable, Unknown

URI = "test:///default"
TEST_DOMAIN = "6695eb01-f6a4-8304-79aa-97f2502e193f"  # libvirt's test driver always has it


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[LibvirtHypervisor]:
    hypervisor = LibvirtHypervisor(URI)
    loop = asyncio.create_task(hypervisor.run())
    async with asyncio.timeout(5):
        while hypervisor.trouble is not None:  # noqa: ASYNC110 - it is read as the agent reads it
            await asyncio.sleep(0.01)
    try:
        yield hypervisor
    finally:
        loop.cancel()
        await hypervisor.close()


async def test_report_facts_and_events_of_a_real_libvirt() -> None:
    async with connected() as hypervisor:
        changed: list[str | None] = []
        hypervisor.changes.listeners.append(changed.append)
        name = f"m{time.monotonic_ns()}"
        xml = (
            f"<domain type='test'><name>{name}</name><memory>8192</memory><os><type>hvm</type></os></domain>"
        )
        connection = libvirt.open(URI)
        domain = connection.defineXML(xml)
        uuid = domain.UUIDString()
        try:
            report = await hypervisor.report()
            assert report.versions["libvirt"].count(".") == 2
            assert report.networks == ("default",)
            full = next(each for each in report.domains if each.facts.uuid == uuid)
            assert (full.facts.state, full.facts.persistent) == (DomainState.SHUTOFF, True)
            domain.create()
            async with asyncio.timeout(5):
                while uuid not in changed:  # noqa: ASYNC110 - a list is all a listener needs
                    await asyncio.sleep(0.01)
            assert (await hypervisor.facts(uuid)).state is DomainState.RUNNING
            domain.suspend()
            assert (await hypervisor.facts(uuid)).state is DomainState.PAUSED
            domain.resume()
            with pytest.raises(Refused, match="not destroyed"):  # I5: it completed meanwhile, and runs
                await hypervisor.destroy_incoming(uuid)
            assert (await hypervisor.facts(uuid)).state is DomainState.RUNNING
            with pytest.raises(Refused):
                await hypervisor.migrate(
                    MigrateRequest(
                        uuid=uuid,
                        target_uri=URI,
                        target_address="tcp://x",
                        downtime_limit_ms=300,
                        bandwidth_bps=None,
                    )
                )
            unwanted = MigrateRequest(
                uuid=uuid,
                target_uri=URI,
                target_address="tcp://x",
                downtime_limit_ms=300,
                bandwidth_bps=None,
                unwanted=lambda: True,
            )
            with pytest.raises(Refused, match="aborted before it began"):
                await hypervisor.migrate(unwanted)
            assert not await hypervisor.handing_over(uuid)
            with pytest.raises(Refused, match="not destroyed"):
                await hypervisor.destroy_outgoing(uuid)
            domain.suspend()  # paused, by a person
            assert not await hypervisor.handing_over(uuid)
            with pytest.raises(Refused, match="not destroyed"):
                await hypervisor.destroy_outgoing(uuid)
            domain.resume()
            assert not await hypervisor.handing_over("00000000-0000-4000-8000-00000000dead")
            await hypervisor.shutdown(uuid)
            assert (await hypervisor.facts(uuid)).state is DomainState.SHUTOFF
            await hypervisor.start(uuid)
            assert (await hypervisor.facts(uuid)).state is DomainState.RUNNING
            with pytest.raises(Refused, match="not shut off"):
                await hypervisor.start(uuid)
            with pytest.raises(
                Refused, match="not shut off"
            ):  # of a running guest it would make a second one
                await hypervisor.move_definition(uuid, URI, "tcp://x")
            await hypervisor.shutdown(uuid)
            with pytest.raises(OutcomeError):  # the test driver moves no definitions
                await hypervisor.move_definition(uuid, URI, "tcp://x")
            assert (await hypervisor.facts(uuid)).state is DomainState.SHUTOFF
            await hypervisor.undefine(uuid)
            assert (await hypervisor.facts(uuid)).state is DomainState.ABSENT
            with pytest.raises(Refused, match="not on this host"):
                await hypervisor.start(uuid)
            await hypervisor.undefine(uuid)
            await hypervisor.destroy_incoming(uuid)
            await hypervisor.destroy_outgoing(uuid)
            await hypervisor.abort(uuid)
        finally:
            connection.close()


async def test_a_libvirtd_that_is_not_there_is_trouble_and_not_a_crash() -> None:
    hypervisor = LibvirtHypervisor("qemu+unix:///system?socket=/nonexistent/libvirt-sock")
    loop = asyncio.create_task(hypervisor.run())
    await asyncio.sleep(0.2)
    assert "cannot connect" in (hypervisor.trouble or "")
    began = time.monotonic()
    for _ in range(20):  # the back-off answers at once, without a try each time
        with pytest.raises(Retryable):
            await hypervisor.report()
    assert time.monotonic() - began < 2
    assert not loop.done()
    loop.cancel()


async def test_a_definition_read_again_after_it_changed() -> None:
    async with connected() as hypervisor:
        before = await hypervisor.report()
        assert any(each.facts.uuid == TEST_DOMAIN for each in before.domains)
        xml = next(each.xml for each in before.domains if each.facts.uuid == TEST_DOMAIN)
        connection = libvirt.open(URI)
        changed = xml.replace("<name>", "<title>moved</title><name>", 1)
        root = ET.fromstring(changed)
        root.attrib.pop("id", None)
        connection.defineXML(ET.tostring(root, encoding="unicode"))
        async with asyncio.timeout(5):
            while True:
                report = await hypervisor.report()
                found = next(each for each in report.domains if each.facts.uuid == TEST_DOMAIN)
                if "moved" in found.xml:
                    break
                await asyncio.sleep(0.05)
        connection.close()


def test_i16_a_thread_that_nobody_waits_for_any_more_begins_nothing() -> None:
    """libvirtd was slow to tell that the domain is shut off; the daemon has been told "unknown" since."""
    connection = libvirt.open(URI)
    name = f"m{time.monotonic_ns()}"
    xml = f"<domain type='test'><name>{name}</name><memory>8192</memory><os><type>hvm</type></os></domain>"
    domain = connection.defineXML(xml)
    uuid = domain.UUIDString()
    try:
        with pytest.raises(Refused, match="too late"):
            libvirt_cold.start(connection, uuid, unwanted=lambda: True)
        with pytest.raises(Refused, match="too late"):
            libvirt_cold.move_definition(connection, uuid, URI, "tcp://x", unwanted=lambda: True)
        assert not domain.isActive()
        libvirt_cold.start(connection, uuid, unwanted=lambda: False)
        assert domain.isActive()
    finally:
        domain.destroy()
        domain.undefine()
        connection.close()


async def test_a_definition_that_is_settled_is_as_it_was_and_one_that_is_gone_is_not() -> None:
    async with connected() as hypervisor:
        before = next(e for e in (await hypervisor.report()).domains if e.facts.uuid == TEST_DOMAIN)
        await hypervisor.settle(TEST_DOMAIN)
        after = next(e for e in (await hypervisor.report()).domains if e.facts.uuid == TEST_DOMAIN)
        assert after.xml == before.xml
        with pytest.raises(Retryable, match=r"[Dd]omain"):
            await hypervisor.settle("00000000-0000-4000-8000-00000000dead")


@pytest.mark.parametrize(
    ("prefix", "state"),
    [
        ("VIR_DOMAIN_RUNNING_", DomainState.RUNNING),
        ("VIR_DOMAIN_PAUSED_", DomainState.PAUSED),
        ("VIR_DOMAIN_SHUTOFF_", DomainState.SHUTOFF),
    ],
)
def test_reasons_are_those_of_the_header(prefix: str, state: DomainState) -> None:
    number = getattr(libvirt, f"VIR_DOMAIN_{state.value.upper()}")
    special = {
        "MIGRATION_CANCELED": "migration canceled",
        "POSTCOPY": "post-copy",
        "POSTCOPY_FAILED": "post-copy failed",
    }
    for name, reason in vars(libvirt).items():
        if name.startswith(prefix) and isinstance(reason, int):
            short = name.removeprefix(prefix)
            expected = special.get(short, short.replace("_", " ").lower())
            found, word = states.state_of(number, reason)
            assert word == expected
            assert found in (state, DomainState.PAUSED_POSTCOPY)


def test_numbers_are_those_of_the_headers() -> None:
    assert states.OPERATION_MIGRATION_IN == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN
    assert states.OPERATION_MIGRATION_OUT == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
    for name, number in vars(verdicts).items():
        if name.isupper() and not name.startswith("_") and isinstance(number, int):
            assert getattr(libvirt, f"VIR_ERR_{name}") == number


def test_i19_numbers_of_a_newer_libvirt_are_unknown() -> None:
    assert states.state_of(99, 1) == (DomainState.UNKNOWN, "unknown")
    assert states.state_of(1, 99) == (DomainState.RUNNING, "unknown")
    assert states.is_running_job({"type": 17})
    assert states.is_running_job({"type": 2, "operation": 99})
    assert not states.is_outgoing({"type": 2, "operation": 99})


def test_paused_is_an_arrival_only_if_libvirt_says_so() -> None:
    """On the source a guest is paused with the same reason at the end of its migration."""
    paused = DomainState.PAUSED
    outgoing = {"type": 2, "operation": states.OPERATION_MIGRATION_OUT}
    assert states.with_job(paused, "migration", states.ARRIVAL) is DomainState.PAUSED_INCOMING
    assert states.with_job(paused, "migration", outgoing) is paused
    assert states.with_job(paused, "migration", None) is paused
    assert states.with_job(paused, "user", states.ARRIVAL) is paused
    assert states.with_job(DomainState.RUNNING, "migrated", states.ARRIVAL) is DomainState.RUNNING


def test_figures_are_in_base_units() -> None:
    """Shape as captured from libvirt 9.0 on a real migration."""
    stats = {
        "type": 2,
        "operation": 5,
        "time_elapsed": 4866,
        "memory_total": 134750208,
        "memory_processed": 93233807,
        "memory_bps": 40068352,
        "memory_dirty_rate": 75,
        "memory_page_size": 4096,
        "memory_iteration": 3,
        "downtime": 300,
    }
    running = states.progress_of(stats)
    assert (running.elapsed_s, running.dirty_rate_bps, running.downtime_ms) == (4.866, 307200, None)
    assert states.progress_of(stats, final=True).downtime_ms == 300


RUNNING, ABSENT = DomainState.RUNNING, DomainState.ABSENT


@pytest.mark.parametrize(
    ("code", "message", "state", "job", "kind"),
    [
        (verdicts.MIGRATE_UNSAFE, "Unsafe migration", RUNNING, False, Refused),
        (verdicts.CPU_INCOMPATIBLE, "guest CPU doesn't match", RUNNING, False, Refused),
        (
            9,
            "operation failed: Failed to connect to remote libvirt URI qemu+tcp://h2",
            RUNNING,
            False,
            Retryable,
        ),
        (9, "operation failed: migration out job: unexpectedly failed", RUNNING, False, Unknown),
        # Captured: the arrival was swept while the source's libvirtd was frozen.
        (42, "Domain not found: no domain with matching name 'g1'", RUNNING, False, Unknown),
        (78, "operation aborted: job 'migration out' canceled by client", RUNNING, False, Unknown),
        (verdicts.MIGRATE_UNSAFE, "Unsafe migration", RUNNING, True, Unknown),
        (verdicts.MIGRATE_UNSAFE, "Unsafe migration", DomainState.PAUSED, False, Unknown),
        (verdicts.MIGRATE_UNSAFE, "Unsafe migration", DomainState.UNKNOWN, True, Unknown),
        (38, "unable to connect", ABSENT, False, Unknown),
    ],
)
def test_what_an_error_of_the_migrate_call_proves(
    code: int, message: str, state: DomainState, job: bool, kind: type[Exception]
) -> None:
    assert type(verdicts.verdict(code, message, state, job)) is kind


def test_a_definition_moves_with_these_flags_and_no_other() -> None:
    """Persisted there, undefined here, nothing started, never unsafe."""
    wanted = (
        libvirt.VIR_MIGRATE_OFFLINE,
        libvirt.VIR_MIGRATE_PEER2PEER,
        libvirt.VIR_MIGRATE_PERSIST_DEST,
        libvirt.VIR_MIGRATE_UNDEFINE_SOURCE,
    )
    assert sum(wanted) == libvirt_cold.FLAGS


def test_migration_flags_never_hold_what_is_an_operators_word() -> None:
    for persistent in (True, False):
        flags = libvirt_migrate.flags(persistent=persistent)
        assert flags & libvirt.VIR_MIGRATE_LIVE
        assert flags & libvirt.VIR_MIGRATE_PEER2PEER
        for never in ("UNSAFE", "TUNNELLED", "NON_SHARED_DISK", "NON_SHARED_INC", "OFFLINE", "POSTCOPY"):
            assert not flags & getattr(libvirt, f"VIR_MIGRATE_{never}")
    request = MigrateRequest(
        uuid="u", target_uri="x", target_address="tcp://h", downtime_limit_ms=1, bandwidth_bps=100
    )
    assert libvirt_migrate.parameters(request) == {"migrate_uri": "tcp://h", "bandwidth": 1}


async def test_i20_hung_calls_take_their_slots_and_nothing_else() -> None:
    lane, hang = Lane("test", 2), threading.Event()
    for _ in range(2):
        with pytest.raises(TimedOut):
            await lane.call(hang.wait, deadline_s=0.05)
    assert lane.late == 2
    with pytest.raises(NoSlot):
        await lane.call(lambda: 1, deadline_s=0.05)
    hang.set()
    await asyncio.sleep(0.1)
    assert lane.late == 0
    assert await lane.call(lambda: 1, deadline_s=1) == 1


async def test_i20_a_connection_whose_slots_all_hang_is_replaced() -> None:
    link, hang = Link(URI, "test", slots=1), threading.Event()
    with pytest.raises(Unknown):
        await link.call(lambda _connection: hang.wait(5), deadline_s=0.2)
    assert await link.call(lambda connection: connection.getType(), deadline_s=2) == "TEST"
    assert not link.exhausted
    hang.set()
    await link.close()


async def test_exceptions_of_a_call_come_through_also_a_timeout_of_its_own() -> None:
    def fail() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await Lane("test", 1).call(fail, deadline_s=1)


def test_the_cpu_question_travels_unchanged_and_is_equal_for_equal_guests() -> None:
    xml = (
        "<domain type='kvm'><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>"
        "<cpu mode='custom' match='exact'>\n  <model>qemu64</model>\n</cpu></domain>"
    )
    question = cpu_question.of(ET.fromstring(xml), "<cpu><model>EPYC</model></cpu>")
    assert question == cpu_question.of(ET.fromstring(xml.replace("\n  ", "")), "")
    read = cpu_question.read(question)
    assert read is not None
    assert (read.kind, read.arch, read.machine, read.host_cpu) == ("kvm", "x86_64", "pc-q35-7.2", "")
    assert "<model>qemu64</model>" in read.cpu
    seen = cpu_question.of(
        ET.fromstring("<domain type='kvm'><cpu mode='host-passthrough'/></domain>"),
        "<cpu><model>EPYC</model></cpu>",
    )
    assert "EPYC" in seen
    for bad in ("", "<x/>", "<domain/>", "<domain type='kvm'>", "<!DOCTYPE d><domain type='kvm'/>"):
        assert cpu_question.read(bad) is None


def test_i17_a_secret_is_defined_private() -> None:
    root = ET.fromstring(secret_xml(None, "iqn.2026-11.org:a<b"))
    assert root.get("private") == "yes"
    assert root.findtext("usage/target") == "iqn.2026-11.org:a<b"
