"""The tables: what is not in them is illegal and changes nothing, and every walk through them ends."""

from __future__ import annotations

import random
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.order import overtaken
from agents.protocol import Command, DomainState, Observation, Outcome
from migrd import saga
from migrd.operations import OperationState
from migrd.sagas import drain, migrate, power, undrain
from migrd.sagas.commands import Call, Follow, IllegalEvent, Look, SagaCommand
from migrd.sagas.events import (
    EVENT,
    Admitted,
    Answered,
    CancelRequested,
    ChildEnded,
    Chosen,
    DrainRequested,
    Event,
    HostChecked,
    Looked,
    MovedGuest,
    PowerActed,
    PowerRequested,
    Recovered,
    UndrainRequested,
)
from migrd.sagas.guest_move import MAX_TRIES, REFUSED_TRIES, backoff_s
from migrd.sagas.migrate_state import COMMIT_POINT, MigrateState, Stage
from migrd.sagas.migrate_verdicts import WAIT_LOOKS
from migrd.slots import Caps, Slot, admit
from storage.words import DrbdVolume, Health, Role, Side, VolumeReport
from tests.core.every_event import EVERY_EVENT, LIVE_MOVE

VOLUME = DrbdVolume(resource="r1", volume_nr=0, minor=1, nodes=("h1", "h2"))
REQUEST = replace(LIVE_MOVE, volumes=(VOLUME,))


def report(*, flag: bool = False, role: Role = Role.SECONDARY) -> VolumeReport:
    return VolumeReport(
        volume=VOLUME,
        role=role,
        health=Health.OK,
        identity="gi",
        size_bytes=1,
        dual_primary_allowed=flag,
    )


def seen(state: DomainState, *, job: bool = False, flag: bool = False) -> Observation:
    return Observation(
        uuid="u",
        state=state,
        reason="unknown",
        persistent=True,
        qemu_process=state.has_process,
        job=job,
        volumes=(report(flag=flag, role=Role.PRIMARY if state.has_process else Role.SECONDARY),),
    )


@pytest.mark.parametrize("stage", [stage for stage in Stage if not stage.ended])
def test_every_open_stage_knows_recovery_and_cancel(stage: Stage) -> None:
    """I15, I16: there is no stage in which a daemon may not restart, and none that cannot be cancelled."""
    assert (stage, Recovered) in migrate.TABLE
    assert (stage, CancelRequested) in migrate.TABLE


@pytest.mark.parametrize("phases", [drain, undrain, power], ids=["drain", "undrain", "power"])
def test_every_open_phase_of_the_others_knows_recovery(phases: object) -> None:
    for phase in phases.Phase:  # type: ignore[attr-defined]
        assert phase.ended or (phase, Recovered) in phases.TABLE  # type: ignore[attr-defined]


def test_a_cancel_is_taken_before_the_commit_point_of_a_power_command_and_never_after_it() -> None:
    after = {
        drain: (drain.COMMIT_POINT, drain.Phase.POWER_READ, drain.Phase.POWER_PROBE),
        power: (power.COMMIT_POINT, power.Phase.READ, power.Phase.PROBE),
    }
    before = {
        drain: (drain.Phase.MOVING, drain.Phase.SURVEY, drain.Phase.POWER_CHECK),
        power: (power.Phase.CHECK,),
    }
    request = DrainRequested(host="h1", power_off=True)
    for phase in before[drain]:
        state, _ = drain.step(
            replace(drain.begin("op", request)[0], phase=phase, guests={}), CancelRequested()
        )
        assert state.phase is drain.Phase.UNDONE
    for phase in after[drain]:
        with pytest.raises(IllegalEvent):
            drain.step(replace(drain.begin("op", request)[0], phase=phase), CancelRequested())
    off, _ = power.begin("op", PowerRequested(host="h1", action="off"))
    for phase in before[power]:
        assert power.step(replace(off, phase=phase), CancelRequested())[0].phase is power.Phase.UNDONE
    for phase in after[power]:
        with pytest.raises(IllegalEvent):
            power.step(replace(off, phase=phase), CancelRequested())


