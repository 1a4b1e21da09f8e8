"""What random seeds have shown, told as stories: they stay when plans change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from agents.protocol import DomainState
from migrd.engine import Settings
from migrd.model import HostState
from migrd.ports import JournalReadOnly
from migrd.retention import Keep
from storage.errors import Unknown
from tests.core.vloop import run
from tests.sim.converge import converge
from tests.sim.disk import Fault
from tests.sim.quiet import quiet
from tests.sim.sim import Sim
from tests.sim.trace import Happened


def tell(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    quiet()
    run(story())


def state(sim: Sim, operation: str) -> str:
    found = sim.operation(operation)
    return "" if found is None else str(found.state)


async def told(sim: Sim, words: str) -> None:
    """Wait for an event, and be there at once: `until` looks four times a second."""
    found = False
    while not found:
        await asyncio.sleep(0.01)
        found = any(words in f"{each.subject} {each.text}" for each in sim.trace.log)


def three(sim: Sim) -> None:
    for name in ("h1", "h2", "h3"):
        sim.world.add_machine(name)


def test_i12_one_slow_host_does_not_make_the_picture_of_the_others_old() -> None:
    """Seed 111: all hosts were asked at once, one stalled, and what the peer had said grew 8 s old."""

    async def story() -> None:
        async with Sim() as sim:
            three(sim)
            sim.world.add_drbd("g", "h1", "h2")
            await sim.start()
            operation = await sim.drain("h1", power_off=True)
            await sim.until(lambda: sim.where("g") == ["h2"] and not sim.world.machines["h1"].ending)
            sim.stall_agent("h3", 8.0)
            await sim.until(lambda: any("surveyed" in each.text for each in sim.trace.log))
            await sim.pass_time(1.5)
            sim.cut("h2")
            await sim.until(lambda: state(sim, operation) in ("parked", "done"), at_most_s=60)
            assert state(sim, operation) == "parked"
            assert sim.world.machines["h1"].powered

    tell(story)


def test_i7_a_migration_is_aborted_when_its_disk_falls_behind() -> None:
    """DRBD's ping gives up after half a second, the memory stream does not: the copying would go on."""

    async def story() -> None:
        async with Sim(seed=5) as sim:
            three(sim)
            sim.world.add_drbd("g", "h1", "h2")
            await sim.start()
            operation = await sim.migrate("g", "h2")
            await sim.until(lambda: any("incoming QEMU" in each.text for each in sim.trace.log))
            sim.world.cut_replication("h1", "h2")
            sim.at(60.0, sim.heal_link, "h1", "h2")
            await sim.until(lambda: not sim.open_operations(), at_most_s=120)
            assert state(sim, operation) == "undone"
            assert sim.where("g") == ["h1"]
            await converge(sim)
            sim.check_end()

    tell(story)


def test_i15_a_drain_whose_off_was_not_heard_still_moves_what_came_meanwhile() -> None:
    """Seed 30209: once "off" was asked for, resume only checked the power-off again, and parked for ever."""

    async def story() -> None:
        async with Sim() as sim:
            three(sim)
            guest = sim.world.add_iscsi("g", "h2")
            await sim.start()
            sim.bmc("h1", "deaf")
            operation = await sim.drain("h1", power_off=True)
            await sim.until(lambda: state(sim, operation) == "parked")
            sim.world.excused.add(guest.uuid)  # an operator moves it cold, onto the host that will not go off
            sim.world.end_process("h2", guest.uuid, keep=False)
            sim.world.start_by_hand("h1", guest.uuid)
            sim.bmc("h1", "")
            await sim.pass_time(10.0)
            await sim.resume(operation)
            await sim.until(lambda: state(sim, operation) in ("parked", "done"))
            assert state(sim, operation) == "done"
            assert not sim.world.machines["h1"].powered
            assert sim.where("g") in (["h2"], ["h3"])

    tell(story)


def test_i15_a_guest_that_shuts_down_while_it_is_copied_leaves_nothing_on_the_target() -> None:
    """Stateful run: libvirt forgot the incoming QEMU, and neither resume nor cancel ended the parked move."""
    swept: list[Happened] = []

    async def story(seed: int) -> None:
        async with Sim(seed=seed) as sim:
            three(sim)
            sim.world.add_iscsi_qemu("g", "h1")
            await sim.start()
            operation = await sim.migrate("g", "h2")
            await sim.until(lambda: any("incoming QEMU" in each.text for each in sim.trace.log))
            sim.stops_by_itself("g")
            await sim.until(lambda: not sim.open_operations(), at_most_s=120)
            if state(sim, operation) == "undone":
                assert sim.world.machines["h2"].domains == {}
                swept.extend(each for each in sim.trace.log if "(destroyed)" in each.text)
            await converge(sim)
            sim.check_end()

    for seed in range(20):
        tell(partial(story, seed))
    assert swept


