"""The running daemon: everything in one TaskGroup. A loop that dies takes the daemon with it; systemd starts
it again, and the journal tells it what it was doing."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from agents.client import AgentClient
from agents.notify import notify, watchdog_s
from migrd.api.app import build_app
from migrd.api.context import Api
from migrd.api.server import serving
from migrd.assembly import assemble
from migrd.config import Loaded, secret_problem
from migrd.journal import Journal
from migrd.members import Members
from migrd.metrics import Metrics

log = structlog.get_logger("migrd.daemon")

JOURNAL_FILE = "journal.sqlite3"
LAG_PERIOD_S = 0.5
SETTLE_S = 15.0  # hosts that have neither answered nor failed by then are reported, and not waited for


async def serve(loaded: Loaded, version: str) -> None:
    """Run until SIGTERM or SIGINT. Operations stay journalled and are resumed by the next start.

    Raises JournalError, or in an ExceptionGroup ListenError or what a loop that died raised.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(loaded, version) as url:
        log.info("daemon ready", url=url, version=version, hosts=len(loaded.config.hosts))
        notify("READY=1")
        await stop.wait()
        log.info("daemon stopping")
        notify("STOPPING=1")
    log.info("daemon stopped")


@asynccontextmanager
async def running(loaded: Loaded, version: str) -> AsyncIterator[str]:
    """A running daemon; yields the URL of its API. Leaving it stops it cleanly."""
    config = loaded.config
    async with AsyncExitStack() as stack:
        journal = await Journal.open(config.state.dir / JOURNAL_FILE)
        stack.push_async_callback(journal.close)
        members = Members(
            config.hosts,
            connect=lambda name, host: AgentClient.https(name, host.agent, loaded.agent_tls),
            secret_problem=secret_problem,
        )
        stack.push_async_callback(members.close)
        metrics = Metrics(version)
        view, controller = assemble(
            members.agents,
            journal=journal,
            power=members.power,
            with_bmc=[name for name in members.agents if members.power.has(name)],
            policy=config.policy,
            watch=config.watch,
            settings=config.settings(),
            observer=metrics,
            members=members,
        )
        members.watched_by(view)
        # Before anything is watched: a drained host must not be taken for a usable one, even for a moment.
        await controller.recover()
        metrics.follow(controller)
        api = Api(
            control=controller,
            token=loaded.token,
            observer=metrics,
            exposition=metrics.exposition,
            version=version,
        )
        await stack.enter_async_context(
            _tasks(view=view.run(), controller=controller.run(), members=members.run(), loop=_pulse(metrics))
        )
        late = await view.settled(SETTLE_S)
        if late:
            log.warning("hosts have not answered yet", hosts=late)
        spare_the_collector()
        # Last in, first out: no request is taken while the core goes down.
        yield await stack.enter_async_context(serving(build_app(api), config.api.address, loaded.api_tls))


def spare_the_collector() -> None:
    """What is known of the cluster by now mostly stays: the garbage collector need not walk over it again.

    At 20,000 guests a full walk holds the event loop up for a quarter of a second. What is replaced is freed
    all the same (gc.freeze of the library reference), but for what dies in a cycle. Later walks are rare.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 50)


@asynccontextmanager
async def _tasks(**loops: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Endless loops for as long as we are inside; one that dies ends us with its error."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_endless(name, loop), name=name) for name, loop in loops.items()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _endless(name: str, loop: Coroutine[object, object, None]) -> None:
    await loop
    raise RuntimeError(f"the {name} loop has ended, which it must not")


async def _pulse(metrics: Metrics) -> None:
    """Measures how late the event loop is, and tells systemd that it turns at all."""
    loop = asyncio.get_running_loop()
    period_s = watchdog_s()
    next_s = loop.time()
    while True:
        asked_s = loop.time()
        await asyncio.sleep(LAG_PERIOD_S)
        metrics.lag(loop.time() - asked_s - LAG_PERIOD_S)
        if period_s is not None and loop.time() >= next_s:
            notify("WATCHDOG=1")
            next_s = loop.time() + period_s / 2
