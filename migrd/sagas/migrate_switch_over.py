"""While libvirt switches a guest over: is the source only waiting for an answer that was lost (I1)? Pure.

libvirt on the target lets the guest run, and then tells the source. If that answer is lost with the network,
the source's libvirt lets the guest run again once its keepalive gives the target up, and it runs twice (the
comment on virDomainMigrateFinish3 in libvirt leaves that to lock managers). Until then it is paused there,
and the daemon still sees both hosts: where the target runs the guest, the source's QEMU has to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agents.protocol import Observation
from migrd.reconcile import Pair, SideView
from migrd.sagas.commands import DestroySource, LookAtSwitchOver
from migrd.sagas.events import HandingOver, SwitchOverSeen
from migrd.sagas.migrate_moves import Result
from migrd.sagas.migrate_state import MigrateState, Stage

PAUSED_FOR_S = 1.0  # longer than a switch-over that goes well; libvirt gives a silent peer up after 30 s
TIMES_SEEN = 2  # the two hosts are not looked at in one instant
AGAIN_S = 0.5
_RAN: Mapping[SideView, tuple[str, ...]] = {
    SideView.PAUSED: ("ioerror", "watchdog"),  # e.g. the disk went with the network
    SideView.STOPPED: ("shutdown", "crashed"),
}


def handing_over(state: MigrateState, event: HandingOver) -> Result:
    """Look at both hosts, one look at a time: `looks` counts them while the stage has no others."""
    if event.paused_s < PAUSED_FOR_S or state.looks:
        return state, ()
    return _look(state, number=1)


def seen(state: MigrateState, event: SwitchOverSeen) -> Result:
    """Order the source's QEMU to end if the target runs the guest; else wait for the next word of a pause."""
    state = replace(state, looks=0)
    if event.attempt != state.attempts[Stage.MIGRATE] or not _left_behind(event):
        return state, ()
    if event.number < TIMES_SEEN:
        return _look(state, number=event.number + 1)
    order = DestroySource(host=state.request.source, step=Stage.MIGRATE, attempt=event.attempt)
    return replace(state, source_ended=True), (order,)


def _left_behind(event: SwitchOverSeen) -> bool:
    """Paused on the source, and has run on the target. What pauses it, the source's agent looks at itself."""
    pair = Pair.of(event.source, event.target)
    return pair.source is SideView.PAUSED and _has_run(pair.target, event.target)


def _has_run(view: SideView, seen: Observation | None) -> bool:
    """Runs, with a process; or does not any more, for a reason that only a guest that ran can have."""
    if seen is None:
        return False
    if view is SideView.RUNNING:
        return seen.qemu_process is True
    return seen.reason in _RAN.get(view, ())


def _look(state: MigrateState, *, number: int) -> Result:
    request = state.request
    look = LookAtSwitchOver(
        guest=request.guest,
        source=request.source,
        target=request.target,
        attempt=state.attempts[Stage.MIGRATE],
        number=number,
        after_s=0.0 if number == 1 else AGAIN_S,
    )
    return replace(state, looks=number), (look,)
