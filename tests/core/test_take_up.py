"""A libvirt job that goes on although its attempt is over: who watches it, and who ends it (I7, I16)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.protocol import DomainState, MigrateDomain, Outcome
from migrd.sagas import migrate
from migrd.sagas.commands import Call, SagaCommand
from migrd.sagas.events import Answered, CancelRequested
from migrd.sagas.guest_move import MAX_FAILURES
from migrd.sagas.migrate_state import MigrateState, Stage
from storage.words import Side
from tests.core.test_saga_table import REQUEST, looked

COPIES = looked(DomainState.RUNNING, DomainState.PAUSED_INCOMING, job=True)
GIVEN_UP = MigrateState(
    operation="op-1", request=REQUEST, stage=Stage.RECONCILE, attempts={Stage.PREPARE: 1, Stage.MIGRATE: 1}
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
    for _ in range(MAX_FAILURES):
        state, call, _ = taken_up(state)
        state = given_up_again(state, call)
    state, commands = migrate.step(state, COPIES)
    assert (state.stage, commands) == (Stage.PARKED, ())
    assert state.reasons[-1] == "a job still runs on the guest on h1"


def test_a_job_on_a_guest_that_was_never_migrated_is_left_alone() -> None:
    state, commands = migrate.step(replace(GIVEN_UP, attempts={Stage.PREPARE: 1}), COPIES)
    assert (state.stage, commands) == (Stage.PARKED, ())


def test_one_that_begins_after_all_was_undone_is_not_taken_for_the_end() -> None:
    """The network held the request back."""
    undone = replace(GIVEN_UP, stage=Stage.VERIFY_BACK, going_back=True)
    state, _ = migrate.step(undone, COPIES)
    assert state.stage is Stage.RECONCILE
    assert taken_up(state)[2].unwanted
