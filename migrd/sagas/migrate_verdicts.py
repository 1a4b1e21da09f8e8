"""What the migrate saga does about each verdict of the pair: go on, commit, wait (bounded), undo, park."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from agents.protocol import Observation
from migrd.reconcile import Pair, SideView, Verdict, verdict
from migrd.sagas.commands import Abort
from migrd.sagas.compare import open_windows, reasons_apart
from migrd.sagas.events import Looked
from migrd.sagas.guest_move import MAX_TRIES, MAX_TRIES_BOUND, backoff_s
from migrd.sagas.migrate_moves import (
    Result,
    enter,
    follow,
    look,
    look_again,
    may_take_up,
    next_needed,
    park,
    start_back,
    take_up,
)
from migrd.sagas.migrate_state import (
    BACK,
    COMMIT_POINT,
    FINISH,
    FORWARD,
    MigrateState,
    Stage,
)
from storage.words import DrbdVolume, Health, Side

WAIT_LOOKS = 60  # at 0.2 s, then 1 s: about 50 s for a QEMU to go, a switch-over to end
ALARM_LOOKS = 3  # the two hosts are not looked at in one instant: a switch-over in between looks like two
MOVED = (COMMIT_POINT, Verdict.STOPPED_ON_TARGET)
ARRIVED = (SideView.RUNNING, SideView.PAUSED, SideView.STOPPED)  # on the target, once it has moved
ALARMS = (Verdict.BOTH_RUNNING, Verdict.WITHOUT_DISK, Verdict.UNEXPECTED)
JOB_LOOK_S = 2.0
LEFTOVER_LOOKS = 5  # libvirt removes its own incoming domain within a second or so
UNKNOWN_LOOKS = 8  # with back-off: about two minutes
HEALTH_LOOKS = 10

# verdict -> (what is wrong, what the operator can do before `op resume`)
STUCK: Mapping[Verdict, tuple[str, str]] = {
    Verdict.SWITCHING: ("the switch-over has not ended", ""),
    Verdict.SETTLING: ("the guest runs on {target}, but its QEMU on {source} has not ended (I11)", ""),
    Verdict.SOURCE_PAUSED: ("the guest is paused on {source}", "virsh resume {name} on {source}"),
    Verdict.PAUSED_BOTH: ("the guest is paused on both hosts", "look at both, resume it on exactly one"),
    Verdict.MOVED_PAUSED: ("the guest is on {target}, but paused", "virsh resume {name} on {target}"),
    Verdict.POSTCOPY: (  # somebody else's: migrd never asks for it
        "the guest is split between both hosts (post-copy)",
        "mend the network, then repeat the virsh migrate that began it on {source} with --postcopy-resume",
    ),
    Verdict.INCOMING_ONLY: (
        "the guest's QEMU on {source} is gone, and {target} never took over",
        "virsh resume {name} on {target} if the switch-over had begun, else virsh destroy {name} there",
    ),
    Verdict.TRANSIENT: ("a QEMU process is still ending", ""),
    Verdict.LOST: ("the guest is on neither host", "find out who removed it; define and start it"),
    Verdict.BOTH_RUNNING: (
        "ALARM: the guest has a QEMU that has run on {source} AND on {target}; nothing was touched (I1)",
        "stop the wrong one by hand",
    ),
    Verdict.WITHOUT_DISK: (
        "ALARM: the guest runs on a host that holds none of its disks; nothing was touched",
        "look at the disks' roles on {source} and {target}",
    ),
    Verdict.UNEXPECTED: ("no migration leads to what both hosts show", "look at both hosts"),
    Verdict.COPYING: ("a job still runs on the guest on {source}", ""),
    Verdict.STILL_ON_SOURCE: ("the guest runs on {source} again, though it had moved", "look at both hosts"),
    Verdict.TARGET_LEFTOVER: ("the guest runs on {source} again, though it had moved", "look at both hosts"),
    Verdict.STOPPED_ON_SOURCE: (
        "the guest is shut off on {source}, though it had moved",
        "look at both hosts",
    ),
}


def decide(state: MigrateState, event: Looked) -> Result:
    """The reconcile and settle stages: one handler per verdict, another set after the commit point."""
    pair = Pair.of(event.source, event.target, event.off)
    found = _verdict(state, pair)
    if found is Verdict.UNKNOWN:
        return _unknown(state, event, pair)
    if found in MOVED or (state.committed and found is Verdict.MOVED_PAUSED):
        apart = () if state.proved else _apart(state, event)
        if apart:
            return _diverged(state, apart)
        state = replace(state, proved=state.proved or pair.source is not SideView.OFF)
        state = _source_seen(state, pair)
    table = _AFTER_COMMIT if state.committed else _BEFORE_COMMIT
    after, commands = table.get(found, _wait)(state, found)
    if after.stage is Stage.VERIFY and not any(after.issued(stage) for stage in FINISH):
        return verify(after, event)  # nothing was done since this look, so it tells what another one would
    return after, commands


def _verdict(state: MigrateState, pair: Pair) -> Verdict:
    """Shut off on the source because QEMU or power ended there after the guest had moved: it did not stop."""
    found = verdict(pair)
    left = state.source_ended or (state.committed and not state.source_clean)
    if left and found is Verdict.STOPPED_ON_SOURCE:
        return Verdict.STOPPED_ON_TARGET if pair.target is SideView.STOPPED else Verdict.UNEXPECTED
    return found


def _source_seen(state: MigrateState, pair: Pair) -> MigrateState:
    """Is the source without the guest's definition? One that has no power is what it was when last seen."""
    if pair.source is SideView.OFF:
        return state
    return replace(state, source_clean=pair.source is SideView.GONE)


