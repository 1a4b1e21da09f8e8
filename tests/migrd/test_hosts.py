"""States from ages, and the fold of an event stream: whatever is lost, the picture comes right."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.protocol import DomainState, Event
from migrd.hosts import (
    Followed,
    Thresholds,
    follow,
    host_state,
    identity_problems,
    next_turn_s,
    observed_state,
)
from migrd.model import HostState
from tests.migrd.agent import domain, host_report

LIMITS = Thresholds(suspect_after_s=3.0, unreachable_after_s=10.0)


@pytest.mark.parametrize(
    ("age_s", "state"),
    [
        (None, HostState.UNKNOWN),
        (0.0, HostState.ONLINE),
        (2.9, HostState.ONLINE),
        (3.0, HostState.SUSPECT),
        (9.9, HostState.SUSPECT),
        (10.0, HostState.UNREACHABLE),
        (1e9, HostState.UNREACHABLE),
    ],
)
def test_silence_decides(age_s: float | None, state: HostState) -> None:
    assert observed_state(age_s, libvirt_ok=True, doubtful=False, thresholds=LIMITS) is state


@pytest.mark.parametrize(
    ("age_s", "turn_s"), [(None, math.inf), (0.0, 3.0), (2.0, 1.0), (3.0, 7.0), (10.0, math.inf)]
)
def test_a_snapshot_is_good_until_silence_counts(age_s: float | None, turn_s: float) -> None:
    """The state does not change before `next_turn_s`, and does then."""
    assert next_turn_s(age_s, LIMITS) == turn_s
    if age_s is None or turn_s == math.inf:
        return
    then = {
        later_s: observed_state(age_s + later_s, libvirt_ok=True, doubtful=False, thresholds=LIMITS)
        for later_s in (0.0, turn_s - 0.001, turn_s)
    }
    assert then[0.0] is then[turn_s - 0.001]
    assert then[0.0] is not then[turn_s]


@pytest.mark.parametrize(("libvirt_ok", "doubtful"), [(False, False), (True, True), (False, True)])
def test_a_host_heard_is_degraded_without_libvirt_or_with_a_doubtful_name(
    libvirt_ok: bool, doubtful: bool
) -> None:
    state = observed_state(1.0, libvirt_ok=libvirt_ok, doubtful=doubtful, thresholds=LIMITS)
    assert state is HostState.DEGRADED


@pytest.mark.parametrize("observed", list(HostState))
def test_only_decisions_override_what_is_seen(observed: HostState) -> None:
    for decided in (HostState.DRAINING, HostState.DRAINED, HostState.OFF):
        assert host_state(observed, decided) is decided
    for nothing in (None, HostState.ONLINE, HostState.UNKNOWN, HostState.SUSPECT):
        assert host_state(observed, nothing) is observed


@pytest.mark.parametrize("limits", [(0.0, 10.0), (11.0, 10.0), (-1.0, 10.0)])
def test_thresholds_that_make_no_sense_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="suspect_after_s"):
        Thresholds(suspect_after_s=limits[0], unreachable_after_s=limits[1])


def test_honest_reports_leave_no_doubt() -> None:
    assert identity_problems({name: host_report(name) for name in ("h1", "h2", "h3")}) == {}
    unknown = {name: replace(host_report(name), node="", boot_id="") for name in ("h1", "h2")}
    assert identity_problems(unknown) == {}, "two that do not say are not the same"


NAMES = ("a", "b", "c")
Step = tuple[str, str, DomainState, bool]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["set", "gone", "beat", "restart", "volume"]),
        st.sampled_from(NAMES),
        st.sampled_from([DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF]),
        st.booleans(),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_is_lost_the_picture_is_right_after_the_next_beat(steps: list[Step]) -> None:
    """A model agent; some of its events get lost; the reader reads the report when `follow` says so."""
    real = dict.fromkeys(NAMES, DomainState.RUNNING)
    stream, seq = "s", 0
    seen = Followed()
    for what, name, state, lost in [*steps, ("beat", "a", DomainState.RUNNING, False)]:
        event = Event(stream=stream, seq=seq + 1, kind="heartbeat")
        match what:
            case "set":
                real[name] = state
                event = replace(event, kind="domain", domain=domain(name, state))
            case "gone":
                real.pop(name, None)
                event = replace(event, kind="domain", domain_gone=f"uuid-{name}")
            case "volume":
                event = replace(event, kind="volume")
            case "restart":
                stream, event = stream + "+", Event(stream=stream + "+", seq=1, kind="hello")
        seq = event.seq
        if lost:
            continue
        seen, missed = follow(seen, event)
        if missed:
            seen = replace(seen, report=host_report("h1", *(domain(n, s) for n, s in real.items())))
        if what == "volume":
            assert missed, "a volume event says only that something changed"
    assert seen.report is not None
    assert {each.name: each.state for each in seen.report.domains} == real


def test_no_read_is_asked_for_while_nothing_is_missed() -> None:
    seen = Followed(stream="s", seq=1, report=host_report("h1"))
    for event in (
        Event(stream="s", seq=2, kind="heartbeat"),
        Event(stream="s", seq=3, kind="domain", domain=domain("a")),
        Event(stream="s", seq=4, kind="attempt"),
        Event(stream="s", seq=9, kind="report", report=host_report("h1", domain("b"))),
        Event(stream="s", seq=10, kind="heartbeat"),
    ):
        seen, missed = follow(seen, event)
        assert not missed, event
    assert seen.report is not None
    assert [each.name for each in seen.report.domains] == ["b"]
    assert follow(seen, Event(stream="s", seq=10, kind="heartbeat"))[1], "twice the same number is a gap too"
