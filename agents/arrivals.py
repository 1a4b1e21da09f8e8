"""While a guest arrives: libvirtd's connections to its peers outlive libvirtd (I1).

libvirt here lets an arriving guest run (Finish), and says so; then libvirt on the source ends its own QEMU. A
libvirtd that dies between the two loses its connections, and the source takes that for an answer: it lets the
guest run as well, at once. So duplicates of their descriptors are held: the kernel closes nothing then, and
that death looks like silence. libvirt on the source waits its keepalive for that (30 s by default), which is
time enough for the daemon to look at both hosts (migrd/sagas/migrate_switch_over.py).

Nothing is read from them and nothing written. Once libvirtd is dead, and its next life says that no arrival
has run here, they are let go of: an error that comes late helps nobody.

libvirt's events are a hint and no more: they get lost while libvirtd is away, so whatever is not known for
certain is asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from agents.hypervisor.words import DomainFacts, Hypervisor
from agents.protocol import DomainState
from agents.streams.words import Ends, Held, Stream, Streams
from storage.errors import OutcomeError

log = structlog.get_logger()

POLL_S = 0.5
LIST_S = 5.0  # connections are listed so often while a guest arrives
ASK_S = 2.0  # libvirt is given so long to tell the state of one guest
ANSWERS_WITHIN_S = 10.0  # of the end of an arrival libvirtd has said so, if it ever does
HOLD_S = 60.0  # beyond the end of an arrival; libvirt on the source closes its end long before
HOLD_MAX_S = 900.0  # of one whose libvirtd has died, and whose peer has closed nothing
PORTS = {"": 16514, "tls": 16514, "tcp": 16509}  # libvirt's own, by the transport of a URI


@dataclass(slots=True)
class Holding:
    """One connection. `died_s`: when its libvirtd was found dead; `has_run`: what its next life said then."""

    held: Held
    died_s: float | None = None
    has_run: bool | None = None


def libvirt_port(uri: str) -> int | None:
    """Where libvirtd is reached: qemu+tls://h1/system -> 16514. None: by a program of its own, e.g. ssh."""
    parts = urlsplit(uri)
    found = PORTS.get(parts.scheme.partition("+")[2])
    try:
        return found if parts.port is None or found is None else parts.port
    except ValueError:
        return None


def is_kept(holding: Holding, *, needed: bool, now_s: float) -> bool:
    """Hold a connection further whose peer waits on it? Pure. `needed`: a guest arrives, or did lately."""
    if holding.died_s is None:
        return needed
    return holding.has_run is not False and now_s - holding.died_s < HOLD_MAX_S


def arrives(facts: DomainFacts) -> bool | None:
    """Is the guest on its way here? Pure. None: libvirt does not say.

    A job whose kind it does not tell stands beside "paused" for a moment: perhaps the arrival's.
    """
    if facts.state is DomainState.UNKNOWN or (facts.state is DomainState.PAUSED and facts.job):
        return None
    return facts.state is DomainState.PAUSED_INCOMING


def has_run(found: Sequence[DomainFacts | None]) -> bool | None:
    """Does one of the arrivals run here, or did it, if only for a moment? Pure. None: libvirt does not say.

    One that is shut off by now counts: its disk has gone on, and what the source has in memory must not.
    """
    answers = [facts for facts in found if facts is not None and arrives(facts) is not None]
    if any(each.state not in (DomainState.ABSENT, DomainState.PAUSED_INCOMING) for each in answers):
        return True
    return False if len(answers) == len(found) else None


