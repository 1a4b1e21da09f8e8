"""Disks with and without faults, against what was acknowledged."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st
from labkit.audit_records import Replica, check_disk, choose_replica, make_record, parse_record

GUEST = "g1"
BOOT_X, BOOT_Y = bytes(range(16)), bytes(range(16, 32))
BOOTS = [BOOT_X.hex(), BOOT_Y.hex()]
SLOTS = 4096


def disk(count: int, boots: dict[int, bytes] | None = None) -> bytearray:
    """A disk of 2 MiB with `count` records; from each number in `boots` on, that boot writes."""
    data, boot = bytearray(SLOTS * 512), BOOT_X
    for seq in range(count):
        boot = (boots or {}).get(seq, boot)
        data[seq * 512 : (seq + 1) * 512] = make_record(GUEST, boot, seq, seq * 1000)
    return data


def acked(count: int, boots: dict[int, int] | None = None) -> array[int]:
    """The first `count` records acknowledged; from each number in `boots` on, by that entry (1 + index)."""
    ledger, entry = array("H", bytes(2 * SLOTS)), 1
    for seq in range(count):
        entry = (boots or {}).get(seq, entry)
        ledger[seq] = entry
    return ledger


def faults(data: bytearray, ledger: array[int]) -> tuple[int, int, int]:
    found = check_disk(bytes(data), GUEST, ledger, BOOTS)
    return found.missing, found.reordered, found.corrupt


def test_a_clean_disk() -> None:
    found = check_disk(bytes(disk(100)), GUEST, acked(100), BOOTS)
    assert (found.records, found.faults, found.last_seq) == (100, 0, 99)


def test_an_empty_disk() -> None:
    assert faults(disk(0), acked(0)) == (0, 0, 0)


def test_acknowledged_and_never_written() -> None:
    assert faults(disk(90), acked(100)) == (10, 0, 0)


def test_a_hole_is_missing_even_if_nobody_heard_its_acknowledgement() -> None:
    data = disk(100)
    data[50 * 512 : 51 * 512] = bytes(512)
    assert faults(data, acked(100)) == (1, 0, 0)
    assert faults(data, acked(0)) == (1, 0, 0)


def test_one_flipped_bit_is_corrupt() -> None:
    data = disk(100)
    data[50 * 512 + 300] ^= 1
    assert faults(data, acked(100)) == (0, 0, 1)


def test_the_record_being_written_is_no_fault_but_an_acknowledged_one_is() -> None:
    data = disk(100)
    data[99 * 512 + 300] ^= 1
    found = check_disk(bytes(data), GUEST, acked(99), BOOTS)
    assert (found.faults, found.torn_tail) == (0, True)
    assert faults(data, acked(100)) == (0, 0, 1)


def test_a_half_written_record_that_is_not_the_last_is_corrupt() -> None:
    data = disk(100)
    data[98 * 512 + 300] ^= 1
    assert faults(data, acked(90)) == (0, 0, 1)


def test_a_record_in_anothers_place() -> None:
    data = disk(100)
    data[10 * 512 : 11 * 512] = data[11 * 512 : 12 * 512]
    assert faults(data, acked(100)) == (0, 1, 0)


def test_another_guests_record() -> None:
    data = disk(100)
    data[10 * 512 : 11 * 512] = make_record("g2", BOOT_X, 10, 10_000)
    assert faults(data, acked(100)) == (0, 1, 0)


def test_a_restart_goes_on_behind_the_last_record() -> None:
    assert faults(disk(100, {60: BOOT_Y}), acked(100, {60: 2})) == (0, 0, 0)


def test_a_stale_replica_that_was_started_from_lost_what_it_overwrote() -> None:
    """Boot X acknowledged 0..79; boot Y found only 60 of them on its replica and wrote on from there."""
    ledger = acked(80)
    assert faults(disk(100, {60: BOOT_Y}), ledger)[0] == 20


def test_two_writers_on_one_disk() -> None:
    data = disk(100, {60: BOOT_Y})
    data[70 * 512 : 71 * 512] = make_record(GUEST, BOOT_X, 70, 70_000)
    assert faults(data, acked(60))[1] == 1


def test_a_record_from_an_earlier_moment_of_the_same_boot() -> None:
    data = disk(100)
    data[70 * 512 : 71 * 512] = make_record(GUEST, BOOT_X, 70, 5)
    assert faults(data, acked(100)) == (0, 1, 0)


@given(st.integers(1, 300), st.data())
def test_every_single_damage_is_counted(count: int, data: st.DataObject) -> None:
    content = disk(count)
    place = data.draw(st.integers(0, count * 512 - 1))
    flip = data.draw(st.integers(1, 255))
    content[place] ^= flip
    assert sum(faults(content, acked(count))) == 1


def test_records_are_found_again() -> None:
    record = parse_record(make_record(GUEST, BOOT_X, 7, 99, size=4096))
    assert record is not None
    assert (record.guest, record.boot, record.seq, record.mono_ns) == (GUEST, BOOT_X.hex(), 7, 99)
    assert parse_record(bytes(512)) is None


def replicas(**contents: int) -> list[Replica]:
    return [
        Replica(f"/{host}", host, check_disk(bytes(disk(count)), GUEST, acked(100), BOOTS))
        for host, count in contents.items()
    ]


def test_the_replica_under_the_guest_counts_however_good_the_other_is() -> None:
    chosen = choose_replica(replicas(h1=100, h2=90), runs_on="h2")
    assert (chosen.host, chosen.check.missing) == ("h2", 10)


def test_the_replica_of_a_host_that_is_off_neither_hides_nor_makes_a_loss() -> None:
    chosen = choose_replica(replicas(h1=40, h2=100), runs_on="h2")
    assert (chosen.host, chosen.check.missing) == ("h2", 0)


def test_without_a_replica_where_the_guest_runs_the_most_complete_one_counts() -> None:
    assert choose_replica(replicas(h1=40, h2=100), runs_on="h3").host == "h2"
    assert choose_replica(replicas(h1=40, h2=100), runs_on=None).host == "h2"
