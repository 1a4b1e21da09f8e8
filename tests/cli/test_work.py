"""Commands that ask for work: how they wait, how they end, what they say."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from migrd.api import problems
from migrd.cli.client import READ_ONLY
from migrd.cli.live import numbers
from migrd.control import DrainRequest, MigrateRequest, NotFound
from migrd.host_config import Bmc, HostConfig
from migrd.model import Plan
from migrd.operations import Operation, OperationKind, OperationState
from migrd.ports import JournalReadOnly
from storage.errors import Refused
from tests.api.scripted import BLOCKED, DB, IDLE, REFUSED, TWIN_A, WEB, drain, move, progress
from tests.cli.conftest import DEADLINE_S, Cli, end

DONE, RUNNING, PARKED = OperationState.DONE, OperationState.RUNNING, OperationState.PARKED


def drained(cli: Cli) -> None:
    """A drain that moves web and db within a few looks."""
    kids = ("op-2", "op-3")
    times = {"started_at_s": 10.0, "ended_at_s": 51.0}
    cli.control.add(drain("op-1", RUNNING), *[drain("op-1", RUNNING, children=kids)] * 3,
                    drain("op-1", DONE, children=kids, **times))  # fmt: skip
    copying = move("op-2", "web", RUNNING, parent="op-1", progress=progress(60 << 20))
    cli.control.add(copying, copying, move("op-2", "web", DONE, parent="op-1", downtime_ms=134, started_at_s=10.0, ended_at_s=16.2))  # fmt: skip # noqa: E501
    cli.control.add(move("op-3", "db", OperationState.PENDING, parent="op-1"), move("op-3", "db", DONE, parent="op-1", downtime_ms=90))  # fmt: skip # noqa: E501


async def test_a_drain_is_followed_in_plain_lines_to_its_end(cli: Cli) -> None:
    drained(cli)
    ended = await cli.run("drain", "h1", "--power-off", "--allow-stop", "web", "--allow-stop", DB)
    assert (ended.code, ended.err) == (0, "")
    for line in (
        "op-1 drain h1: running",
        "op-2 migrate web h1 -> h2: running",
        "web: h1 -> h2 done in 6.2 s, downtime 134 ms",
        "op-1 drain h1: done in 41 s, 2 guests moved, longest downtime 134 ms",
    ):
        assert line in ended.out, ended.out
    assert cli.control.asked == [("drain", "h1", DrainRequest(power_off=True, allow_stop=(WEB, DB)))]


async def test_with_json_only_the_ended_operation_is_on_stdout(cli: Cli) -> None:
    drained(cli)
    ended = await cli.run("-o", "json", "drain", "h1")
    assert (ended.code, ended.document["state"]) == (0, "done")
    assert "web: h1 -> h2 done" in ended.err


async def test_progress_bars_on_a_terminal(cli: Cli) -> None:
    drained(cli)
    ended = await cli.on_terminal("drain", "h1")
    assert ended.code == 0
    for words in ("web -> h2", "━", " 40%", "60.0 MiB left, 50.0 MiB/s, dirties 3.0 MiB/s, round 2"):
        assert words in ended.out, ended.out
    assert "web: h1 -> h2 done in 6.2 s, downtime 134 ms" in ended.out


def test_a_guest_that_is_paused_for_its_switch_over_is_told_as_such() -> None:
    paused = replace(progress(0), handing_over_s=2.2)
    assert numbers(move("op-2", "web", RUNNING, progress=paused)) == "paused for its switch-over for 2.2 s"


async def test_ctrl_c_detaches_and_the_operation_goes_on(cli: Cli) -> None:
    cli.control.add(drain("op-1", RUNNING))
    ended = await cli.on_terminal("drain", "h1", interrupt_at="op-1 drain h1: running")
    assert ended.code == 1
    assert "op-1 (drain h1) goes on" in ended.out
    assert "migrctl op watch op-1" in ended.out
    assert "migrctl op cancel op-1" in ended.out
    assert [call[0] for call in cli.control.asked] == ["drain"]


async def test_ctrl_c_with_json_still_prints_one_document(cli: Cli) -> None:
    cli.control.add(move("op-1", "web", RUNNING))
    process = await cli.start("-o", "json", "migrate", "web", "--to", "h2")
    assert process.stderr is not None
    await asyncio.wait_for(process.stderr.readline(), DEADLINE_S)
    ended = await end(process, interrupt=True)
    assert (ended.code, ended.document["state"]) == (1, "running")
    assert "goes on" in ended.err


@pytest.mark.parametrize(
    ("state", "code"),
    [(DONE, 0), (OperationState.UNDONE, 1), (OperationState.FAILED, 1), (PARKED, 5)],
)
async def test_how_it_ended_is_the_exit_code(cli: Cli, state: OperationState, code: int) -> None:
    last = move("op-1", "web", state, reason="h2 is gone", remedy="migrctl op resume op-1")
    cli.control.add(move("op-1", "web", RUNNING), last)
    ended = await cli.run("migrate", "web")
    assert ended.code == code
    assert "why:  h2 is gone" in ended.out
    assert "next: migrctl op resume op-1" in ended.out
    assert cli.control.asked == [("migrate", WEB, MigrateRequest(to=None))]


async def test_cold_is_asked_for_by_name_and_planned_as_such(cli: Cli) -> None:
    cli.control.add(move("op-1", "web", OperationState.DONE))
    cli.control.plan = Plan(host="h1", moves=BLOCKED.moves[:1], stops=(WEB,), estimate_s=33.0)
    planned = await cli.run("migrate", "web", "--cold", "--dry-run")
    ended = await cli.run("migrate", "web", "--cold", "--to", "h2")
    assert planned.code == 0
    assert f"will be shut down, with your consent: {WEB}" in planned.out
    assert ended.code == 0
    assert cli.control.asked == [
        ("plan_migrate", WEB, MigrateRequest(cold=True)),
        ("migrate", WEB, MigrateRequest(to="h2", cold=True)),
    ]


async def test_no_wait_returns_at_once_and_says_how_to_watch(cli: Cli) -> None:
    cli.control.add(move("op-1", "web", OperationState.PENDING))
    text, document = await cli.run_each(["migrate web --no-wait", "migrate web --no-wait -o json"])
    assert (text.code, document.code) == (0, 0)
    assert "migrctl op watch op-1" in text.out
    assert document.document["state"] == "pending"


async def test_a_dry_run_shows_every_move_and_every_blocker(cli: Cli) -> None:
    good = await cli.run("drain", "h1", "--dry-run")
    assert good.code == 0
    assert "2 guests to move, about 10 s; nothing was touched" in good.out
    assert f"stays on h1: idle ({IDLE})" in good.out
    cli.control.plan = BLOCKED
    bad, document = await cli.run_each(["drain h1 --dry-run", "migrate web --dry-run -o json"])
    assert (bad.code, document.code) == (3, 3)
    for words in (
        "web",
        "4.0 s",
        "6.5 s",
        "twin: has the USB device 1d6b:0002",
        "detach it",
        "web to h3: h3 is",
    ):
        assert words in bad.out, bad.out
    assert len(document.document["blockers"]) == 2


async def test_a_full_disk_exits_3_and_says_what_to_do(cli: Cli) -> None:
    """Nothing was begun, so it is a refusal; the daemon takes up work again by itself."""
    assert READ_ONLY == problems.READ_ONLY
    cli.control.add(drain("op-1", OperationState.PENDING))
    cli.control.refusal = JournalReadOnly("the journal cannot be written: database or disk is full")
    text, document = await cli.run_each(["drain h1", "drain h1 -o json"])
    assert (text.code, document.code) == (3, 3)
    assert "nothing new is begun" in text.err
    assert "disk is full" in text.err
    assert "free space" in text.err
    assert document.document["type"] == "journal-read-only"
    assert document.document["status"] == 503


async def test_a_refusal_prints_every_reason_and_exits_3(cli: Cli) -> None:
    cli.control.add(drain("op-1", RUNNING))
    cli.control.refusal = REFUSED
    text, document, twin = await cli.run_each(["drain h1", "drain h1 -o json", "migrate twin"])
    assert (text.code, document.code, twin.code) == (3, 3, 3)
    for reason in REFUSED.reasons:
        assert f"  - {reason}" in text.err
    assert text.out == ""
    assert document.document["reasons"] == list(REFUSED.reasons)
    assert f"  - {TWIN_A} on h1" in twin.err


async def test_cancelling_is_done_when_it_went_back(cli: Cli) -> None:
    cli.control.add(
        move("op-1", "web", OperationState.CANCELLING), move("op-1", "web", OperationState.UNDONE)
    )
    cli.control.add(move("op-2", "db", OperationState.CANCELLING), move("op-2", "db", DONE))
    back, late = await cli.run_each(["op cancel op-1", "op cancel op-2"])
    assert back.code == 0
    assert late.code == 1
    assert "not cancelled" in late.err


async def test_resuming_looks_past_the_state_before(cli: Cli) -> None:
    """The first look after a resume may still find it parked; that is not the end."""
    parked, running, done = (move("op-1", "web", state) for state in (PARKED, RUNNING, DONE))
    cli.control.add(parked, parked, running, done)
    assert (await cli.run("op", "resume", "op-1")).code == 0
    cli.control.add(move("op-2", "web", PARKED))
    assert (await cli.run("op", "resume", "op-2")).code == 5


async def test_a_restart_of_the_daemon_is_bridged(cli: Cli) -> None:
    cli.control.add(drain("op-1", RUNNING))
    process = await cli.start("op", "watch", "op-1")
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)
    await cli.down()
    assert b"goes on" in await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)
    cli.control.add(drain("op-1", DONE))
    await cli.up()
    ended = await end(process)
    assert ended.code == 0
    assert "the daemon answers again" in ended.out


async def test_a_daemon_that_stays_away_is_given_up(cli: Cli) -> None:
    cli.control.add(drain("op-1", RUNNING))
    process = await cli.start("--reconnect-s", "1", "op", "watch", "op-1")
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)
    await cli.down()
    ended = await end(process)
    assert ended.code == 4
    assert "migrctl op watch op-1" in ended.err


async def test_names_that_do_not_exist(cli: Cli) -> None:
    cli.control.refusal = NotFound("no host h9")
    host, operation = await cli.run_each(["drain h9", "op watch op-9"])
    assert (host.code, operation.code) == (3, 3)
    assert "near: " in host.err
    assert "migrctl ops" in operation.err


async def test_power(cli: Cli) -> None:
    pending = OperationState.PENDING
    cli.control.add(Operation(id="op-1", kind=OperationKind.POWER, state=pending, subject="h1"))
    cli.control.refusal = Refused("web runs on h1")
    off, wrong = await cli.run_each(["host power h1 off", "host power h1 cycle"])
    assert (off.code, wrong.code) == (3, 2)
    assert "web runs on h1" in off.err


async def test_hosts_are_added_and_removed(cli: Cli) -> None:
    cli.control.add(Operation(id="op-1", kind=OperationKind.HOST, state=DONE, subject="h4"))
    words = (
        "host add h4 --url https://h4:7443 --bmc-address b4 --bmc-username admin --bmc-password-file /etc/b4"
    )
    words += " --bmc-option cipher=3 --bmc-option privilege=OPERATOR --bmc-deadline-s 5 --bmc-port 624"
    added, removed, plain = await cli.run_each(
        [words, "host remove h4 -o json", "host add h5 --url https://h5:1"]
    )
    assert (added.code, plain.code) == (0, 0), added.err
    assert "h4 is added and followed (op-1)" in added.out
    assert (removed.code, removed.document["kind"]) == (0, "host")
    options = {"cipher": "3", "privilege": "OPERATOR"}
    bmc = Bmc(
        address="b4", user="admin", password_file=Path("/etc/b4"), options=options, deadline_s=5.0, port=624
    )
    asked = dict.fromkeys(["h4", "h5"], HostConfig(agent="https://h5:1"))
    asked["h4"] = HostConfig(agent="https://h4:7443", bmc=bmc)
    wanted = [("add_host", name, host) for name, host in asked.items()] + [("remove_host", "h4")]
    assert sorted(cli.control.asked, key=str) == sorted(wanted, key=str)


async def test_a_host_that_makes_no_sense_is_usage_and_one_that_may_not_go_is_refused(cli: Cli) -> None:
    wrong = ["host add h4", "host add h4 --url http://h4", "host add h4 --url https://h4:1 --bmc-address b4"]
    wrong += [
        "host add h4 --url https://h4:1 --bmc-option cipher --bmc-option level",
        "host remove h4 --force",
    ]
    ended = await cli.run_each(f"{command} -o json" for command in wrong)
    assert [each.code for each in ended] == [2] * 5
    assert ended[1].document["reasons"] == ["agent: must be https://ADDRESS:PORT"]
    assert "bmc.user: required, but missing" in ended[2].document["reasons"]
    assert ended[3].document["detail"].count("must be KEY=VALUE") == 2
    cli.control.add(Operation(id="op-1", kind=OperationKind.HOST, state=DONE, subject="h4"))
    cli.control.refusal = REFUSED
    refused = await cli.run("host", "remove", "h4")
    assert refused.code == 3
    for reason in REFUSED.reasons:
        assert reason in refused.err
