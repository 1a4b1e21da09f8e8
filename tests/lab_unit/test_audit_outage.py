"""Silences of a guest: what counts as an outage, and how long it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from labkit.audit_outage import INTERVAL_NS, THRESHOLD_NS, GapMeter, OutageMeter

MS = 1_000_000


def answered(*times_ms: float, every_ms: int = INTERVAL_NS // MS) -> OutageMeter:
    meter = OutageMeter(every_ms * MS)
    for time_ms in times_ms:
        meter.answer(int(time_ms * MS))
    return meter


def test_steady_answers_are_no_outage() -> None:
    report = answered(*range(0, 1000, 10)).report(995 * MS)
    assert (report["outage_max_ms"], report["outage_total_ms"], report["outages"]) == (0.0, 0.0, 0)


def test_a_second_of_silence() -> None:
    report = answered(0, 10, 20, 1030, 1040).report(1045 * MS)
    assert report["outage_max_ms"] == 1000.0
    assert report["outages"] == 1


def test_an_observer_that_asks_less_often_takes_no_pause_of_its_own_for_an_outage() -> None:
    assert answered(*range(0, 1000, 50), every_ms=50).report(1049 * MS)["outages"] == 0
    assert answered(0, 50, 1100, every_ms=50).report(1100 * MS)["outage_max_ms"] == 1000.0


def test_silences_up_to_the_threshold_do_not_count() -> None:
    assert answered(0, 60).report(60 * MS)["outages"] == 0
    assert answered(0, 60.1).report(61 * MS)["outages"] == 1


def test_nothing_counts_before_the_first_answer() -> None:
    assert OutageMeter().report(10**12)["outage_total_ms"] == 0.0
    assert answered(5000).report(5001 * MS)["outage_total_ms"] == 0.0


def test_probes_answered_late_in_one_burst_do_not_hide_the_outage() -> None:
    report = answered(0, 10, *([510] * 50), 520).report(525 * MS)
    assert report["outage_max_ms"] == 490.0


def test_a_silence_that_goes_on_is_in_the_figures() -> None:
    report = answered(0, 10).report(2010 * MS)
    assert (report["outage_now"], report["outage_max_ms"], report["outages"]) == (True, 1990.0, 1)


def test_total_is_the_sum_and_the_longest_are_kept_in_order() -> None:
    report = answered(0, 110, 120, 330, 340).report(341 * MS)
    assert report["outage_total_ms"] == 300.0
    assert [one["ms"] for one in report["outages_longest"]] == [200.0, 100.0]


def test_the_observers_own_delay_is_named_with_the_outage_it_falls_into() -> None:
    meter = answered(0, 10)
    meter.late(180 * MS)
    meter.answer(220 * MS)
    meter.late(1 * MS)
    meter.answer(500 * MS)
    longest = meter.report(500 * MS)["outages_longest"]
    assert [(one["ms"], one["probe_late_ms"]) for one in longest] == [(270.0, 1.0), (200.0, 180.0)]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=200))
def test_total_equals_what_is_left_of_every_long_gap(gaps_ms: list[int]) -> None:
    meter, now, expected = OutageMeter(), 0, 0
    meter.answer(0)
    for gap in gaps_ms:
        now += gap * MS
        meter.answer(now)
        length = gap * MS - INTERVAL_NS
        expected += length if length > THRESHOLD_NS else 0
    assert meter.total_ns == expected
    assert len(meter.longest) <= 20


def gaps(*times_ms: int) -> GapMeter:
    meter = GapMeter()
    for time_ms in times_ms:
        meter.record(time_ms * MS)
    return meter


def test_the_longest_time_without_a_record() -> None:
    assert gaps(1000, 1200, 3400, 3600).report(3700 * MS) == {"ack_gap_max_ms": 2200.0, "ack_gap_at": 1.2}


def test_records_that_stop_are_a_gap_that_grows() -> None:
    assert gaps(1000, 1200).report(9200 * MS) == {"ack_gap_max_ms": 8000.0, "ack_gap_at": 1.2}


def test_no_gap_before_the_first_record() -> None:
    assert GapMeter().report(9200 * MS)["ack_gap_max_ms"] == 0.0
    assert gaps(5000).report(5000 * MS)["ack_gap_max_ms"] == 0.0


def test_a_record_that_was_overtaken_does_not_make_a_gap() -> None:
    assert gaps(1000, 1400, 1300, 1600).report(1600 * MS)["ack_gap_max_ms"] == 400.0