def test_a_host_that_takes_guests_again_keeps_doing_so_when_its_undrain_is_cancelled() -> None:
    request = UndrainRequested(host="h1", drain="op-1", power_on=False)
    waiting, _ = undrain.begin("op", request)
    assert not undrain.step(waiting, CancelRequested())[0].usable
    moved = replace(request, restore=(MovedGuest(guest="u", name="db", now_on="h2"),))
    restoring, _ = undrain.step(undrain.begin("op", moved)[0], HostChecked(reasons=()))
    assert restoring.phase is undrain.COMMIT_POINT
    assert undrain.step(restoring, CancelRequested())[0].usable


@pytest.mark.parametrize(
    "phase", [phase for phase in undrain.Phase if not phase.ended and phase is not undrain.COMMIT_POINT]
)
def test_an_undrain_is_cancelled_at_every_moment_before_its_host_takes_guests(phase: undrain.Phase) -> None:
    """While a BMC is asked, its answer is waited for: it may take a minute, and then nothing follows it."""
    request = UndrainRequested(host="h1", drain="op-1", power_on=True)
    state = replace(undrain.begin("op", request)[0], phase=phase)
    state, _ = undrain.step(state, CancelRequested())
    if phase is undrain.Phase.POWER_ON:
        assert undrain.step(state, Recovered(epoch=2))[0].phase is undrain.Phase.UNDONE
        state, commands = undrain.step(state, PowerActed(action="on", reason=""))
        assert commands == ()
        assert "h1 may have been switched on" in state.reasons[-1]
    assert state.phase is undrain.Phase.UNDONE


def test_an_answer_to_another_question_is_illegal() -> None:
    state, _ = migrate.step(migrate.begin("op", REQUEST), Admitted())
    state, _ = migrate.step(state, looked(DomainState.RUNNING, DomainState.ABSENT))
    assert state.stage is Stage.PREPARE
    good = Answered(side=Side.SOURCE, step="prepare", attempt=1, outcome=Outcome.DONE, volumes=(report(),))
    state, _ = migrate.step(state, good)
    for wrong in (
        good,  # a second time
        replace(good, attempt=2, side=Side.TARGET),
        replace(good, step="acquire", side=Side.TARGET),
    ):
        with pytest.raises(IllegalEvent):
            migrate.step(state, wrong)


def looked(source: DomainState, target: DomainState, *, job: bool = False) -> Looked:
    return Looked(source=seen(source, job=job), target=seen(target))


def test_the_commit_point_is_the_only_way_past_and_there_is_no_way_back() -> None:
    state = replace(migrate.begin("op", REQUEST), stage=Stage.RECONCILE, attempts={Stage.MIGRATE: 1})
    for source in DomainState:
        for target in DomainState:
            after, _ = migrate.step(state, looked(source, target))
            if after.committed:
                assert not source.has_process
                assert COMMIT_POINT == "moved"
            committed = replace(state, committed=True)
            after, commands = migrate.step(committed, looked(source, target))
            assert not after.going_back
            assert not any(isinstance(c, Call) and c.step in ("sweep", "release-target") for c in commands)


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.OPEN_WINDOW, Stage.ACQUIRE])
def test_a_stage_is_not_tried_again_on_a_target_without_power(stage: Stage) -> None:
    """It would ask nobody, and wait for an answer that never comes (I15)."""
    state = replace(
        MigrateState(operation="op-1", request=REQUEST),
        stage=Stage.RECONCILE,
        back_to=stage,
        attempts=dict.fromkeys((Stage.PREPARE, Stage.OPEN_WINDOW, Stage.ACQUIRE), 1),
        tries=1,
        trouble=("h2: Connection timed out",),
    )
    look = Looked(source=seen(DomainState.RUNNING), target=None, off=(Side.TARGET,))
    after, commands = saga.step(state, look)
    assert isinstance(after, MigrateState)
    assert after.going_back
    assert commands


def test_two_running_instances_are_an_alarm_only_if_they_stay() -> None:
    """The hosts are looked at one after the other: a switch-over in between shows the guest on both."""
    both = looked(DomainState.RUNNING, DomainState.RUNNING, job=True)
    state = replace(migrate.begin("op", REQUEST), stage=Stage.RECONCILE, attempts={Stage.MIGRATE: 1})
    waiting, commands = migrate.step(state, replace(both, number=1))
    assert waiting.stage is Stage.RECONCILE
    assert [type(command) for command in commands] == [Look]
    moved, _ = migrate.step(waiting, replace(looked(DomainState.ABSENT, DomainState.RUNNING), number=2))
    assert moved.committed
    alarm, nothing = migrate.step(waiting, replace(both, number=3))
    assert (alarm.stage, nothing) == (Stage.PARKED, ())
    assert "ALARM" in alarm.reasons[0]


