"""A source that loses its power between the switch-over and libvirt's Confirm (I1, I7)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.protocol import DomainState, Observation, Outcome
from migrd.sagas import migrate
from migrd.sagas.commands import Call, SagaCommand
from migrd.sagas.events import Answered, CancelRequested, Looked, Resumed
from migrd.sagas.migrate_moves import MAX_TRIES_BOUND
from migrd.sagas.migrate_state import MigrateState, Stage
from storage.words import Health, Role, Side
from tests.core.test_saga_table import REQUEST, report

MOVED = MigrateState(
    operation="op-1",
    request=REQUEST,
    stage=Stage.RECONCILE,
    attempts=dict.fromkeys((Stage.PREPARE, Stage.OPEN_WINDOW, Stage.ACQUIRE, Stage.MIGRATE), 1),
)
OFF = (Side.SOURCE,)


def seen(state: DomainState, *, generation: str = "one", reason: str = "crashed") -> Observation:
    runs = state.has_process
    role = Role.PRIMARY if runs else Role.SECONDARY
    health = Health.DEGRADED if generation == "three" else Health.OK
    volume = replace(report(role=role), generation=generation, ancestors=("one",), health=health)
    return Observation(
        uuid="u",
        state=state,
        reason=reason,
        persistent=True,
        qemu_process=runs,
        job=False,
        volumes=(volume,),
    )


RUNS = seen(DomainState.RUNNING, generation="two")
LEFT = seen(DomainState.SHUTOFF)
GONE = seen(DomainState.ABSENT)


def looked(source: Observation | None, target: Observation = RUNS, *, number: int = 1) -> Looked:
    return Looked(source=source, target=target, off=() if source else OFF, number=number)


def finish(state: MigrateState, commands: tuple[SagaCommand, ...]) -> tuple[MigrateState, list[str]]:
    """Every call is answered DONE until the saga looks again; what was asked, as "step side"."""
    asked: list[str] = []
    while calls := [each for each in commands if isinstance(each, Call)]:
        asked += [f"{call.step} {call.side}" for call in calls]
        for call in calls:
            done = Answered(side=call.side, step=call.step, attempt=call.attempt, outcome=Outcome.DONE)
            state, commands = migrate.step(state, done)
    return state, asked


def parked() -> MigrateState:
    state, asked = finish(*migrate.step(MOVED, looked(None)))
    assert state.committed, "the guest runs on the target, and nothing of it can run without power"
    assert asked == ["close-window target"]
    state, commands = migrate.step(state, looked(None))
    assert (state.stage, state.waits_for, commands) == (Stage.PARKED, ("h1",), ())
    return state


def test_i1_i15_the_move_waits_for_the_source_and_says_what_may_be_left_there() -> None:
    state = parked()
    assert "definition may still be on h1" in state.reasons[0]
    assert "(I7)" in state.reasons[0], "nobody could compare the copies"
    assert "power h1 on" in state.remedy
    assert "migrctl op cancel op-1" in state.remedy


def test_i1_once_it_answers_its_definition_is_removed_and_the_operator_is_told() -> None:
    state, _ = migrate.step(parked(), Resumed(by="host-returned"))
    state, asked = finish(*migrate.step(state, looked(LEFT)))
    assert asked == ["release source", "close-window source", "close-window target", "undefine-source source"]
    state, _ = migrate.step(state, looked(GONE))
    assert state.stage is Stage.DONE
    assert state.reasons == ("libvirt had left the guest's definition on h1: it was removed there",)


def test_i7_writes_left_on_the_source_alone_are_an_alarm_and_nothing_is_touched_there() -> None:
    state, _ = migrate.step(parked(), Resumed(by="host-returned"))
    newer = seen(DomainState.SHUTOFF, generation="three")
    state, commands = migrate.step(state, looked(newer, number=99))
    assert (state.stage, commands) == (Stage.PARKED, ())
    assert state.reasons[0].startswith("ALARM")


def test_i7_a_source_that_returns_while_the_window_closes_is_compared_as_well() -> None:
    state, _ = finish(*migrate.step(MOVED, looked(None)))
    state, _ = migrate.step(state, looked(seen(DomainState.ABSENT, generation="three")))
    assert state.stage is Stage.RECONCILE, "not done: its copy was not compared"
    state, _ = migrate.step(state, looked(seen(DomainState.ABSENT, generation="three"), number=99))
    assert state.reasons[0].startswith("ALARM")


@pytest.mark.parametrize("before", [LEFT, GONE])
def test_i1_a_definition_that_is_back_at_the_last_look_is_removed_all_the_same(before: Observation) -> None:
    """It was off and on again, and what libvirt unlinked was not yet on its disk."""
    state, _ = finish(*migrate.step(MOVED, looked(before)))
    state, _ = migrate.step(state, looked(LEFT))
    assert state.stage is Stage.RECONCILE
    state, asked = finish(*migrate.step(state, looked(LEFT)))
    assert asked[-1] == "undefine-source source"
    state, _ = migrate.step(state, looked(GONE))
    assert state.stage is Stage.DONE


def test_i20_a_definition_that_never_goes_parks_with_the_command_that_removes_it() -> None:
    state, _ = finish(*migrate.step(MOVED, looked(LEFT)))
    for _ in range(2 * MAX_TRIES_BOUND):
        if state.stage is Stage.PARKED:
            break
        state, _ = finish(*migrate.step(state, looked(LEFT)))
    assert state.stage is Stage.PARKED
    assert "virsh undefine db on h1" in state.remedy


def test_an_operator_ends_a_move_whose_source_never_returns() -> None:
    state, _ = migrate.step(parked(), CancelRequested())
    state, _ = finish(*migrate.step(state, looked(None)))
    state, _ = migrate.step(state, looked(None))
    assert state.stage is Stage.DONE
    assert "definition may still be on h1" in state.reasons[-1]


@pytest.mark.parametrize("target", [DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF])
@pytest.mark.parametrize("off", [OFF, ()], ids=["off", "bmc-dead-too"])
def test_i15_it_ends_so_whatever_the_guest_does_on_the_target_and_the_bmc_says(
    target: DomainState, off: tuple[Side, ...]
) -> None:
    """The machine has left the rack."""
    state, _ = migrate.step(parked(), CancelRequested())
    here = Looked(source=None, target=seen(target, generation="two"), off=off, reasons=("h1 is silent",))
    for _ in range(3):
        if state.stage.ended:
            break
        state, _ = finish(*migrate.step(state, here))
    assert state.stage is Stage.DONE


def test_i16_a_cancel_of_the_drain_is_no_word_about_the_source() -> None:
    """It is repeated when the daemon has died over it."""
    state, _ = migrate.step(parked(), CancelRequested(by="parent"))
    state, _ = finish(*migrate.step(state, looked(None)))
    state, _ = migrate.step(state, looked(None))
    assert state.stage is Stage.PARKED


def test_a_source_that_falls_silent_altogether_is_told_with_the_same_way_out() -> None:
    state, _ = finish(*migrate.step(MOVED, looked(None)))
    silent = Looked(source=None, target=RUNS, reasons=("h1 does not answer",), number=99)
    state, _ = migrate.step(state, silent)
    assert (state.stage, state.waits_for) == (Stage.PARKED, ("h1",))
    assert "migrctl op cancel op-1" in state.remedy
    assert "window" not in " ".join(state.reasons), "it was seen closed"


def test_a_source_that_answers_again_is_not_given_up_whatever_was_said_before() -> None:
    """Its agent is up, its libvirtd not yet: in a minute it can be seen to."""
    state, _ = migrate.step(parked(), CancelRequested())
    boots = replace(seen(DomainState.UNKNOWN), qemu_process=False)
    for number in (1, 2, 3):
        state, _ = migrate.step(state, Looked(source=boots, target=RUNS, number=number))
    assert not state.stage.ended
    state, asked = finish(*migrate.step(state, looked(LEFT)))
    assert asked[-1] == "undefine-source source"


def test_i7_nothing_is_removed_there_before_its_copy_was_compared() -> None:
    """It boots while the window closes: its agent answers, and nobody has looked at its disks yet."""
    state, commands = migrate.step(MOVED, looked(None))
    (call,) = commands
    assert isinstance(call, Call)
    again = Answered(side=Side.TARGET, step=call.step, attempt=call.attempt, outcome=Outcome.RETRYABLE)
    state, _ = migrate.step(state, again)
    flagged = replace(RUNS, volumes=tuple(replace(v, dual_primary_allowed=True) for v in RUNS.volumes))
    silent = Looked(source=None, target=flagged, reasons=("h1 boots",), number=99)
    state, asked = finish(*migrate.step(state, silent))
    assert asked == ["close-window source", "close-window target"]
    state, _ = migrate.step(state, looked(LEFT))
    assert state.stage is Stage.RECONCILE


def test_i15_a_source_that_libvirt_had_confirmed_and_that_never_answers_again_is_given_up_too() -> None:
    state, _ = migrate.step(MOVED, looked(GONE))
    gone = Looked(source=None, target=RUNS, reasons=("h1 does not answer",), number=99)
    lost = replace(state, stage=Stage.RECONCILE, answers=())
    state, _ = migrate.step(lost, gone)
    assert state.stage is Stage.PARKED
    assert "may not have let its disks go" in state.reasons[0]
    state, _ = migrate.step(state, CancelRequested())
    state, _ = migrate.step(state, gone)
    assert state.stage is Stage.DONE


def test_a_cancel_that_came_too_late_is_no_word_about_the_source() -> None:
    state, _ = finish(*migrate.step(replace(MOVED, cancelled=True), looked(None)))
    state, _ = migrate.step(state, looked(None))
    assert state.stage is Stage.PARKED


def test_a_move_that_libvirt_confirmed_does_not_wait_for_a_source_that_dies_later() -> None:
    state, _ = finish(*migrate.step(MOVED, looked(GONE)))
    assert not state.issued(Stage.UNDEFINE_SOURCE)
    state, _ = migrate.step(state, looked(None))
    assert (state.stage, state.reasons) == (Stage.DONE, ())
