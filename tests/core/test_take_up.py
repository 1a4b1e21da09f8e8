"""A libvirt job that goes on although its attempt is over: who watches it, and who ends it (I7, I16)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.protocol import DomainState, MigrateDomain, Outcome
from migrd.sagas import migrate
from migrd.sagas.commands import Abort, Call, Look, SagaCommand
from migrd.sagas.events import Answered, CancelRequested
from migrd.sagas.guest_move import MAX_TRIES_BOUND
from migrd.sagas.migrate_state import MigrateState, Stage
from storage.words import Side
from tests.core.test_saga_table import REQUEST, looked

COPIES = looked(DomainState.RUNNING, DomainState.PAUSED_INCOMING, job=True)
GIVEN_UP = MigrateState(
    operation="op-1",
    request=REQUEST,
    stage=Stage.RECONCILE,
    attempts={Stage.PREPARE: 1, Stage.MIGRATE: 1},
    adrift=1,
)


def the_call(commands: tuple[SagaCommand, ...]) -> Call:
    (call,) = commands
    assert isinstance(call, Call)
    return call


def taken_up(state: MigrateState) -> tuple[MigrateState, Call, MigrateDomain]:
    state, commands = migrate.step(state, COPIES)
    call = the_call(commands)
    assert isinstance(call.command, MigrateDomain)
    return state, call, call.command


def given_up_again(state: MigrateState, call: Call) -> MigrateState:
    told = Answered(side=Side.SOURCE, step=call.step, attempt=call.attempt, outcome=Outcome.UNKNOWN)
    return migrate.step(state, told)[0]


def test_i7_it_gets_an_attempt_of_its_own_that_begins_nothing() -> None:
    state, call, command = taken_up(GIVEN_UP)
    assert (state.stage, state.migrate_open) == (Stage.MIGRATE, True)
    assert (call.host, call.step, call.attempt) == ("h1", "migrate", 2)
    assert (command.under_way, command.unwanted) == (True, False)
    assert command.volumes == REQUEST.volumes, "the agent watches the replication of these"


@pytest.mark.parametrize("wish", [{"cancelled": True}, {"going_back": True}])
def test_what_nobody_wants_any_more_is_aborted_by_it(wish: dict[str, bool]) -> None:
    assert taken_up(replace(GIVEN_UP, **wish))[2].unwanted


def test_a_cancel_reaches_it_while_it_is_followed() -> None:
    state, call, _ = taken_up(GIVEN_UP)
    _, (stop,) = migrate.step(state, CancelRequested())
    assert (stop.step, stop.attempt) == (call.step, call.attempt)  # type: ignore[union-attr]


def test_a_job_that_is_lost_sight_of_twice_is_aborted_and_asked_after_less_and_less_often() -> None:
    state, first, _ = taken_up(GIVEN_UP)
    _, second, command = taken_up(given_up_again(state, first))
    assert command.unwanted
    assert second.after_s > first.after_s


def test_i20_one_that_never_ends_parks() -> None:
    state = GIVEN_UP
    for _ in range(MAX_TRIES_BOUND):
        state, call, _ = taken_up(state)
        state = given_up_again(state, call)
    state, _ = migrate.step(state, COPIES)
    assert state.stage is Stage.RECONCILE, "from here on it is only waited for"
    state, commands = migrate.step(state, replace(COPIES, number=9999))
    assert (state.stage, commands) == (Stage.PARKED, ())
    assert state.reasons[-1] == "a job still runs on the guest on h1"


def test_a_job_on_a_guest_that_was_never_migrated_is_left_alone() -> None:
    state, commands = migrate.step(replace(GIVEN_UP, attempts={Stage.PREPARE: 1}, adrift=0), COPIES)
    assert (state.stage, commands) == (Stage.PARKED, ())


def test_one_that_begins_after_all_was_undone_is_not_taken_for_the_end() -> None:
    """The network held the request back: an attempt runs, and hears the abort."""
    undone = replace(GIVEN_UP, stage=Stage.VERIFY_BACK, going_back=True, adrift=0)
    state, _ = migrate.step(undone, COPIES)
    assert state.stage is Stage.RECONCILE
    _, commands = migrate.step(state, COPIES)
    assert [type(each) for each in commands] == [Abort, Look]


def test_a_job_in_the_way_of_a_move_that_was_not_begun_is_waited_for_and_the_move_made_then() -> None:
    """Somebody's backup: the agent answered "another libvirt job runs", so nothing of ours is under way."""
    asked = replace(GIVEN_UP, stage=Stage.MIGRATE, migrate_open=True, adrift=0)
    no = Answered(side=Side.SOURCE, step="migrate", attempt=1, outcome=Outcome.RETRYABLE, reasons=("busy",))
    state, _ = migrate.step(asked, no)
    for number in range(1, 100):
        state, (look,) = migrate.step(state, replace(COPIES, number=number))
        assert isinstance(look, Look)
    state, commands = migrate.step(state, looked(DomainState.RUNNING, DomainState.ABSENT))
    call = the_call(commands)
    assert isinstance(call.command, MigrateDomain)
    assert not call.command.under_way


def test_a_follower_that_the_agent_never_saw_does_not_count_against_the_move() -> None:
    """The daemon died between its row and its request."""
    state, call, _ = taken_up(GIVEN_UP)
    unseen = Answered(side=Side.SOURCE, step=call.step, attempt=call.attempt, outcome=Outcome.RETRYABLE)
    state, _ = migrate.step(state, unseen)
    assert not taken_up(state)[2].unwanted


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.RETRYABLE, Outcome.FAILED, Outcome.UNKNOWN])
def test_i20_whatever_the_agent_says_to_its_followers_there_are_only_a_few(outcome: Outcome) -> None:
    """An agent of before knows none; one whose ledger is full can begin none."""
    state, waited_s = GIVEN_UP, 0.0
    for _ in range(MAX_TRIES_BOUND):
        state, call, _ = taken_up(state)
        waited_s += call.after_s
        told = Answered(
            side=Side.SOURCE, step=call.step, attempt=call.attempt, outcome=outcome, reasons=("x",)
        )
        state, _ = migrate.step(state, told)
    assert waited_s > 60
    state, commands = migrate.step(state, COPIES)
    assert [type(each) for each in commands if not isinstance(each, Abort)] == [Look]
    assert state.stage is Stage.RECONCILE


@pytest.mark.parametrize("target", [DomainState.RUNNING, DomainState.PAUSED_INCOMING])
def test_i1_a_switch_over_that_nobody_follows_is_taken_up_so_that_an_order_can_reach_it(
    target: DomainState,
) -> None:
    state, _ = migrate.step(GIVEN_UP, looked(DomainState.PAUSED, target, job=True))
    assert state.stage in (Stage.RECONCILE, Stage.SETTLE), "perhaps it ends by itself, in a moment"
    state, commands = migrate.step(state, replace(looked(DomainState.PAUSED, target, job=True), number=3))
    call = the_call(commands)
    assert isinstance(call.command, MigrateDomain)
    assert (state.migrate_open, call.command.under_way) == (True, True)
