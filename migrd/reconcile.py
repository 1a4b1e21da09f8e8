"""What a pair of observations means: source and target of one migration, looked at together.

The error of a migrate call cannot be trusted (it may say "failed" for a guest that moved, and the other
way round), so every doubtful moment ends here: look at both hosts, decide from the pair. Pure; every
combination is covered, and what is not known is never safe (I1, I19).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from agents.protocol import DomainState, Observation
from storage.words import IscsiQemuVolume, Role, Side


class SideView(StrEnum):
    """What one host shows of the guest, reduced to what decides."""

    GONE = "gone"  # no QEMU, no definition
    STOPPED = "stopped"  # no QEMU, still defined
    RUNNING = "running"
    PAUSED = "paused"  # a QEMU that has run here, and does not now
    INCOMING = "incoming"  # a QEMU that never ran here: the target of a migration
    POSTCOPY = "postcopy"  # split between two hosts
    ENDING = "ending"  # no longer runs, but its QEMU still exists
    OFF = "off"  # the host does not answer, and its BMC says that it has no power (I3)
    UNKNOWN = "unknown"  # not answered, not understood, or contradicting itself


class Holding(StrEnum):
    """Which right to the guest's disks a host holds, where the host itself can tell (DRBD, kernel iSCSI)."""

    ALL = "all"  # primary of, or logged in to, every one
    NONE = "none"  # of none
    UNKNOWN = "unknown"  # not asked, not answered, some but not all, or only disks that QEMU opens itself


class Verdict(StrEnum):
    """What the pair says. See `migrd.sagas.migrate` for what is done about each."""

    STILL_ON_SOURCE = "still-on-source"  # runs there, no job, target clean
    COPYING = "copying"  # a migration job runs on the source
    TARGET_LEFTOVER = "target-leftover"  # runs on the source, no job; an incoming QEMU waits on the target
    SWITCHING = "switching"  # paused on the source while the target takes over
    SETTLING = "settling"  # runs on the target; the source's QEMU is not gone yet (I11)
    MOVED = "moved"  # runs on the target, no process on the source: the commit point
    MOVED_PAUSED = "moved-paused"  # only on the target, and paused
    SOURCE_PAUSED = "source-paused"  # only on the source, and paused, no job
    PAUSED_BOTH = "paused-both"
    BOTH_RUNNING = "both-running"  # two instances that have run: alarm, touch nothing (I1)
    WITHOUT_DISK = "without-disk"  # a QEMU that has run on a host which holds none of its disks: alarm
    POSTCOPY = "postcopy"
    STOPPED_ON_SOURCE = "stopped-on-source"  # shut down; defined on the source
    STOPPED_ON_TARGET = "stopped-on-target"  # moved, then shut down
    INCOMING_ONLY = "incoming-only"  # source's QEMU gone, target's never resumed
    LOST = "lost"  # neither running nor defined on either host
    TRANSIENT = "transient"  # some QEMU is on its way out: look again
    UNEXPECTED = "unexpected"  # no migration leads here: an operator has to look
    UNKNOWN = "unknown"  # at least one side did not answer


_BY_STATE: Mapping[DomainState, SideView] = {
    DomainState.RUNNING: SideView.RUNNING,
    DomainState.BLOCKED: SideView.RUNNING,
    DomainState.PAUSED: SideView.PAUSED,
    DomainState.PMSUSPENDED: SideView.PAUSED,
    DomainState.PAUSED_INCOMING: SideView.INCOMING,
    DomainState.PAUSED_POSTCOPY: SideView.POSTCOPY,
    DomainState.SHUTDOWN: SideView.ENDING,
    DomainState.SHUTOFF: SideView.STOPPED,
    DomainState.CRASHED: SideView.STOPPED,
    DomainState.ABSENT: SideView.GONE,
    DomainState.UNKNOWN: SideView.UNKNOWN,
}