class Arrivals:
    """`run` beside everything else. `port`: of libvirtd; None, and nothing is held."""

    def __init__(self, hypervisor: Hypervisor, streams: Streams, *, port: int | None) -> None:
        self._hypervisor = hypervisor
        self._streams = streams
        self._port = port
        self._wake = asyncio.Event()
        self._all = True  # any guest may have changed: after a start, and after libvirt was away
        self._changed: set[str] = set()
        self._unclear: set[str] = set()  # guests of which libvirt did not say whether they arrive
        self._arrivals: dict[str, float | None] = {}  # guest -> when it was over; None: it still arrives
        self._holdings: dict[Ends, Holding] = {}
        self._listed_s = float("-inf")
        self._complained = False
        if port is not None:
            hypervisor.changes.listeners.append(self._on_change)

    def _on_change(self, uuid: str | None) -> None:
        if uuid is None:
            self._all = True
        else:
            self._changed.add(uuid)
        self._wake.set()

    async def run(self) -> None:
        """Never returns. What a former life of this agent held, its end has let go of."""
        if self._port is None:
            log.warning("libvirtd is not reached over TCP: its death over an arrival is not covered")
            await asyncio.Event().wait()
            return
        try:
            while True:
                try:
                    await self._look(self._port)
                except OutcomeError as error:
                    self._complain(reasons=error.reasons)
                except Exception:  # a bug must not end it
                    self._complain(exc_info=True)
                busy = self._all or self._changed or self._arrivals or self._holdings
                try:
                    async with asyncio.timeout(POLL_S if busy else None):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            for holding in self._holdings.values():
                holding.held.let_go()

    def _complain(self, **why: object) -> None:
        """Once until nothing arrives any more, not twice a second."""
        if not self._complained:
            log.warning("connections of arriving guests cannot be held", **why)
        self._complained = True

    async def _look(self, port: int) -> None:
        self._wake.clear()
        try:
            await self._ask()
            if not self._arrivals:
                self._complained = False
            if None in self._arrivals.values():
                await self._hold(port)
        finally:
            await self._let_go(port)

    async def _ask(self) -> None:
        """Who arrives? What is not told is asked for at the next look.

        What is marked as changed meanwhile stays so: the answer may be older than that.
        """
        asked, self._changed = self._changed, set()
        everything, self._all = self._all, False
        try:
            if everything:
                for each in (await self._hypervisor.report()).domains:
                    self._note(each.facts.uuid, each.facts)
                asked |= self._arrivals.keys()
        except BaseException:
            self._all = True
            self._changed |= asked
            raise
        for uuid, facts in (await self._facts(sorted(asked))).items():
            self._note(uuid, facts)

    def _note(self, uuid: str, facts: DomainFacts | None) -> None:
        on_its_way = None if facts is None else arrives(facts)
        if on_its_way is None:
            self._changed.add(uuid)
            if facts is not None:
                self._unclear.add(uuid)
            return
        self._unclear.discard(uuid)
        if on_its_way:
            if self._arrivals.get(uuid, 0.0) is not None:
                self._listed_s = float("-inf")  # a connection of its own
            self._arrivals[uuid] = None
        elif self._arrivals.get(uuid, 0.0) is None:
            self._arrivals[uuid] = _now_s()

    async def _facts(self, uuids: Collection[str]) -> Mapping[str, DomainFacts | None]:
        """None for each that libvirt does not tell of; one that is slow holds up no other."""
        return dict(zip(uuids, await asyncio.gather(*map(self._facts_of, uuids)), strict=True))

    async def _facts_of(self, uuid: str) -> DomainFacts | None:
        try:
            async with asyncio.timeout(ASK_S):
                return await self._hypervisor.facts(uuid)
        except (OutcomeError, TimeoutError):
            return None

    async def _hold(self, port: int) -> None:
        if _now_s() - self._listed_s < LIST_S:
            return
        for stream in await self._streams.into(port):
            if stream.ends not in self._holdings:
                held = await self._hold_one(stream)
                if held is not None:
                    self._holdings[stream.ends] = Holding(held)
        self._listed_s = _now_s()

    async def _hold_one(self, stream: Stream) -> Held | None:
        try:
            return await self._streams.hold(stream)
        except OutcomeError as error:  # the others can be held all the same
            self._complain(remote=stream.remote, reasons=error.reasons)
            return None

    async def _let_go(self, port: int) -> None:
        dead = [each for each in self._holdings.values() if not each.held.owner_lives()]
        if any(each.died_s is None for each in dead):
            await self._find_heirs(port)
        dead = [each for each in self._holdings.values() if each.died_s is not None]
        if any(each.has_run is None for each in dead):
            await self._ask_next_life(dead)
        now_s = _now_s()
        self._arrivals = {u: s for u, s in self._arrivals.items() if s is None or now_s - s < HOLD_S}
        for ends, holding in list(self._holdings.items()):
            kept = is_kept(holding, needed=bool(self._arrivals), now_s=now_s)
            if not kept or not holding.held.open_there():
                holding.held.let_go()
                del self._holdings[ends]
        if not self._holdings:  # nobody is asked any more about those that are over
            self._arrivals = {uuid: None for uuid, over_s in self._arrivals.items() if over_s is None}

    async def _find_heirs(self, port: int) -> None:
        """The process of a connection has ended: libvirtd, or a child that it had just begun, and then
        libvirtd has it still."""
        heirs = {stream.ends: stream for stream in await self._streams.into(port)}
        for ends, holding in self._holdings.items():
            if holding.died_s is not None or holding.held.owner_lives():
                continue
            held = await self._hold_one(heirs[ends]) if ends in heirs else None
            if held is not None and held.owner_lives():
                holding.held.let_go()
                holding.held = held
                continue
            if held is not None:
                held.let_go()
            log.warning("libvirtd has died while guests arrive", arrivals=sorted(self._arrivals))
            holding.died_s = _now_s()

    async def _ask_next_life(self, dead: Sequence[Holding]) -> None:
        """Did one run that was arriving as libvirtd died, or was not known to have ended that?"""
        died_s = min(holding.died_s or 0.0 for holding in dead)
        lately = {u for u, s in self._arrivals.items() if s is None or died_s - s < ANSWERS_WITHIN_S}
        found = await self._facts(sorted(lately | self._unclear))
        for uuid, facts in found.items():
            self._note(uuid, facts)
        ran = has_run(list(found.values()))
        for holding in dead:
            if holding.has_run is None:
                holding.has_run = ran


def _now_s() -> float:
    return asyncio.get_running_loop().time()
