"""The ledger: on disk before it begins, the first outcome for ever, and no stale epoch, whatever dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agents.ledger import DISOWNED, NEVER_BEGUN, DifferentCommandError, Ledger, LedgerError, StaleEpochError
from agents.protocol import (
    AcquireVolumes,
    Attempt,
    AttemptReport,
    CloseWindow,
    Command,
    OpenWindow,
    Outcome,
    PrepareVolumes,
    ReleaseVolumes,
    SweepTarget,
)
from storage.words import DrbdVolume, Handover, Side

REPOSITORY = Path(__file__).resolve().parents[2]


def attempt(number: int, *, epoch: int = 1, uuid: str = "u") -> Attempt:
    return Attempt(operation="op", step="s", attempt=number, epoch=epoch, command=SweepTarget(uuid=uuid))


def ended(number: int, outcome: Outcome = Outcome.DONE) -> AttemptReport:
    return AttemptReport(operation="op", step="s", attempt=number, outcome=outcome, reasons=("because",))


async def test_the_first_outcome_stays(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "l")
    assert (await ledger.admit(attempt(1))).fresh
    assert not (await ledger.admit(attempt(1))).fresh
    await ledger.finish(ended(1))
    await ledger.finish(ended(1, Outcome.FAILED))
    again = await ledger.admit(attempt(1, epoch=2))
    assert (again.fresh, again.report) == (False, ended(1))
    with pytest.raises(DifferentCommandError):
        await ledger.admit(attempt(1, epoch=2, uuid="other"))
    await ledger.close()


async def test_i6_an_attempt_that_comes_after_a_later_one_is_not_begun(tmp_path: Path) -> None:
    """A request that was held back must not open a window that was opened, used and closed since."""
    ledger = await Ledger.open(tmp_path / "l")
    await ledger.admit(attempt(2))
    await ledger.finish(ended(2))
    with pytest.raises(DifferentCommandError, match="comes after attempt 2"):
        await ledger.admit(attempt(1))
    assert not (await ledger.admit(attempt(2))).fresh
    assert (await ledger.admit(attempt(3))).fresh
    await ledger.close()


async def test_i6_an_attempt_that_was_asked_for_before_it_came_is_not_begun(tmp_path: Path) -> None:
    """The daemon has heard that it was never seen, and has gone on."""
    ledger = await Ledger.open(tmp_path / "l")
    assert await ledger.disown("op", "s", 1) is None
    assert await ledger.disown("op", "s", 1) is None
    await ledger.close()
    ledger = await Ledger.open(tmp_path / "l")  # it holds over a restart of the agent
    assert await ledger.running() == []
    late = await ledger.admit(attempt(1))
    assert (late.fresh, late.report.outcome, late.report.reasons) == (False, Outcome.RETRYABLE, (DISOWNED,))
    assert (await ledger.admit(attempt(2))).fresh
    known = await ledger.disown("op", "s", 2)
    assert known is not None
    assert known.outcome is Outcome.RUNNING
    await ledger.close()


@pytest.mark.parametrize(
    ("side", "done", "late", "begins"),
    [
        (Side.SOURCE, "close", "open", False),
        (Side.TARGET, "close", "open", False),
        (Side.TARGET, "release", "acquire", False),
        (Side.TARGET, "release", "prepare", False),
        (Side.TARGET, "leave", "acquire", True),  # of two disks one was at rest, and stays so
        (Side.SOURCE, "release", "acquire", True),  # a cold move that comes home takes its disks back
        (Side.TARGET, "open", "close", True),
        (Side.TARGET, "prepare", "open", True),
    ],
)
async def test_i6_what_was_taken_back_does_not_begin_any_more(
    tmp_path: Path, side: Side, done: str, late: str, begins: bool
) -> None:
    handover = Handover(operation="op", domain_uuid="u", side=side, peer_node="n")
    disk, other = (
        DrbdVolume(resource=name, volume_nr=0, minor=minor, nodes=("n", "m"))
        for minor, name in enumerate(("r0", "r1"))
    )
    commands: dict[str, Command] = {
        "prepare": PrepareVolumes(handover=handover, volumes=(disk, other)),
        "open": OpenWindow(handover=handover, volumes=(disk,)),
        "acquire": AcquireVolumes(handover=handover, volumes=(disk,)),
        "leave": ReleaseVolumes(handover=handover, volumes=(other,)),
        "release": ReleaseVolumes(handover=handover, volumes=(disk, other)),
        "close": CloseWindow(handover=handover, volumes=(disk,), before=()),
    }

    def step(name: str, operation: str = "op") -> Attempt:
        return Attempt(operation=operation, step=name, attempt=1, epoch=1, command=commands[name])

    ledger = await Ledger.open(tmp_path / "l")
    assert (await ledger.admit(step(done))).fresh
    if begins:
        assert (await ledger.admit(step(late))).fresh
    else:
        with pytest.raises(DifferentCommandError, match=f"op/{late}/1 comes after {done}/1"):
            await ledger.admit(step(late))
    assert (await ledger.admit(step(late, "another"))).fresh
    await ledger.close()


async def test_i19_nothing_that_could_be_taken_back_begins_behind_what_is_not_understood(
    tmp_path: Path,
) -> None:
    """Written by a newer agent. What takes something back begins all the same."""
    handover = Handover(operation="op", domain_uuid="u", side=Side.TARGET, peer_node="n")
    ledger = await Ledger.open(tmp_path / "l")
    assert (await ledger.admit(attempt(1))).fresh
    await ledger.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "l")) as database:
        database.execute("update attempts set body = ?", (b'{"command": {"kind": "of-tomorrow"}}',))
        database.commit()
    ledger = await Ledger.open(tmp_path / "l")
    late = OpenWindow(handover=handover, volumes=())
    with pytest.raises(DifferentCommandError, match="op/open/1 comes after one that is not understood"):
        await ledger.admit(Attempt(operation="op", step="open", attempt=1, epoch=1, command=late))
    back = CloseWindow(handover=handover, volumes=(), before=())
    assert (await ledger.admit(Attempt(operation="op", step="close", attempt=1, epoch=1, command=back))).fresh
    await ledger.close()


async def test_i4_epochs_only_grow_and_survive(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "l")
    await ledger.admit(attempt(1, epoch=5))
    for stale in (4, 0, -1):
        with pytest.raises(StaleEpochError):
            await ledger.admit(attempt(2, epoch=stale))
        with pytest.raises(StaleEpochError):
            await ledger.obey(stale)
    assert await ledger.find("op", "s", 2) is None
    await ledger.obey(9)
    await ledger.close()
    ledger = await Ledger.open(tmp_path / "l")
    assert ledger.highest_epoch == 9
    with pytest.raises(StaleEpochError, match="obeys epoch 9"):
        await ledger.admit(attempt(1, epoch=5))
    await ledger.close()


async def test_i20_old_attempts_are_forgotten_and_running_ones_never(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "l", keep_rows=3)
    for number in range(10):
        await ledger.admit(attempt(number))
        if number:  # number 0 never ends
            await ledger.finish(ended(number))
    await ledger.close()
    ledger = await Ledger.open(tmp_path / "l", keep_rows=3)
    kept = [number for number in range(10) if await ledger.find("op", "s", number) is not None]
    assert kept == [0, 7, 8, 9]
    assert [each.attempt for each in await ledger.running()] == [0]
    await ledger.close()
    ledger = await Ledger.open(tmp_path / "l", keep_days=0.0)
    assert [n for n in range(10) if await ledger.find("op", "s", n) is not None] == [0]
    await ledger.close()


async def test_a_full_disk_refuses_new_attempts_and_keeps_the_old(tmp_path: Path) -> None:
    """SQLite's own SQLITE_FULL, provoked by its page limit."""
    ledger = await Ledger.open(tmp_path / "l")
    database = ledger._database
    await ledger._run(lambda: database.execute("pragma max_page_count = 12").fetchone())
    began: list[int] = []

    async def fill() -> None:
        for number in range(5000):
            await ledger.admit(attempt(number, epoch=3, uuid="u" * 500))
            began.append(number)

    with pytest.raises(LedgerError, match="full"):
        await fill()
    assert began
    assert await ledger.find("op", "s", began[-1] + 1) is None
    assert (await ledger.find("op", "s", began[-1])) is not None
    await ledger._run(lambda: database.execute("pragma max_page_count = 100000").fetchone())
    assert (await ledger.admit(attempt(began[-1] + 1, epoch=3))).fresh
    await ledger.close()


