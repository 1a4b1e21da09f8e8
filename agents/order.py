"""In which order the commands of one operation can mean anything. Pure.

A request may be held back by the network, or in the socket of an agent that stood still, and arrive when its
operation has given it up and gone on. Of one step the attempt numbers tell (see `agents.ledger`); of two
steps this table does: what an operation has taken back it does not do again.
"""

from __future__ import annotations

from collections.abc import Iterable

from agents.protocol import (
    AcquireVolumes,
    AnyVolume,
    CloseWindow,
    Command,
    OpenWindow,
    PrepareVolumes,
    ReleaseVolumes,
)
from storage.words import Side


def may_be_overtaken(late: Command) -> bool:
    """Is there a command that takes this one back for good? A source's disks come back with a cold move."""
    match late:
        case OpenWindow():
            return True
        case PrepareVolumes() | AcquireVolumes():
            return late.handover.side is Side.TARGET
        case _:
            return False


def overtaken(late: Command, done: Command) -> bool:
    """Must `late` not begin, now that `done` of the same operation has begun on this host (I6)?

    Of the same volumes: on its way forward a cold move lets those at rest go, and takes the others after it.
    """
    match late, done:
        case (OpenWindow(volumes=these), CloseWindow(volumes=those)) | (
            PrepareVolumes(volumes=these) | AcquireVolumes(volumes=these),
            ReleaseVolumes(volumes=those),
        ):
            return may_be_overtaken(late) and _share(these, those)
        case _:
            return False


def _share(these: Iterable[AnyVolume], those: Iterable[AnyVolume]) -> bool:
    return bool({each.name for each in these} & {each.name for each in those})