# -- before the commit point ----------------------------------------------------------------------


def _still_on_source(state: MigrateState, _found: Verdict) -> Result:
    if state.migrate_open:
        return follow(state, backoff_s(state.tries))
    state = replace(state, adrift=0, followers=0)
    if state.going_back:
        if state.back_to in BACK:
            return next_needed(state, BACK[BACK.index(state.back_to) :])
        return start_back(state)
    again = state.back_to
    # A host without power is asked for nothing, so a stage forward would wait for an answer for ever.
    if again in FORWARD and not state.off and not state.cancelled and state.tries < MAX_TRIES:
        return enter(replace(state, back_to=None), again)
    if not state.trouble and not state.cancelled:
        state = replace(state, trouble=(f"the guest did not leave {state.request.source}",))
    return start_back(state)


def _leftover(state: MigrateState, found: Verdict) -> Result:
    if state.migrate_open:
        return follow(state, backoff_s(state.tries))
    if state.looks < LEFTOVER_LOOKS:
        return look_again(state, 0.5)
    return start_back(state)


def _copying(state: MigrateState, found: Verdict) -> Result:
    if state.migrate_open:
        return follow(state, backoff_s(state.tries))
    if may_take_up(state):
        return take_up(state)
    # Somebody else's job, one that nobody can end, or that of a request which the network held back: wait as
    # long as for a move. The last one has an attempt that listens.
    if state.looks * JOB_LOOK_S > state.request.deadline_s or not state.issued(Stage.MIGRATE):
        return _stuck(state, found)
    stayed, commands = look_again(state, JOB_LOOK_S)
    if state.cancelled or state.going_back:
        stop = Abort(host=state.request.source, step=Stage.MIGRATE, attempt=state.attempts[Stage.MIGRATE])
        return stayed, (stop, *commands)
    return stayed, commands


def _switching(state: MigrateState, found: Verdict) -> Result:
    """Back to an attempt, if the job has perhaps not ended: it ends a source that is left behind (I1)."""
    if state.migrate_open:
        return follow(state, backoff_s(state.tries))
    if may_take_up(state) and state.looks >= ALARM_LOOKS:
        return take_up(state)
    return _wait(state, found)


def _commit(state: MigrateState, found: Verdict) -> Result:
    """The commit point. What was wrong on the way no longer matters: forward only."""
    assert found in MOVED, found
    committed = replace(
        state,
        committed=True,
        going_back=False,
        stopped=found is Verdict.STOPPED_ON_TARGET,
        migrate_open=False,
        back_to=None,
        reasons=(),
        trouble=(),
        tries=0,
    )
    return next_needed(committed, FINISH)


