"""A guest paused for its switch-over does not wait for a target that is dead; for a slow one it does."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agents.attempts.control import Control
from agents.attempts.migration import Pace, adopt, migrate
from agents.hypervisor.words import Job
from agents.protocol import DomainState, MigrateDomain, MigrationProgress
from agents.streams.words import Stream, asked_in_vain
from storage.errors import Failed, OutcomeError, Unknown
from storage.words import IscsiQemuVolume
from tests.agents.fakes import FakeHypervisor, FakeStreams, running

PORTAL = "10.0.1.12:3260"
COMMAND = MigrateDomain(
    uuid="u",
    target_uri="qemu+tls://h2/system",
    target_address="tcp://10.0.1.12",
    volumes=(IscsiQemuVolume(portal=PORTAL, iqn="iqn.2026-11.org.lab:t1", lun=0),),
)
PACE = Pace(poll_s=0.02, first_poll_s=0.02, settle_s=0.2, figures_s=0.0, switch_over_s=0.2)


def stream(**more: object) -> Stream:
    fields: dict[str, object] = {
        "pid": 7,
        "fd": 20,
        "local": "10.0.1.11:47630",
        "remote": "10.0.1.12:49152",
        "waiting_bytes": 4096,
        "unanswered": 5,
        "unheard_s": 3.2,
    }
    return Stream(**{**fields, **more})  # type: ignore[arg-type]


class Stuck(FakeHypervisor):
    """A migrate call that ends only when its stream is cut."""

    def __init__(self, streams: FakeStreams) -> None:
        super().__init__(running("u"))
        self.broken = asyncio.Event()
        streams.on_cut = self.broken.set

    async def migrate(self, request: object) -> None:
        self.set_state("u", DomainState.PAUSED, "migration")
        await self.broken.wait()
        self.set_state("u", DomainState.RUNNING, "migration canceled")
        raise Failed("libvirt: unable to write to migration stream")


async def outcome(hypervisor: FakeHypervisor, streams: FakeStreams) -> OutcomeError:
    with pytest.raises(OutcomeError) as caught:
        async with asyncio.timeout(5):
            await migrate(COMMAND, hypervisor, {}, streams, control=Control(), pace=PACE)
    return caught.value


async def test_the_stream_to_a_dead_target_is_cut_and_what_follows_is_looked_at() -> None:
    streams = FakeStreams()
    streams.found = (stream(),)
    error = await outcome(Stuck(streams), streams)
    assert isinstance(error, Unknown), "a call that was interfered with proves nothing by itself"
    assert "acknowledged nothing for 3.2 s" in error.reasons[0]
    assert streams.was_cut == ["10.0.1.12:49152"]
    assert streams.asked[0] == ("u", ("10.0.1.12",), (PORTAL,))


@pytest.mark.parametrize(
    "alive",
    [
        stream(unheard_s=0.1),
        stream(unanswered=1),
        stream(unanswered=0),
        stream(waiting_bytes=0),
    ],
)
async def test_a_target_whose_kernel_answers_is_waited_for(alive: Stream) -> None:
    streams = FakeStreams()
    streams.found = (alive,)
    hypervisor = Stuck(streams)
    moving = asyncio.create_task(migrate(COMMAND, hypervisor, {}, streams, control=Control(), pace=PACE))
    await asyncio.sleep(0.6)
    assert streams.asked
    assert streams.was_cut == []
    moving.cancel()
    await asyncio.gather(moving, return_exceptions=True)


@pytest.mark.parametrize(("state", "reason"), [(DomainState.RUNNING, "booted"), (DomainState.PAUSED, "user")])
async def test_nothing_is_cut_while_the_guest_is_not_paused_for_its_switch_over(
    state: DomainState, reason: str
) -> None:
    """A copy that stalls costs nobody anything; a guest that its owner paused waits for nobody."""
    streams = FakeStreams()
    streams.found = (stream(),)
    hypervisor = FakeHypervisor(running("u"))
    hypervisor.set_state("u", state, reason)
    hypervisor.migration_steps, hypervisor.step_s = 30, 0.02
    await migrate(COMMAND, hypervisor, {}, streams, control=Control(), pace=PACE)
    assert streams.asked == []


async def test_connections_that_cannot_be_seen_are_asked_for_again() -> None:
    class Blind(FakeStreams):
        async def to(self, uuid: str, addresses: object, besides: object) -> tuple[Stream, ...]:
            self.asked.append((uuid, (), ()))
            if len(self.asked) < 3:
                raise Unknown("ss did not end within 5 s and was killed")
            if len(self.asked) < 5:
                raise ZeroDivisionError
            return (stream(),)

    streams = Blind()
    await outcome(Stuck(streams), streams)
    assert streams.was_cut == ["10.0.1.12:49152"]


async def test_names_are_resolved_before_they_are_needed_and_portals_are_known_by_address() -> None:
    class Named(FakeStreams):
        names = ("h2", "10.0.1.12"), ("san", "fd00::5")

        def __init__(self) -> None:
            super().__init__()
            self.left = dict(self.names)

        async def addresses(self, host: str) -> frozenset[str]:
            return frozenset({self.left.pop(host)})  # once

    named = replace(
        COMMAND,
        target_address="tcp://h2",
        volumes=(IscsiQemuVolume(portal="san:3260", iqn="iqn.2026-11.org.lab:t1", lun=0),),
    )
    streams = Named()
    streams.found = (stream(),)
    with pytest.raises(Unknown):
        await migrate(named, Stuck(streams), {}, streams, control=Control(), pace=PACE)
    assert streams.asked[0] == ("u", ("10.0.1.12",), ("[fd00::5]:3260",))


async def test_a_connection_that_may_not_be_cut_is_the_reason_that_is_told() -> None:
    class Forbidden(FakeStreams):
        async def cut(self, stream: Stream) -> bool:
            self.was_cut.append(stream.remote)
            if len(self.was_cut) == 2:
                self.on_cut()  # TCP has given up
            raise Failed("the connection to 10.0.1.12:49152 could not be cut: Operation not permitted")

    streams = Forbidden()
    streams.found = (stream(),)
    error = await outcome(Stuck(streams), streams)
    assert isinstance(error, Unknown)
    assert "could not be cut" in error.reasons[0]
    assert "Operation not permitted" in error.reasons[1]


async def test_a_call_that_ends_while_its_connection_is_being_cut_proves_nothing() -> None:
    class Slow(FakeStreams):
        async def cut(self, stream: Stream) -> bool:
            self.on_cut()
            await asyncio.sleep(3600)
            return True

    streams = Slow()
    streams.found = (stream(),)
    assert isinstance(await outcome(Stuck(streams), streams), Unknown)


async def test_an_adopted_migration_is_watched_as_well() -> None:
    streams = FakeStreams()
    streams.found = (stream(),)
    hypervisor = Stuck(streams)
    hypervisor.set_state("u", DomainState.PAUSED, "migration", job=True)
    hypervisor.set_job("u", Job(outgoing=True, progress=MigrationProgress()))
    streams.on_cut = lambda: hypervisor.set_job("u", None)
    with pytest.raises(Unknown) as caught:
        async with asyncio.timeout(5):
            await adopt(COMMAND, hypervisor, {}, streams, control=Control(), pace=PACE, why="taken up")
    assert "the connection was cut" in caught.value.reasons[0]


@pytest.mark.parametrize(
    ("looks", "in_vain_s"),
    [
        ([(10.0, stream(unheard_s=9.0)), (11.0, stream(unheard_s=10.0))], 1.0),
        ([(10.0, stream(unheard_s=9.0)), (11.0, stream(unheard_s=0.5))], 0.0),
        ([(10.0, stream(unanswered=1)), (11.0, stream())], 0.0),
        ([(10.0, stream()), (11.0, stream(remote="10.0.1.12:49153"))], 0.0),
        ([(10.0, stream()), (11.0, stream(waiting_bytes=0)), (12.0, stream())], 0.0),
    ],
)
def test_silence_counts_from_when_it_was_first_seen(
    looks: list[tuple[float, Stream]], in_vain_s: float
) -> None:
    """An idle connection has been silent for long when its first question goes out."""
    since: dict[tuple[str, str], float] = {}
    for now_s, seen in looks:
        since = asked_in_vain(since, [seen], now_s)
    now_s, last = looks[-1]
    assert now_s - since[last.ends] == in_vain_s
