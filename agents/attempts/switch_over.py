"""Beside a live migration: a guest that is paused for its switch-over, and a target that answers no more.

QEMU sends the last of a guest with the guest paused, and holds its global lock while it waits for the
network. When the target loses its power in that moment the wait is TCP's own: a quarter of an hour (tcp(7),
tcp_retries2), with a monitor that hears no abort. So the connection is cut from outside, which is an error
like any other to QEMU: it lets the guest run again.

Safe at any instant: the target's QEMU is resumed by the Finish of libvirt's protocol and by nothing else, the
source's libvirt asks for that only once its QEMU says that all was sent and received, and a QEMU whose
connection broke before never says so (I1). Only QEMU's own connection is cut, never libvirt's: over a broken
one of those each side would decide for itself. What was sent whole before the target died is libvirt's to
find out, by its keepalive; what is done about a target that runs the guest meanwhile, the daemon says, which
can see both hosts (`Control.destroy_source`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from agents.attempts.control import Control
from agents.hypervisor.words import Hypervisor
from agents.protocol import MigrateDomain
from agents.streams.sockets import host_in
from agents.streams.ss import endpoint_of
from agents.streams.words import Ends, Stream, Streams, asked_in_vain
from storage.errors import OutcomeError, Retryable
from storage.words import IscsiQemuVolume

log = structlog.get_logger()


class SwitchOver:
    """`patience_s`: a target is given up when it acknowledged nothing for so long, half of it under our eyes.

    `why_cut`: what was done to the connection, or could not be done; empty while nothing was tried.
    """

    def __init__(
        self,
        command: MigrateDomain,
        hypervisor: Hypervisor,
        streams: Streams,
        *,
        control: Control,
        patience_s: float,
    ) -> None:
        self._uuid = command.uuid
        self._host = host_in(command.target_address)
        self._portals = tuple(
            volume.portal for volume in command.volumes if isinstance(volume, IscsiQemuVolume)
        )
        self._hypervisor = hypervisor
        self._streams = streams
        self._control = control
        self._patience_s = patience_s
        self._target: frozenset[str] = frozenset()
        self._besides: frozenset[str] = frozenset()
        self._in_vain: Mapping[Ends, float] = {}
        self.why_cut: tuple[str, ...] = ()

    async def watch(self, poll_s: float) -> None:
        """Never returns. Its caller ends it."""
        complained = False
        while True:
            try:
                await self._look()
            except OutcomeError as error:
                if not complained:
                    log.warning("a switch-over cannot be watched", uuid=self._uuid, reasons=error.reasons)
                complained = True
            except Exception:  # a bug must not end the watch
                if not complained:
                    log.exception("a switch-over cannot be watched", uuid=self._uuid)
                complained = True
            await asyncio.sleep(poll_s)

    async def _look(self) -> None:
        now_s, control = asyncio.get_running_loop().time(), self._control
        try:
            if await self._hypervisor.handing_over(self._uuid):
                control.paused_at_s = now_s if control.paused_at_s is None else control.paused_at_s
            else:
                control.paused_at_s, self._in_vain = None, {}
        except Retryable:
            pass  # not seen to run, either
        if not self._target:  # at the beginning, while names can be resolved
            await self._resolve()
        if control.paused_at_s is not None and now_s - control.paused_at_s >= self._patience_s / 2:
            await self._cut_dead()

    async def _resolve(self) -> None:
        besides = set()
        for portal in self._portals:
            host, _, port = portal.rpartition(":")
            found = await self._streams.addresses(host.strip("[]"))
            besides |= {endpoint_of(each, port) for each in found}
        self._besides = frozenset(besides)
        self._target = await self._streams.addresses(self._host)

    async def _cut_dead(self) -> None:
        seen = await self._streams.to(self._uuid, self._target, self._besides)
        now_s = asyncio.get_running_loop().time()
        self._in_vain = asked_in_vain(self._in_vain, seen, now_s)
        for stream in seen:
            since_s = self._in_vain.get(stream.ends, now_s)
            if now_s - since_s >= self._patience_s / 2 and stream.unheard_s >= self._patience_s:
                await self._cut(stream)

    async def _cut(self, stream: Stream) -> None:
        silence = f"{stream.remote} acknowledged nothing for {stream.unheard_s:.1f} s"
        found = f"paused for the switch-over while {silence}"
        # Said before it is done: libvirt's answer may be here before ours.
        self.why_cut = (f"{found}: the connection was cut",)
        try:
            was_there = await self._streams.cut(stream)
        except OutcomeError as error:
            self.why_cut = (f"{found}, and the connection could not be cut", *error.reasons)
            raise
        if was_there:
            log.warning("a migration's connection was cut", uuid=self._uuid, why=found)