def test_what_is_shut_off_on_both_hosts_is_swept_a_few_times_and_then_left_to_a_person() -> None:
    """I15, I20: both lost their power right after the switch-over, and the agent keeps what ran there."""
    attempts = {Stage.PREPARE: 1, Stage.MIGRATE: 1}
    state = replace(migrate.begin("op", REQUEST), stage=Stage.RECONCILE, attempts=attempts)
    refused = 0
    while state.stage is not Stage.PARKED:
        state, (call,) = migrate.step(state, looked(DomainState.SHUTOFF, DomainState.SHUTOFF))
        assert isinstance(call, Call)
        assert call.step is Stage.SWEEP
        no = Answered(
            side=Side.TARGET,
            step=Stage.SWEEP,
            attempt=call.attempt,
            outcome=Outcome.REFUSED,
            reasons=("it ran on this host",),
        )
        state, _ = migrate.step(state, no)
        refused += 1
        assert refused <= REFUSED_TRIES
    assert state.reasons == ("the guest was shut down on h1 during the migration", "h2: it ran on this host")
    assert "virsh undefine db on the one that is to lose it" in state.remedy


def test_i15_a_guest_that_somebody_left_in_post_copy_is_waited_for_then_told_with_the_way_out() -> None:
    state = replace(
        migrate.begin("op", REQUEST), stage=Stage.RECONCILE, attempts={Stage.PREPARE: 1, Stage.MIGRATE: 1}
    )
    looks = 0
    while state.stage is not Stage.PARKED:
        looks += 1
        assert looks <= WAIT_LOOKS
        postcopy = looked(DomainState.PAUSED_POSTCOPY, DomainState.PAUSED_POSTCOPY)
        state, _ = migrate.step(state, replace(postcopy, number=looks))
    assert "post-copy" in state.reasons[0]
    assert "--postcopy-resume" in state.remedy
    assert state.remedy.endswith("; then migrctl op resume op")


@pytest.mark.parametrize(
    ("outcome", "remedy"),
    [
        (Outcome.REFUSED, "see to the reason on h2; then migrctl op resume op"),
        (Outcome.FAILED, "see to the reason on h2; then migrctl op resume op"),
        (Outcome.UNKNOWN, "migrctl op resume op once h2 answers again"),
        (Outcome.RETRYABLE, "migrctl op resume op once h2 answers again"),
    ],
)
def test_i15_a_host_that_has_answered_is_not_waited_for_in_words(outcome: Outcome, remedy: str) -> None:
    state = replace(
        migrate.begin("op", REQUEST),
        stage=Stage.RELEASE_TARGET,
        going_back=True,
        attempts={Stage.PREPARE: 1, Stage.RELEASE_TARGET: 1},
        tries=99,
    )
    no = Answered(
        side=Side.TARGET, step=Stage.RELEASE_TARGET, attempt=1, outcome=outcome, reasons=("in use",)
    )
    state, _ = migrate.step(state, no)
    assert (state.stage, state.remedy) == (Stage.PARKED, remedy)
    assert state.waits_for == ("h2",), "tried again by itself, ever more rarely"


def test_a_guest_that_is_paused_after_its_move_is_told() -> None:
    state = replace(
        migrate.begin("op", REQUEST), stage=Stage.VERIFY, committed=True, proved=True, source_clean=True
    )
    done, _ = migrate.step(state, replace(looked(DomainState.ABSENT, DomainState.PAUSED), number=99))
    assert done.stage is Stage.DONE
    assert any("paused on h2" in reason for reason in done.reasons)


