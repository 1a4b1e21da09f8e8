"""What every storage driver can do. One driver per kind; the agent calls them in the saga's order.

    prepare(target) -> inspect both, compare identity -> open_window(both) -> acquire(target)
      -> [the guest migrates] -> release(source) -> close_window(both) -> inspect both

and on undo: release(target) -> close_window(both). Every call is safe to repeat: it looks first, acts only
where reality differs, and reads back what it did. Every call raises storage.errors and nothing else;
every wait inside has a deadline (I20).
"""

from __future__ import annotations

from typing import Protocol

from storage.words import Handover, Volume, VolumeReport, WindowOptions


class InUse(Protocol):
    """Tells whether a QEMU process of this domain still exists here (I11); raises Unknown if unsure."""

    async def __call__(self, domain_uuid: str) -> bool: ...


class Driver(Protocol):
    """One kind of storage on this host."""

    async def volumes(self) -> tuple[Volume, ...]:
        """Every volume of this kind that this host holds or is configured for, used by a guest or not."""
        ...

    async def reach(self, volume: Volume) -> tuple[str, ...]:
        """Why this host could not open the volume; empty when it could. For planning: touches nothing."""
        ...

    async def inspect(self, volume: Volume) -> VolumeReport:
        """Role, health and identity as seen from here. Never raises for a sick volume: it reports it."""
        ...

    async def prepare(self, volume: Volume, handover: Handover) -> None:
        """Target: make the volume openable without taking it (iscsi login, libvirt secret); prove it healthy.

        Source: prove it healthy. Raises Refused with every reason.
        """
        ...

    async def open_window(self, volume: Volume, handover: Handover) -> WindowOptions | None:
        """Both sides: allow both hosts to hold it open; returns what was set before (I6)."""
        ...

    async def acquire(self, volume: Volume, handover: Handover) -> None:
        """Target: take the right to write (drbd: promote). Refused unless known current (I7)."""
        ...

    async def reasons_apart(self, volume: Volume, handover: Handover) -> tuple[str, ...]:
        """Source, while the guest migrates: why the target may miss writes (I7); empty when it gets them all.

        Asked every poll, so it is cheap, takes no lock and changes nothing. Raises Retryable or Unknown when
        it cannot be told.
        """
        ...

    async def release(self, volume: Volume, handover: Handover) -> None:
        """Give the right up (drbd: demote; iscsi: logout), only once this host's QEMU is gone (I11)."""
        ...

    async def disconnect(self, volume: Volume) -> None:
        """This host is about to lose its power: end the replication in good order (drbd).

        A primary whose peer just vanishes holds its guest's writes back until DRBD's timeout, 6 s by
        default. Refused for a primary.
        """
        ...

    async def connect(self, volume: Volume) -> None:
        """It did not lose its power after all: take the replication up again (drbd)."""
        ...

    async def close_window(self, volume: Volume, handover: Handover, before: WindowOptions | None) -> None:
        """Both sides: put the options back and read them back. Refused while both hosts are primary (I6)."""
        ...
