"""The looks of the lab tests can fail: each is tried on what DRBD really printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.reading import Look, both_primary, counter, window_open

CAPTURES = Path(__file__).resolve().parents[1] / "storage" / "data" / "drbd84"
WITH_WINDOW = {"dual_primary"}
STATES = sorted(path.name for path in CAPTURES.iterdir() if (path / "show_r0.txt").exists())


@pytest.mark.parametrize("state", STATES)
def test_an_open_window_is_seen_in_what_drbdsetup_prints(state: str) -> None:
    assert window_open((CAPTURES / state / "show_r0.txt").read_text()) == (state in WITH_WINDOW)


@pytest.mark.parametrize("state", STATES)
def test_two_primaries_are_seen_in_proc_drbd(state: str) -> None:
    assert both_primary((CAPTURES / state / "proc_drbd.txt").read_text()) == (state in WITH_WINDOW)


def test_the_flag_is_read_with_and_without_a_tab_and_nothing_else_is_taken_for_it() -> None:
    assert window_open("net {\n        allow-two-primaries\tyes;\n}")
    assert window_open("net {\n        allow-two-primaries yes;\n}")
    assert not window_open("net {\n        allow-two-primaries\tno; # default\n}")
    assert not window_open("# allow-two-primaries\tyes;\n")
    assert not window_open("")


def looked(domains: str = "other", **parts: str) -> str:
    return (
        "".join(f"-- {name}\n{text}\n" for name, text in {"domains": domains, **parts}.items()) + "-- end\n"
    )


SESSION = "tcp: [1] 10.77.1.5:3260,1 iqn.2026-11.org.lab:test.web (non-flash)"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (looked(), []),
        (looked(domains="webber", processes="guest=webber", volumes="webber role:Primary"), []),
        (looked(domains="other\nweb"), ["a definition"]),
        (looked(processes="guest=other\nguest=web"), ["a QEMU"]),
        (looked(sessions=SESSION), ["an iSCSI session"]),
        (looked(sessions=SESSION.replace("web", "webber")), []),
        (looked(volumes="web role:Primary suspended:no\n"), ["its DRBD volume as Primary"]),
        (looked(volumes="web role:Secondary suspended:no\n"), []),
    ],
)
def test_what_is_left_of_a_guest_is_named(text: str, left: list[str]) -> None:
    assert Look(text).left_of("web") == left


@pytest.mark.parametrize("text", ["", "-- domains\nother\n", "-- domains\n-- processes\n-- end\n"])
def test_an_answer_that_is_cut_short_does_not_say_that_nothing_is_left(text: str) -> None:
    with pytest.raises(ValueError, match="cut short"):
        Look(text)


def test_a_guest_runs_where_libvirt_lists_it_as_active() -> None:
    assert Look(looked(domains="web", active="webber\nweb")).runs("web")
    assert not Look(looked(domains="web", active="webber")).runs("web")


def test_a_host_has_a_window_open_by_its_flag_or_by_two_primaries() -> None:
    assert Look(looked(options="net { \n\tallow-two-primaries\tyes;\n}")).window_open()
    assert Look(
        looked(roles=" 0: cs:Connected ro:Primary/Primary ds:UpToDate/UpToDate C r-----")
    ).window_open()
    assert not Look(looked(roles=" 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate")).window_open()


def test_a_counter_is_read_by_its_full_name() -> None:
    text = 'a_total{reason="wrong"} 3.0\na_total{reason="missing"} 1.0\n'
    assert counter(text, 'a_total{reason="wrong"}') == 3
    assert counter(text, "a_total") == 0