def test_i16_a_move_of_the_definition_that_libvirt_still_carries_out_is_not_swept() -> None:
    """Seed 100495: its agent died, the target was swept, and libvirt went on to remove the other one."""
    both: list[int] = []

    async def story(seed: int) -> None:
        async with Sim(seed=seed) as sim:
            three(sim)
            sim.world.add_iscsi_qemu("g", "h1")
            await sim.start()
            operation = await sim.migrate("g", "h2", cold=True)
            await sim.until(lambda: any("offline migration" in each.text for each in sim.trace.log))
            sim.kill_agent("h1")
            sim.at(0.5, sim.start_agent, "h1")
            await sim.cancel(operation)
            await sim.pass_time(4.0)
            if len(sim.world.defined("g")) == 2:
                both.append(seed)
            await sim.until(lambda: not sim.open_operations(), at_most_s=300)
            assert sim.world.defined("g") == sim.where("g") == ["h1"]
            await converge(sim)
            sim.check_end()

    for seed in range(30):
        tell(partial(story, seed))
    assert both


def test_i5_a_guest_that_is_not_up_yet_when_its_agent_dies_is_brought_home_if_it_fails() -> None:
    """libvirt shows a paused QEMU until then; taken for the guest, the move was done and the guest down."""

    async def story(seed: int) -> None:
        async with Sim(seed=seed) as sim:
            three(sim)
            sim.world.add_iscsi("g", "h1")
            sim.boots_not("g", "h2")
            sim.world.boot_s = (3.0, 12.0)
            await sim.start()
            operation = await sim.migrate("g", "h2", cold=True)
            await told(sim, "h2 QEMU of g comes up")
            sim.kill_agent("h2")
            sim.start_agent("h2")
            await sim.until(lambda: not sim.open_operations(), at_most_s=300)
            assert state(sim, operation) == "undone"
            assert sim.where("g") == ["h1"]
            await converge(sim)
            sim.check_end()

    for seed in range(30):
        tell(partial(story, seed))


def test_i5_a_guest_that_ignores_its_power_button_keeps_running_and_one_that_follows_late_runs_again() -> (
    None
):
    """It is asked twice, and never destroyed."""

    async def story(how: str, seed: int) -> None:
        async with Sim(seed=seed) as sim:
            three(sim)
            sim.world.add_drbd("g", "h1", "h2")
            sim.deaf("g", how)
            await sim.start()
            operation = await sim.migrate("g", "h2", cold=True)
            await sim.until(lambda: not sim.open_operations(), at_most_s=400)
            if how == "never":
                assert (state(sim, operation), sim.where("g")) == ("undone", ["h1"])
            if how == "once":
                assert (state(sim, operation), sim.where("g")) == ("done", ["h2"])
            presses = [each for each in sim.trace.log if "power button of g is pressed" in each.text]
            assert len(presses) <= 2
            await converge(sim)
            sim.check_end()

    for seed in range(3):
        for how in ("once", "never", "late"):
            tell(partial(story, how, seed))


def test_i1_a_guest_whose_switch_over_is_not_heard_of_runs_once() -> None:
    """Seen in the lab: libvirt on the source let it run, too. The daemon may even be away for a while."""
    ended: list[Happened] = []

    async def story(seed: int, away_s: float) -> None:
        async with Sim(seed=seed) as sim:
            three(sim)
            sim.world.add_iscsi("g", "h1")
            await sim.start()
            sim.lose_answer("g", 60.0)
            operation = await sim.migrate("g", "h2")
            await told(sim, "g runs here now")
            if away_s:
                sim.kill_daemon()
                sim.at(away_s, sim.start_daemon)
            await sim.pass_time(40.0)
            assert sim.where("g") == ["h2"]
            ended.extend(each for each in sim.trace.log if "ends (destroyed)" in each.text)
            await sim.until(lambda: not sim.open_operations(), at_most_s=300)
            assert state(sim, operation) == "done"
            await converge(sim)
            sim.check_end()

    runs = [(seed, away_s) for seed in range(4) for away_s in (0.0, 2.0, 15.0)]
    for seed, away_s in runs:
        tell(partial(story, seed, away_s))
    assert len(ended) == len(runs)


