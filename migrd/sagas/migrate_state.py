"""The state of one migration, and what each of its stages asks of which host. Pure data.

precheck -> prepare -> open-window -> acquire -> migrate -> reconcile (-> settle)
  -> [MOVED = COMMIT POINT] -> release -> close-window (-> undefine-source) -> verify -> done
  (a source that loses its power in the switch-over: parked after verify until it answers -> reconcile -> ...)
going back, only before the commit point:
  reconcile -> sweep -> release-target -> close-back -> verify-back -> undone
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agents.protocol import (
    AcquireVolumes,
    CloseWindow,
    Command,
    MigrateDomain,
    OpenWindow,
    PrepareVolumes,
    ReleaseVolumes,
    SweepTarget,
    UndefineDomain,
)
from migrd.reconcile import Verdict
from migrd.sagas.events import Answered, MigrateRequested
from storage.words import DrbdVolume, Handover, IscsiQemuVolume, Side, WindowOptions


class Stage(StrEnum):
    PENDING = "pending"
    PRECHECK = "precheck"
    PREPARE = "prepare"
    OPEN_WINDOW = "open-window"
    ACQUIRE = "acquire"
    MIGRATE = "migrate"
    RECONCILE = "reconcile"
    SETTLE = "settle"
    RELEASE = "release"
    CLOSE_WINDOW = "close-window"
    UNDEFINE_SOURCE = "undefine-source"  # only if libvirt did not come to its Confirm there
    VERIFY = "verify"
    SWEEP = "sweep"
    RELEASE_TARGET = "release-target"
    CLOSE_BACK = "close-back"
    VERIFY_BACK = "verify-back"
    SALVAGE = "salvage"  # the target does not answer: close what the source alone can close, then park
    PARKED = "parked"
    DONE = "done"
    UNDONE = "undone"

    @property
    def ended(self) -> bool:
        return self in (Stage.DONE, Stage.UNDONE)


COMMIT_POINT = Verdict.MOVED
"""Runs on the target, no process on the source, both looked at. Before it: undo. After it: only forward."""

FORWARD = (Stage.PREPARE, Stage.OPEN_WINDOW, Stage.ACQUIRE, Stage.MIGRATE)
FINISH = (Stage.RELEASE, Stage.CLOSE_WINDOW, Stage.UNDEFINE_SOURCE)
BACK = (Stage.SWEEP, Stage.RELEASE_TARGET, Stage.CLOSE_BACK)

SIDES: Mapping[Stage, tuple[Side, ...]] = {
    Stage.PREPARE: (Side.SOURCE, Side.TARGET),
    Stage.OPEN_WINDOW: (Side.SOURCE, Side.TARGET),
    Stage.ACQUIRE: (Side.TARGET,),
    Stage.MIGRATE: (Side.SOURCE,),
    Stage.RELEASE: (Side.SOURCE,),
    Stage.CLOSE_WINDOW: (Side.SOURCE, Side.TARGET),
    Stage.UNDEFINE_SOURCE: (Side.SOURCE,),
    Stage.SWEEP: (Side.TARGET,),
    Stage.RELEASE_TARGET: (Side.TARGET,),
    Stage.CLOSE_BACK: (Side.SOURCE, Side.TARGET),
    Stage.SALVAGE: (Side.SOURCE,),
}
"""The stages that call agents, and which; the others look, or wait for someone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateState:
    """A fold over the events of one operation. Only `looks` may be lost in a crash: it bounds a wait."""

    operation: str
    request: MigrateRequested
    stage: Stage = Stage.PENDING
    going_back: bool = False
    committed: bool = False
    cancelled: bool = False
    stopped: bool = False  # the guest was shut down meanwhile, by itself or by someone else
    attempts: Mapping[Stage, int] = field(default_factory=dict)  # highest attempt issued; grows for ever
    answers: tuple[Answered, ...] = ()  # of the present stage
    migrate_open: bool = False  # a migrate attempt was issued and its end is not known
    source_ended: bool = False  # by our order: the answer that the guest runs on the target was lost
    source_clean: bool = False  # after the move the source was seen without the guest's definition
    proved: bool = False  # after the move both copies were seen to be one (I7)
    missed: bool = False  # it was parked because its source has not been seen since it moved
    given_up: bool = False  # and then an operator ended the wait for that source
    adrift: int = 0  # migrate attempts that ended unknown: their job may go on, and nobody watches it
    followers: int = 0  # attempts that were to take such a job up
    back_to: Stage | None = None  # reconcile: the stage to try again if nothing has moved
    tries: int = 0  # of the present stage, since something succeeded
    failures: int = 0
    rounds: int = 0  # how often all steps of a way were done, and looked at
    returns: int = 0  # of the source after the move: what was not done there had to be done then
    looks: int = 0  # how often the present stage has looked; not journalled
    trouble: tuple[str, ...] = ()  # what the latest failed try said
    reasons: tuple[str, ...] = ()  # why it goes back, is parked, or ended with a remark
    remedy: str = ""
    waits_for: tuple[str, ...] = ()  # parked: hosts whose return resumes it
    off: tuple[Side, ...] = ()  # without power at the latest look: nobody to ask, and nothing to undo there
    parked_in: Stage | None = None
    downtime_ms: int | None = None

    def host(self, side: Side) -> str:
        return self.request.source if side is Side.SOURCE else self.request.target

    @property
    def windowed(self) -> bool:
        """Does any volume need both hosts to hold it open at once (I6)?"""
        return any(isinstance(volume, DrbdVolume) for volume in self.request.volumes)

    @property
    def held(self) -> bool:
        """Does any volume have to be taken and let go by the hosts? A LUN that QEMU opens itself has not."""
        return any(not isinstance(volume, IscsiQemuVolume) for volume in self.request.volumes)

    @property
    def window_may_be_open(self) -> bool:
        """The intent was journalled, and no closing was confirmed."""
        return self.attempts.get(Stage.OPEN_WINDOW, 0) > 0 and not self.stage.ended

    def sides(self, stage: Stage) -> tuple[Side, ...]:
        """Whom the stage asks: not a host without power, which has lost what would be undone there."""
        return tuple(side for side in SIDES[stage] if side not in self.off)

    def issued(self, stage: Stage) -> bool:
        return self.attempts.get(stage, 0) > 0