def side_view(seen: Observation | None) -> SideView:
    """Reduce an observation; libvirt's word and /proc must agree.

    "No QEMU" needs /proc to have been looked at: libvirt forgets a domain before its process is reaped.
    """
    if seen is None:
        return SideView.UNKNOWN
    view = _BY_STATE[seen.state]
    if seen.state.has_process and seen.state is not DomainState.CRASHED:  # that one goes either way
        # libvirt says it lives, /proc says no process: one of them is wrong.
        return SideView.UNKNOWN if seen.qemu_process is False else view
    if seen.qemu_process is None:
        return SideView.UNKNOWN
    return SideView.ENDING if seen.qemu_process else view


_HELD = (Role.PRIMARY, Role.ATTACHED)
_LET_GO = (Role.SECONDARY, Role.DETACHED)


def holding(seen: Observation | None) -> Holding:
    """Pure. The credentials of a LUN that QEMU opens itself say nothing about who has it open."""
    if seen is None:
        return Holding.UNKNOWN
    roles = [each.role for each in seen.volumes if not isinstance(each.volume, IscsiQemuVolume)]
    if roles and all(role in _HELD for role in roles):
        return Holding.ALL
    if roles and all(role in _LET_GO for role in roles):
        return Holding.NONE
    return Holding.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    source: SideView
    target: SideView
    job: bool  # a libvirt job runs on the source's domain
    source_holds: Holding = Holding.UNKNOWN
    target_holds: Holding = Holding.UNKNOWN

    @staticmethod
    def of(source: Observation | None, target: Observation | None, off: Collection[Side] = ()) -> Pair:
        """`off`: sides whose host has no power; what they said before, if anything, no longer counts."""
        return Pair(
            source=SideView.OFF if Side.SOURCE in off else side_view(source),
            target=SideView.OFF if Side.TARGET in off else side_view(target),
            job=source is not None and source.job,
            source_holds=Holding.NONE if Side.SOURCE in off else holding(source),
            target_holds=Holding.NONE if Side.TARGET in off else holding(target),
        )


HAS_RUN = (SideView.RUNNING, SideView.PAUSED)


def verdict(pair: Pair) -> Verdict:
    """The table: every pair of views, with and without a job on the source, then who holds the disks.

    Roles of storage decide where domains alone cannot: of two shut-off definitions the one on the host that
    holds the disks is the guest; a QEMU that has run where none of its disks is held is a contradiction, and
    neither side of it may be touched.
    """
    found = _by_domains(pair)
    if found in (Verdict.UNKNOWN, Verdict.BOTH_RUNNING):
        return found
    if pair.source is pair.target is SideView.STOPPED:
        moved = pair.target_holds is Holding.ALL and pair.source_holds is Holding.NONE
        return Verdict.STOPPED_ON_TARGET if moved else Verdict.STOPPED_ON_SOURCE
    sides = ((pair.source, pair.source_holds), (pair.target, pair.target_holds))
    if any(view in HAS_RUN and holds is Holding.NONE for view, holds in sides):
        return Verdict.WITHOUT_DISK
    return found


def _by_domains(pair: Pair) -> Verdict:  # noqa: PLR0911 - a table
    if SideView.UNKNOWN in (pair.source, pair.target):
        return Verdict.UNKNOWN
    if SideView.OFF in (pair.source, pair.target):
        return _one_off(pair)
    match pair.source:
        case SideView.RUNNING:
            return _source_running(pair.target, job=pair.job)
        case SideView.PAUSED:
            return _source_paused(pair.target, job=pair.job)
        case SideView.GONE | SideView.STOPPED:
            return _source_without_process(pair.source, pair.target)
        case SideView.ENDING:
            return _source_ending(pair.target)
        case SideView.POSTCOPY:
            return Verdict.POSTCOPY
        case SideView.INCOMING:
            return Verdict.UNEXPECTED  # the source of this migration is the target of another one
        case SideView.UNKNOWN | SideView.OFF:
            return Verdict.UNKNOWN
        case _:
            assert_never(pair.source)


