"""-o json: exactly one JSON document on stdout, whatever the command and whatever goes wrong."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from migrd.control import DrainRequest
from migrd.model import Plan
from migrd.operations import ClusterEvent, Operation, OperationState
from storage.errors import Refused
from tests.api.scripted import REFUSED, ScriptedControl, drain, move
from tests.cli.conftest import DEADLINE_S, Cli, end

READS = [
    "status",
    "hosts",
    "host show h1",
    "host power h1 status",
    "vms",
    "vm show web",
    "ops",
    "op show op-1",
    "volumes",
    "volume show drbd:web/0",
    "events",
    "events --follow",
]
WORK = [
    "drain h1",
    "drain h1 --dry-run",
    "drain h1 --no-wait",
    "undrain h1",
    "migrate web",
    "migrate web --dry-run",
    "host power h1 on",
    "op cancel op-1",
    "op resume op-1",
    "host add h4 --url https://h4:1",
    "host remove h4",
]
BRIEF = ("--reconnect-s", "0", "-o", "json")


class Slow(ScriptedControl):
    """Plans for as long as the test likes; says when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.planning = asyncio.Event()
        self.go_on = asyncio.Event()

    async def drain(self, host: str, request: DrainRequest) -> Operation:
        self.planning.set()
        await self.go_on.wait()
        return await super().drain(host, request)

    async def plan_drain(self, host: str, request: DrainRequest) -> Plan:
        self.planning.set()
        await self.go_on.wait()
        return await super().plan_drain(host, request)


async def test_with_a_dead_daemon(cli: Cli) -> None:
    await cli.down()
    commands = [*READS, *WORK, "op watch op-1"]
    for command, ended in zip(
        commands, await cli.run_each([*BRIEF, *command.split()] for command in commands), strict=True
    ):
        assert (ended.code, ended.document["type"]) == (4, "unreachable"), command


async def test_with_a_wrong_token(cli: Cli, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-token-0123456789")
    commands = [*READS, *WORK, "op watch op-1"]
    for command, ended in zip(
        commands,
        await cli.run_each([*BRIEF, "--token-file", str(wrong), *command.split()] for command in commands),
        strict=True,
    ):
        assert (ended.code, ended.document["type"]) == (3, "unauthorized"), command


async def test_with_names_that_do_not_exist_and_refusals_and_usage(cli: Cli) -> None:
    unknown = [
        "host show h9",
        "vm show x",
        "op show op-9",
        "op watch op-9",
        "op cancel op-9",
        "volume show x",
    ]
    unknown += ["drain h9", "undrain h9", "migrate x", "host power h9 on", "host power h9 status"]
    unknown += ["vms --host h9"]
    for command, ended in zip(unknown, await cli.run_each(f"{c} -o json" for c in unknown), strict=True):
        assert (ended.code, ended.document["type"]) == (3, "not-found"), command
    cli.control.add(drain("op-1", OperationState.RUNNING))
    cli.control.add(move("op-2", "web", OperationState.RUNNING))
    cli.control.refusal = REFUSED
    refused = ["drain h1", "drain h1 --dry-run", "migrate web", "op cancel op-1", "op resume op-1"]
    for command, ended in zip(refused, await cli.run_each(f"{c} -o json" for c in refused), strict=True):
        assert (ended.code, ended.document["reasons"]) == (3, list(REFUSED.reasons)), command
    usage = ["-o json", "-o json op", "drain -o json", "host power h1 -o json", "ops --limit x -o json"]
    usage += [
        "events -o json --nonsense",
        "-o json --url https://a..b:1 hosts",
        "-o json --url https://[ hosts",
    ]
    for command, ended in zip(usage, await cli.run_each(usage), strict=True):
        assert (ended.code, ended.document["type"]) == (2, "usage"), command
    version = await cli.run("-o", "json", "--version")
    assert (version.code, list(version.document)) == (0, ["version"])


async def test_a_stream_that_breaks_for_good_is_one_array(cli: Cli) -> None:
    """The array has begun, so the error is words on stderr, and the exit code."""
    process = await cli.start(*BRIEF, "events", "--follow")
    assert process.stdout is not None
    head = await asyncio.wait_for(process.stdout.read(1), DEADLINE_S)
    cli.control.live.put_nowait(ClusterEvent(seq=1, at_s=1.0, kind="alert", message="a"))
    head += await asyncio.wait_for(process.stdout.readuntil(b"}"), DEADLINE_S)
    await cli.down()
    ended = await end(process)
    assert [event["seq"] for event in json.loads(head.decode() + ended.out)] == [1]
    assert ended.code == 4
    assert "does not answer" in ended.err


async def test_ctrl_c_before_the_stream_is_open_is_an_empty_array(cli: Cli) -> None:
    await cli.down()
    process = await cli.start("-o", "json", "events", "--follow")
    assert process.stderr is not None
    await asyncio.wait_for(process.stderr.readline(), DEADLINE_S)
    ended = await end(process, interrupt=True)
    assert (ended.code, ended.document) == (0, [])


@pytest.mark.parametrize("json_", [True, False])
async def test_ctrl_c_while_the_daemon_plans_says_that_it_may_have_been_accepted(
    cli: Cli, json_: bool
) -> None:
    slow = Slow()
    object.__setattr__(cli.api, "control", slow)
    slow.add(drain("op-1", OperationState.RUNNING))
    process = await cli.start(*(("-o", "json") if json_ else ()), "drain", "h1")
    await asyncio.wait_for(slow.planning.wait(), DEADLINE_S)
    ended = await end(process, interrupt=True)
    slow.go_on.set()
    assert ended.code == 1
    assert "may have been accepted" in ended.err
    assert "migrctl ops" in ended.err
    if json_:
        assert ended.document["type"] == "interrupted"
        assert "may have been accepted" in ended.document["detail"]
        assert "migrctl ops" in ended.document["reasons"][0]


async def test_ctrl_c_in_a_dry_run_says_that_nothing_was_begun(cli: Cli) -> None:
    slow = Slow()
    object.__setattr__(cli.api, "control", slow)
    process = await cli.start("-o", "json", "drain", "h1", "--dry-run")
    await asyncio.wait_for(slow.planning.wait(), DEADLINE_S)
    ended = await end(process, interrupt=True)
    slow.go_on.set()
    assert (ended.code, ended.document["detail"]) == (1, "interrupted; nothing was begun")


async def test_a_refusal_with_no_reason_text_is_still_a_document(cli: Cli) -> None:
    cli.control.add(drain("op-1", OperationState.RUNNING))
    cli.control.refusal = Refused()
    ended = await cli.run("-o", "json", "drain", "h1")
    assert (ended.code, ended.document["reasons"]) == (3, [])