def command_for(state: MigrateState, stage: Stage, side: Side) -> Command:  # noqa: PLR0911 - a table
    """What `stage` asks of `side`."""
    request = state.request
    peer = request.target_node if side is Side.SOURCE else request.source_node
    handover = Handover(operation=state.operation, domain_uuid=request.guest, side=side, peer_node=peer)
    match stage:
        case Stage.PREPARE:
            return PrepareVolumes(handover=handover, volumes=request.volumes)
        case Stage.OPEN_WINDOW:
            return OpenWindow(handover=handover, volumes=_windowed(state))
        case Stage.ACQUIRE:
            return AcquireVolumes(handover=handover, volumes=request.volumes)
        case Stage.RELEASE | Stage.RELEASE_TARGET:
            return ReleaseVolumes(handover=handover, volumes=request.volumes)
        case Stage.CLOSE_WINDOW | Stage.CLOSE_BACK | Stage.SALVAGE:
            return CloseWindow(handover=handover, volumes=_windowed(state), before=closed(state))
        case Stage.MIGRATE:
            return MigrateDomain(
                uuid=request.guest,
                target_uri=request.target_uri,
                target_address=request.target_address,
                downtime_limit_ms=request.downtime_limit_ms,
                bandwidth_bps=request.bandwidth_bps,
                deadline_s=request.deadline_s,
                volumes=request.volumes,
                handover=handover,
            )
        case Stage.SWEEP:
            return SweepTarget(uuid=request.guest)
        case Stage.UNDEFINE_SOURCE:
            return UndefineDomain(uuid=request.guest)
        case _:
            raise AssertionError(f"stage {stage} calls no agent")


def closed(state: MigrateState) -> tuple[WindowOptions, ...]:
    """What close-window puts back: always "not allowed".

    A window is only opened where the flag was off on both sides (see `compare`), so "off" is what was
    before. Answers of open-window are not used: after a crash they tell of our own first try (I6).
    """
    return tuple(WindowOptions(volume=v.name, allow_two_primaries=False) for v in _windowed(state))


def _windowed(state: MigrateState) -> tuple[DrbdVolume, ...]:
    return tuple(v for v in state.request.volumes if isinstance(v, DrbdVolume))
