"""A switch-over whose end is not heard of: when the QEMU on the source is told to end (I1, I5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.protocol import DomainState, Observation
from migrd import saga
from migrd.sagas import migrate
from migrd.sagas.commands import DestroySource, IllegalEvent, LookAtSwitchOver, SagaCommand
from migrd.sagas.events import EVENT, HandingOver, MigrateRequested, Recovered, SwitchOverSeen
from migrd.sagas.migrate_state import MigrateState, Stage

REQUEST = MigrateRequested(
    guest="u",
    name="db",
    source="h1",
    source_node="h1",
    target="h2",
    target_node="h2",
    target_uri="qemu+tls://h2/system",
    target_address="tcp://h2",
    volumes=(),
)
MIGRATING = MigrateState(
    operation="op-1", request=REQUEST, stage=Stage.MIGRATE, attempts={Stage.MIGRATE: 2}, migrate_open=True
)
ORDER = DestroySource(host="h1", step=Stage.MIGRATE, attempt=2)


def observed(state: DomainState | None, *, process: bool | None = True) -> Observation | None:
    if state is None:
        return None
    return Observation(
        uuid="u",
        state=state,
        reason="migration",
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


def test_i19_a_target_whose_process_was_not_seen_does_not_run() -> None:
    event = replace(
        seen(DomainState.PAUSED, DomainState.RUNNING, number=2),
        target=observed(DomainState.RUNNING, process=False),
    )
    assert step(MIGRATING, event) == (MIGRATING, ())


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
