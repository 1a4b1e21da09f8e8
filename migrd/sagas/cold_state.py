"""The state of one cold move, and what each of its stages asks of which host. Pure data.

precheck -> prepare -> shutdown* -> release -> leave+ -> acquire -> move-definition -> start*
  -> [COMMIT POINT = done: runs on the target*, or is defined there and on the source no more+]
going back, only before the commit point:
  return-definition -> settle -> sweep -> free-target -> reattach -> reacquire -> restart* -> release-target
    -> leave-source+ -> undone

* only a guest that ran when the move began; + only one that was shut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agents.protocol import (
    AcquireVolumes,
    AnyVolume,
    Command,
    MoveDefinition,
    PrepareVolumes,
    ReleaseVolumes,
    SettleDomain,
    ShutdownDomain,
    StartDomain,
    SweepTarget,
)
from migrd.sagas.events import Answered, ColdRequested
from storage.words import DrbdVolume, Handover, Side


class ColdStage(StrEnum):
    PENDING = "pending"
    PRECHECK = "precheck"
    PREPARE = "prepare"
    SHUTDOWN = "shutdown"
    RELEASE = "release"
    LEAVE = "leave"  # the target lets go again of what the source did not hold either
    ACQUIRE = "acquire"
    MOVE = "move-definition"
    START = "start"
    RECONCILE = "reconcile"
    RETURN = "return-definition"
    SETTLE = "settle"  # the definition stays at home: no move of it is still under way in libvirt
    SWEEP = "sweep"
    FREE_TARGET = "free-target"  # the target may write: it must let go before the source may
    REATTACH = "reattach"
    REACQUIRE = "reacquire"
    RESTART = "restart"
    RELEASE_TARGET = "release-target"  # the target only looked: that can wait until the guest runs again
    LEAVE_SOURCE = "leave-source"  # the source lets go of what it did not hold before
    VERIFY_BACK = "verify-back"
    PARKED = "parked"
    DONE = "done"
    UNDONE = "undone"

    @property
    def ended(self) -> bool:
        return self in (ColdStage.DONE, ColdStage.UNDONE)


COMMIT_POINT = ColdStage.DONE
"""On the target, running if it ran before, and nothing of it on the source. Before it: undo."""

FORWARD = (
    ColdStage.PREPARE,
    ColdStage.SHUTDOWN,
    ColdStage.RELEASE,
    ColdStage.LEAVE,
    ColdStage.ACQUIRE,
    ColdStage.MOVE,
    ColdStage.START,
)
BACK = (
    ColdStage.RETURN,
    ColdStage.SETTLE,
    ColdStage.SWEEP,
    ColdStage.FREE_TARGET,
    ColdStage.REATTACH,
    ColdStage.REACQUIRE,
    ColdStage.RESTART,
    ColdStage.RELEASE_TARGET,
    ColdStage.LEAVE_SOURCE,
)
DOMAIN_STEPS = (
    ColdStage.SHUTDOWN,
    ColdStage.MOVE,
    ColdStage.START,
    ColdStage.RETURN,
    ColdStage.RESTART,
)
"""They change the guest itself: their end is waited for, and reality is looked at after each of them."""
MOVES = (ColdStage.MOVE, ColdStage.RETURN)
"""They go on in libvirt when the agent dies, and leave no trace there that could be asked for."""

SIDES: Mapping[ColdStage, tuple[Side, ...]] = {
    ColdStage.PREPARE: (Side.SOURCE, Side.TARGET),
    ColdStage.SHUTDOWN: (Side.SOURCE,),
    ColdStage.RELEASE: (Side.SOURCE,),
    ColdStage.LEAVE: (Side.TARGET,),
    ColdStage.ACQUIRE: (Side.TARGET,),
    ColdStage.MOVE: (Side.SOURCE,),
    ColdStage.START: (Side.TARGET,),
    ColdStage.RETURN: (Side.TARGET,),
    ColdStage.SETTLE: (Side.SOURCE,),
    ColdStage.SWEEP: (Side.TARGET,),
    ColdStage.FREE_TARGET: (Side.TARGET,),
    ColdStage.REATTACH: (Side.SOURCE,),
    ColdStage.REACQUIRE: (Side.SOURCE,),
    ColdStage.RESTART: (Side.SOURCE,),
    ColdStage.RELEASE_TARGET: (Side.TARGET,),
    ColdStage.LEAVE_SOURCE: (Side.SOURCE,),
}
"""The stages that call agents, and which; the others look, or wait for someone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdState:
    """A fold over the events of one operation. Only `looks` may be lost in a crash: it bounds a wait."""

    operation: str
    request: ColdRequested
    stage: ColdStage = ColdStage.PENDING
    ran: bool = False  # it ran when the move began, so it has to run at the end, here or there
    held: tuple[str, ...] = ()  # volumes that the source held at that moment, by name
    going_back: bool = False
    cancelled: bool = False
    moved: bool = False  # both hosts were seen: the definition is on the target, and on the source no more
    alone: bool = False  # going back, and the target does not answer: it has nothing that it could start
    down: bool = False  # as last seen, it has no QEMU on any host
    reached: ColdStage | None = None  # the last stage forward that all its hosts have done
    attempts: Mapping[ColdStage, int] = field(default_factory=dict)  # highest issued; grows for ever
    answers: tuple[Answered, ...] = ()  # of the present stage
    open: ColdStage | None = None  # a domain step was issued and its end is not known
    unsettled: ColdStage | None = None  # nobody heard how this move of the definition ended: see `decide`
    back_to: ColdStage | None = None  # reconcile: the stage to try again if nothing has changed
    tries: int = 0  # of the present stage, since something succeeded
    starts: int = 0  # at home that failed, whatever was done for the disks in between
    failures: int = 0
    looks: int = 0  # how often the present stage has looked; not journalled
    trouble: tuple[str, ...] = ()  # what the latest failed try said
    reasons: tuple[str, ...] = ()  # why it goes back, is parked, or ended with a remark
    remedy: str = ""
    waits_for: tuple[str, ...] = ()  # parked: hosts whose return resumes it
    parked_in: ColdStage | None = None

    def host(self, side: Side) -> str:
        return self.request.source if side is Side.SOURCE else self.request.target

    def issued(self, stage: ColdStage) -> bool:
        return self.attempts.get(stage, 0) > 0

    @property
    def taken(self) -> tuple[AnyVolume, ...]:
        """What the guest's host has to hold: all that a running guest has, else what the source held."""
        volumes = self.request.volumes
        return volumes if self.ran else tuple(v for v in volumes if v.name in self.held)

    @property
    def left(self) -> tuple[AnyVolume, ...]:
        """What the source did not hold: it was prepared only to be looked at."""
        return tuple(v for v in self.request.volumes if v not in self.taken)


