"""Wait for an operation: look, show, look again; survive a restart of the daemon; Ctrl-C detaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from migrd.api.words import OperationList
from migrd.cli.client import ApiClient, segment
from migrd.cli.errors import CliError, Detached, Unreachable
from migrd.cli.exits import Exit
from migrd.operations import Operation, OperationKind, OperationState

PARENTS = (OperationKind.DRAIN, OperationKind.UNDRAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at an operation and, for a drain or undrain, at each of its moves."""

    operation: Operation
    document: object  # the operation exactly as the daemon sent it
    children: tuple[Operation, ...] = ()  # oldest first

    @property
    def moves(self) -> tuple[Operation, ...]:
        """What has a progress of its own."""
        return (self.operation,) if self.operation.kind is OperationKind.MIGRATE else self.children

    @property
    def over(self) -> bool:
        return self.operation.state.ended or self.operation.state is OperationState.PARKED


class View(Protocol):
    """Shows looks as they come."""

    def __enter__(self) -> View: ...

    def __exit__(self, *_: object) -> None: ...

    def update(self, look: Look) -> None: ...

    def note(self, text: str) -> None: ...


def look_at(client: ApiClient, operation_id: str) -> Look:
    """Raises CliError."""
    reply = client.get(Operation, f"/v1/operations/{segment(operation_id)}")
    children: tuple[Operation, ...] = ()
    if reply.value.kind in PARENTS and reply.value.children:
        query = {"parent": operation_id, "limit": "1000"}
        children = client.get(OperationList, "/v1/operations", query).value.operations[::-1]
    return Look(operation=reply.value, document=reply.document, children=children)


def wait(
    client: ApiClient,
    operation_id: str,
    view: View,
    *,
    reconnect_s: float,
    poll_s: float,
    was_parked: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Look:
    """Until the operation has ended or is parked.

    An unreachable daemon is asked again for `reconnect_s`: operations are journalled, it resumes them.
    `was_parked`: it was just resumed, so one parked look right away is the old state.
    Raises Detached on Ctrl-C, Unreachable, CliError.
    """
    what = operation_id
    lost_at: float | None = None
    grace = 2 if was_parked else 0
    try:
        with view:
            while True:
                try:
                    look = look_at(client, operation_id)
                except CliError as error:
                    if error.code not in (Exit.UNREACHABLE, Exit.FAILED):
                        raise
                    lost_at = _still_patient(
                        error, lost_at, operation_id, view, reconnect_s=reconnect_s, now_s=clock()
                    )
                else:
                    if lost_at is not None:
                        view.note("the daemon answers again")
                    lost_at = None
                    what = f"{look.operation.kind} {look.operation.subject}"
                    view.update(look)
                    if look.over and (look.operation.state is not OperationState.PARKED or grace <= 0):
                        return look
                    grace -= 1
                sleep(poll_s)
    except KeyboardInterrupt:
        raise Detached(operation_id, what) from None


def _still_patient(
    error: CliError, lost_at: float | None, operation_id: str, view: View, *, reconnect_s: float, now_s: float
) -> float:
    """Since when the daemon is away; raises Unreachable when that is too long."""
    if lost_at is None:
        view.note(f"{error.detail}; {operation_id} is journalled and goes on, asking for {reconnect_s:g} s")
        return now_s
    if now_s - lost_at > reconnect_s:
        gone = CliError(
            Exit.UNREACHABLE,
            f"no answer for {reconnect_s:g} s: {error.detail}",
            hint=f"the daemon resumes {operation_id} when it is back: `migrctl op watch {operation_id}`",
        )
        raise gone from (error if isinstance(error, Unreachable) else None)
    return lost_at