def _diverged(state: MigrateState, apart: tuple[str, ...]) -> Result:
    """The guest runs on the target, but its copies are not proved to be one: the source's may be newer (I7).

    Releasing would demote that copy, and the next resync would overwrite it. Not committed either: the
    operator may as well find that the source's copy is the one to go on with.
    """
    if state.looks < WAIT_LOOKS:
        return look_again(state, 1.0)
    source, target = state.request.source, state.request.target
    alarm = (
        f"ALARM: the guest runs on {target}, but its replicas are not proved equal; the copy on {source} may "
        "hold writes that the guest has lost; nothing was demoted (I7)"
    )
    remedy = (
        f"compare drbdadm status and the kernel logs of {source} and {target}, decide which copy is right, "
        f"make the other its replica, wait for UpToDate; then migrctl op resume {state.operation}"
    )
    return park(state, (alarm, *apart), remedy=remedy)


def _apart(state: MigrateState, event: Looked) -> tuple[str, ...]:
    if event.source is None or event.target is None:
        return ()  # the source has no power: asked again once it answers, before anything is done there
    hosts = (state.request.source, state.request.target)
    return reasons_apart(state.request.volumes, event.source.volumes, event.target.volumes, hosts=hosts)


def _stopped_on_source(state: MigrateState, _found: Verdict) -> Result:
    if state.migrate_open:
        return follow(state, backoff_s(state.tries))
    if state.going_back and state.back_to in BACK:  # tried again, as often as any other step
        return next_needed(state, BACK[BACK.index(state.back_to) :])
    reason = f"the guest was shut down on {state.request.source} during the migration"
    reasons = tuple(dict.fromkeys((*state.reasons, reason)))
    return start_back(replace(state, going_back=True, stopped=True, reasons=reasons))


# -- after it -------------------------------------------------------------------------------------


def _go_on(state: MigrateState, found: Verdict) -> Result:
    state = replace(state, stopped=found is Verdict.STOPPED_ON_TARGET)
    if state.back_to in FINISH:
        return next_needed(state, FINISH[FINISH.index(state.back_to) :])
    return next_needed(state, FINISH)


# -- waiting --------------------------------------------------------------------------------------


def _wait(state: MigrateState, found: Verdict) -> Result:
    """A state that passes by itself, or not: look for a while, then park."""
    if state.looks >= WAIT_LOOKS:
        return _stuck(state, found)
    stage = Stage.SETTLE if found is Verdict.SETTLING else state.stage
    return look_again(replace(state, stage=stage), 0.2 if state.looks < 10 else 1.0)


def _alarm(state: MigrateState, found: Verdict) -> Result:
    """Only if it stays: perhaps the source was seen before a switch-over, the target after it."""
    if state.looks < ALARM_LOOKS:
        return look_again(state, 1.0)
    return _stuck(state, found)


def _stuck(state: MigrateState, found: Verdict) -> Result:
    words = {"source": state.request.source, "target": state.request.target, "name": state.request.name}
    reason, first = STUCK.get(found, STUCK[Verdict.UNEXPECTED])
    resume = f"migrctl op resume {state.operation}"
    remedy = f"{first.format(**words)}; then {resume}" if first else ""
    return park(state, (*state.trouble, reason.format(**words)), remedy=remedy)


def _unknown(state: MigrateState, event: Looked, pair: Pair) -> Result:
    """A host does not answer: wait with back-off, then park until it returns."""
    if state.committed and event.source is None and pair.target in ARRIVED:
        return _without_source(state, event, pair)
    if state.looks < UNKNOWN_LOOKS:
        return look_again(state, backoff_s(state.looks))
    silent = tuple(
        (side, state.host(side))
        for side, view in ((Side.SOURCE, pair.source), (Side.TARGET, pair.target))
        if view in (SideView.UNKNOWN, SideView.OFF)
    )
    trouble = tuple(dict.fromkeys((*state.trouble, *event.reasons))) or tuple(
        f"{host} has no power" if side in event.off else f"{host} shows a state that is not understood"
        for side, host in silent
    )
    state = replace(state, trouble=trouble)
    alone = pair.source is SideView.RUNNING and not pair.job and not state.migrate_open
    if alone and not state.committed and state.issued(Stage.OPEN_WINDOW):
        if not state.going_back:
            state = replace(state, going_back=True, reasons=trouble)
        return enter(state, Stage.SALVAGE)
    return park(state, trouble, waits_for=tuple(host for _, host in silent))


