"""The demo's verdict: each thing that may go wrong is a fault of its own, and nothing hangs for ever."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from demo_verdict import audit_faults, moves_of, path_of, verdict

DEMO = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "demo"
HOME = "h1"
GOOD = {
    "instances_max": 1,
    "instances_evidence": [],
    "boots": 1,
    "acked": 500,
    "acked_again": 0,
    "heard_twice": 0,
    "missing": 0,
    "reordered": 0,
    "corrupt": 0,
    "memory_faults": 0,
    "probes_answered": 9000,
    "outage_now": False,
    "outage_max_ms": 480.0,
    "ack_gap_max_ms": 700.0,
    "records_per_s": 5,
}
AWAY_AND_BACK = [{"target": "h2"}, {"target": "h1"}]


def report(**changes: Any) -> dict[str, Any]:
    return {"frames_dropped": 0, "probes_unsent": 0, "guests": {"web": {**GOOD, **changes}}}


def faults(moves: list[dict[str, Any]] | None = None, **changes: Any) -> list[str]:
    early = report(acked=485)
    return verdict(HOME, {"web": AWAY_AND_BACK if moves is None else moves}, early, report(**changes))


def test_a_guest_that_noticed_nothing_has_no_fault() -> None:
    assert faults() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"instances_max": 2, "instances_evidence": ["h1, h2"]}, "web ran 2 times at once: h1, h2"),
        ({"instances_max": 0}, "web ran 0 times at once"),
        ({"boots": 2}, "web was started 2 times where 1 was right"),
        ({"boots": 0}, "web was started 0 times where 1 was right"),
        ({"missing": 1}, "web: 500 records acknowledged, 1 of them lost or damaged"),
        ({"reordered": 1}, "web: 500 records acknowledged, 1 of them lost or damaged"),
        ({"corrupt": 1}, "web: 500 records acknowledged, 1 of them lost or damaged"),
        ({"acked_again": 3, "heard_twice": 2}, "web acknowledged 3 records more than once"),
        ({"memory_faults": 4}, "web: 4 pages of its memory lost what was written to them"),
        ({"acked": 485}, "web writes no more records: 485, and some seconds later 485"),
        ({"outage_max_ms": 2000.1}, "web was out of reach for 2000 ms (limit 2000)"),
        ({"outage_now": True}, "web does not answer pings now"),
        ({"ack_gap_max_ms": 5200.1}, "web wrote no record for 5200 ms (limit 5200)"),
        (
            {"probes_answered": 0, "outage_max_ms": 0.0},
            "web never answered a ping, so nothing is known about its outages",
        ),
    ],
)
def test_each_fault_is_found_and_named(changes: dict[str, Any], said: str) -> None:
    assert faults(**changes) == [said]


def test_a_frame_that_the_network_doubled_is_no_fault() -> None:
    assert faults(acked_again=2, heard_twice=2) == []


def test_a_guest_that_was_never_heard_is_no_good_news() -> None:
    silent = {"instances_max": 0, "boots": 0, "acked": 0, "probes_answered": 0, "ack_gap_max_ms": 0.0}
    assert len(faults(**silent, outage_max_ms=0.0)) == 5


@pytest.mark.parametrize(
    ("moves", "path"),
    [
        ([], "h1"),
        ([{"target": "h2"}], "h1 > h2"),
        ([{"target": "h2"}, {"target": "h3"}], "h1 > h2 > h3"),
        ([{"target": "h2"}, {"target": "h3"}, {"target": "h1"}], "h1 > h2 > h3 > h1"),
    ],
)
def test_a_guest_has_to_go_away_once_and_come_back(moves: list[dict[str, Any]], path: str) -> None:
    assert faults(moves) == [f"web did not go away from h1 and come back: {path}"]


def test_an_observer_that_missed_something_cannot_say_that_nothing_happened() -> None:
    late = {**report(), "frames_dropped": 3, "probes_unsent": 2}
    assert audit_faults(["web"], report(acked=1), late) == [
        "the observer lost 3 frames before it could read them",
        "the observer could not send 2 of its probes",
    ]


def test_a_guest_that_is_missing_in_a_report_is_a_fault() -> None:
    nothing = {"frames_dropped": 0, "probes_unsent": 0, "guests": {}}
    assert audit_faults(["web"], report(), nothing) == ["web was not observed"]
    assert audit_faults(["web"], nothing, report()) == ["web was not observed"]


def test_only_completed_moves_count_oldest_first() -> None:
    def row(subject: str, target: str, state: str = "done", kind: str = "migrate") -> dict[str, Any]:
        return {"kind": kind, "state": state, "subject": subject, "target": target}

    newest_first = [
        row("web", "h1"),
        row("web", "h2"),
        row("web", "h3", "undone"),
        row("h1", "", kind="drain"),
    ]
    found = moves_of([*newest_first, row("other", "h2")], ["web", "db"])
    assert [move["target"] for move in found["web"]] == ["h2", "h1"]
    assert found["db"] == []
    assert path_of("h1", found["web"]) == "h1 > h2 > h1"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("demo", str(DEMO))
    spec = importlib.util.spec_from_loader("demo", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    monkeypatch.setattr(module.os, "geteuid", lambda: 0)
    monkeypatch.setattr(module, "show_logs", lambda: None)
    monkeypatch.setattr(module, "lab", lambda *args, **_: None)
    return module


def test_a_story_that_hangs_is_ended_and_taken_down(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(demo, "STORY_LIMIT_S", 0.2)
    monkeypatch.setattr(demo, "play", lambda began: time.sleep(60))
    monkeypatch.setattr(demo, "lab", lambda *args, **_: asked.append(args[0]))
    began = time.monotonic()
    assert demo.main() == 1
    assert time.monotonic() - began < 10
    assert asked == ["down", "down"]
    assert "the story is not over after 0.2 s" in capsys.readouterr().err


def test_all_of_it_takes_at_most_eight_minutes(demo: ModuleType) -> None:
    assert demo.STORY_LIMIT_S + 4 * demo.LOG_LIMIT_S + demo.DOWN_LIMIT_S <= 480


def test_a_lab_that_cannot_be_taken_down_is_a_failure(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def lab(*args: str, **_: Any) -> None:
        calls.append(args[0])
        if len(calls) == 2:
            raise demo.DemoError("`lab down` did not end")

    monkeypatch.setattr(demo, "lab", lab)
    monkeypatch.setattr(demo, "play", lambda began: True)
    assert demo.main() == 1


@pytest.mark.parametrize(("good", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_is_the_verdict(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, good: bool, code: int
) -> None:
    monkeypatch.setattr(demo, "play", lambda began: good)
    assert demo.main() == code