def test_a_parked_move_back_that_goes_on_by_itself_counts_as_back() -> None:
    """Its host returned while another guest still moves back."""
    guests = tuple(MovedGuest(guest=uuid, name=uuid, now_on="h2") for uuid in ("a", "b"))
    request = UndrainRequested(host="h1", drain="op", power_on=False, restore=guests)
    state: saga.SagaState = undrain.begin("un", request)[0]
    events: tuple[Event, ...] = (
        HostChecked(reasons=(), number=1),
        Chosen(guest="a", target="h1"),
        Chosen(guest="b", target="h1"),
        ChildEnded(child="un.1", state=OperationState.PARKED, target="h1", reason="h2 is silent"),
        ChildEnded(child="un.1", state=OperationState.DONE, target="h1"),
        ChildEnded(child="un.2", state=OperationState.DONE, target="h1"),
    )
    for event in events:
        state, _ = saga.step(state, event)
    assert isinstance(state, undrain.UndrainState)
    assert (state.phase, state.reasons) == (undrain.Phase.DONE, ())


def answer(rng: random.Random, state: MigrateState, command: SagaCommand) -> Event | None:
    """Anything that the world could say to one command."""
    match command:
        case Look(number=number):
            return Looked(
                source=rng.choice([None, *(seen(s, job=rng.random() < 0.3) for s in DomainState)]),
                target=rng.choice([None, *(seen(s, flag=rng.random() < 0.1) for s in DomainState)]),
                number=number,
            )
        case Call(side=side, step=step, attempt=attempt) | Follow(side=side, step=step, attempt=attempt):
            outcome = rng.choice([*[Outcome.DONE] * 6, Outcome.UNKNOWN, Outcome.RETRYABLE, Outcome.FAILED])
            ended = outcome is not Outcome.UNKNOWN or rng.random() < 0.5
            return Answered(
                side=side,
                step=step,
                attempt=attempt,
                outcome=outcome,
                ended=ended,
                volumes=(report(flag=rng.random() < 0.05),) if step == "prepare" else (),
            )
        case _:
            return None


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(min_value=0, max_value=1 << 32))
def test_whatever_the_world_says_every_walk_ends_and_folds_to_the_same(seed: int) -> None:
    """I15, I20: a bounded number of steps to done, undone or parked, with reasons; restarts included."""
    rng = random.Random(seed)
    state, pending = migrate.step(migrate.begin("op", REQUEST), Admitted())
    journal: list[Event] = [REQUEST, Admitted()]
    issued: list[tuple[str, str, int]] = []
    begun: dict[str, list[Command]] = {}
    for _ in range(3000):
        if state.stage.ended or state.stage is Stage.PARKED:
            break
        todo = [command for command in pending if answer(rng, state, command) is not None]
        assert todo, f"nothing is in flight in {state.stage}: it would hang"
        event = answer(rng, state, todo[0])
        assert event is not None
        if rng.random() < 0.02:
            event = rng.choice([CancelRequested(), Recovered(epoch=2)])
        after, commands = migrate.step(state, event)
        assert not (state.committed and not after.committed), "never back over the commit point"
        if isinstance(event, Answered) and event.outcome is not Outcome.DONE:
            assert not any(isinstance(c, Call) for c in commands), "nothing is repeated or undone blind"
        if after.issued(Stage.MIGRATE):
            assert state.issued(Stage.ACQUIRE)
        for call in (c for c in commands if isinstance(c, Call)):
            issued.append((call.host, call.step, call.attempt))
            earlier = begun.setdefault(call.host, [])
            assert not any(overtaken(call.command, each) for each in earlier), "no agent would begin it (I6)"
            earlier.append(call.command)
        if not saga.only_waits(state, after):
            journal.append(EVENT.validate_json(EVENT.dump_json(event)))
        if isinstance(event, Recovered):
            pending = commands
        elif isinstance(event, CancelRequested):
            pending = (*pending, *commands)
        else:
            pending = (*todo[1:], *commands)
        state = after
    else:
        raise AssertionError(f"no end in 3000 steps: {state}")
    assert len(issued) == len(set(issued)), "an attempt number was used twice"
    assert state.stage is not Stage.PARKED or (state.reasons and state.remedy)
    assert saga.only_waits(saga.fold("op", journal), state)


def test_events_pass_through_json_unchanged() -> None:
    for event in [*EVERY_EVENT, looked(DomainState.RUNNING, DomainState.PAUSED_INCOMING)]:
        assert EVENT.validate_json(EVENT.dump_json(event)) == event


def test_backoff_grows_and_is_bounded() -> None:
    waits = [backoff_s(tries) for tries in range(50)]
    assert waits == sorted(waits)
    assert waits[-1] == 30.0
    assert sum(backoff_s(tries) for tries in range(1, MAX_TRIES)) < 10


