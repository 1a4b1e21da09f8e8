"""The cold table: what is not in it is illegal, every walk ends, and nothing is ever startable twice."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.order import overtaken
from agents.protocol import Command, DomainState, Observation, Outcome
from migrd import saga
from migrd.cold_steps import cold_steps
from migrd.reconcile import Pair, SideView
from migrd.sagas import cold
from migrd.sagas.cold_state import DOMAIN_STEPS, ColdStage, ColdState, command_for
from migrd.sagas.cold_verdicts import Found, found
from migrd.sagas.commands import Call, Follow, Look, SagaCommand
from migrd.sagas.events import (
    EVENT,
    Admitted,
    Answered,
    CancelRequested,
    Event,
    Looked,
    Recovered,
)
from storage.words import DrbdVolume, Health, IscsiVolume, Role, Side, VolumeReport
from tests.core.every_event import COLD_MOVE

DISK = DrbdVolume(resource="r1", volume_nr=0, minor=1, nodes=("h1", "h2"))
LUN = IscsiVolume(portal="10.0.0.5:3260", iqn="iqn.2026-11.org.lab:db", lun=0, device="/dev/disk/by-path/db")
REQUEST = replace(COLD_MOVE, volumes=(DISK, LUN))


def seen(state: DomainState, *, job: bool = False) -> Observation:
    return Observation(
        uuid="u",
        state=state,
        reason="unknown",
        persistent=True,
        qemu_process=state.has_process,
        job=job,
        volumes=(report(DISK, Role.PRIMARY), report(LUN, Role.DETACHED)),
    )


def report(volume: DrbdVolume | IscsiVolume, role: Role) -> VolumeReport:
    return VolumeReport(volume=volume, role=role, health=Health.OK, identity="gi", size_bytes=1)


def looked(source: DomainState, target: DomainState, number: int = 1) -> Looked:
    return Looked(source=seen(source), target=seen(target), number=number)


def at(stage: ColdStage, **known: object) -> ColdState:
    return replace(cold.begin("op", REQUEST), stage=stage, ran=True, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", [stage for stage in ColdStage if not stage.ended])
def test_every_open_stage_knows_recovery_and_cancel(stage: ColdStage) -> None:
    """I15, I16."""
    assert (stage, Recovered) in cold.TABLE
    assert (stage, CancelRequested) in cold.TABLE


def test_only_the_source_alone_or_the_target_alone_is_taken_for_what_it_is() -> None:
    """I1, I19: every pair has a finding; two QEMUs are an alarm, and what is not known decides nothing."""
    for source in SideView:
        for target in SideView:
            what = found(Pair(source=source, target=target, job=False))
            if SideView.UNKNOWN in (source, target):
                assert what is Found.UNKNOWN
            if what is Found.RUNS_ON_TARGET:
                assert source is SideView.GONE
            if what is Found.OFF_ON_TARGET:
                assert (source, target) == (SideView.GONE, SideView.STOPPED)
            if {source, target} <= {SideView.RUNNING, SideView.PAUSED}:
                assert what is Found.BOTH


def test_a_start_on_the_target_needs_both_hosts_seen_with_the_definition_there_alone() -> None:
    """I1, I2: whatever else the pair says, no start is asked for."""
    attempts = {stage: 1 for stage in ColdStage if stage in ("prepare", "shutdown", "release", "acquire")}
    for reached in (ColdStage.SHUTDOWN, ColdStage.ACQUIRE, ColdStage.MOVE):
        state = at(ColdStage.RECONCILE, reached=reached, attempts={**attempts, ColdStage.MOVE: 1}, down=True)
        for source in (None, *map(seen, DomainState)):
            for target in (None, *map(seen, DomainState)):
                _, commands = cold.step(state, Looked(source=source, target=target))
                starts = [c for c in commands if isinstance(c, Call) and c.step == "start"]
                if starts:
                    assert source is not None
                    assert source.state is DomainState.ABSENT
                    assert not source.qemu_process
                    assert target is not None
                    assert target.state in (DomainState.SHUTOFF, DomainState.CRASHED)


def test_the_source_lets_go_only_after_it_reports_no_qemu() -> None:
    """I11: libvirt and /proc of the source itself, and no sooner."""
    state = at(ColdStage.RECONCILE, reached=ColdStage.SHUTDOWN, attempts={ColdStage.SHUTDOWN: 1})
    for state_seen in DomainState:
        for process in (None, False, True):
            source = replace(seen(state_seen), qemu_process=process)
            _, commands = cold.step(state, Looked(source=source, target=seen(DomainState.ABSENT)))
            if any(isinstance(c, Call) and c.step == "release" for c in commands):
                assert not state_seen.has_process or state_seen is DomainState.CRASHED
                assert process is False


def test_nothing_is_started_at_home_while_the_end_of_another_start_is_not_known() -> None:
    """The start on the target was issued and its agent fell silent: it is followed, whatever is seen."""
    state = at(ColdStage.RECONCILE, open=ColdStage.START, attempts={ColdStage.START: 1}, going_back=True)
    for source in DomainState:
        for target in DomainState:
            _, commands = cold.step(state, looked(source, target))
            assert [type(command) for command in commands] == [Follow]


def test_a_guest_that_runs_without_consent_is_refused() -> None:
    """I5: it was shut off when it was planned, say, and somebody started it."""
    request = replace(REQUEST, may_stop=False)
    state, _ = cold.step(cold.begin("op", request), Admitted())
    refused, commands = cold.step(state, looked(DomainState.RUNNING, DomainState.ABSENT))
    assert (refused.stage, commands) == (ColdStage.UNDONE, ())
    assert "--cold" in refused.reasons[0]


def test_the_shutdown_itself_asserts_the_consent() -> None:
    """I5: whatever led there, without a journalled consent no shutdown is sent."""
    state = replace(at(ColdStage.RECONCILE), request=replace(REQUEST, may_stop=False))
    with pytest.raises(AssertionError, match="I5"):
        command_for(state, ColdStage.SHUTDOWN, Side.SOURCE)


@pytest.mark.parametrize("there", [state for state in DomainState if state is not DomainState.ABSENT])
def test_a_target_that_has_the_guest_already_is_refused(there: DomainState) -> None:
    """I1: what is there may run; later nobody could tell it from what this move brings."""
    state, _ = cold.step(cold.begin("op", REQUEST), Admitted())
    after, commands = cold.step(state, looked(DomainState.RUNNING, there, number=3))
    assert (after.stage, commands) == (ColdStage.UNDONE, ())


def test_a_silent_target_that_may_have_the_definition_keeps_the_guest_from_starting_at_home() -> None:
    """I1: without the definition there, home is enough; with it, both could start the guest."""
    home = Looked(source=seen(DomainState.SHUTOFF), target=None)
    attempts = {ColdStage.PREPARE: 1, ColdStage.SHUTDOWN: 1, ColdStage.RELEASE: 1, ColdStage.ACQUIRE: 1}
    state = at(ColdStage.RECONCILE, going_back=True, attempts=attempts)
    alone, commands = cold.step(state, home)
    assert alone.alone
    assert any(isinstance(command, Call) and command.host == "h1" for command in commands)
    state = replace(state, attempts={**attempts, ColdStage.MOVE: 1})
    for number in range(1, 100):
        state, commands = cold.step(state, replace(home, number=number))
        assert not any(isinstance(command, Call) for command in commands)
        if state.stage is ColdStage.PARKED:
            break
    assert state.waits_for == ("h2",)


def test_a_definition_on_both_hosts_is_swept_from_the_target_before_a_start_at_home() -> None:
    """I1: and the target lets go before the source takes back, and that before the guest starts."""
    attempts = {stage: 1 for stage in ColdStage if stage in ("prepare", "release", "acquire")}
    state = at(ColdStage.RECONCILE, going_back=True, attempts={**attempts, ColdStage.MOVE: 1})
    state, commands = cold.step(state, looked(DomainState.SHUTOFF, DomainState.SHUTOFF))
    order = []
    while any(isinstance(command, Call) for command in commands):
        order.append(str(state.stage))
        side = Side.SOURCE if state.host(Side.SOURCE) == commands[0].host else Side.TARGET  # type: ignore[union-attr]
        done = Answered(side=side, step=state.stage, attempt=1, outcome=Outcome.DONE)
        state, commands = cold.step(state, done)
    assert order == ["settle", "sweep", "free-target", "reattach", "reacquire", "restart"]


def test_i15_a_guest_that_somebody_started_once_its_definition_was_back_is_not_brought_back_again() -> None:
    """Seed 867130928375: nobody heard that the return had ended; the next ones were refused, for ever."""
    attempts = {stage: 1 for stage in ColdStage if stage in ("prepare", "release", "acquire")}
    gone = {ColdStage.MOVE: 1, ColdStage.START: 1, ColdStage.RETURN: 1}
    state = at(
        ColdStage.RECONCILE,
        going_back=True,
        moved=True,
        back_to=ColdStage.RETURN,
        attempts={**attempts, **gone},
    )
    state, (call,) = cold.step(state, looked(DomainState.RUNNING, DomainState.ABSENT))
    assert isinstance(call, Call)
    assert (call.step, state.moved) == (ColdStage.SETTLE, False)


BOTH = (DomainState.SHUTOFF, DomainState.SHUTOFF)
AT_HOME = (DomainState.SHUTOFF, DomainState.ABSENT)
AWAY = (DomainState.ABSENT, DomainState.SHUTOFF)
NOWHERE = (DomainState.ABSENT, DomainState.ABSENT)


def test_i16_nothing_is_swept_before_the_source_has_proved_that_nothing_moves_any_more() -> None:
    """The 40 s are over, and libvirt is slower than that: what it moves leaves the source after all."""
    attempts = {
        stage: 1 for stage in ColdStage if stage in ("prepare", "release", "acquire", "move-definition")
    }
    state = at(ColdStage.RECONCILE, going_back=True, attempts=attempts)
    state, (call,) = cold.step(state, looked(DomainState.SHUTOFF, DomainState.SHUTOFF))
    assert isinstance(call, Call)
    assert (call.step, call.host) == ("settle", "h1")
    held = Answered(side=Side.SOURCE, step="settle", attempt=1, outcome=Outcome.RETRYABLE, reasons=("held",))
    state, _ = cold.step(state, held)
    state, (call,) = cold.step(state, looked(DomainState.ABSENT, DomainState.SHUTOFF))
    assert isinstance(call, Call)
    assert call.step == "return-definition"


@pytest.mark.parametrize(
    ("step", "side", "passing", "settled"),
    [
        (ColdStage.MOVE, Side.SOURCE, (BOTH, AT_HOME, NOWHERE), AWAY),
        (ColdStage.RETURN, Side.TARGET, (BOTH, AWAY, NOWHERE), AT_HOME),
    ],
)
def test_a_move_of_the_definition_whose_end_nobody_heard_is_given_time(
    step: ColdStage, side: Side, passing: tuple[tuple[DomainState, DomainState], ...], settled: object
) -> None:
    """libvirt goes on with it when the agent dies: swept meanwhile, the definition would be on no host."""
    open_ = at(step, open=step, attempts={ColdStage.MOVE: 1, step: 1}, cancelled=True, going_back=True)
    unheard = Answered(side=side, step=step, attempt=1, outcome=Outcome.UNKNOWN, ended=True)
    for pair in passing:
        state, commands = cold.step(open_, unheard)
        waited_s = 0.0
        while commands and isinstance(commands[0], Look):
            waited_s += commands[0].after_s
            state, commands = cold.step(state, looked(*pair, number=commands[0].number))
        assert waited_s > 35.0, "longer than libvirt waits for a peer that is silent"
    state, _ = cold.step(open_, unheard)
    _, commands = cold.step(state, looked(*settled))  # type: ignore[misc]
    assert isinstance(commands[0], Call), "what has ended as it should needs no time"


def test_a_guest_that_is_not_up_yet_on_the_target_has_not_been_started_there() -> None:
    """Its agent died over the start: libvirt shows a paused QEMU, which may still fail."""
    state = at(ColdStage.RECONCILE, reached=ColdStage.MOVE, attempts={ColdStage.MOVE: 1, ColdStage.START: 1})
    coming = replace(seen(DomainState.PAUSED), reason="starting up")
    waiting, commands = cold.step(state, Looked(source=seen(DomainState.ABSENT), target=coming))
    assert waiting.stage is ColdStage.RECONCILE
    assert [type(command) for command in commands] == [Look]
    failed, commands = cold.step(waiting, looked(DomainState.ABSENT, DomainState.SHUTOFF, number=2))
    assert failed.stage is ColdStage.START


@pytest.mark.parametrize("attempts", [{}, {ColdStage.SHUTDOWN: 1}, {ColdStage.RELEASE: 1}])
def test_a_guest_that_is_down_gets_its_disks_back_before_its_start_at_home(
    attempts: dict[ColdStage, int],
) -> None:
    """Whoever stopped it: a host that has rebooted has no session, and DRBD may have demoted by itself."""
    state = at(ColdStage.RECONCILE, going_back=True, attempts={ColdStage.PREPARE: 1, **attempts})
    for _ in range(2):  # a start that fails may have taken them along: from the first one again
        order = []
        state, _ = cold.step(state, looked(DomainState.SHUTOFF, DomainState.ABSENT))
        while state.stage is not ColdStage.RESTART:
            order.append(str(state.stage))
            number = state.attempts[state.stage]
            state, _ = cold.step(
                state, Answered(side=Side.SOURCE, step=state.stage, attempt=number, outcome=Outcome.DONE)
            )
        assert order == ["reattach", "reacquire"]
        number = state.attempts[ColdStage.RESTART]
        no = Answered(side=Side.SOURCE, step="restart", attempt=number, outcome=Outcome.RETRYABLE)
        state, _ = cold.step(state, no)


@pytest.mark.parametrize(
    ("outcome", "most"), [(Outcome.REFUSED, 3), (Outcome.FAILED, 3), (Outcome.RETRYABLE, 8)]
)
def test_a_start_at_home_that_always_fails_is_not_tried_for_ever(outcome: Outcome, most: int) -> None:
    """Its disks are seen to before each try, and that this succeeds is no progress."""
    state = at(ColdStage.RECONCILE, going_back=True, attempts={ColdStage.PREPARE: 1, ColdStage.RELEASE: 1})
    starts, waits = 0, []
    state, commands = cold.step(state, looked(DomainState.SHUTOFF, DomainState.ABSENT))
    while state.stage is not ColdStage.PARKED:
        waits.append(commands[0].after_s)
        if state.stage is ColdStage.RECONCILE:
            event = looked(DomainState.SHUTOFF, DomainState.ABSENT, number=commands[0].number)
            state, commands = cold.step(state, event)
            continue
        starts += state.stage is ColdStage.RESTART
        assert starts <= most
        said = outcome if state.stage is ColdStage.RESTART else Outcome.DONE
        number = state.attempts[state.stage]
        event = Answered(side=Side.SOURCE, step=state.stage, attempt=number, outcome=said)
        state, commands = cold.step(state, event)
    assert starts == most
    assert max(waits) > min(wait for wait in waits if wait), "and later each time"


def test_the_source_keeps_the_disks_of_a_guest_that_somebody_started_there() -> None:
    """It was shut off, its disks at rest; a release while it runs is refused for ever."""
    attempts = {stage: 1 for stage in ColdStage if stage in ("prepare", "release", "leave", "acquire")}
    state = replace(at(ColdStage.RECONCILE, going_back=True, attempts=attempts), ran=False, down=True)
    stages = []
    state, _ = cold.step(state, looked(DomainState.RUNNING, DomainState.ABSENT))
    while state.stage is not ColdStage.VERIFY_BACK:
        stages.append(str(state.stage))
        number = state.attempts[state.stage]
        state, _ = cold.step(
            state, Answered(side=Side.TARGET, step=state.stage, attempt=number, outcome=Outcome.DONE)
        )
    assert stages == ["free-target", "release-target"]


def test_a_target_that_was_silent_when_it_was_to_be_freed_is_freed_when_it_answers_again() -> None:
    """The way back went on without it: what it acquired would stay there for ever."""
    attempts = {
        stage: 1 for stage in ColdStage if stage in ("prepare", "release", "acquire", "release-target")
    }
    tried = at(ColdStage.RECONCILE, going_back=True, alone=True, attempts=attempts)
    state, _ = cold.step(
        replace(tried, back_to=ColdStage.RELEASE_TARGET), looked(DomainState.RUNNING, DomainState.ABSENT)
    )
    assert (state.stage, state.alone) == (ColdStage.RELEASE_TARGET, False)


def test_a_cancel_is_followed_at_the_end_of_the_very_step() -> None:
    """It does not take another step forward first."""
    state = at(ColdStage.RELEASE, cancelled=True, attempts={ColdStage.RELEASE: 1}, down=True)
    done = Answered(side=Side.SOURCE, step="release", attempt=1, outcome=Outcome.DONE)
    after, commands = cold.step(state, done)
    assert after.going_back
    assert [type(command) for command in commands] == [Look]


@pytest.mark.parametrize("step", DOMAIN_STEPS)
def test_a_restart_of_the_daemon_follows_a_step_on_the_guest(step: ColdStage) -> None:
    """I16: its end is waited for, under the number that it has."""
    state = at(step, open=step, attempts={step: 3})
    after, commands = cold.step(state, Recovered(epoch=2))
    assert after.stage is step
    assert [(type(c), c.attempt) for c in commands if isinstance(c, Follow)] == [(Follow, 3)]
    assert len(commands) == 1


@pytest.mark.parametrize("state_seen", [DomainState.RUNNING, DomainState.SHUTOFF])
def test_a_transient_guest_is_refused(state_seen: DomainState) -> None:
    state, _ = cold.step(cold.begin("op", REQUEST), Admitted())
    source = replace(seen(state_seen), persistent=False)
    refused, _ = cold.step(state, Looked(source=source, target=seen(DomainState.ABSENT)))
    assert refused.stage is ColdStage.UNDONE
    assert "transient" in refused.reasons[0]


def test_two_running_instances_are_an_alarm_and_nothing_is_touched() -> None:
    state = at(ColdStage.RECONCILE, attempts={ColdStage.MOVE: 1, ColdStage.START: 1})
    both = looked(DomainState.RUNNING, DomainState.RUNNING)
    waiting, commands = cold.step(state, both)
    assert [type(command) for command in commands] == [Look]
    alarm, nothing = cold.step(waiting, replace(both, number=3))
    assert (alarm.stage, nothing) == (ColdStage.PARKED, ())
    assert "ALARM" in alarm.reasons[0]


def answer(rng: random.Random, command: SagaCommand) -> Event | None:
    """Anything that the world could say to one command."""
    match command:
        case Look(number=number):
            likely = [DomainState.SHUTOFF, DomainState.ABSENT, DomainState.RUNNING]
            states = [*likely * 6, *DomainState]
            return Looked(
                source=rng.choice([None, *map(seen, states)]),
                target=rng.choice([None, *map(seen, states)]),
                number=number,
            )
        case Call(side=side, step=step, attempt=attempt) | Follow(side=side, step=step, attempt=attempt):
            outcome = rng.choice([*[Outcome.DONE] * 6, Outcome.UNKNOWN, Outcome.RETRYABLE, Outcome.FAILED])
            return Answered(
                side=side,
                step=step,
                attempt=attempt,
                outcome=outcome,
                ended=outcome is not Outcome.UNKNOWN or rng.random() < 0.5,
                volumes=(report(DISK, Role.PRIMARY), report(LUN, Role.ATTACHED)) if step == "prepare" else (),
            )
        case _:
            return None


@settings(max_examples=600, deadline=None)
@given(seed=st.integers(min_value=0, max_value=1 << 32))
def test_whatever_the_world_says_every_walk_ends_and_folds_to_the_same(seed: int) -> None:
    """I15, I20: a bounded number of steps to done, undone or parked, with reasons; restarts included."""
    rng = random.Random(seed)
    state, pending = cold.step(cold.begin("op", REQUEST), Admitted())
    journal: list[Event] = [REQUEST, Admitted()]
    issued: list[tuple[str, str, int]] = []
    begun: dict[str, list[Command]] = {}
    for _ in range(5000):
        if state.stage.ended or state.stage is ColdStage.PARKED:
            break
        assert pending, f"nothing is in flight in {state.stage}: it would hang"
        event = answer(rng, pending[0])
        assert event is not None
        if rng.random() < 0.02:
            event = rng.choice([CancelRequested(), Recovered(epoch=2)])
        after, commands = cold.step(state, event)
        if isinstance(event, Answered) and event.outcome is not Outcome.DONE:
            assert not any(isinstance(c, Call) for c in commands), "nothing is repeated or undone blind"
        for call in (c for c in commands if isinstance(c, Call)):
            issued.append((call.host, call.step, call.attempt))
            earlier = begun.setdefault(call.host, [])
            assert not any(overtaken(call.command, each) for each in earlier), "no agent would begin it (I6)"
            earlier.append(call.command)
            if call.step in ("start", "restart"):
                assert state.open is None, "another step on the guest may still be under way"
        if not saga.only_waits(state, after):
            journal.append(EVENT.validate_json(EVENT.dump_json(event)))
        if isinstance(event, Recovered):
            pending = commands
        elif isinstance(event, CancelRequested):
            pending = (*pending, *commands)
        else:
            pending = (*pending[1:], *commands)
        state = after
        assert cold_steps(state)
    else:
        raise AssertionError(f"no end in 5000 steps: {state}")
    assert len(issued) == len(set(issued)), "an attempt number was used twice"
    assert state.stage is not ColdStage.PARKED or (state.reasons and state.remedy)
    assert state.stage is not ColdStage.UNDONE or state.reasons
    assert saga.only_waits(saga.fold("op", journal), state)