def command_for(state: ColdState, stage: ColdStage, side: Side) -> Command:  # noqa: PLR0911 - a table
    """What `stage` asks of `side`."""
    request = state.request
    peer = request.target_node if side is Side.SOURCE else request.source_node
    handover = Handover(operation=state.operation, domain_uuid=request.guest, side=side, peer_node=peer)
    match stage:
        case ColdStage.PREPARE:
            return PrepareVolumes(handover=handover, volumes=request.volumes)
        case ColdStage.SHUTDOWN:
            assert request.may_stop, "I5: a guest is shut down only with consent by name"
            return ShutdownDomain(uuid=request.guest, deadline_s=request.shutdown_deadline_s)
        case ColdStage.RELEASE | ColdStage.FREE_TARGET | ColdStage.RELEASE_TARGET:
            return ReleaseVolumes(handover=handover, volumes=request.volumes)
        case ColdStage.LEAVE | ColdStage.LEAVE_SOURCE:
            return ReleaseVolumes(handover=handover, volumes=state.left)
        case ColdStage.ACQUIRE | ColdStage.REACQUIRE:
            return AcquireVolumes(handover=handover, volumes=state.taken)
        case ColdStage.REATTACH:
            return PrepareVolumes(handover=handover, volumes=reattached(state))
        case ColdStage.MOVE:
            return MoveDefinition(
                uuid=request.guest, target_uri=request.target_uri, target_address=request.target_address
            )
        case ColdStage.RETURN:
            return MoveDefinition(
                uuid=request.guest, target_uri=request.source_uri, target_address=request.source_address
            )
        case ColdStage.SETTLE:
            return SettleDomain(uuid=request.guest)
        case ColdStage.SWEEP:
            return SweepTarget(uuid=request.guest)
        case ColdStage.START | ColdStage.RESTART:
            return StartDomain(handover=handover, volumes=request.volumes)
        case _:
            raise AssertionError(f"stage {stage} calls no agent")


def reattached(state: ColdState) -> tuple[AnyVolume, ...]:
    """What has to be made openable on the source again. DRBD has nothing like a login, and its `prepare`
    asks for a peer that is connected, which a guest must not wait for."""
    return tuple(v for v in state.taken if not isinstance(v, DrbdVolume))
