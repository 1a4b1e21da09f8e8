"""The moves that every row of the migrate table is made of: enter, look, retry, go back, park."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agents.protocol import MigrateDomain
from migrd.sagas.commands import Abort, Call, Follow, SagaCommand
from migrd.sagas.events import CANCELLED, Answered
from migrd.sagas.guest_move import (
    FINAL,
    MAX_FAILURES,
    MAX_TRIES,
    MAX_TRIES_BOUND,
    REFUSED_TRIES,
    STEP_DEADLINE_S,
    backoff_s,
    look_of,
    remedy_of,
    remedy_of_failure,
    told_with_earlier,
    trouble_of,
)
from migrd.sagas.migrate_state import (
    BACK,
    FORWARD,
    MigrateState,
    Stage,
    command_for,
)
from storage.words import Side

Result = tuple[MigrateState, tuple[SagaCommand, ...]]

ROUNDS_MAX = 12
MIGRATE_GRACE_S = 120.0  # beyond the migration's own deadline: the agent aborts, libvirt cleans up


def enter(state: MigrateState, stage: Stage, after_s: float = 0.0) -> Result:
    """Begin a stage that calls agents, under a new attempt number."""
    attempt = state.attempts.get(stage, 0) + 1
    entered = replace(
        state,
        stage=stage,
        attempts={**state.attempts, stage: attempt},
        answers=(),
        looks=0,
        migrate_open=state.migrate_open or stage is Stage.MIGRATE,
    )
    deadline_s = state.request.deadline_s + MIGRATE_GRACE_S if stage is Stage.MIGRATE else STEP_DEADLINE_S
    calls = tuple(
        Call(
            host=state.host(side),
            side=side,
            step=stage,
            attempt=attempt,
            command=command_for(state, stage, side),
            deadline_s=deadline_s,
            after_s=after_s,
        )
        for side in state.sides(stage)
    )
    return entered, calls


def look(state: MigrateState, stage: Stage, after_s: float = 0.0) -> Result:
    """Begin a stage that observes both hosts."""
    entered = replace(state, stage=stage, looks=1, answers=())
    return entered, (look_of(entered.request, entered.looks, after_s),)


def look_again(state: MigrateState, after_s: float) -> Result:
    """Stay, and look once more after a while. Callers bound it by `state.looks`."""
    again = replace(state, looks=state.looks + 1)
    return again, (look_of(again.request, again.looks, after_s),)


def follow(state: MigrateState, after_s: float) -> Result:
    """Wait for a migrate attempt that was issued before; stop it if this saga goes back."""
    attempt = state.attempts[Stage.MIGRATE]
    waiting = replace(state, stage=Stage.MIGRATE, answers=(), looks=0, back_to=None)
    stay = Follow(
        host=state.request.source,
        side=Side.SOURCE,
        step=Stage.MIGRATE,
        attempt=attempt,
        deadline_s=state.request.deadline_s + MIGRATE_GRACE_S,
        after_s=after_s,
    )
    if state.cancelled or state.going_back:
        return waiting, (Abort(host=stay.host, step=stay.step, attempt=attempt), stay)
    return waiting, (stay,)


def may_take_up(state: MigrateState) -> bool:
    """Is there perhaps a job of ours that nobody watches, and have not too many tried to?"""
    return state.adrift > 0 and state.followers < MAX_TRIES_BOUND


def take_up(state: MigrateState) -> Result:
    """libvirt's job may go on though its attempt ended unknown: an attempt of its own watches it to its end.

    Whoever gave up two of them could not see the job, or could not end it: from then on it is aborted.
    """
    unwanted = state.cancelled or state.going_back or state.adrift > 1
    counted = replace(state, followers=state.followers + 1, back_to=None)
    entered, (call,) = enter(counted, Stage.MIGRATE, backoff_s(state.followers))
    assert isinstance(call, Call)
    assert isinstance(call.command, MigrateDomain)
    return entered, (replace(call, command=replace(call.command, under_way=True, unwanted=unwanted)),)


def advance(state: MigrateState, stage: Stage) -> Result:
    """Enter the next stage forward, unless the operator has asked to go back and it still can."""
    if state.cancelled and not state.committed and not state.going_back:
        return go_back(state, (CANCELLED,))
    return enter(state, stage)


def needed(state: MigrateState, stage: Stage) -> bool:
    """Undo only what may have been done; call no driver for a guest without disks, no host without power."""
    return bool(state.sides(stage)) and _has_work(state, stage)


def _has_work(state: MigrateState, stage: Stage) -> bool:  # noqa: PLR0911 - a table
    match stage:
        case Stage.PREPARE:
            return bool(state.request.volumes)
        case Stage.ACQUIRE | Stage.RELEASE | Stage.RELEASE_TARGET:
            return state.held and state.issued(Stage.PREPARE)
        case Stage.OPEN_WINDOW | Stage.CLOSE_WINDOW:
            return state.windowed
        case Stage.SWEEP:
            return state.issued(Stage.MIGRATE)
        case Stage.UNDEFINE_SOURCE:
            return state.proved and not state.source_clean
        case Stage.CLOSE_BACK:
            return state.issued(Stage.OPEN_WINDOW)
        case _:
            return True


def next_needed(state: MigrateState, order: Sequence[Stage]) -> Result:
    """The first stage of `order` that this guest needs; past the last one, verify."""
    for stage in order:
        if needed(state, stage):
            return advance(state, stage)
    if state.rounds >= ROUNDS_MAX:
        remedy = f"look at both hosts; then migrctl op resume {state.operation}"
        return park(
            state, ("whatever is done, both hosts show something else at the next look",), remedy=remedy
        )
    ended = replace(state, rounds=state.rounds + 1)
    return look(ended, Stage.VERIFY if state.committed else Stage.VERIFY_BACK)


def go_back(state: MigrateState, reasons: tuple[str, ...]) -> Result:
    """Turn round, before the commit point. Reality first: the guest may have moved meanwhile."""
    assert not state.committed, "undo after the commit point"
    turned = replace(state, going_back=True, reasons=reasons, back_to=None, tries=0)
    if not any(state.issued(stage) for stage in FORWARD):
        return replace(turned, stage=Stage.UNDONE), ()
    if turned.migrate_open:
        return follow(turned, 0.0)
    return look(turned, Stage.RECONCILE)


def start_back(state: MigrateState) -> Result:
    """The pair says that the guest is on the source and nothing runs on the target: undo in order."""
    assert not state.committed, "undo after the commit point"
    if not state.going_back:
        reasons = (CANCELLED,) if state.cancelled else state.trouble
        state = replace(state, going_back=True, reasons=reasons)
    return next_needed(replace(state, back_to=None, tries=0), BACK)


def retry(state: MigrateState, failed: Sequence[Answered]) -> Result:
    """Some call did not end as DONE: look at both hosts, then once more, bounded; else back, or park."""
    trouble = trouble_of(failed, state.host)
    state = replace(state, tries=state.tries + 1, failures=state.failures + 1, trouble=trouble)
    forward = state.stage in FORWARD
    final = any(answer.outcome in FINAL for answer in failed)
    lost = state.stage is Stage.MIGRATE and state.migrate_open
    if forward and final and not lost:
        return go_back(state, trouble)
    limit = MAX_TRIES if forward and not lost else REFUSED_TRIES if final else MAX_TRIES_BOUND
    if state.tries >= limit or state.failures >= MAX_FAILURES:
        if forward and not lost:
            return go_back(state, trouble)
        return _give_up(state, failed)
    # Also while the end of a migrate attempt is not known: its host may have lost its power by now.
    back_to = None if lost else state.stage
    return look(replace(state, back_to=back_to), Stage.RECONCILE, backoff_s(state.tries))


def _give_up(state: MigrateState, failed: Sequence[Answered]) -> Result:
    """Nothing that can be done now brings it further."""
    remedy = remedy_of_failure(state.operation, state.request.name, failed, state.host)
    waits_for = tuple(state.host(answer.side) for answer in failed)
    return park(state, state.trouble, remedy=remedy, waits_for=waits_for)


def park(
    state: MigrateState,
    reasons: tuple[str, ...],
    *,
    remedy: str = "",
    waits_for: tuple[str, ...] = (),
    closed: bool = False,
) -> Result:
    """Stop here, and say why and what resolves it (I15). `closed`: the window was seen closed."""
    told = reasons
    if state.window_may_be_open and state.windowed and not closed:
        told = (*reasons, "a dual-primary window of this guest's volumes may still be open")
    parked = replace(
        state,
        stage=Stage.PARKED,
        parked_in=state.stage,
        reasons=told_with_earlier(state.reasons, told, going_back=state.going_back),
        remedy=remedy or remedy_of(state.operation, waits_for),
        waits_for=waits_for,
        answers=(),
    )
    return parked, ()
