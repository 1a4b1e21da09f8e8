"""Under which name an agent's ledger knows an attempt: "op-000042@3f9a1c20".

Each start of a daemon is a life with a random name. An attempt carries the life that issued it, so a ledger
never answers for one that another daemon, another journal, or a later state of a restored journal has issued
under the same operation, step and number. Attempts issued before lives were named go without.
"""

from __future__ import annotations

from collections.abc import Iterable

from migrd.ports import JournalPort, Row
from migrd.sagas.commands import Abort, Call, DestroySource, Follow, SagaCommand, StopGuest

Named = Call | Follow | StopGuest | Abort | DestroySource
"""Commands that are about one attempt."""


class Lives:
    """Fed with the journal's rows at the start; knows of open operations only."""

    def __init__(self, journal: JournalPort) -> None:
        self._journal = journal
        self._earlier: dict[str, dict[tuple[str, int], str]] = {}  # operation -> attempt -> its first life
        self._now: str | None = None

    def issued(self, row: Row, commands: Iterable[SagaCommand]) -> None:
        """Note the attempts that an earlier life issued after `row`."""
        for command in commands:
            if isinstance(command, Call | StopGuest):
                attempts = self._earlier.setdefault(row.operation, {})
                attempts.setdefault(_attempt(command), self._journal.life(row.seq))

    def forget(self, operations: Iterable[str]) -> None:
        for operation in operations:
            self._earlier.pop(operation, None)

    def name(self, operation: str, command: Named) -> str:
        """For `agents.protocol.Attempt.operation`."""
        life = self._earlier.get(operation, {}).get(_attempt(command))
        return f"{operation}@{life}" if life else self.fresh(operation)

    def fresh(self, operation: str) -> str:
        """The same, for an attempt that no earlier life can have issued."""
        if self._now is None:
            self._now = self._journal.life(NEWEST)
        return f"{operation}@{self._now}" if self._now else operation


def _attempt(command: Named) -> tuple[str, int]:
    step = f"stop-{command.guest}" if isinstance(command, StopGuest) else command.step
    return step, command.attempt


def outdated(epoch: int, highest: int) -> str:
    """What to do when agents have obeyed a higher epoch than this daemon's. 0: which one is not known."""
    number = str(highest) if highest else "N (the highest epoch that an agent names)"
    return (
        f"this journal is at epoch {epoch}, so another migrd is master, or this journal is new or restored. "
        f"If another migrd runs, stop this one for good. If none does: systemctl stop migrd, then migrd "
        f"--raise-epoch {number}, then systemctl start migrd"
    )


NEWEST = 1 << 62
"""After every row: what is written from now on."""
