"""I1: the connections over which guests arrive are held while libvirtd could die over them, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from agents.arrivals import (
    HOLD_MAX_S,
    HOLD_S,
    LIST_S,
    Arrivals,
    Holding,
    arrives,
    has_run,
    is_kept,
    libvirt_port,
)
from agents.hypervisor.words import DomainFacts
from agents.protocol import DomainState
from agents.streams.words import Stream
from storage.errors import Failed
from tests.agents.fakes import FakeHypervisor, FakeStreams, running
from tests.core.vloop import run

UUID = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"


def test_where_libvirtd_listens() -> None:
    assert libvirt_port("qemu+tls://h1/system") == 16514
    assert libvirt_port("qemu://h1/system") == 16514
    assert libvirt_port("qemu+tcp://10.0.0.1/system") == 16509
    assert libvirt_port("qemu+tcp://10.0.0.1:7777/system") == 7777
    assert libvirt_port("qemu+ssh://root@h1/system") is None
    assert libvirt_port("qemu+ssh://root@h1:22/system") is None
    assert libvirt_port("qemu+tls://h1:port/system") is None


@pytest.mark.parametrize(
    ("died_s", "needed", "ran", "kept"),
    [
        (None, True, None, True),  # it still arrives, however long that takes
        (None, False, None, False),
        (1000.0, True, None, True),  # dead, and its next life has not spoken
        (1000.0, False, None, True),
        (1000.0, False, True, True),
        (1000.0, True, False, False),
        (1000.0 - HOLD_MAX_S, True, None, False),
        (1000.0 - HOLD_MAX_S, True, True, False),
    ],
)
def test_what_is_kept(died_s: float | None, needed: bool, ran: bool | None, kept: bool) -> None:
    holding = Holding(FakeHeld(), died_s=died_s, has_run=ran)
    assert is_kept(holding, needed=needed, now_s=1000.0) is kept


def test_every_state_says_whether_the_guest_arrives_or_has_run() -> None:
    nothing = (DomainState.ABSENT, DomainState.PAUSED_INCOMING)
    for state in DomainState:
        facts = DomainFacts(uuid=UUID, state=state, reason="unknown")
        if state is DomainState.UNKNOWN:
            assert (arrives(facts), has_run([facts])) == (None, None)
        else:
            assert arrives(facts) is (state is DomainState.PAUSED_INCOMING)
            assert has_run([facts]) is (state not in nothing)
        assert has_run([facts, None]) in (True, None), "nothing is certain while one is not told of"


def test_a_job_of_unknown_kind_beside_a_paused_guest_may_be_its_arrival() -> None:
    facts = DomainFacts(uuid=UUID, state=DomainState.PAUSED, reason="migration", job=True)
    assert (arrives(facts), has_run([facts])) == (None, None)


class FakeHeld:
    def __init__(self) -> None:
        self.is_open = self.lives = True
        self.released = 0

    def open_there(self) -> bool:
        return self.is_open

    def owner_lives(self) -> bool:
        return self.lives

    def let_go(self) -> None:
        self.released += 1


class Listening(FakeStreams):
    """`refused`: the first hold fails."""

    def __init__(self, *remotes: str, refused: bool = False) -> None:
        super().__init__()
        self.remotes = list(remotes)
        self.held: dict[str, FakeHeld] = {}
        self.refused = refused

    async def into(self, port: int) -> tuple[Stream, ...]:
        assert port == 16514
        return tuple(
            Stream(pid=1, fd=1, local="h2:16514", remote=remote, waiting_bytes=0, unanswered=0, unheard_s=0.0)
            for remote in self.remotes
        )

    async def hold(self, stream: Stream) -> FakeHeld:  # type: ignore[override]
        if self.refused:
            self.refused = False
            raise Failed("EPERM")
        self.held[stream.remote] = FakeHeld()
        return self.held[stream.remote]

    def still(self) -> list[str]:
        return [remote for remote, held in self.held.items() if not held.released]


class Here:
    """One host to which guests come. `died()`: libvirtd, whose next life speaks once `trouble` is None."""

    def __init__(self, streams: Listening | None = None) -> None:
        self.hypervisor = FakeHypervisor(running(OTHER))
        self.streams = streams or Listening("h1:5000", "h3:6000")

    def died(self) -> None:
        for held in self.streams.held.values():
            held.lives = False
        self.streams.remotes = []
        self.hypervisor.trouble = "no libvirtd"

    def back(self, state: DomainState) -> None:
        """Its next life has seen to the guest before anybody could hear of it: no event but its coming."""
        self.hypervisor.trouble = None
        self.hypervisor.domains.pop(UUID, None)
        if state is not DomainState.ABSENT:
            facts = replace(running(UUID).facts, state=state)
            self.hypervisor.domains[UUID] = replace(running(UUID), facts=facts)
        self.hypervisor.changes.tell(None)


def story(
    here: Here, *, port: int | None = 16514
) -> Callable[[Callable[[Here], Coroutine[Any, Any, None]]], Here]:
    async def told(tell: Callable[[Here], Coroutine[Any, Any, None]]) -> Here:
        arrivals = Arrivals(here.hypervisor, here.streams, port=port)
        task = asyncio.create_task(arrivals.run())
        await asyncio.sleep(0.1)
        await tell(here)
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.wait([task])
        assert here.streams.still() == []  # the agent's end lets go of everything
        assert all(held.released == 1 for held in here.streams.held.values())
        return here

    return lambda tell: run(told(tell))


def test_an_arrival_is_held_until_well_after_it_is_over() -> None:
    @story(Here())
    async def _(here: Here) -> None:
        here.hypervisor.set_state(OTHER, DomainState.PAUSED, "user")
        await asyncio.sleep(1.0)
        assert here.streams.held == {}
        here.hypervisor.set_state(UUID, DomainState.PAUSED_INCOMING)
        await asyncio.sleep(2 * HOLD_S)  # a big guest
        assert here.streams.still() == ["h1:5000", "h3:6000"]
        here.hypervisor.set_state(UUID, DomainState.RUNNING)
        await asyncio.sleep(1.0)
        assert here.streams.still() == ["h1:5000", "h3:6000"]
        here.streams.held["h1:5000"].is_open = False  # libvirt there has done what it wanted
        await asyncio.sleep(1.0)
        assert here.streams.still() == ["h3:6000"]
        await asyncio.sleep(HOLD_S)
        assert here.streams.still() == []


def test_i1_a_libvirtd_that_dies_is_silent_until_its_next_life_says_that_nothing_runs() -> None:
    @story(Here())
    async def _(here: Here) -> None:
        here.hypervisor.set_state(UUID, DomainState.PAUSED_INCOMING)
        await asyncio.sleep(1.0)
        here.died()
        await asyncio.sleep(5.0)
        assert len(here.streams.still()) == 2
        here.back(DomainState.ABSENT)
        await asyncio.sleep(1.0)
        assert here.streams.still() == []
        here.streams.remotes = ["h1:5001"]  # the move is tried again
        here.hypervisor.set_state(UUID, DomainState.PAUSED_INCOMING)
        await asyncio.sleep(1.0)
        assert here.streams.still() == ["h1:5001"]


@pytest.mark.parametrize(
    "state", [DomainState.RUNNING, DomainState.PAUSED, DomainState.CRASHED, DomainState.SHUTOFF]
)
def test_i1_while_the_guest_has_run_here_it_stays_silent_for_longer_than_a_keepalive(
    state: DomainState,
) -> None:
    @story(Here())
    async def _(here: Here) -> None:
        here.hypervisor.set_state(UUID, DomainState.PAUSED_INCOMING)
        await asyncio.sleep(1.0)
        here.died()
        await asyncio.sleep(3.0)
        here.back(state)
        await asyncio.sleep(2 * HOLD_S)
        assert here.streams.still() == ["h1:5000", "h3:6000"]
        here.streams.held["h1:5000"].is_open = False  # libvirt there has given up, or been told
        await asyncio.sleep(1.0)
        assert here.streams.still() == ["h3:6000"]
        await asyncio.sleep(HOLD_MAX_S)
        assert here.streams.still() == []


def test_a_state_that_libvirt_does_not_tell_is_asked_for_again() -> None:
    @story(Here())
    async def _(here: Here) -> None:
        here.hypervisor.trouble = "busy"
        here.hypervisor.set_state(UUID, DomainState.PAUSED_INCOMING)
        await asyncio.sleep(1.0)
        assert here.streams.held == {}
        here.hypervisor.trouble = None
        await asyncio.sleep(1.0)
        assert len(here.streams.still()) == 2


def test_what_arrives_as_the_agent_starts_is_held_and_one_that_cannot_be_does_not_hinder_the_others() -> None:
    here = Here(Listening("h1:5000", "h3:6000", refused=True))
    here.hypervisor.set_state(UUID, DomainState.PAUSED_INCOMING)

    @story(here)
    async def _(here: Here) -> None:
        assert here.streams.still() == ["h3:6000"]
        here.streams.remotes.append("h4:7000")
        here.hypervisor.set_state(OTHER, DomainState.PAUSED_INCOMING)
        await asyncio.sleep(1.0)
        assert here.streams.still() == ["h3:6000", "h1:5000", "h4:7000"]


def test_an_arrival_that_began_while_libvirt_could_not_be_heard_is_held() -> None:
    @story(Here())
    async def _(here: Here) -> None:
        here.back(DomainState.PAUSED_INCOMING)
        await asyncio.sleep(1.0)
        assert len(here.streams.still()) == 2
        here.back(DomainState.RUNNING)  # and so did its end
        await asyncio.sleep(HOLD_S + 1.0)
        assert here.streams.still() == []


def test_a_hold_that_fails_is_tried_again() -> None:
    @story(Here(Listening("h1:5000", refused=True)))
    async def _(here: Here) -> None:
        here.hypervisor.set_state(UUID, DomainState.PAUSED_INCOMING)
        await asyncio.sleep(LIST_S + 1.0)
        assert here.streams.still() == ["h1:5000"]


def test_a_child_of_libvirtd_that_had_the_connection_for_a_moment_is_not_libvirtd() -> None:
    @story(Here())
    async def _(here: Here) -> None:
        here.hypervisor.set_state(UUID, DomainState.PAUSED_INCOMING)
        await asyncio.sleep(1.0)
        first = dict(here.streams.held)
        for held in first.values():
            held.lives = False  # and the connections are to be seen still
        await asyncio.sleep(1.0)
        assert all(held.released == 1 for held in first.values())
        assert len(here.streams.still()) == 2
        here.died()
        here.back(DomainState.ABSENT)
        await asyncio.sleep(1.0)
        assert here.streams.still() == []


def test_guests_that_ran_here_before_do_not_keep_what_died_with_libvirtd() -> None:
    @story(Here())
    async def _(here: Here) -> None:
        here.hypervisor.set_state(OTHER, DomainState.PAUSED_INCOMING)
        await asyncio.sleep(1.0)
        here.hypervisor.set_state(OTHER, DomainState.RUNNING)
        await asyncio.sleep(30.0)
        here.hypervisor.set_state(UUID, DomainState.PAUSED_INCOMING)
        await asyncio.sleep(1.0)
        here.died()
        here.back(DomainState.ABSENT)
        await asyncio.sleep(1.0)
        assert here.streams.still() == []


def test_a_libvirt_that_is_away_is_complained_of_once() -> None:
    with capture_logs() as said:

        @story(Here())
        async def _(here: Here) -> None:
            here.hypervisor.trouble = "no libvirtd"
            here.hypervisor.changes.tell(None)
            await asyncio.sleep(60.0)

    assert len(said) == 1


def test_without_a_port_of_its_own_nothing_is_held() -> None:
    @story(Here(), port=None)
    async def _(here: Here) -> None:
        here.hypervisor.set_state(UUID, DomainState.PAUSED_INCOMING)
        await asyncio.sleep(1.0)
        assert here.streams.held == {}