def test_i1_a_libvirtd_that_dies_in_the_switch_over_is_silent_and_the_guest_runs_once() -> None:
    """Its kernel would close its connections, and libvirt on the source would let the guest run, too."""

    async def story(seed: int) -> None:
        async with Sim(seed=seed) as sim:
            three(sim)
            sim.world.add_drbd("g", "h1", "h2")
            sim.migrations.copy_s[sim.world.guest("g").uuid] = 3.0
            await sim.start()
            sim.libvirtd_dies("g")
            operation = await sim.migrate("g", "h2")
            await told(sim, "h2 libvirtd dies")
            await sim.pass_time(20.0)  # well before libvirt on the source would give up
            assert sim.where("g") == ["h2"]
            assert any("QEMU of g ends (destroyed)" in each.text for each in sim.trace.log)
            await sim.until(lambda: not sim.open_operations(), at_most_s=120)
            assert (state(sim, operation), sim.where("g")) == ("done", ["h2"])
            await converge(sim)
            sim.check_end()

    for seed in range(8):
        tell(partial(story, seed))


def test_i1_if_the_agent_dies_with_that_libvirtd_it_is_told_and_nothing_is_touched() -> None:
    """Two processes of one host within seconds: the guest runs on both, and a person has to decide."""

    async def story(seed: int) -> None:
        async with Sim(seed=seed) as sim:
            three(sim)
            sim.world.add_drbd("g", "h1", "h2")
            sim.migrations.copy_s[sim.world.guest("g").uuid] = 3.0
            await sim.start()
            sim.libvirtd_dies("g")
            operation = await sim.migrate("g", "h2")
            await told(sim, "h2 libvirtd dies")
            sim.kill_agent("h2")
            sim.at(1.0, sim.start_agent, "h2")
            await sim.until(lambda: state(sim, operation) == "parked", at_most_s=120)
            assert sim.where("g") == ["h1", "h2"]
            found = sim.operation(operation)
            assert found is not None
            assert "ALARM" in found.reason
            await converge(sim)
            sim.check_end()

    for seed in range(4):
        tell(partial(story, seed))


def test_i5_a_guest_in_its_switch_over_does_not_wait_for_a_target_that_is_dead() -> None:
    """Seen in the lab: QEMU sat in the kernel for minutes, deaf to libvirt, with the guest paused."""
    cuts: list[Happened] = []

    async def story(seed: int) -> None:
        async with Sim(seed=seed) as sim:
            three(sim)
            sim.world.add_iscsi("g", "h1")
            await sim.start()
            operation = await sim.migrate("g", "h2")
            await told(sim, "pauses for the switch-over")
            sim.cut("h2")
            await sim.pass_time(10.0)
            assert sim.where("g") == ["h1"]
            await sim.until(lambda: not sim.open_operations(), at_most_s=300)
            assert state(sim, operation) == "undone"
            cuts.extend(each for each in sim.trace.log if "Broken pipe" in each.text)
            sim.power_on("h2")
            await converge(sim)
            sim.check_end()

    for seed in range(12):
        tell(partial(story, seed))
    assert cuts


def test_i20_a_journal_whose_disk_hangs_in_the_middle_of_a_drain_is_told_and_writes_no_row_twice() -> None:
    """The row that hangs may be durable all the while, or become so at the end; the daemon may die."""

    async def story(seed: int, killed: bool) -> None:
        async with Sim(seed=seed) as sim:
            three(sim)
            sim.world.add_drbd("g", "h1", "h2")
            sim.world.add_iscsi("w", "h1")
            sim.world.add_iscsi("x", "h3")
            await sim.start()
            operation = await sim.drain("h1")
            await told(sim, "g runs here now")
            sim.disk("migrd", "hang")
            await sim.pass_time(14.0)
            assert sim.controller is not None
            assert any("has not answered for 10 s" in reason for reason in sim.controller.readiness().reasons)
            assert sim.where("g") == ["h2"]
            with pytest.raises(JournalReadOnly, match="has not answered"):
                await sim.migrate("x")
            with pytest.raises(JournalReadOnly, match="has not answered"):
                await sim.cancel(operation)
            if killed:
                sim.kill_daemon()
                sim.at(5.0, sim.start_daemon)
            await sim.pass_time(46.0)
            sim.disk("migrd", "")
            await sim.until(lambda: sim.operations() != () and not sim.open_operations(), at_most_s=120)
            assert state(sim, operation) == "done"
            assert "h1" not in (*sim.where("g"), *sim.where("w"))
            assert sim.controller is not None
            assert sim.controller.readiness().ready
            await converge(sim)
            sim.check_end()

    for seed in range(6):
        for killed in (False, True):
            tell(partial(story, seed, killed))