async def test_a_ledger_of_a_newer_agent_or_no_ledger_at_all_is_refused(tmp_path: Path) -> None:
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("pragma user_version = 99")
    newer.close()
    (tmp_path / "garbage").write_bytes(b"not a database, not at all" * 100)
    for name in ("newer", "garbage"):
        with pytest.raises(LedgerError):
            await Ledger.open(tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError):
        await Ledger.open(tmp_path / "file" / "ledger")


_WRITER = """
import asyncio, sys
from pathlib import Path
from agents.ledger import Ledger
from tests.agents.test_ledger import attempt, ended

async def main():
    ledger = await Ledger.open(Path(sys.argv[1]))
    for number in range(100000):
        await ledger.admit(attempt(number, epoch=number))
        print("began", number, flush=True)
        if number % 2:
            await ledger.finish(ended(number))
            print("ended", number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.31])
def test_i16_nothing_that_was_answered_is_lost_to_kill_9(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "l"
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert writer.stdout is not None
    said = [writer.stdout.readline().split()]
    time.sleep(seconds)
    writer.send_signal(signal.SIGKILL)
    said += [line.split() for line in writer.stdout.read().splitlines() if len(line.split()) == 2]
    writer.wait(10)
    asyncio.run(_check(path, said))


async def _check(path: Path, said: list[list[str]]) -> None:
    ledger = await Ledger.open(path)
    began = [int(number) for word, number in said if word == "began"]
    assert began
    for number in began:
        assert not (await ledger.admit(attempt(number, epoch=ledger.highest_epoch))).fresh
    for word, number in said:
        found = await ledger.find("op", "s", int(number))
        assert found is not None
        if word == "ended":
            assert found == ended(int(number))
    assert ledger.highest_epoch >= began[-1]
    with pytest.raises(StaleEpochError):
        await ledger.obey(began[-1] - 1)
    await ledger.close()


async def test_i20_a_disk_that_hangs_holds_nobody_up_and_begins_nothing(tmp_path: Path) -> None:
    """A record that gets through after its deadline is ended before anybody can take it for a running one."""
    ledger = await Ledger.open(tmp_path / "l", deadline_s=0.3)
    disk = sqlite3.connect(tmp_path / "l", isolation_level=None)
    disk.execute("begin immediate")  # every write waits from here on
    async with asyncio.timeout(3):
        with pytest.raises(LedgerError, match="no answer in"):
            await ledger.admit(attempt(1))
        with pytest.raises(LedgerError, match="earlier call still hangs"):
            await ledger.obey(5)
    disk.execute("rollback")
    for _ in range(100):
        with contextlib.suppress(LedgerError):
            found = await ledger.find("op", "s", 1)
            break
        await asyncio.sleep(0.1)
    assert found is not None
    assert (found.outcome, found.reasons) == (Outcome.RETRYABLE, (NEVER_BEGUN,))
    assert await ledger.running() == []
    assert not (await ledger.admit(attempt(1))).fresh
    assert (await ledger.admit(attempt(2))).fresh
    disk.close()
    await ledger.close()


async def test_i20_a_call_that_waited_behind_a_hung_one_never_happens(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "l", deadline_s=0.3)
    disk = threading.Event()
    ledger._thread.submit(disk.wait)
    with pytest.raises(LedgerError, match="no answer in"):
        await ledger.obey(7)
    disk.set()
    await ledger.obey(3)  # 7 was never heard
    await ledger.close()


async def test_i20_closing_does_not_wait_for_a_call_that_hangs(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path / "l", deadline_s=0.2)
    disk = threading.Event()
    ledger._thread.submit(disk.wait)
    async with asyncio.timeout(2):
        await ledger.close()
    disk.set()
