"""The pair table: every combination, and the properties that make it safe."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from agents.protocol import AnyVolume, DomainState, Observation
from migrd.reconcile import Holding, Pair, SideView, Verdict, holding, side_view, verdict
from storage.words import DrbdVolume, Health, IscsiQemuVolume, IscsiVolume, Role, VolumeReport

PAIRS = [
    Pair(source=source, target=target, job=job, source_holds=here, target_holds=there)
    for source, target, job, here, there in itertools.product(
        SideView, SideView, (False, True), Holding, Holding
    )
]
NO_PROCESS = (SideView.GONE, SideView.STOPPED)


def seen(state: DomainState, *, process: bool | None, job: bool = False) -> Observation:
    return Observation(
        uuid="u",
        state=state,
        reason="unknown",
        persistent=False,
        qemu_process=process,
        job=job,
        volumes=(),
    )


def test_every_pair_has_a_verdict_and_the_dangerous_ones_are_never_taken_for_safe() -> None:
    for pair in PAIRS:
        judge(pair, verdict(pair))


def judge(pair: Pair, found: Verdict) -> None:
    unknown = SideView.UNKNOWN in (pair.source, pair.target)
    if SideView.OFF not in (pair.source, pair.target):
        assert (found is Verdict.UNKNOWN) == unknown, "nothing known is unknown (I19)"
    assert not unknown or found is Verdict.UNKNOWN, "unknown is never safe (I19)"
    if found is Verdict.MOVED:  # the commit point
        assert pair.source in (*NO_PROCESS, SideView.OFF)
        assert pair.target is SideView.RUNNING
    if found is Verdict.STILL_ON_SOURCE:  # undo may sweep the target
        assert pair.source is SideView.RUNNING
        assert pair.target in (*NO_PROCESS, SideView.OFF)
        assert not pair.job
    if found in (Verdict.TARGET_LEFTOVER, Verdict.STOPPED_ON_SOURCE):  # undo may sweep the target
        assert pair.target in (SideView.INCOMING, *NO_PROCESS), "never a QEMU that has run there (I1, I5)"
        assert not (pair.source is SideView.RUNNING and pair.job)
    if found in (Verdict.MOVED, Verdict.MOVED_PAUSED):  # release and demote follow: of the right disk only
        assert pair.target_holds is not Holding.NONE
    if found in (Verdict.STILL_ON_SOURCE, Verdict.TARGET_LEFTOVER):
        assert pair.source_holds is not Holding.NONE
    if pair.source is pair.target is SideView.RUNNING:
        assert found is Verdict.BOTH_RUNNING
    if pair.source is SideView.RUNNING and pair.target is SideView.PAUSED:
        assert found is Verdict.BOTH_RUNNING, "it has run on the target"


TABLE = {
    "gone/gone": "lost",
    "gone/stopped": "stopped-on-target",
    "gone/running": "moved",
    "gone/paused": "moved-paused",
    "gone/incoming": "incoming-only",
    "gone/postcopy": "postcopy",
    "gone/ending": "transient",
    "gone/off": "unknown",
    "gone/unknown": "unknown",
    "stopped/gone": "stopped-on-source",
    "stopped/stopped": "stopped-on-source",
    "stopped/running": "moved",
    "stopped/paused": "moved-paused",
    "stopped/incoming": "stopped-on-source",
    "stopped/postcopy": "postcopy",
    "stopped/ending": "transient",
    "stopped/off": "unknown",
    "stopped/unknown": "unknown",
    "running/gone": "still-on-source, with a job: copying",
    "running/stopped": "still-on-source, with a job: copying",
    "running/running": "both-running",
    "running/paused": "both-running",
    "running/incoming": "target-leftover, with a job: copying",
    "running/postcopy": "postcopy",
    "running/ending": "transient",
    "running/off": "still-on-source, with a job: copying",
    "running/unknown": "unknown",
    "paused/gone": "source-paused, with a job: switching",
    "paused/stopped": "source-paused, with a job: switching",
    "paused/running": "settling",
    "paused/paused": "paused-both",
    "paused/incoming": "paused-both, with a job: switching",
    "paused/postcopy": "postcopy",
    "paused/ending": "transient",
    "paused/off": "source-paused, with a job: switching",
    "paused/unknown": "unknown",
    "incoming/gone": "unexpected",
    "incoming/stopped": "unexpected",
    "incoming/running": "unexpected",
    "incoming/paused": "unexpected",
    "incoming/incoming": "unexpected",
    "incoming/postcopy": "unexpected",
    "incoming/ending": "unexpected",
    "incoming/off": "unknown",
    "incoming/unknown": "unknown",
    "postcopy/gone": "postcopy",
    "postcopy/stopped": "postcopy",
    "postcopy/running": "postcopy",
    "postcopy/paused": "postcopy",
    "postcopy/incoming": "postcopy",
    "postcopy/postcopy": "postcopy",
    "postcopy/ending": "postcopy",
    "postcopy/off": "unknown",
    "postcopy/unknown": "unknown",
    "ending/gone": "transient",
    "ending/stopped": "transient",
    "ending/running": "settling",
    "ending/paused": "transient",
    "ending/incoming": "transient",
    "ending/postcopy": "postcopy",
    "ending/ending": "transient",
    "ending/off": "unknown",
    "ending/unknown": "unknown",
    "off/gone": "unknown",
    "off/stopped": "unknown",
    "off/running": "moved",
    "off/paused": "moved-paused",
    "off/incoming": "unknown",
    "off/postcopy": "unknown",
    "off/ending": "unknown",
    "off/off": "unknown",
    "off/unknown": "unknown",
    "unknown/gone": "unknown",
    "unknown/stopped": "unknown",
    "unknown/running": "unknown",
    "unknown/paused": "unknown",
    "unknown/incoming": "unknown",
    "unknown/postcopy": "unknown",
    "unknown/ending": "unknown",
    "unknown/off": "unknown",
    "unknown/unknown": "unknown",
}


@pytest.mark.parametrize("source", SideView)
@pytest.mark.parametrize("target", SideView)
def test_what_the_table_says(source: SideView, target: SideView) -> None:
    """Written down a second time, cell by cell: a change of any of them has to be meant."""
    without, _, with_job = TABLE[f"{source}/{target}"].partition(", with a job: ")
    assert verdict(Pair(source=source, target=target, job=False)) == without
    assert verdict(Pair(source=source, target=target, job=True)) == (with_job or without)


@pytest.mark.parametrize(
    ("here", "there", "found"),
    [
        ("none", "all", "stopped-on-target"),
        ("all", "none", "stopped-on-source"),
        ("none", "none", "stopped-on-source"),
        ("unknown", "all", "stopped-on-source"),
        ("all", "all", "stopped-on-source"),
    ],
)
def test_of_two_shut_off_definitions_the_one_with_the_disks_is_the_guest(
    here: str, there: str, found: str
) -> None:
    pair = Pair(
        source=SideView.STOPPED,
        target=SideView.STOPPED,
        job=False,
        source_holds=Holding(here),
        target_holds=Holding(there),
    )
    assert verdict(pair) == found


def test_a_guest_that_runs_where_none_of_its_disks_is_held_is_an_alarm() -> None:
    moved = Pair(source=SideView.GONE, target=SideView.RUNNING, job=False, target_holds=Holding.NONE)
    stayed = Pair(source=SideView.RUNNING, target=SideView.GONE, job=False, source_holds=Holding.NONE)
    assert verdict(moved) is verdict(stayed) is Verdict.WITHOUT_DISK


DRBD = DrbdVolume(resource="r0", volume_nr=0, minor=0, nodes=("a", "b"))
LUN = IscsiVolume(portal="10.0.0.5:3260", iqn="iqn.2026-11.org.lab:x", lun=0, device="/dev/x")
QEMU_LUN = IscsiQemuVolume(portal="10.0.0.5:3260", iqn="iqn.2026-11.org.lab:x", lun=1)


@pytest.mark.parametrize(
    ("volumes", "found"),
    [
        (((DRBD, Role.PRIMARY), (LUN, Role.ATTACHED)), "all"),
        (((DRBD, Role.SECONDARY), (LUN, Role.DETACHED)), "none"),
        (((DRBD, Role.PRIMARY), (LUN, Role.DETACHED)), "unknown"),
        (((DRBD, Role.UNKNOWN),), "unknown"),
        (((QEMU_LUN, Role.ATTACHED),), "unknown"),
        (((QEMU_LUN, Role.DETACHED), (DRBD, Role.PRIMARY)), "all"),
        ((), "unknown"),
    ],
)
def test_what_a_host_holds(volumes: tuple[tuple[AnyVolume, Role], ...], found: str) -> None:
    reports = tuple(
        VolumeReport(volume=volume, role=role, health=Health.OK, identity="i", size_bytes=1)
        for volume, role in volumes
    )
    observation = replace(seen(DomainState.RUNNING, process=True), volumes=reports)
    assert holding(observation) == found
    assert holding(None) is Holding.UNKNOWN


@pytest.mark.parametrize("state", DomainState)
@pytest.mark.parametrize("process", [True, False, None])
def test_a_host_has_no_qemu_only_if_libvirt_and_proc_agree(state: DomainState, process: bool | None) -> None:
    """I11, I19: libvirt forgets a domain before its process is reaped; a look that failed is no look."""
    view = side_view(seen(state, process=process))
    if view in NO_PROCESS:
        assert process is False
        assert not state.has_process or state is DomainState.CRASHED
    if process is True:
        assert view not in NO_PROCESS
    if process is False and state.has_process and state is not DomainState.CRASHED:
        assert view is SideView.UNKNOWN


def test_a_host_that_did_not_answer_is_unknown() -> None:
    assert side_view(None) is SideView.UNKNOWN
    assert Pair.of(None, None) == Pair(source=SideView.UNKNOWN, target=SideView.UNKNOWN, job=False)