@given(
    waiting=st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz"), st.sampled_from("12")), max_size=20
    ),
    running=st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz"), st.sampled_from("12")), max_size=4
    ),
    per_source=st.integers(1, 3),
    per_target=st.integers(1, 3),
)
def test_slots_are_never_exceeded_and_never_left_idle(
    waiting: list[tuple[str, str, str]], running: list[tuple[str, str, str]], per_source: int, per_target: int
) -> None:
    caps = Caps(per_source=per_source, per_target=per_target)
    queue = [
        Slot(operation=f"w{n}", group=group, source=source, target=target, order=n)
        for n, (source, target, group) in enumerate(waiting)
    ]
    busy = [
        Slot(operation=f"r{n}", group=group, source=source, target=target, order=n)
        for n, (source, target, group) in enumerate(running)
    ]
    chosen = [slot for name in admit(queue, busy, caps) for slot in queue if slot.operation == name]
    rest = [slot for slot in queue if slot not in chosen]

    def load(host: str, side: str) -> int:
        return sum(getattr(slot, side) == host for slot in (*busy, *chosen))

    for slot in chosen:
        assert load(slot.source, "source") <= per_source
        assert load(slot.target, "target") <= per_target
    for slot in rest:
        assert load(slot.source, "source") >= per_source or load(slot.target, "target") >= per_target


def test_the_drain_with_the_fewest_moves_goes_first() -> None:
    """KubeVirt #8701: one drain must not take every slot."""
    waiting = [Slot(operation=f"a{n}", group="a", source=f"s{n}", target="t", order=n) for n in range(5)]
    waiting.append(Slot(operation="b0", group="b", source="s9", target="t", order=9))
    assert admit(waiting, [], Caps(per_target=2)) == ["a0", "b0"]


def test_drains_take_turns_at_a_single_slot() -> None:
    """When it comes free, neither of them has a move in flight."""
    first = [Slot(operation=f"a{n}", group="a", source="s1", target="t", order=n, turn=n) for n in (1, 2)]
    second = [
        Slot(operation=f"b{n}", group="b", source="s2", target="t", order=9 + n, turn=n) for n in (0, 1)
    ]
    waiting, order = [*first, *second], []
    while waiting:
        [begun] = admit(waiting, [], Caps(per_target=1))
        order.append(begun)
        waiting = [slot for slot in waiting if slot.operation != begun]
    assert order == ["b0", "a1", "b1", "a2"]


def test_states_hold_values_only() -> None:
    """A state is compared, replaced and folded: no mutable field may hide in it."""
    for state in (MigrateState, drain.DrainState, undrain.UndrainState, power.PowerState):
        for each in fields(state):
            assert "list" not in str(each.type)
            assert "set[" not in str(each.type)


@pytest.mark.parametrize("target", [DomainState.RUNNING, DomainState.SHUTOFF])
def test_a_guest_that_moves_after_all_has_moved(target: DomainState) -> None:
    """Simulator, seed 334712523899: the network held the request back until all was undone."""
    state = replace(
        migrate.begin("op", REQUEST), stage=Stage.VERIFY_BACK, going_back=True, attempts={Stage.MIGRATE: 1}
    )
    asked, commands = migrate.step(state, looked(DomainState.ABSENT, target))
    assert asked.stage is Stage.RECONCILE
    assert isinstance(commands[0], Look)
    after, _ = migrate.step(asked, replace(looked(DomainState.ABSENT, target), number=commands[0].number))
    assert (after.committed, after.going_back) == (True, False)


@pytest.mark.parametrize("stage", [Stage.RECONCILE, Stage.VERIFY, Stage.VERIFY_BACK])
def test_whatever_both_hosts_show_for_however_long_has_an_answer(stage: Stage) -> None:
    for committed in {stage is Stage.VERIFY, stage is Stage.VERIFY or stage is Stage.RECONCILE}:
        for source in DomainState:
            for target in DomainState:
                state = replace(
                    migrate.begin("op", REQUEST),
                    stage=stage,
                    attempts=dict.fromkeys(Stage, 1),
                    committed=committed,
                    going_back=stage is Stage.VERIFY_BACK,
                    looks=1000,
                )
                after, commands = migrate.step(state, replace(looked(source, target), number=1000))
                assert after.stage is not stage or commands
