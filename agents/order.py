"""In which order the commands of one operation can mean anything. Pure.

A request may be held back by the network, or in the socket of an agent that stood still, and arrive when its
operation has given it up and gone on. Of one step the attempt numbers tell (see `agents.ledger`); of two
steps this table does: an operation that has begun to go back never goes forward again.
"""

from __future__ import annotations

from agents.protocol import AcquireVolumes, CloseWindow, Command, OpenWindow, PrepareVolumes, ReleaseVolumes
from storage.words import Side


def overtaken(late: Command, done: Command) -> bool:
    """Must `late` not begin, now that `done` of the same operation has begun on this host?"""
    match late:
        case OpenWindow():
            return isinstance(done, CloseWindow)  # I6
        case PrepareVolumes() | AcquireVolumes() if late.handover.side is Side.TARGET:
            return isinstance(done, ReleaseVolumes)  # a source takes back what it had let go
        case _:
            return False