def _one_off(pair: Pair) -> Verdict:
    """One host has no power: nothing runs there. The other decides, if it has a QEMU of the guest that ran.

    Otherwise the guest went down with the host, and its definition is out of sight: UNKNOWN until it returns.
    """
    if pair.source is SideView.OFF and pair.target in (SideView.RUNNING, SideView.PAUSED):
        return _source_without_process(SideView.GONE, pair.target)
    if pair.target is SideView.OFF and pair.source is SideView.RUNNING:
        return _source_running(SideView.GONE, job=pair.job)
    if pair.target is SideView.OFF and pair.source is SideView.PAUSED:
        return _source_paused(SideView.GONE, job=pair.job)
    return Verdict.UNKNOWN


def _source_running(target: SideView, *, job: bool) -> Verdict:
    match target:
        case SideView.GONE | SideView.STOPPED:
            return Verdict.COPYING if job else Verdict.STILL_ON_SOURCE
        case SideView.INCOMING:
            return Verdict.COPYING if job else Verdict.TARGET_LEFTOVER
        case SideView.RUNNING | SideView.PAUSED:
            return Verdict.BOTH_RUNNING
        case SideView.POSTCOPY:
            return Verdict.POSTCOPY
        case SideView.ENDING:
            return Verdict.TRANSIENT
        case SideView.UNKNOWN | SideView.OFF:
            return Verdict.UNKNOWN
        case _:
            assert_never(target)


def _source_paused(target: SideView, *, job: bool) -> Verdict:  # noqa: PLR0911 - a table
    match target:
        case SideView.RUNNING:
            return Verdict.SETTLING
        case SideView.GONE | SideView.STOPPED:
            return Verdict.SWITCHING if job else Verdict.SOURCE_PAUSED
        case SideView.INCOMING:
            return Verdict.SWITCHING if job else Verdict.PAUSED_BOTH
        case SideView.PAUSED:
            return Verdict.PAUSED_BOTH
        case SideView.POSTCOPY:
            return Verdict.POSTCOPY
        case SideView.ENDING:
            return Verdict.TRANSIENT
        case SideView.UNKNOWN | SideView.OFF:
            return Verdict.UNKNOWN
        case _:
            assert_never(target)


def _source_without_process(source: SideView, target: SideView) -> Verdict:  # noqa: PLR0911 - a table
    match target:
        case SideView.RUNNING:
            return Verdict.MOVED
        case SideView.PAUSED:
            return Verdict.MOVED_PAUSED
        case SideView.INCOMING:
            # libvirt ends the source only once the target runs: a defined, shut-off source stopped by itself
            # (or by our order: `migrate_verdicts` knows), and what waits on the target never ran. Without a
            # definition nobody can say what became of it.
            stopped = source is SideView.STOPPED
            return Verdict.STOPPED_ON_SOURCE if stopped else Verdict.INCOMING_ONLY
        case SideView.POSTCOPY:
            return Verdict.POSTCOPY
        case SideView.ENDING:
            return Verdict.TRANSIENT
        case SideView.GONE | SideView.STOPPED:
            if source is SideView.STOPPED:
                return Verdict.STOPPED_ON_SOURCE
            return Verdict.LOST if target is SideView.GONE else Verdict.STOPPED_ON_TARGET
        case SideView.UNKNOWN | SideView.OFF:
            return Verdict.UNKNOWN
        case _:
            assert_never(target)


def _source_ending(target: SideView) -> Verdict:
    match target:
        case SideView.RUNNING:
            return Verdict.SETTLING
        case SideView.POSTCOPY:
            return Verdict.POSTCOPY
        case SideView.GONE | SideView.STOPPED | SideView.INCOMING | SideView.PAUSED | SideView.ENDING:
            return Verdict.TRANSIENT
        case SideView.UNKNOWN | SideView.OFF:
            return Verdict.UNKNOWN
        case _:
            assert_never(target)