_BEFORE_COMMIT: Mapping[Verdict, Callable[[MigrateState, Verdict], Result]] = {
    Verdict.SWITCHING: _switching,
    Verdict.SETTLING: _switching,
    Verdict.STILL_ON_SOURCE: _still_on_source,
    Verdict.TARGET_LEFTOVER: _leftover,
    Verdict.COPYING: _copying,
    Verdict.MOVED: _commit,
    Verdict.STOPPED_ON_TARGET: _commit,
    Verdict.STOPPED_ON_SOURCE: _stopped_on_source,
    Verdict.BOTH_RUNNING: _alarm,
    Verdict.WITHOUT_DISK: _alarm,
    Verdict.UNEXPECTED: _stuck,
}

_AFTER_COMMIT: Mapping[Verdict, Callable[[MigrateState, Verdict], Result]] = {
    Verdict.MOVED: _go_on,
    Verdict.STOPPED_ON_TARGET: _go_on,
    Verdict.MOVED_PAUSED: _go_on,
    Verdict.BOTH_RUNNING: _alarm,
    Verdict.WITHOUT_DISK: _alarm,
    Verdict.UNEXPECTED: _stuck,
}


# -- the two verifications ------------------------------------------------------------------------


def verify(state: MigrateState, event: Looked) -> Result:
    """Forward: exactly one running, flags cleared on both sides, health told."""
    pair = Pair.of(event.source, event.target, event.off)
    found = _verdict(state, pair)
    if found is Verdict.UNKNOWN:
        return _unknown(state, event, pair)
    if found not in (Verdict.MOVED, Verdict.STOPPED_ON_TARGET, Verdict.MOVED_PAUSED):
        return _stuck(state, found) if found in ALARMS else _wait(state, found)
    state = _source_seen(state, pair)
    if pair.source is SideView.OFF and not state.source_clean:
        return _without_source(state, event, pair)
    if pair.source is SideView.STOPPED or (pair.source is SideView.GONE and not state.proved):
        return _source_returned(state, pair)
    return _moved(state, event, found)


def _moved(state: MigrateState, event: Looked, found: Verdict) -> Result:
    """Both hosts have been seen as they should be: are the flags cleared, and is all well?"""
    still_open = _flags(state, event)
    if still_open:
        return _close_again(state, still_open, Stage.CLOSE_WINDOW)
    ill = _ill(event.source, drbd_only=True) + _ill(event.target, drbd_only=False)
    if ill and state.looks < HEALTH_LOOKS:
        return look_again(state, 0.5)
    remarks = ill
    if found is not Verdict.MOVED:  # e.g. QEMU pauses a guest whose disk fails on the new host
        what = "shut down" if found is Verdict.STOPPED_ON_TARGET else f"paused on {state.request.target}"
        remarks = (*ill, f"it was {what} after it moved")
    return replace(state, stage=Stage.DONE, reasons=(*remarks, *_of_the_source(state))), ()


def _without_source(state: MigrateState, event: Looked, pair: Pair) -> Result:
    """Its definition may still be there, its copy not compared, or its disks not let go (I1, I7)."""
    if pair.source is SideView.UNKNOWN and not state.given_up and state.looks < UNKNOWN_LOOKS:
        return look_again(state, backoff_s(state.looks))
    still_open = _flags(state, event)
    if still_open:
        return _close_again(state, still_open, Stage.CLOSE_WINDOW)
    if state.given_up:
        shown = {SideView.PAUSED: "paused", SideView.STOPPED: "shut off"}.get(pair.target, "")
        remarks = (f"it is {shown} on {state.request.target}",) if shown else ()
        return replace(state, stage=Stage.DONE, reasons=(*remarks, _left_there(state))), ()
    source = state.request.source
    remedy = (
        f"power {source} on: the move ends by itself once it answers; if it never will: "
        f"migrctl op cancel {state.operation} ends the move as it is"
    )
    reasons = (_left_there(state), *event.reasons)
    return park(replace(state, missed=True), reasons, remedy=remedy, waits_for=(source,), closed=True)


def _left_there(state: MigrateState) -> str:
    source = state.request.source
    if state.source_clean:
        return f"the guest has moved, and {source} does not answer: it may not have let its disks go"
    left = f"the guest has moved, and its definition may still be on {source}, which does not answer (I1)"
    unproved = "; nor is it proved that no writes are left on the copy there (I7)"
    return left + (unproved if state.windowed and not state.proved else "")


