"""While a guest arrives: libvirtd's connections to its peers outlive libvirtd (I1).

libvirt here lets an arriving guest run (Finish), and says so; then libvirt on the source ends its own QEMU. A
libvirtd that dies between the two loses its connections, and the source takes that for an answer: it lets the
guest run as well, at once. So duplicates of their descriptors are held: the kernel closes nothing then, and
that death looks like silence. libvirt on the source waits its keepalive for that (30 s by default), which is
time enough for the daemon to look at both hosts (migrd/sagas/migrate_switch_over.py).

Nothing is read from them and nothing written. Once libvirtd is dead, and its next life says that no arrival
runs here, they are let go of: an error that comes late helps nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from agents.hypervisor.words import Hypervisor
from agents.protocol import DomainState
from agents.streams.words import Ends, Held, Streams
from storage.errors import OutcomeError, Retryable

log = structlog.get_logger()

POLL_S = 0.25
HOLD_S = 60.0  # beyond any keepalive that is worth having
PORTS = {"": 16514, "tls": 16514, "tcp": 16509}  # libvirt's own, by the transport of a URI


@dataclass(slots=True)
class Holding:
    """One connection. `died_s`: when its libvirtd was found dead."""

    held: Held
    died_s: float | None = None


def libvirt_port(uri: str) -> int | None:
    """Where libvirtd is reached: qemu+tls://h1/system -> 16514. None: by a program of its own, e.g. ssh."""
    parts = urlsplit(uri)
    found = PORTS.get(parts.scheme.partition("+")[2])
    return found if parts.port is None or found is None else parts.port


def is_kept(died_s: float | None, *, arrived_s: float | None, has_run: bool | None, now_s: float) -> bool:
    """Hold a connection further whose peer waits on it? Pure.

    `arrived_s`: when the last arrival was over, None while there is one; `has_run`: whether one of them
    has, here; None while libvirt does not say.
    """
    if died_s is None:
        return arrived_s is None or now_s - arrived_s < HOLD_S
    return has_run is not False and now_s - died_s < HOLD_S


class Arrivals:
    """`run` beside everything else. `port`: of libvirtd; None, and nothing is held."""

    def __init__(self, hypervisor: Hypervisor, streams: Streams, *, port: int | None) -> None:
        self._hypervisor = hypervisor
        self._streams = streams
        self._port = port
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._arrivals: dict[str, float | None] = {}  # guest -> when it was over; None: it still arrives
        self._holdings: dict[Ends, Holding] = {}
        self._complained = False
        hypervisor.changes.listeners.append(self._on_change)

    def _on_change(self, uuid: str | None) -> None:
        if uuid is not None:
            self._changed.add(uuid)
            self._wake.set()

    async def run(self) -> None:
        """Never returns. A former life of this agent has let go of everything with its end."""
        try:
            with contextlib.suppress(Retryable):
                self._changed |= {each.facts.uuid for each in (await self._hypervisor.report()).domains}
            while True:
                try:
                    await self._look()
                except OutcomeError as error:
                    self._complain(reasons=error.reasons)
                except Exception:  # a bug must not end it
                    self._complain(exc_info=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S if self._holdings or self._changed else None):
                        await self._wake.wait()
        finally:
            for holding in self._holdings.values():
                holding.held.let_go()

    def _complain(self, **why: object) -> None:
        """Once an arrival, not four times a second."""
        if not self._complained:
            log.warning("connections of arriving guests cannot be held", **why)
        self._complained = True

    async def _look(self) -> None:
        self._wake.clear()
        changed, self._changed = self._changed, set()
        new = False
        for uuid in sorted(changed):
            state = await self._state(uuid)
            if state is None:
                self._changed.add(uuid)
            elif state is DomainState.PAUSED_INCOMING:
                new = new or self._arrivals.get(uuid, 0.0) is not None
                self._arrivals[uuid] = None
            elif uuid in self._arrivals and self._arrivals[uuid] is None:
                self._arrivals[uuid] = _now_s()
        if new and self._port is not None:
            self._complained = False
            await self._hold(self._port)
        await self._let_go()

    async def _state(self, uuid: str) -> DomainState | None:
        """None: libvirt does not say."""
        try:
            state = (await self._hypervisor.facts(uuid)).state
        except Retryable:
            return None
        return None if state is DomainState.UNKNOWN else state

    async def _hold(self, port: int) -> None:
        for stream in await self._streams.into(port):
            if stream.ends in self._holdings:
                continue
            try:
                held = await self._streams.hold(stream)
            except OutcomeError as error:  # the others can be held all the same
                self._complain(remote=stream.remote, reasons=error.reasons)
                continue
            if held is not None:
                self._holdings[stream.ends] = Holding(held)

    async def _let_go(self) -> None:
        for holding in self._holdings.values():
            if holding.died_s is None and not holding.held.owner_lives():
                holding.died_s = _now_s()
                log.warning("libvirtd has died while a guest arrives", arrivals=sorted(self._arrivals))
        dead = any(holding.died_s is not None for holding in self._holdings.values())
        has_run = await self._has_run_here() if dead else None
        over = [each for each in self._arrivals.values() if each is not None]
        arrived_s = max(over, default=0.0) if len(over) == len(self._arrivals) else None
        for ends, holding in list(self._holdings.items()):
            if not holding.held.open_there() or not is_kept(
                holding.died_s, arrived_s=arrived_s, has_run=has_run, now_s=_now_s()
            ):
                holding.held.let_go()
                del self._holdings[ends]
        if not self._holdings:
            self._arrivals = {uuid: over_s for uuid, over_s in self._arrivals.items() if over_s is None}

    async def _has_run_here(self) -> bool | None:
        """Does an arrival run here, or did it, if only for a moment? None while libvirt does not say.

        One that is shut off by now counts: its disk has gone on, and what the source has in memory must not.
        """
        states = [await self._state(uuid) for uuid in sorted(self._arrivals)]
        if any(state not in (None, DomainState.ABSENT, DomainState.PAUSED_INCOMING) for state in states):
            return True
        return None if None in states else False


def _now_s() -> float:
    return asyncio.get_running_loop().time()
