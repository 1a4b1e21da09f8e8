"""The network between the daemon and each agent: delay, loss, partition, one-way, duplicates, late delivery.

`SimTransport` stands under the production AgentClient: questions and answers are JSON, as over HTTP. What is
under way belongs to the network, and arrives although its sender has died.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextvars import Context
from dataclasses import dataclass

from agents.answers import lost, refusal
from agents.protocol import Attempt
from agents.service import ProblemError, Reply, Service, of_problem
from agents.wire import read
from storage.errors import Retryable
from tests.core.vloop import Life
from tests.sim.trace import Trace

CONNECT_TIMEOUT_S = 3.0
REQUEST_TIMEOUT_S = 20.0
RESET_S = 0.01
ASKED_AT_MOST = 60  # times a second and host; the busiest second of a thousand ordinary seeds had 23


class NotSent(Exception):  # noqa: N818 - what it is
    """Connection refused, or no connection in time."""


class Reset(Exception):  # noqa: N818 - what it is
    """The connection broke after the request was sent."""


@dataclass
class Link:
    """Daemon to one agent. `to_agent`, `to_daemon`: does that direction carry anything? Shares 0 to 1."""

    host: str
    delay_s: float = 0.003
    to_agent: bool = True
    to_daemon: bool = True
    lose_request: float = 0.0
    lose_reply: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0  # delivered up to half a minute later, when its sender has long given up

    @property
    def calm(self) -> bool:
        """Does every message go through, once and in time?"""
        return self == Link(self.host)

    def heal(self) -> None:
        self.to_agent = self.to_daemon = True
        self.lose_request = self.lose_reply = self.duplicate = self.late = 0.0
        self.delay_s = 0.003


@dataclass(eq=False)
class Server:
    """A listening agent: its life and what answers. `powered`: does its machine answer at all?"""

    host: str
    life: Life
    service: Service


class Network:
    """`reachable(host)`: its machine has power. Servers come and go with the agents' lives."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: random.Random, trace: Trace) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.links: dict[str, Link] = {}
        self.servers: dict[str, Server] = {}
        self.powered: Callable[[str], bool] = lambda _host: True
        self.on_send: Callable[[Attempt], None] = lambda _attempt: None  # of the daemon, to an agent
        self.obeyed: dict[str, int] = {}  # host -> highest epoch of a command it took (I4)
        self._context = Context()
        self._open: dict[str, dict[Exchange | Stream, None]] = {}  # in order, unlike a set
        self._asked: dict[str, tuple[int, int]] = {}  # host -> a second, and the requests in it

    def add(self, host: str) -> None:
        self.links[host] = Link(host)
        self._open[host] = {}

    def listen(self, server: Server) -> None:
        self.servers[server.host] = server

    def died(self, host: str) -> None:
        """The agent's process is gone: the kernel resets its connections, if it still lives itself."""
        self.servers.pop(host, None)
        for each in list(self._open[host]):
            self.later(RESET_S, each.reset)
        self._open[host].clear()

    def reset(self, host: str) -> None:
        """All connections to an agent break, e.g. at a firewall that was reloaded."""
        for each in list(self._open[host]):
            self.later(RESET_S, each.reset)

    def later(self, delay_s: float, what: Callable[..., None], *args: object) -> None:
        self.loop.call_later(delay_s, lambda: what(*args), context=self._context)

    def delay_s(self, link: Link) -> float:
        return link.delay_s * (0.5 + self.rng.random())

    def healed(self) -> None:
        """TCP sends again what was held up."""
        for host, link in self.links.items():
            if link.to_daemon:
                for each in self._open[host]:
                    each.flush()

    def asked(self, host: str) -> None:
        """An operation that learns nothing new and looks again at once would leave no other trace (I20)."""
        second, times = self._asked.get(host, (0, 0))
        now = int(self.trace.now_s)
        self._asked[host] = (now, times + 1 if now == second else 1)
        if self._asked[host][1] > ASKED_AT_MOST:
            self.trace.violate("I20", f"{host} is asked more than {ASKED_AT_MOST} times a second")

    def transport(self, host: str) -> SimTransport:
        return SimTransport(self, self.links[host])

    def begin(self, host: str, each: Exchange | Stream) -> None:
        self._open[host][each] = None

    def end(self, host: str, each: Exchange | Stream) -> None:
        self._open[host].pop(each, None)

    def sent(self, target: str, body: bytes) -> None:
        if target.partition("?")[0] == "/v1/attempts":
            self.on_send(read(Attempt, body))

    def took(self, host: str, target: str, body: bytes, reply: Reply, *, obeyed: int) -> None:
        """I4, from outside: an order under an older epoch than one `obeyed` before it came was taken."""
        path = target.partition("?")[0]
        if not path.startswith("/v1/attempts") or not body or reply.status not in (200, 202):
            return
        epoch = int(json.loads(body)["epoch"])
        if epoch < obeyed:
            self.trace.violate("I4", f"{host} took an order of a stale epoch: {path} {body[:120]!r}")
        self.obeyed[host] = max(self.obeyed.get(host, 0), epoch)


