"""A switch-over whose end is not heard of: when the QEMU on the source is told to end (I1, I5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.protocol import DomainState, Observation, Outcome, UndefineDomain
from migrd import saga
from migrd.sagas import migrate
from migrd.sagas.commands import Call, DestroySource, Follow, IllegalEvent, LookAtSwitchOver, SagaCommand
from migrd.sagas.events import (
    EVENT,
    Answered,
    HandingOver,
    Looked,
    Recovered,
    Resumed,
    SwitchOverSeen,
)
from migrd.sagas.migrate_state import MigrateState, Stage
from storage.words import Side
from tests.core.test_saga_table import REQUEST

MIGRATING = MigrateState(
    operation="op-1",
    request=replace(REQUEST, volumes=()),
    stage=Stage.MIGRATE,
    attempts={Stage.MIGRATE: 2},
    migrate_open=True,
)
ORDER = DestroySource(host="h1", step=Stage.MIGRATE, attempt=2)


def observed(
    state: DomainState | None, *, process: bool | None = True, reason: str = "migration"
) -> Observation | None:
    if state is None:
        return None
    return Observation(
        uuid="u",
        state=state,
        reason=reason,
        persistent=True,
        qemu_process=process if state.has_process else False,
        job=True,
        volumes=(),
    )


def seen(source: DomainState | None, target: DomainState | None, *, number: int = 1) -> SwitchOverSeen:
    return SwitchOverSeen(attempt=2, source=observed(source), target=observed(target), number=number)


def step(
    state: MigrateState, *events: HandingOver | SwitchOverSeen
) -> tuple[MigrateState, tuple[SagaCommand, ...]]:
    commands: tuple[SagaCommand, ...] = ()
    for event in events:
        state, commands = migrate.step(state, event)
    return state, commands


def test_a_short_pause_is_a_switch_over_like_any_other() -> None:
    assert step(MIGRATING, HandingOver(paused_s=0.9)) == (MIGRATING, ())


def test_a_long_one_is_looked_at_on_both_hosts_one_look_at_a_time() -> None:
    state, commands = step(MIGRATING, HandingOver(paused_s=1.0))
    assert commands == (LookAtSwitchOver(guest="u", source="h1", target="h2", attempt=2, number=1),)
    assert step(state, HandingOver(paused_s=1.3)) == (state, ()), "one look is under way"
    state, commands = step(state, seen(DomainState.PAUSED, DomainState.PAUSED_INCOMING))
    assert commands == ()
    _, commands = step(state, HandingOver(paused_s=2.0))
    assert isinstance(commands[0], LookAtSwitchOver), "the next word of the pause asks again"


def test_i1_a_target_that_was_seen_to_run_twice_is_the_end_of_the_source() -> None:
    state, commands = step(
        MIGRATING, HandingOver(paused_s=1.0), seen(DomainState.PAUSED, DomainState.RUNNING)
    )
    assert commands == (
        LookAtSwitchOver(guest="u", source="h1", target="h2", attempt=2, number=2, after_s=0.5),
    )
    state, commands = step(state, seen(DomainState.PAUSED, DomainState.RUNNING, number=2))
    assert commands == (ORDER,)
    assert state.source_ended
    assert state.stage is Stage.MIGRATE, (
        "the attempt's own end is waited for, and both hosts are looked at then"
    )


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (DomainState.PAUSED, DomainState.PAUSED_INCOMING),
        (DomainState.PAUSED, DomainState.PAUSED),
        (DomainState.PAUSED, DomainState.ABSENT),
        (DomainState.PAUSED, DomainState.SHUTOFF),
        (DomainState.PAUSED, DomainState.SHUTDOWN),
        (DomainState.PAUSED, DomainState.UNKNOWN),
        (DomainState.PAUSED, None),
        (DomainState.RUNNING, DomainState.RUNNING),
        (DomainState.PAUSED_INCOMING, DomainState.RUNNING),
        (DomainState.ABSENT, DomainState.RUNNING),
        (DomainState.UNKNOWN, DomainState.RUNNING),
        (None, DomainState.RUNNING),
        (None, None),
    ],
)
def test_i5_no_other_pair_ends_anything(source: DomainState | None, target: DomainState | None) -> None:
    state, commands = step(MIGRATING, HandingOver(paused_s=9.0), seen(source, target, number=2))
    assert (state, commands) == (MIGRATING, ())


@pytest.mark.parametrize("process", [False, None])
def test_i19_a_target_whose_process_was_not_seen_does_not_run(process: bool | None) -> None:
    event = replace(
        seen(DomainState.PAUSED, DomainState.RUNNING, number=2),
        target=observed(DomainState.RUNNING, process=process),
    )
    assert step(MIGRATING, event) == (MIGRATING, ())


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (DomainState.PAUSED, "ioerror"),
        (DomainState.PAUSED, "watchdog"),
        (DomainState.SHUTOFF, "shutdown"),
        (DomainState.CRASHED, "crashed"),
    ],
)
def test_i1_a_target_that_has_run_and_no_longer_does_ends_the_source_as_well(
    state: DomainState, reason: str
) -> None:
    """Its disk has gone on since: memory of before the switch-over must not run on it."""
    target = observed(state, process=state is DomainState.PAUSED, reason=reason)
    event = replace(seen(DomainState.PAUSED, DomainState.RUNNING, number=2), target=target)
    assert step(MIGRATING, event)[1] == (ORDER,)


# -- after the order -------------------------------------------------------------------------------

ENDED = replace(MIGRATING, source_ended=True, migrate_open=False, stage=Stage.RECONCILE)


def looked(source: Observation | None, target: Observation | None, *, off: tuple[Side, ...] = ()) -> Looked:
    return Looked(source=source, target=target, off=off)


def left(reason: str = "destroyed") -> Observation | None:
    return observed(DomainState.SHUTOFF, process=False, reason=reason)


def answered(outcome: Outcome, attempt: int = 1) -> Answered:
    return Answered(
        side=Side.SOURCE, step="undefine-source", attempt=attempt, outcome=outcome, reasons=("no",)
    )


def test_the_definition_that_was_left_goes_after_the_commit_point_and_is_told() -> None:
    state, commands = migrate.step(ENDED, looked(left(), observed(DomainState.RUNNING)))
    assert state.committed
    assert [c.command for c in commands if isinstance(c, Call)] == [UndefineDomain(uuid="u")]
    state, _ = migrate.step(state, answered(Outcome.DONE))
    state, _ = migrate.step(state, looked(observed(DomainState.ABSENT), observed(DomainState.RUNNING)))
    assert state.stage is Stage.DONE
    assert "the answer of h2 was lost" in state.reasons[0]


def test_i5_a_guest_that_then_shut_down_on_the_target_is_not_taken_for_one_that_stopped_at_home() -> None:
    state, _ = migrate.step(ENDED, looked(left(), left("shutdown")))
    assert (state.committed, state.stopped, state.going_back) == (True, True, False)
    state, _ = migrate.step(state, answered(Outcome.DONE))
    state, _ = migrate.step(state, looked(observed(DomainState.ABSENT), left("shutdown")))
    assert state.stage is Stage.DONE


@pytest.mark.parametrize("target", [DomainState.ABSENT, DomainState.PAUSED_INCOMING])
def test_i5_a_guest_that_is_nowhere_then_is_never_taken_back(target: DomainState) -> None:
    state, commands = migrate.step(ENDED, looked(left(), observed(target)))
    assert (state.stage, commands) == (Stage.PARKED, ())


def test_a_definition_that_cannot_be_removed_parks_and_is_tried_again() -> None:
    state, _ = migrate.step(ENDED, looked(left(), observed(DomainState.RUNNING)))
    for _ in range(20):
        if state.stage is Stage.PARKED:
            break
        if state.stage is Stage.UNDEFINE_SOURCE:
            state, _ = migrate.step(state, answered(Outcome.REFUSED, state.attempts[Stage.UNDEFINE_SOURCE]))
        else:
            state, _ = migrate.step(state, looked(left(), observed(DomainState.RUNNING)))
    assert (state.stage, state.parked_in) == (Stage.PARKED, Stage.UNDEFINE_SOURCE)
    state, _ = migrate.step(state, Resumed())
    state, commands = migrate.step(state, looked(left(), left("shutdown")))
    assert [c.step for c in commands if isinstance(c, Call)] == [Stage.UNDEFINE_SOURCE]


def test_a_source_without_power_is_waited_for_because_of_its_definition() -> None:
    state, _ = migrate.step(ENDED, looked(None, observed(DomainState.RUNNING), off=(Side.SOURCE,)))
    assert (state.stage, state.waits_for) == (Stage.PARKED, ("h1",))
    assert "its definition may still be on h1" in state.reasons[0]
    state, _ = migrate.step(state, Resumed(by="host-returned"))
    _, commands = migrate.step(state, looked(left("unknown"), observed(DomainState.RUNNING)))
    assert [c.step for c in commands if isinstance(c, Call)] == [Stage.UNDEFINE_SOURCE]


@pytest.mark.parametrize("target", [DomainState.RUNNING, DomainState.PAUSED_INCOMING])
def test_i1_a_switch_over_that_is_seen_while_contact_was_lost_is_followed(target: DomainState) -> None:
    lost = replace(MIGRATING, stage=Stage.RECONCILE)
    state, commands = migrate.step(lost, looked(observed(DomainState.PAUSED), observed(target)))
    assert state.stage is Stage.MIGRATE
    assert isinstance(commands[0], Follow)


def test_what_was_seen_during_an_earlier_attempt_orders_nothing() -> None:
    event = replace(seen(DomainState.PAUSED, DomainState.RUNNING, number=2), attempt=1)
    assert step(MIGRATING, event) == (MIGRATING, ())


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.MIGRATE])
def test_it_is_heard_only_while_a_migrate_attempt_runs(stage: Stage) -> None:
    for event in (HandingOver(paused_s=5.0), seen(DomainState.PAUSED, DomainState.RUNNING, number=2)):
        with pytest.raises(IllegalEvent):
            migrate.step(replace(MIGRATING, stage=stage), event)


def test_the_order_is_journalled_before_it_is_given_and_the_looks_are_not() -> None:
    looking, _ = step(MIGRATING, HandingOver(paused_s=1.0))
    assert saga.only_waits(MIGRATING, looking)
    last = seen(DomainState.PAUSED, DomainState.RUNNING, number=2)
    ordered, _ = step(looking, last)
    assert not saga.only_waits(looking, ordered)
    assert EVENT.validate_json(EVENT.dump_json(last)) == last
    again, _ = step(MIGRATING, last)  # as a fold over the journal has it, where no look was written
    assert again == ordered


def test_an_order_that_may_be_lost_is_repeated_without_a_row_of_its_own() -> None:
    state, _ = step(MIGRATING, seen(DomainState.PAUSED, DomainState.RUNNING, number=2))
    after, commands = step(
        state, HandingOver(paused_s=4.0), seen(DomainState.PAUSED, DomainState.RUNNING, number=2)
    )
    assert commands == (ORDER,)
    assert saga.only_waits(state, after)


def test_a_daemon_that_starts_anew_follows_the_attempt_and_looks_again() -> None:
    looking, _ = step(MIGRATING, HandingOver(paused_s=1.0))
    state, _ = migrate.step(looking, Recovered(epoch=2))
    assert state.stage is Stage.MIGRATE
    _, commands = step(state, HandingOver(paused_s=3.0))
    assert isinstance(commands[0], LookAtSwitchOver)