def test_i16_hosts_and_guests_are_watched_while_the_journal_takes_no_rows() -> None:
    """It is read-only, and what is seen meanwhile is seen: a host that goes, a guest that is paused."""

    async def story(fault: Fault) -> None:
        async with Sim(seed=3) as sim:
            three(sim)
            for name, host in (("g", "h1"), ("x", "h2")):
                sim.world.add_iscsi(name, host)
            await sim.start()
            operation = await sim.migrate("g", "h2")
            await told(sim, "incoming QEMU")
            sim.disk("migrd", fault)
            await sim.until(lambda: sim.controller is not None and not sim.controller.readiness().ready)
            sim.cut("h3")
            sim.suspend("x", 1000.0)
            await sim.pass_time(20.0)
            assert sim.controller is not None
            assert not sim.controller.readiness().ready
            seen = sim.controller.cluster()
            assert seen.hosts["h3"].observed is HostState.UNREACHABLE
            assert {guest.name: guest.state for guest in seen.guests}["x"] is DomainState.PAUSED
            assert state(sim, operation) == "running"
            sim.disk("migrd", "")
            await sim.until(lambda: not sim.open_operations(), at_most_s=120)
            assert (state(sim, operation), sim.where("g")) == ("done", ["h2"])
            await converge(sim)
            sim.check_end()

    for fault in ("full", "io", "hang"):
        tell(partial(story, fault))


def test_i16_killed_around_forgetting_it_forgets_once() -> None:
    """At a transaction that drops, or condenses; and both happen."""
    seen: set[str] = set()

    async def story(number: int, when: str) -> None:
        settings = Settings(keep=Keep(operations=1))
        async with Sim(number, settings, repeat=f"tidying {number} {when}") as sim:
            three(sim)
            sim.world.add_iscsi("g", "h1")
            await sim.start()
            for to in ("h2", "h3", "h1"):
                operation = await sim.migrate("g", to)
                await sim.until(lambda: state(sim, operation) == "done")  # noqa: B023 - of this round
            before = sim.tidyings
            sim.kill_tidying(number, when)
            await sim.until(lambda: sim.daemon.life is None, at_most_s=120)
            assert sim.daemon.life is None, "it never struck"
            assert sim.tidyings == before + number - (when == "before")
            sim.start_daemon()
            await sim.until(lambda: sim.controller is not None)
            await sim.pass_time(40.0)
            assert len(sim.operations()) == 1
            seen.add("dropped" if len(sim.books.states) > 1 else "")
            await converge(sim)
            sim.check_end()

    for number in (1, 2):
        for when in ("before", "after"):
            tell(partial(story, number, when))
    assert seen == {"dropped"}


def test_i20_a_drain_whose_first_row_hangs_is_not_known_to_have_begun_and_begins_once() -> None:
    async def story(seed: int) -> None:
        async with Sim(seed=seed) as sim:
            three(sim)
            sim.world.add_iscsi("g", "h1")
            sim.world.add_iscsi("w", "h2")
            await sim.start()
            sim.disk("migrd", "hang")
            asked_s = sim.trace.now_s
            with pytest.raises(Unknown, match="it may still begin"):
                await sim.drain("h1")
            assert sim.trace.now_s - asked_s < 20.0
            with pytest.raises(JournalReadOnly, match="has not answered"):
                await sim.migrate("w")
            sim.disk("migrd", "")
            await sim.until(lambda: sim.operations() != () and not sim.open_operations(), at_most_s=120)
            assert [state(sim, each.id) for each in sim.operations() if not each.parent] == ["done"]
            assert sim.where("w") == ["h2"]
            await converge(sim)
            sim.check_end()

    for seed in range(4):
        tell(partial(story, seed))


def test_i20_a_wish_that_hangs_is_answered_and_taken_once_it_is_durable() -> None:
    async def story(seed: int) -> None:
        async with Sim(seed=seed) as sim:
            three(sim)
            sim.world.add_iscsi("g", "h1")
            await sim.start()
            operation = await sim.migrate("g", "h2")
            await told(sim, "incoming QEMU")
            sim.disk("migrd", "hang")
            with pytest.raises(Unknown, match=f"{operation} may still take it"):
                await sim.cancel(operation)
            sim.disk("migrd", "")
            await sim.until(lambda: not sim.open_operations(), at_most_s=120)
            taken = [each for each in sim.trace.log if each.kind == "journal" and "cancel-req" in each.text]
            assert len(taken) == 1
            assert (state(sim, operation), *sim.where("g")) in (("undone", "h1"), ("done", "h2"))
            await converge(sim)
            sim.check_end()

    for seed in range(4):
        tell(partial(story, seed))
