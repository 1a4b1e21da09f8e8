"""What the sagas that move many guests, drain and undrain, have in common about their children. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from migrd.sagas.commands import IllegalEvent


class HasChild(Protocol):
    @property
    def child(self) -> str: ...


Task = TypeVar("Task", bound=HasChild)


def of_child(operation: str, guests: Mapping[str, Task], child: str) -> tuple[str, Task]:
    """The guest (uuid) whose latest child this is, and its task. Raises IllegalEvent for any other child."""
    for uuid, task in guests.items():
        if task.child == child:
            return uuid, task
    raise IllegalEvent(f"{operation}: {child} is not its latest child of any guest")


def park_remedy(operation: str) -> str:
    """The next commands of the operator of a parked drain or undrain (I15)."""
    return f"migrctl op resume {operation}, or migrctl op cancel {operation}"
