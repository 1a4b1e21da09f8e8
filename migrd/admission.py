"""Which moves wait for a slot, and which hold one: what the engine knows of `migrd.slots`."""

from __future__ import annotations

from collections.abc import Mapping

from migrd import saga
from migrd.model import HostState
from migrd.projection import Record
from migrd.sagas.migrate_state import MigrateState
from migrd.slots import Caps, Slot, admit


class Admission:
    """Follows the moves, record by record. Holds no clock and tells nobody."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._admitted: set[str] = set()  # let in or sent away; the event may still be on its way
        self._waiting: dict[str, Slot] = {}
        self._running: dict[str, Slot] = {}

    def has_admitted(self, operation: str) -> bool:
        return operation in self._admitted

    def forget(self, operation: str) -> None:
        """It has ended: its name can not be let in again."""
        self._admitted.discard(operation)

    def note(self, record: Record) -> bool:
        """Does the move wait, hold a slot, or neither? True if that is not what it was."""
        state = record.state
        if not isinstance(state, saga.MoveState):
            return False
        waits = saga.pending(state) and record.id not in self._admitted
        # Past the commit point only its disks are tidied up: that keeps no other move waiting.
        tidies = isinstance(state, MigrateState) and state.committed
        holds = not (waits or saga.ended(state) or saga.parked(state) or tidies)
        if waits == (record.id in self._waiting) and holds == (record.id in self._running):
            return False
        slot = Slot(
            operation=record.id,
            group=record.parent or record.id,
            source=state.request.source,
            target=state.request.target,
            order=record.seq,
            # children are OPERATION.1, .2 ...
            turn=int(record.id.rpartition(".")[2]) if record.parent else 0,
        )
        for wanted, moves in ((waits, self._waiting), (holds, self._running)):
            if wanted:
                moves[record.id] = slot
            else:
                moves.pop(record.id, None)
        return True

    def withdraw(self, decided: Mapping[str, HostState]) -> dict[str, str]:
        """Waiting moves whose target is drained, draining or off by now -> why. They wait no longer."""
        found = {
            slot.operation: f"{slot.target} is {decided[slot.target]} by now"
            for slot in self._waiting.values()
            if slot.target in decided
        }
        for operation in found:
            self._admitted.add(operation)
            del self._waiting[operation]
        return found

    def let_in(self) -> list[str]:
        """Waiting moves that may begin. What is let in holds its slot from then on."""
        found = list(admit(self._waiting.values(), self._running.values(), self._caps))
        for operation in found:
            self._admitted.add(operation)
            self._running[operation] = self._waiting.pop(operation)
        return found
