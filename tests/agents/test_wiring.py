"""From definitions and kernel files to reports; the differences that become events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from agents.changes import difference
from agents.host_facts import bridges, cpu_model, look, meminfo
from agents.inventory import STALE_S, aged
from agents.protocol import CpuReport, DomainReport, DomainState, HostReport
from agents.wire import dump, read
from agents.wiring import HostDiscover, needs_of
from storage.discover import Devices
from storage.errors import Unknown
from storage.words import DrbdVolume, Health, OtherVolume, Role, VolumeReport
from tests.agents.fakes import running

R0 = DrbdVolume(resource="r0", volume_nr=0, minor=7, nodes=("h1", "h2"))
XML = """<domain type='qemu'><name>g</name><memory unit='MiB'>128</memory><vcpu current='2'>4</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><cpu mode='custom'><model>qemu64</model></cpu>
<devices><disk type='block' device='disk'><driver name='qemu' type='raw' cache='none'/>
<source dev='/dev/drbd7'/><target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><source bridge='br0'/></interface></devices></domain>"""


def domain(**changes: object) -> DomainReport:
    base = DomainReport(
        uuid="u", name="n", state=DomainState.RUNNING, reason="booted", memory_bytes=1, vcpus=1,
        persistent=True, autostart=False, volumes=(), bridges=(), networks=(), cpu_xml="", blockers=(),
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def host(**changes: object) -> HostReport:
    base = HostReport(
        protocol=1, host="h1", node="h1", boot_id="b", epoch=0, agent_version="0", versions={},
        libvirt_ok=True, problems=(), cpu=CpuReport(arch="x86_64", threads=2, model="m", host_xml=""),
        memory_total_bytes=10, memory_available_bytes=5, bridges=(), networks=(), domains=(domain(),),
        volumes=(), migration_uri="x", migration_address="y", observed_s=1.0,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def test_needs_of_a_definition() -> None:
    needs = needs_of(XML, Devices(drbd=(R0,)))
    assert (needs.memory_bytes, needs.vcpus) == (128 << 20, 2)
    assert needs.volumes == (R0,)
    assert needs.bridges == ("br0",)
    assert needs.blockers == ()
    assert "pc-q35-7.2" in needs.cpu_xml


def test_a_running_guest_whose_definition_differs_does_not_move_cold() -> None:
    """I9: the next start would open what nobody has compared."""
    here = Devices(drbd=(R0,))
    same = needs_of(XML, here, inactive=XML.replace("<os>", "<description>as stored</description><os>"))
    assert same.cold_blockers == ()
    other = needs_of(XML, here, inactive=XML.replace("/dev/drbd7", "/dev/drbd0"))
    assert any("other disks than the running guest" in reason for reason in other.cold_blockers or ())


def test_i19_a_definition_that_cannot_be_read_is_a_blocker() -> None:
    for bad in ("", "<domain", "<!DOCTYPE x><domain/>"):
        assert needs_of(bad, Devices()).blockers


async def test_definitions_are_read_again_when_the_devices_changed() -> None:
    answers: list[Devices | Exception] = [
        Devices(),
        Devices(drbd=(R0,)),
        Unknown("drbdadm hangs"),
        ValueError("bug"),
    ]
    clock = [0.0]

    async def devices() -> Devices:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ask: Callable[[], Awaitable[Devices]] = devices
    discover = HostDiscover(ask, max_age_s=5, deadline_s=1, now=lambda: clock[0])
    guest = replace(running("u"), live_xml=XML)
    assert isinstance((await discover(guest)).volumes[0], OtherVolume)
    assert isinstance((await discover(guest)).volumes[0], OtherVolume)
    for clock[0] in (6.0, 12.0, 18.0):  # later the tools do not answer, or break: what was known stays
        assert (await discover(guest)).volumes == (R0,)


def test_kernel_files() -> None:
    assert meminfo("MemTotal:  16 kB\nHugePages_Total:  3\nMemAvailable: x kB\nMemFree:\t8 kB\n") == {
        "MemTotal": 16384,
        "MemFree": 8192,
    }
    assert cpu_model("processor : 0\nmodel name\t: AMD EPYC\nmodel name : other\n") == "AMD EPYC"
    assert cpu_model("") == ""


def test_bridges_are_found_and_what_is_missing_is_named(tmp_path: Path) -> None:
    for name, kind in (("br0", "bridge"), ("eth0", "device"), ("br-guests", "bridge")):
        (tmp_path / "sys/class/net" / name / kind).mkdir(parents=True)
    problems: list[str] = []
    assert bridges(tmp_path / "sys/class/net", problems) == ("br-guests", "br0")
    facts = look(tmp_path)
    assert facts.bridges == ("br-guests", "br0")
    assert any("meminfo" in problem for problem in facts.problems)
    assert facts.memory_total_bytes == 0


def test_this_machine_can_be_looked_at() -> None:
    facts = look()
    assert facts.memory_total_bytes > facts.memory_available_bytes > 0
    assert facts.problems == ()


def test_differences_become_events() -> None:
    old = host()
    assert difference(None, old).host
    same = difference(old, replace(old, observed_s=9.0, memory_available_bytes=1))
    assert (same.domains, same.gone, same.volumes, same.host) == ((), (), False, False)
    paused = domain(state=DomainState.PAUSED)
    new = domain(uuid="v")
    found = difference(old, replace(old, domains=(paused, new)))
    assert found.domains == (paused, new)
    assert difference(old, replace(old, domains=())).gone == ("u",)
    volume = VolumeReport(volume=R0, role=Role.PRIMARY, health=Health.OK, identity=None, size_bytes=None)
    assert difference(old, replace(old, volumes=(volume,))).volumes
    assert difference(old, replace(old, libvirt_ok=False)).host


def test_i19_an_old_report_is_certain_of_nothing() -> None:
    assert aged(host(), STALE_S) == host()
    old = aged(host(), STALE_S + 1)
    assert not old.libvirt_ok
    assert old.domains[0].state is DomainState.UNKNOWN
    assert "7 s old" in old.problems[0]


def test_i19_a_report_of_a_newer_agent_can_be_read() -> None:
    text = (
        dump(host()).decode().replace('"running"', '"teleporting"').replace('"host":', '"new":1,"host":', 1)
    )
    report = read(HostReport, text)
    assert report.domains[0].state is DomainState.UNKNOWN
    assert report.domains[0].state.has_process
