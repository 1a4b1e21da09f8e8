"""What the guest network saw, and how many instances that makes."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from labkit.audit_instances import INFLIGHT_NS, InstanceCounter, Seen, instances_max

MS = 1_000_000
PERIOD = 50 * MS
BOOT_X, BOOT_Y = "aa", "bb"


def run(port: str, boot: str, first_seq: int, count: int, start_ns: int, clock: int = 0) -> list[Seen]:
    """`count` acknowledgements, 50 ms apart; `clock` tells apart two guests that run the same code."""
    return [
        Seen(start_ns + n * PERIOD, port, boot, first_seq + n, clock + start_ns + n * PERIOD)
        for n in range(count)
    ]


def heard(*parts: list[Seen]) -> list[Seen]:
    return sorted((seen for part in parts for seen in part), key=lambda seen: seen.time_ns)


def test_nothing_heard_is_no_instance() -> None:
    assert instances_max([]) == 0


def test_one_guest_on_one_port() -> None:
    assert instances_max(run("h1", BOOT_X, 0, 100, 0)) == 1


def test_a_live_migration_is_one_instance() -> None:
    assert instances_max(heard(run("h1", BOOT_X, 0, 50, 0), run("h2", BOOT_X, 50, 50, 50 * PERIOD))) == 1


def test_there_and_back_is_one_instance() -> None:
    story = [
        run("h1", BOOT_X, 0, 20, 0),
        run("h2", BOOT_X, 20, 20, 20 * PERIOD),
        run("h1", BOOT_X, 40, 20, 40 * PERIOD),
    ]
    assert instances_max(heard(*story)) == 1


def test_lost_acknowledgements_do_not_matter() -> None:
    story = run("h1", BOOT_X, 0, 50, 0)[::3] + run("h2", BOOT_X, 50, 50, 50 * PERIOD)[::4]
    assert instances_max(story) == 1


def test_a_restart_elsewhere_after_a_power_cut_is_one_instance() -> None:
    assert instances_max(heard(run("h1", BOOT_X, 0, 20, 0), run("h2", BOOT_Y, 20, 20, 60 * PERIOD))) == 1


def test_a_frame_overtaken_during_the_handover_is_not_a_second_instance() -> None:
    source = run("h1", BOOT_X, 0, 20, 0)
    target = run("h2", BOOT_X, 20, 20, 20 * PERIOD)
    late = source.pop()
    story = [
        *source,
        target[0],
        Seen(target[0].time_ns + 5 * MS, "h1", BOOT_X, late.seq, late.mono_ns),
        *target[1:],
    ]
    assert instances_max(story) == 1


def test_the_same_frame_heard_twice_is_not_a_second_instance() -> None:
    story = run("h1", BOOT_X, 0, 20, 0)
    assert instances_max([*story, story[-1], *run("h1", BOOT_X, 20, 5, 20 * PERIOD)]) == 1


def test_source_goes_on_after_the_target_was_started() -> None:
    common = run("h1", BOOT_X, 0, 20, 0)
    forked = run("h2", BOOT_X, 20, 20, 20 * PERIOD + 7 * MS, clock=7)
    going_on = run("h1", BOOT_X, 20, 20, 20 * PERIOD)
    assert instances_max(heard(common, forked, going_on)) == 2


def test_two_boots_alternate() -> None:
    assert instances_max(heard(run("h1", BOOT_X, 0, 40, 0), run("h2", BOOT_Y, 10, 20, 10 * PERIOD + MS))) == 2


def test_two_boots_on_one_port() -> None:
    assert instances_max(heard(run("h1", BOOT_X, 0, 40, 0), run("h1", BOOT_Y, 10, 20, 10 * PERIOD + MS))) == 2


def test_a_host_that_comes_back_with_its_old_guest() -> None:
    old = run("h1", BOOT_X, 0, 20, 0)
    new = run("h2", BOOT_Y, 20, 200, 100 * PERIOD)
    returned = run("h1", BOOT_X, 20, 1, 250 * PERIOD)
    assert instances_max(heard(old, new, returned)) == 2


def test_three_at_once() -> None:
    story = [run(f"h{n}", boot, 0, 30, n * MS, clock=n) for n, boot in enumerate((BOOT_X, BOOT_Y, "cc"))]
    assert instances_max(heard(*story)) == 3


def test_memory_that_went_on_twice_counts_even_if_the_first_stopped_at_once() -> None:
    story = [*run("h1", BOOT_X, 0, 21, 0), *run("h2", BOOT_X, 20, 20, 21 * PERIOD + MS, clock=1)]
    assert instances_max(story) == 2


def test_an_overtaken_frame_may_not_be_arbitrarily_late() -> None:
    source = run("h1", BOOT_X, 0, 20, 0)
    del source[15]
    target = run("h2", BOOT_X, 20, 40, 20 * PERIOD)
    stale = Seen(target[0].time_ns + INFLIGHT_NS + PERIOD, "h1", BOOT_X, 15, 1)
    assert instances_max(heard(source, target, [stale])) == 2


@given(st.lists(st.tuples(st.sampled_from(["h1", "h2", "h3"]), st.booleans(), st.booleans()), max_size=300))
def test_whatever_one_instance_does_it_stays_one(steps: list[tuple[str, bool, bool]]) -> None:
    """Moves at any moment, restarts at any moment, acknowledgements lost at any moment."""
    story, boot, now = [], 0, 0
    for seq, (port, restart, lost) in enumerate(steps):
        boot += restart and seq % 7 == 0
        now += PERIOD
        if not lost:
            story.append(Seen(now, port, f"boot{boot}", seq, now))
    assert instances_max(story) == (1 if story else 0)


@given(
    st.integers(0, 60),
    st.integers(2, 40),
    st.integers(1, 49),
    st.lists(st.booleans(), min_size=80, max_size=80),
)
def test_a_fork_is_seen_however_many_acknowledgements_are_lost(
    before: int, both: int, shift_ms: int, lost: list[bool]
) -> None:
    """As long as one record's acknowledgement is heard from both."""
    fork_at = before * PERIOD
    left = run("h1", BOOT_X, before, both, fork_at)
    right = run("h2", BOOT_X, before, both, fork_at + shift_ms * MS, clock=shift_ms)
    kept_left = [seen for seen, gone in zip(left, lost, strict=False) if not gone]
    kept_right = [seen for seen, gone in zip(right, lost[40:], strict=False) if not gone]
    story = heard(run("h1", BOOT_X, 0, before, 0), kept_left, kept_right)
    assume({seen.seq for seen in kept_left} & {seen.seq for seen in kept_right})
    assert instances_max(story) == 2


def test_roll_calls_answered_on_two_ports() -> None:
    counter = InstanceCounter()
    for number in (1, 2):
        counter.roll_call(number, number * 1000 * MS)
        counter.answer(number, number * 1000 * MS + MS, "h1")
        counter.answer(number, number * 1000 * MS + 2 * MS, "h2")
    assert counter.maximum == 2


def test_a_roll_call_that_waited_for_the_migrations_target_is_no_second_instance() -> None:
    counter = InstanceCounter()
    counter.roll_call(1, 0)
    counter.answer(1, MS, "h1")
    counter.answer(1, 300 * MS, "h2")  # the target resumes and answers what waited in its queue
    counter.roll_call(2, 1000 * MS)
    counter.answer(2, 1001 * MS, "h2")
    counter.roll_call(3, 2000 * MS)
    counter.answer(3, 2001 * MS, "h2")
    assert counter.maximum == 1


def test_memory_stays_bounded() -> None:
    counter = InstanceCounter()
    for n in range(20_000):
        counter.add(Seen(n * PERIOD, "h1", f"boot{n // 10}", n, n))
    assert counter.maximum == 1
    assert len(counter._runs) <= 16
    assert all(len(one.recent) <= 256 for one in counter._runs)
