"""Beside a live migration: does the target's copy of every replicated volume still get every write (I7)?

Both hosts are Primary during the copy. If the replication breaks, the source writes alone, and the guest
would be resumed on a copy that misses those writes. So the source looks at it every poll, and the migration
is aborted at the first look that shows a break: until the switch-over an abort costs nothing.

A look that cannot tell counts against the migration too, but only several in a row: one slow drbdsetup on a
busy host is no break, while a replication that stays out of sight for seconds is worth less than the move.
Aborting leaves the guest running where it was; resuming on a stale copy loses writes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from agents.attempts.storage_steps import Drivers, driver_of
from agents.protocol import MigrateDomain
from storage.errors import OutcomeError
from storage.words import DrbdVolume, Handover

log = structlog.get_logger()

BLIND_LOOKS_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One look at all replicated volumes. `apart`: what is broken; `blind`: what could not be told."""

    apart: tuple[str, ...] = ()
    blind: tuple[str, ...] = ()


def judge(sight: Sight, blind_looks: int) -> tuple[int, tuple[str, ...]]:
    """Pure: the blind looks in a row by now, and why to abort; no reasons mean that it may go on."""
    if sight.apart:
        return blind_looks, sight.apart
    if not sight.blind:
        return 0, ()
    blind_looks += 1
    if blind_looks < BLIND_LOOKS_MAX:
        return blind_looks, ()
    return blind_looks, (f"the replication could not be seen {blind_looks} times in a row", *sight.blind)


class Mirror:
    """The replicated volumes of one migration. A command of an older daemon names none: nothing to watch."""

    def __init__(self, command: MigrateDomain, drivers: Drivers, *, look_s: float) -> None:
        self._drivers = drivers
        self._look_s = look_s
        self._handover = command.handover
        self._volumes = tuple(volume for volume in command.volumes if isinstance(volume, DrbdVolume))

    async def look(self) -> Sight:
        """All volumes at once, each with its own deadline. Never raises."""
        if self._handover is None:
            return Sight()
        handover = self._handover
        found = await asyncio.gather(*(self._look(volume, handover) for volume in self._volumes))
        return Sight(
            apart=tuple(reason for sight in found for reason in sight.apart),
            blind=tuple(reason for sight in found for reason in sight.blind),
        )

    async def until_apart(self, poll_s: float) -> tuple[str, ...]:
        """Return only when the migration has to be aborted, with the reasons. Its caller ends it."""
        if self._handover is None or not self._volumes:
            await asyncio.Event().wait()
        blind_looks = 0
        while True:
            blind_looks, reasons = judge(await self.look(), blind_looks)
            if reasons:
                return reasons
            await asyncio.sleep(poll_s)

    async def _look(self, volume: DrbdVolume, handover: Handover) -> Sight:
        try:
            async with asyncio.timeout(self._look_s):
                return Sight(apart=await driver_of(self._drivers, volume).reasons_apart(volume, handover))
        except TimeoutError:
            return Sight(blind=(f"{volume.name}: no answer in {self._look_s:g} s",))
        except OutcomeError as error:
            return Sight(blind=tuple(error.reasons))
        except Exception as error:  # a bug must not end the watch, and says nothing about the replication
            log.exception("the replication could not be looked at", volume=volume.name)
            return Sight(blind=(f"{volume.name}: internal error ({type(error).__name__})",))
