"""What the cold saga makes of a pair of observations: go on, done, wait (bounded), undo, park. Pure.

Three facts widen what one host alone can tell, and nothing else does:
- `moved` (both hosts seen): the source has no definition, so it cannot start the guest; its silence no longer
  matters on the way forward.
- The definition never left (`move-definition` was not issued): the target, seen without the guest at the
start, has nothing that it could start; its silence does not keep a guest from being started again at home.
- An open domain step: nothing is decided before its end is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

from agents.protocol import DomainState, Observation
from migrd.reconcile import Pair, SideView
from migrd.sagas.cold_moves import (
    Result,
    enter,
    follow,
    forward_from,
    go_back,
    look_again,
    next_needed,
    park,
    start_back,
)
from migrd.sagas.cold_state import BACK, COMMIT_POINT, FORWARD, ColdStage, ColdState
from migrd.sagas.events import CANCELLED, Looked
from migrd.sagas.guest_move import MAX_FAILURES, backoff_s
from storage.words import DrbdVolume, Health, Side

WAIT_LOOKS = 40  # at 0.2 s, then 1 s: about 30 s for a QEMU to go
BOTH_LOOKS = 3  # the two hosts are not looked at in one instant
UNKNOWN_LOOKS = 8  # with back-off: about two minutes
ALONE_LOOKS = 4  # with back-off: about seven seconds, then a guest that is down is started again at home
CALM_LOOKS = 5  # after a shutdown was asked for and not followed: is it perhaps under way?
CALM_LOOK_S = 2.0
SETTLE_LOOKS = 9  # 40 s: libvirt gives a peer that is silent up after 30 s
SETTLE_LOOK_S = 5.0


class Found(StrEnum):
    """What the pair says of a guest that is moved cold."""

    RUNS_ON_SOURCE = "runs-on-source"
    OFF_ON_SOURCE = "off-on-source"  # defined on the source alone, no QEMU anywhere
    OFF_ON_BOTH = "off-on-both"  # defined on both: a move of the definition was cut off half-way
    OFF_ON_TARGET = "off-on-target"  # defined on the target alone
    RUNS_ON_TARGET = "runs-on-target"  # and the source has neither QEMU nor definition
    PAUSED = "paused"  # on the source
    TRANSIENT = "transient"  # some QEMU is on its way out
    LOST = "lost"
    BOTH = "both"  # two QEMUs: alarm, touch nothing (I1)
    UNEXPECTED = "unexpected"  # no step of this saga leads here
    UNKNOWN = "unknown"


_LIVE = (SideView.RUNNING, SideView.PAUSED)
_FOUND: Mapping[tuple[SideView, SideView], Found] = {
    (SideView.RUNNING, SideView.GONE): Found.RUNS_ON_SOURCE,
    (SideView.RUNNING, SideView.STOPPED): Found.RUNS_ON_SOURCE,
    (SideView.PAUSED, SideView.GONE): Found.PAUSED,
    (SideView.PAUSED, SideView.STOPPED): Found.PAUSED,
    (SideView.STOPPED, SideView.GONE): Found.OFF_ON_SOURCE,
    (SideView.STOPPED, SideView.STOPPED): Found.OFF_ON_BOTH,
    (SideView.GONE, SideView.STOPPED): Found.OFF_ON_TARGET,
    (SideView.GONE, SideView.RUNNING): Found.RUNS_ON_TARGET,
    (SideView.GONE, SideView.PAUSED): Found.RUNS_ON_TARGET,
    (SideView.GONE, SideView.GONE): Found.LOST,
}

# A move of the definition whose end nobody heard may still be under way in libvirt: swept from the target
# meanwhile, the definition would be on no host once libvirt on the source has finished.
# And a look at one host before and at the other after the last step finds it nowhere.
_MAY_BE_MOVING = (Found.OFF_ON_SOURCE, Found.OFF_ON_BOTH, Found.OFF_ON_TARGET, Found.LOST)
_MOVED_TO = {ColdStage.MOVE: Found.OFF_ON_TARGET, ColdStage.RETURN: Found.OFF_ON_SOURCE}

# found -> (what is wrong, what the operator can do before `op resume`)
STUCK: Mapping[Found, tuple[str, str]] = {
    Found.PAUSED: ("the guest is paused on {source}", "virsh resume {name} on {source}"),
    Found.TRANSIENT: ("a QEMU process is still starting or ending", ""),
    Found.LOST: ("the guest is defined on neither host", "find out who removed it; define it on one of them"),
    Found.BOTH: (
        "ALARM: the guest has a QEMU on {source} AND on {target}; nothing was touched (I1)",
        "stop the wrong one by hand",
    ),
    Found.UNEXPECTED: ("no cold move leads to what both hosts show", "look at both hosts"),
    Found.RUNS_ON_TARGET: ("somebody has brought the guest to {target}", "look at both hosts"),
    Found.OFF_ON_TARGET: ("the guest is defined on {target} only", "look at both hosts"),
}


def found(pair: Pair) -> Found:
    """Every pair of views. What is not in the table is never safe (I19)."""
    if SideView.UNKNOWN in (pair.source, pair.target):
        return Found.UNKNOWN
    if pair.source in _LIVE and pair.target in _LIVE:
        return Found.BOTH
    if SideView.ENDING in (pair.source, pair.target):
        return Found.TRANSIENT
    return _FOUND.get((pair.source, pair.target), Found.UNEXPECTED)


def _may_be_moving(state: ColdState, what: Found) -> bool:
    return state.unsettled is not None and what in _MAY_BE_MOVING and what is not _MOVED_TO[state.unsettled]


def _found(pair: Pair, event: Looked) -> Found:
    """A QEMU that libvirt has not got to run yet is neither: it may still fail, and is gone then."""
    starting = any(
        seen is not None and seen.state is DomainState.PAUSED and seen.reason == "starting up"
        for seen in (event.source, event.target)
    )
    what = found(pair)
    return Found.TRANSIENT if starting and what in (Found.PAUSED, Found.RUNS_ON_TARGET) else what


def decide(state: ColdState, event: Looked) -> Result:  # noqa: PLR0911 - a table
    """The reconcile stage."""
    seen = Pair.of(event.source, event.target)
    if state.open is not None:
        return follow(state, backoff_s(state.tries))
    pair = _widened(state, seen)
    state = replace(state, alone=pair.target is not seen.target)
    what = _found(pair, event)
    if _may_be_moving(state, what) and state.looks < SETTLE_LOOKS:
        return look_again(state, SETTLE_LOOK_S)
    if what is not Found.UNKNOWN:
        state = replace(state, unsettled=None)
    match what:
        case Found.UNKNOWN:
            return _unknown(state, event, seen)
        case Found.RUNS_ON_SOURCE:
            return _runs_on_source(replace(state, down=False, moved=False))
        case Found.OFF_ON_SOURCE:
            return _off_on_source(replace(state, down=True, moved=False))
        case Found.OFF_ON_BOTH if state.issued(ColdStage.MOVE):
            return _off_on_both(replace(state, down=True, moved=False))
        case Found.OFF_ON_TARGET if state.issued(ColdStage.MOVE):
            return _off_on_target(replace(state, down=True, moved=True), event)
        case Found.RUNS_ON_TARGET if state.issued(ColdStage.MOVE):
            return _done(state, event, seen)
        case _:
            return _wait(state, what)


def _widened(state: ColdState, seen: Pair) -> Pair:
    """See the three facts above. `GONE` stands for: whatever that host is, it cannot start the guest."""
    if state.moved and not state.going_back and seen.source is SideView.UNKNOWN:
        return replace(seen, source=SideView.GONE)
    if state.going_back and not state.issued(ColdStage.MOVE) and seen.target is SideView.UNKNOWN:
        return replace(seen, target=SideView.GONE)
    return seen


# -- one handler per finding ----------------------------------------------------------------------


def _runs_on_source(state: ColdState) -> Result:
    request = state.request
    if state.going_back:
        return _further_back(state)
    if state.cancelled:
        return start_back(state)
    if state.ran and state.back_to in (ColdStage.PREPARE, ColdStage.SHUTDOWN):
        return enter(state, state.back_to)
    if state.ran and state.reached in (None, ColdStage.PREPARE) and not state.issued(ColdStage.SHUTDOWN):
        return forward_from(state, state.reached)
    if not state.ran or state.issued(ColdStage.RELEASE) or state.reached is ColdStage.SHUTDOWN:
        reason = f"somebody started the guest on {request.source} meanwhile"
        state = replace(state, trouble=(*state.trouble, reason))
    return start_back(state)


def _off_on_source(state: ColdState) -> Result:
    if state.going_back:
        return _further_back(state)
    if state.cancelled:
        return start_back(state)
    if state.back_to is ColdStage.SHUTDOWN:  # it has followed the request after all
        return forward_from(replace(state, tries=0), ColdStage.SHUTDOWN)
    if state.back_to in FORWARD and state.back_to is not ColdStage.START:
        return enter(state, state.back_to)
    if state.reached is ColdStage.MOVE or state.back_to is ColdStage.START:
        reason = f"the definition did not leave {state.request.source}"
        return start_back(replace(state, trouble=(*state.trouble, reason)))
    return forward_from(state, state.reached)


def _off_on_both(state: ColdState) -> Result:
    """The target defines first, so this is a move cut off half-way: once more, or take it back there."""
    failures = state.failures + 1
    if failures >= MAX_FAILURES:
        return park(state, (f"the guest stays defined on {state.request.source} and {state.request.target}",))
    state = replace(state, failures=failures)
    if state.going_back:
        return enter(state, ColdStage.SETTLE, backoff_s(state.tries))
    if state.cancelled or state.issued(ColdStage.START):
        return start_back(state)
    return enter(state, ColdStage.MOVE, backoff_s(state.tries))


def _off_on_target(state: ColdState, event: Looked) -> Result:
    if state.going_back:
        failures = state.failures + 1
        if failures >= MAX_FAILURES:
            return park(state, (*state.trouble, f"the definition does not leave {state.request.target}"))
        return enter(replace(state, failures=failures), ColdStage.RETURN, backoff_s(state.tries))
    if not state.ran or state.reached is ColdStage.START:
        return _done(state, event, Pair.of(event.source, event.target))
    if state.cancelled:
        return go_back(state, (CANCELLED,))
    return enter(replace(state, reached=ColdStage.MOVE), ColdStage.START, backoff_s(state.tries))


def _further_back(state: ColdState) -> Result:
    """The stage that was tried, if it is still of use; else from the first one: each looks before it acts.

    A start that failed may have taken the disks along: its QEMU was their last opener.
    """
    again = ColdStage.REATTACH if state.back_to is ColdStage.RESTART else state.back_to
    order = BACK[BACK.index(again) :] if again in BACK else BACK
    return next_needed(replace(state, back_to=None), order)


def _done(state: ColdState, event: Looked, seen: Pair) -> Result:
    """Nothing of the guest is left on the source, and storage went before."""
    request = state.request
    remarks: tuple[str, ...] = ()
    if seen.target is SideView.PAUSED:
        remarks = (f"it is paused on {request.target}",)
    elif state.ran and seen.target is SideView.STOPPED:
        remarks = (f"it was started on {request.target}, and is shut off since",)
    if request.autostart:
        remarks = (*remarks, f"autostart is not carried over: virsh autostart {request.name}")
    remarks = (*remarks, *_ill(event.source), *_ill(event.target))
    return replace(
        state, stage=COMMIT_POINT, going_back=False, down=False, reasons=remarks, trouble=(), answers=()
    ), ()


def _ill(seen: Observation | None) -> tuple[str, ...]:
    """Replicas that are not whole. A LUN that was let go of is not there any more, as it should be."""
    return tuple(
        f"{report.volume.name}: {report.health}: {'; '.join(report.problems)}"
        for report in (seen.volumes if seen is not None else ())
        if isinstance(report.volume, DrbdVolume) and report.health is not Health.OK
    )


# -- waiting --------------------------------------------------------------------------------------


def _wait(state: ColdState, what: Found) -> Result:
    """A state that passes by itself, or not: look for a while, then park."""
    bound = {Found.TRANSIENT: WAIT_LOOKS, Found.PAUSED: WAIT_LOOKS, Found.BOTH: BOTH_LOOKS}.get(what, 1)
    if state.looks < bound:
        return look_again(state, 0.2 if state.looks < 10 and what is not Found.BOTH else 1.0)
    words = {"source": state.request.source, "target": state.request.target, "name": state.request.name}
    reason, first = STUCK.get(what, STUCK[Found.UNEXPECTED])
    resume = f"migrctl op resume {state.operation}"
    remedy = f"{first.format(**words)}; then {resume}" if first else ""
    down = what is Found.LOST or (state.down and what not in (Found.BOTH, Found.RUNS_ON_TARGET, Found.PAUSED))
    return park(replace(state, down=down), (*state.trouble, reason.format(**words)), remedy=remedy)


def _unknown(state: ColdState, event: Looked, seen: Pair) -> Result:
    """A host does not answer: wait. Then home, if that is enough; else park until it returns."""
    silent = tuple(
        state.host(side)
        for side, view in ((Side.SOURCE, seen.source), (Side.TARGET, seen.target))
        if view is SideView.UNKNOWN
    )
    trouble = tuple(dict.fromkeys((*state.trouble, *event.reasons))) or tuple(
        f"{host} shows a state that is not understood" for host in silent
    )
    home = seen.source in (SideView.STOPPED, SideView.RUNNING) and not state.issued(ColdStage.MOVE)
    if home and not state.going_back and state.looks >= ALONE_LOOKS:
        return go_back(replace(state, trouble=trouble), trouble)
    if state.looks < UNKNOWN_LOOKS:
        return look_again(state, backoff_s(state.looks))
    down = seen.source is not SideView.RUNNING and (state.down or seen.source is SideView.STOPPED)
    return park(replace(state, down=down), trouble, waits_for=silent)


def verify_back(state: ColdState, event: Looked) -> Result:  # noqa: PLR0911 - one per finding
    """Back: the guest is on the source as before, and nothing of it on the target."""
    seen = Pair.of(event.source, event.target)
    pair = _widened(state, seen)
    what = _found(pair, event)
    if what is Found.RUNS_ON_SOURCE and pair.target is SideView.GONE:
        asked = state.issued(ColdStage.SHUTDOWN) and not state.issued(ColdStage.RESTART)
        if asked and state.looks < CALM_LOOKS:
            return look_again(state, CALM_LOOK_S)
        note = f"it was asked to shut down, and may still do so: virsh start {state.request.name} then"
        reasons = (*state.reasons, note) if asked else state.reasons
        return replace(state, stage=ColdStage.UNDONE, down=False, reasons=reasons), ()
    if what is Found.OFF_ON_SOURCE:
        if state.ran and not state.issued(ColdStage.RESTART):
            return next_needed(replace(state, down=True), BACK)  # it has followed the request after all
        note = f"it ran on {state.request.source} again, and is shut off since"
        reasons = (*state.reasons, note) if state.ran else state.reasons
        return replace(state, stage=ColdStage.UNDONE, reasons=reasons), ()
    if what is Found.UNKNOWN:
        return _unknown(state, event, seen)
    if what in (Found.RUNS_ON_SOURCE, Found.OFF_ON_BOTH) and state.issued(ColdStage.MOVE):
        failures = state.failures + 1
        if failures >= MAX_FAILURES:
            return park(state, (f"a definition of the guest stays on {state.request.target}",))
        return enter(replace(state, failures=failures), ColdStage.SETTLE, backoff_s(failures))
    return _wait(state, what)


def refusal(state: ColdState, event: Looked, seen: Pair) -> str:  # noqa: PLR0911 - a list
    """Why a cold move does not begin, in words; '' = it may."""
    request = state.request
    if SideView.UNKNOWN in (seen.source, seen.target):
        return f"{request.source} or {request.target} did not say what it has of the guest"
    if seen.target is not SideView.GONE:
        return f"{request.target} has a domain of this uuid already ({seen.target})"
    if seen.job:
        return f"a libvirt job runs on the guest on {request.source}"
    if seen.source not in (SideView.RUNNING, SideView.STOPPED):
        return f"the guest neither runs nor is shut off on {request.source} ({seen.source})"
    if event.source is not None and not event.source.persistent:
        return f"it is transient: shut down, nothing of it would be left on {request.source}"
    if seen.source is SideView.RUNNING and not request.may_stop:
        return "it runs, and nobody has allowed that it is shut down: name it with --cold"
    return ""