class Exchange:
    """One request on its way, and its reply."""

    def __init__(self, net: Network, link: Link, method: str, target: str, body: bytes) -> None:
        self._net = net
        self._link = link
        self._question = (method, target, body)
        self.future: asyncio.Future[tuple[int, bytes]] = net.loop.create_future()

    def send(self) -> None:
        net, link, rng = self._net, self._link, self._net.rng
        net.sent(*self._question[1:])
        delay_s = net.delay_s(link)
        if rng.random() < link.late:
            net.later(rng.uniform(1.0, 30.0), self._arrive, True)
            net.later(delay_s, self.reset)
            return
        if rng.random() < link.lose_request:
            if rng.random() < 0.5:
                net.later(delay_s, self.reset)
            return
        net.later(delay_s, self._arrive, False)
        if rng.random() < link.duplicate:
            net.later(delay_s + rng.uniform(0.0, rng.choice((3.0, 30.0))), self._arrive, True)

    def _arrive(self, again: bool) -> None:
        net, link = self._net, self._link
        if not link.to_agent or not net.powered(link.host):
            if not again and net.rng.random() < 0.7:  # no connection was open any more
                net.later(CONNECT_TIMEOUT_S, self._fail, NotSent("Connection timed out"))
            return
        server = net.servers.get(link.host)
        if server is None:
            net.later(net.delay_s(link), self._fail, NotSent("Connect call failed: connection refused"))
            return
        method, target, body = self._question
        if again:
            net.trace.note("net", link.host, f"late or twice: {method} {target}")
        net.begin(link.host, self)
        server.life.spawn(self._serve(server.service, method, target, body), name=f"{method} {target}")

    async def _serve(self, service: Service, method: str, target: str, body: bytes) -> None:
        """In the agent's process."""
        net, link = self._net, self._link
        obeyed = net.obeyed.get(link.host, 0)
        reply = await service.answer(method, target, body)
        net.end(link.host, self)
        net.took(link.host, target, body, reply, obeyed=obeyed)
        if net.rng.random() < link.lose_reply:
            net.trace.note("net", link.host, f"reply lost: {method} {target} {reply.status}")
            net.later(RESET_S, self.reset)
            return
        net.later(net.delay_s(link), self._reply, reply)

    def _reply(self, reply: Reply) -> None:
        if not self._link.to_daemon or self.future.done():
            return
        if self._question[0] == "POST" and "attempts" in self._question[1]:
            self._net.trace.note("net", self._link.host, f"{self._question[1]} -> {reply.status}")
        self.future.set_result((reply.status, reply.body))

    def reset(self) -> None:
        if self._link.to_daemon:
            self._fail(Reset("Connection reset by peer"))

    def flush(self) -> None:
        """A reply that met a partition is gone with its connection."""

    def _fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Stream:
    """One event stream. Lines arrive in order; what meets a partition waits for its end."""

    def __init__(self, net: Network, link: Link) -> None:
        self._net = net
        self._link = link
        self._lines: deque[bytes] = deque()
        self._held: deque[bytes] = deque()
        self._last_s = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self.error: Exception | None = None
        self.refused: Reply | None = None
        self.closed = False

    def connect(self) -> None:
        """Arrives at the agent."""
        net, link = self._net, self._link
        if not link.to_agent or not net.powered(link.host):
            net.later(CONNECT_TIMEOUT_S, self._end, NotSent("Connection timed out"))
            return
        server = net.servers.get(link.host)
        if server is None:
            net.later(net.delay_s(link), self._end, NotSent("Connect call failed: connection refused"))
            return
        net.begin(link.host, self)
        server.life.spawn(self._pump(server.service), name="event stream")

    async def _pump(self, service: Service) -> None:
        """In the agent's process: what agents.server does with a subscription."""
        try:
            subscription = service.subscribe(self._dropped)
        except ProblemError as error:
            self.refused = of_problem(error.problem)
            self._net.later(RESET_S, self._end, Reset("refused"))
            return
        try:
            async for line in subscription:
                if self.closed:
                    break
                self._carry(line)
        finally:
            service.hub.unsubscribe(subscription)
            self._net.end(self._link.host, self)

    def _dropped(self) -> None:
        self._net.later(RESET_S, self.reset)

    def _carry(self, line: bytes) -> None:
        net = self._net
        now_s = net.loop.time()
        self._last_s = max(self._last_s, now_s + net.delay_s(self._link))
        net.later(self._last_s - now_s, self._arrive, line)

    def _arrive(self, line: bytes) -> None:
        if not self._link.to_daemon or not self._net.powered(self._link.host):
            self._held.append(line)
            return
        self.flush()
        self._lines.append(line)
        self._wake()

    def flush(self) -> None:
        if self._held:
            self._lines.extend(self._held)
            self._held.clear()
            self._wake()

    def reset(self) -> None:
        if self._link.to_daemon:
            self._end(Reset("Connection reset by peer"))

    def _end(self, error: Exception) -> None:
        self.error = self.error or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next_line(self) -> bytes | None:
        """In the daemon's process. None: the stream has broken."""
        while not self._lines:
            if self.error is not None:
                return None
            self._waiter = self._net.loop.create_future()
            await self._waiter
        return self._lines.popleft()


class SimTransport:
    """Implements agents.client.Transport."""

    def __init__(self, net: Network, link: Link) -> None:
        self._net = net
        self._link = link

    async def call(
        self, method: str, target: str, body: bytes | None, *, changes: bool, extra_s: float
    ) -> tuple[int, bytes]:
        self._net.asked(self._link.host)
        exchange = Exchange(self._net, self._link, method, target, body or b"")
        exchange.send()
        name = self._link.host
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S + extra_s):
                return await exchange.future
        except TimeoutError:
            raise lost(f"{name}: no answer in time", changes=changes) from None
        except NotSent as error:
            raise Retryable(f"{name}: {error}") from None
        except Reset as error:
            raise lost(f"{name}: {error}", changes=changes) from None

    async def lines(self) -> AsyncGenerator[bytes, None]:
        stream = Stream(self._net, self._link)
        self._net.later(self._net.delay_s(self._link), stream.connect)
        try:
            while (line := await stream.next_line()) is not None:
                yield line
        finally:
            stream.closed = True
        if stream.refused is not None:
            raise refusal(self._link.host, stream.refused.status, stream.refused.body, changes=False)
        raise Retryable(f"{self._link.host}: {stream.error}")

    async def close(self) -> None:
        """Nothing is kept."""
