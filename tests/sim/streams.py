"""The TCP connections of one host's QEMUs. Implements agents.streams.words.Streams."""

from __future__ import annotations

from collections.abc import Collection

from agents.streams.words import Stream
from tests.sim.host import CALL_S, Host
from tests.sim.migration import Hold, Migration
from tests.sim.world import Machine


class SimHeld:
    """Implements agents.streams.words.Held."""

    def __init__(self, migration: Migration, hold: Hold, machine: Machine) -> None:
        self._migration = migration
        self._hold = hold
        self._machine = machine
        self._libvirtd = machine.libvirt_lives

    def open_there(self) -> bool:
        """libvirt on the source closes it when its call has ended."""
        return self._migration.phase != "ended"

    def owner_lives(self) -> bool:
        """One that is down is another process when it is back."""
        return self._machine.libvirt_up and self._machine.libvirt_lives == self._libvirtd

    def let_go(self) -> None:
        self._hold.let_go = True
        self._hold.on_let_go()


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

    async def into(self, port: int) -> tuple[Stream, ...]:
        """What other libvirtds have opened to the one here."""
        await self._host.pause(CALL_S)
        return tuple(
            Stream(
                pid=1,
                fd=number,
                local=f"{self._host.name}:{port}",
                remote=f"{migration.source}:{migration.uuid}",
                waiting_bytes=0,
                unanswered=0,
                unheard_s=0.0,
            )
            for number, migration in enumerate(self._host.migrations.into(self._host.name), start=10)
        )

    async def hold(self, stream: Stream) -> SimHeld | None:
        """The same connection, as long as this process lives."""
        await self._host.pause(CALL_S)
        _, _, uuid = stream.remote.partition(":")
        migration = self._host.migrations.of(uuid, self._host.name)
        if migration is None or migration.target != self._host.name:
            return None
        return SimHeld(migration, migration.hold(self._host.life), self._host.machine)

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