def _source_returned(state: MigrateState, pair: Pair) -> Result:
    """What was not done there is done now: its copy compared, its definition removed."""
    returns = state.returns + 1
    if returns >= MAX_TRIES_BOUND:
        source, name = state.request.source, state.request.name
        resume = f"migrctl op resume {state.operation}"
        if pair.source is not SideView.STOPPED:
            return park(state, (f"the guest has moved, and {source} comes and goes",), remedy=resume)
        left = f"the guest has moved, and its definition is still on {source} (I1)"
        return park(state, (left,), remedy=f"virsh undefine {name} on {source}; then {resume}")
    return look(replace(state, returns=returns, back_to=None), Stage.RECONCILE, backoff_s(returns - 1))


def _of_the_source(state: MigrateState) -> tuple[str, ...]:
    """What the operator should know of the source if libvirt did not come to its Confirm there."""
    source, target = state.request.source, state.request.target
    if state.source_ended:
        return (
            f"the answer of {target} was lost in the switch-over: the QEMU left on {source} was told to end",
        )
    if state.issued(Stage.UNDEFINE_SOURCE):
        return (f"libvirt had left the guest's definition on {source}: it was removed there",)
    return ()


def verify_back(state: MigrateState, event: Looked) -> Result:
    """Back: the guest is on the source as before, nothing on the target, flags cleared on both."""
    pair = Pair.of(event.source, event.target, event.off)
    found = verdict(pair)
    if found is Verdict.UNKNOWN:
        return _unknown(state, event, pair)
    if pair.target is SideView.INCOMING and found in (Verdict.TARGET_LEFTOVER, Verdict.STOPPED_ON_SOURCE):
        return look_again(state, 0.5) if state.looks < LEFTOVER_LOOKS else look(state, Stage.RECONCILE)
    if found in (Verdict.STILL_ON_SOURCE, Verdict.STOPPED_ON_SOURCE):
        still_open = _flags(state, event)
        if still_open:
            return _close_again(state, still_open, Stage.CLOSE_BACK)
        return replace(state, stage=Stage.UNDONE), ()
    if found in MOVED or (found is Verdict.COPYING and state.issued(Stage.MIGRATE)):
        # The network held a migrate request back until all was undone. What counts is that it moves, or has.
        return look(state, Stage.RECONCILE)
    return _stuck(state, found) if found in ALARMS else _wait(state, found)


def _close_again(state: MigrateState, still_open: tuple[str, ...], stage: Stage) -> Result:
    """Closed and read back by the driver, yet set again: once more, then an operator has to look (I6)."""
    failures = state.failures + 1
    if failures >= MAX_TRIES_BOUND or not state.issued(Stage.OPEN_WINDOW):
        return park(state, still_open)
    return enter(replace(state, failures=failures), stage, backoff_s(failures))


def _flags(state: MigrateState, event: Looked) -> tuple[str, ...]:
    found: tuple[str, ...] = ()
    for side, seen in ((Side.SOURCE, event.source), (Side.TARGET, event.target)):
        if seen is not None:
            found += open_windows(side, state.host(side), seen.volumes)
    return found


def _ill(seen: Observation | None, *, drbd_only: bool) -> tuple[str, ...]:
    """A disk that the source has let go of is not there any more: only replicas count on it."""
    if seen is None:
        return ()
    return tuple(
        f"{report.volume.name}: {report.health}: {'; '.join(report.problems)}"
        for report in seen.volumes
        if report.health is not Health.OK and (isinstance(report.volume, DrbdVolume) or not drbd_only)
    )


def refusal(state: MigrateState, pair: Pair, found: Verdict) -> str:
    """Why a migration does not begin, in words."""
    request = state.request
    if found is Verdict.UNKNOWN:
        return f"{request.source} or {request.target} did not say what it has of the guest"
    if found is Verdict.WITHOUT_DISK:
        return f"the guest runs on {request.source}, which holds none of its disks"
    if pair.target is not SideView.GONE:
        return f"{request.target} has a domain of this uuid already ({pair.target})"
    if pair.job:
        return f"a libvirt job runs on the guest on {request.source}"
    return f"the guest does not run on {request.source} ({pair.source})"


__all__ = ["decide", "refusal", "verify", "verify_back"]
