"""The pair table: every combination, and the properties that make it safe."""

from __future__ import annotations

import itertools

import pytest

from agents.protocol import DomainState, Observation
from migrd.reconcile import Pair, SideView, Verdict, side_view, verdict

PAIRS = [
    Pair(source=source, target=target, job=job)
    for source, target, job in itertools.product(SideView, SideView, (False, True))
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


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_every_pair_has_a_verdict_and_the_dangerous_ones_are_never_taken_for_safe(pair: Pair) -> None:
    found = verdict(pair)
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
    if pair.source is pair.target is SideView.RUNNING:
        assert found is Verdict.BOTH_RUNNING
    if pair.source is SideView.RUNNING and pair.target is SideView.PAUSED:
        assert found is Verdict.BOTH_RUNNING, "it has run on the target"


TABLE = {
    "running/gone": "still-on-source",
    "running/gone/job": "copying",
    "running/stopped": "still-on-source",
    "running/incoming": "target-leftover",
    "running/incoming/job": "copying",
    "running/running": "both-running",
    "running/paused": "both-running",
    "running/ending": "transient",
    "running/postcopy": "postcopy",
    "paused/gone": "source-paused",
    "paused/stopped": "source-paused",
    "paused/gone/job": "switching",
    "paused/incoming": "paused-both",
    "paused/incoming/job": "switching",
    "paused/running": "settling",
    "paused/running/job": "settling",
    "paused/paused": "paused-both",
    "paused/ending": "transient",
    "postcopy/running": "postcopy",
    "postcopy/gone": "postcopy",
    "gone/running": "moved",
    "stopped/running": "moved",
    "gone/paused": "moved-paused",
    "stopped/paused": "moved-paused",
    "gone/incoming": "incoming-only",
    "stopped/incoming": "incoming-only",
    "gone/gone": "lost",
    "gone/stopped": "stopped-on-target",
    "stopped/gone": "stopped-on-source",
    "stopped/stopped": "stopped-on-source",
    "gone/ending": "transient",
    "ending/running": "settling",
    "ending/gone": "transient",
    "ending/incoming": "transient",
    "incoming/running": "unexpected",
    "incoming/gone": "unexpected",
    "running/off": "still-on-source",
    "running/off/job": "copying",
    "paused/off": "source-paused",
    "paused/off/job": "switching",
    "off/running": "moved",
    "off/paused": "moved-paused",
    "off/incoming": "unknown",
    "off/gone": "unknown",
    "gone/off": "unknown",
    "stopped/off": "unknown",
    "off/off": "unknown",
    "off/unknown": "unknown",
    "unknown/running": "unknown",
    "running/unknown": "unknown",
    "unknown/unknown": "unknown",
}


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_what_the_table_says(row: str) -> None:
    source, target, *job = row.split("/")
    pair = Pair(source=SideView(source), target=SideView(target), job=bool(job))
    assert verdict(pair) == TABLE[row]


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
