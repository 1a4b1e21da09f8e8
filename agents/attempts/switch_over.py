"""Beside a live migration: a guest that is paused for its switch-over, and a target that answers no more.

QEMU sends the last of a guest with the guest paused, and holds its global lock while it waits for the
network. When the target loses its power in that moment the wait is TCP's own: a quarter of an hour (tcp(7),
tcp_retries2), with a monitor that hears no abort. So the connection is cut from outside, which is an error
like any other to QEMU: it lets the guest run again.

Safe at any instant: the target's QEMU is resumed by the Finish of libvirt's protocol and by nothing else, the
source's libvirt asks for that only once its QEMU says that all was sent and received, and a QEMU whose
connection broke before never says so (I1). Only QEMU's own connection is cut, never libvirt's: over a broken
one of those each side would decide for itself. What was sent whole before the target died is libvirt's to
find out, by its keepalive.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from agents.hypervisor.words import Hypervisor
from agents.protocol import MigrateDomain
from agents.streams.sockets import host_in
from agents.streams.words import Stream, Streams, is_dead
from storage.errors import OutcomeError, Retryable
from storage.words import IscsiQemuVolume

log = structlog.get_logger()


class SwitchOver:
    """`why_cut`: what was found when the connection was cut; empty while it was not."""

    def __init__(
        self, command: MigrateDomain, hypervisor: Hypervisor, streams: Streams, *, patience_s: float
    ) -> None:
        self._uuid = command.uuid
        self._host = host_in(command.target_address)
        self._portals = tuple(
            volume.portal for volume in command.volumes if isinstance(volume, IscsiQemuVolume)
        )
        self._hypervisor = hypervisor
        self._streams = streams
        self._patience_s = patience_s
        self.why_cut: tuple[str, ...] = ()

    async def watch(self, poll_s: float) -> None:
        """Never returns. Its caller ends it."""
        loop = asyncio.get_running_loop()
        paused_at: float | None = None
        while True:
            await asyncio.sleep(poll_s)
            with contextlib.suppress(Retryable):  # not seen to run, either
                if not await self._hypervisor.handing_over(self._uuid):
                    paused_at = None
                    continue
                paused_at = loop.time() if paused_at is None else paused_at
            if paused_at is not None and loop.time() - paused_at >= self._patience_s:
                await self._cut_dead()

    async def _cut_dead(self) -> None:
        try:
            for stream in await self._streams.to_host(self._uuid, self._host, self._portals):
                if is_dead(stream, self._patience_s):
                    await self._cut(stream)
        except OutcomeError as error:
            log.warning("a migration's connection could not be looked at or cut", reasons=error.reasons)
        except Exception:  # a bug must not end the watch
            log.exception("a migration's connection could not be looked at or cut")

    async def _cut(self, stream: Stream) -> None:
        why = (
            f"paused for the switch-over while {stream.remote} acknowledged nothing for "
            f"{stream.unheard_s:.1f} s: the connection was cut"
        )
        log.warning("a migration's connection is cut", uuid=self._uuid, why=why)
        await self._streams.cut(stream)
        self.why_cut = (why,)
