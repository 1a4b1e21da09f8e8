"""The TCP connections of one host's QEMUs. Implements agents.streams.words.Streams."""

from __future__ import annotations

from collections.abc import Collection

from agents.streams.words import Stream
from tests.sim.host import CALL_S, Host


class SimStreams:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._uuids: dict[str, str] = {}  # local endpoint -> guest

    async def addresses(self, host: str) -> frozenset[str]:
        """Names are addresses here."""
        return frozenset({host})

    async def to(self, uuid: str, addresses: Collection[str], besides: Collection[str]) -> tuple[Stream, ...]:
        """A migration's; one that is stuck has been retransmitting since."""
        await self._host.pause(CALL_S)
        running = self._host.migrations.of(uuid, self._host.name)
        if running is None or running.source != self._host.name or running.target not in addresses:
            return ()
        stuck = running.phase == "stuck"
        local = f"{self._host.name}:{uuid}"
        self._uuids[local] = uuid
        return (
            Stream(
                pid=1,
                fd=1,
                local=local,
                remote=f"{running.target}:49152",
                waiting_bytes=1,
                unanswered=9 if stuck else 0,
                unheard_s=self._host.world.loop.time() - running.stuck_s if stuck else 0.0,
            ),
        )

    async def cut(self, stream: Stream) -> bool:
        """A side effect like any other."""
        uuid = self._uuids[stream.local]
        await self._host.act(f"cut the stream of {uuid}", lambda: self._cut(uuid))
        return True

    def _cut(self, uuid: str) -> str:
        running = self._host.migrations.of(uuid, self._host.name)
        if running is not None:
            running.cut()
        return ""
