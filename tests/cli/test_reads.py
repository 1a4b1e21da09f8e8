"""Commands that look: one JSON document for programs, a table for people."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal

import aiohttp
import pytest

from migrd.control import Readiness
from migrd.operations import ClusterEvent, OperationState
from tests.api.scripted import DB, STEPS, WEB, drain, move
from tests.cli.conftest import DEADLINE_S, Cli, end

READS = {
    "status": "/v1/status",
    "hosts": "/v1/hosts",
    "host show h1": "/v1/hosts/h1",
    "host power h1 status": "/v1/hosts/h1/power",
    "vms": "/v1/vms",
    "vms --host h2": "/v1/vms?host=h2",
    f"vm show {WEB}": f"/v1/vms/{WEB}",
    "ops": "/v1/operations",
    "ops --open": "/v1/operations?open=true",
    "op show op-2": "/v1/operations/op-2",
    "volumes": "/v1/volumes",
    "volume show drbd:web/0": "/v1/volumes/drbd:web/0",
    "events": "/v1/events?follow=false&after=0",
}


@pytest.fixture
def busy(cli: Cli) -> Cli:
    cli.control.add(drain("op-1", OperationState.RUNNING, children=("op-2",), requested_at_s=1e9))
    cli.control.add(move("op-2", "web", OperationState.RUNNING, parent="op-1", steps=STEPS))
    cli.control.kept = [ClusterEvent(seq=4, at_s=1e9, kind="host", message="h3 is suspect", host="h3")]
    return cli


async def test_json_is_one_document_and_what_the_api_says(busy: Cli) -> None:
    ended = await busy.run_each(f"{command} -o json" for command in READS)
    headers = {"Authorization": f"Bearer {busy.api.token.decode()}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        for (command, path), got in zip(READS.items(), ended, strict=True):
            async with http.get(busy.environment["MIGRD_URL"] + path) as answer:
                assert got.document == await answer.json(), command
            assert (got.code, got.err) == (0, ""), command


async def test_the_format_may_stand_in_front_as_well(cli: Cli) -> None:
    assert "hosts" in (await cli.run("-o", "json", "hosts")).document


async def test_tables_say_what_matters(busy: Cli) -> None:
    busy.control.ready = Readiness(ready=False, reasons=("the journal is read-only",))
    parked = move("op-3", "db", OperationState.PARKED, reason="h2 is gone", remedy="migrctl op resume op-3")
    busy.control.add(parked)
    wanted = {
        "status": ["not ready", "! the journal is read-only", "2 online, 1 suspect",
                   "h3: libvirt does not answer", "why:  h2 is gone", "next: migrctl op resume op-3",
                   "op-1 drain h1: running"],
        "hosts": ["h1    online   3       4.0 GiB", "never", "libvirt does not answer"],
        "host show h1": ["4.0 GiB free of 8.0 GiB", "libvirt 9.0, qemu 7.2", "drbd:web/0", "twin"],
        "vms": ["h1 (+ h2)", "moving: op-3", DB],
        "vm show web": ["drbd:web/0", "op-2"],
        "ops": ["2001-09-09 01:46:40", "parked", "h2 is gone"],
        "op show op-1": ["op-1 drain h1: running", "web", "h2"],
        "op show op-2": ["precheck", "done", "part of", "op-1"],
        "volumes": ["syncing", "h1:primary, h2:secondary"],
        "volume show drbd:web/0": ["12% out of sync", "ABCD"],
        "events": ["h3 is suspect"],
        "host power h1 status": ["h1: on"],
    }  # fmt: skip
    ended = await busy.run_each(wanted)
    for (command, words), got in zip(wanted.items(), ended, strict=True):
        assert got.code == 0, got.err
        for word in words:
            assert word in got.out, f"{command}: {word!r} is not in\n{got.out}"


async def test_a_name_cannot_write_on_the_terminal(cli: Cli) -> None:
    cluster = cli.control.snapshot
    evil = tuple(dataclasses.replace(guest, name="\x1b[2J[red]x") for guest in cluster.guests)
    cli.control.snapshot = dataclasses.replace(cluster, guests=evil)
    ended = await cli.run("vms")
    assert "\x1b" not in ended.out
    assert "[2J[red]x" in ended.out


async def test_following_events_as_one_json_array_over_a_restart(cli: Cli) -> None:
    """-o json stays one document: the array is closed at Ctrl-C. A restart of the daemon is bridged."""
    process = await cli.start("events", "--follow", "-o", "json")
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.read(1), DEADLINE_S) == b"["
    first, second = (
        ClusterEvent(seq=seq, at_s=1.0, kind="alert", message=text) for seq, text in ((1, "a"), (2, "b"))
    )
    cli.control.live.put_nowait(first)
    await asyncio.wait_for(process.stdout.readuntil(b"}"), DEADLINE_S)
    await cli.down()
    await cli.up()
    cli.control.kept = [first, second]  # with Last-Event-ID 1 only the second comes again
    line = await asyncio.wait_for(process.stdout.readuntil(b"}"), DEADLINE_S)
    assert json.loads(line.strip(b",\n"))["seq"] == 2
    ended = await end(process, interrupt=True)
    assert (ended.code, ended.out.strip()) == (0, "]")


async def test_following_events_for_people(cli: Cli) -> None:
    process = await cli.start("events", "--follow")
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        while not cli.control.subscribers:  # noqa: ASYNC110 - the scripted one's counter, not an event
            await asyncio.sleep(0.02)
        cli.control.live.put_nowait(ClusterEvent(seq=1, at_s=1e9, kind="alert", message="split brain on web"))
        assert b"2001-09-09 01:46:40 alert     split brain on web" in await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert (await end(process)).code == 0
