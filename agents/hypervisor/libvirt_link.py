"""One connection to libvirtd: opened when needed, watched by keepalive, dropped when lost, opened again.

libvirtd works on at most five requests of one connection at a time (max_client_requests), and stops
reading from it beyond that. So status, abort and every migration have a connection of their own: five
running migrations must not keep the sixth request, the abort, from being heard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import libvirt

from agents.hypervisor import eventloop
from storage.calls import Lane, NoSlot, TimedOut
from storage.errors import Retryable, Unknown

T = TypeVar("T")

KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 3
OPEN_DEADLINE_S = 10.0
BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 10.0
LEFT_BEHIND_MAX = 4


class Lost(Exception):  # noqa: N818
    """The connection broke while a call ran on it: whether the call had its effect is not known."""


class Link:
    """`slots` calls at a time on one connection. `opened` runs in the opening thread, with the connection.

    libvirtError passes through to the caller; Retryable: the call was not made; Unknown: its deadline
    passed; Lost: the connection broke under it.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        *,
        slots: int,
        opened: Callable[[Any], None] | None = None,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self._uri = uri
        self._name = name
        self._slot_count = slots
        self._opened = opened
        self._changed = changed
        self._lane = Lane(name, slots)
        self._opening = asyncio.Lock()
        self._connection: Any = None
        self._backoff_s = BACKOFF_FIRST_S
        self._not_before = 0.0
        self._opener = Lane(f"{name}-open", 1)
        self._left_behind: list[Lane] = []
        self.trouble: str | None = "not connected yet"

    @property
    def exhausted(self) -> bool:
        """Too many calls hang for ever: only a new process can free their threads."""
        self._left_behind = [lane for lane in self._left_behind if lane.late]
        return len(self._left_behind) > LEFT_BEHIND_MAX

    async def call(self, function: Callable[[Any], T], *, deadline_s: float) -> T:
        """Run `function(connection)` in a thread, with the connection opened first if need be."""
        connection = await self.ensure()
        try:
            return await self._lane.call(lambda: function(connection), deadline_s=deadline_s)
        except NoSlot as error:
            self._abandon_if_stuck(connection)
            raise Retryable(f"libvirt is busy: {error}") from None
        except TimedOut as error:
            self._abandon_if_stuck(connection)
            raise Unknown(f"libvirt did not answer: {error}") from None
        except libvirt.libvirtError as error:
            if is_lost(connection, error):
                self.drop(connection, f"connection to {self._uri} lost: {error}")
                raise Lost(str(error)) from None
            raise

    async def ensure(self) -> Any:
        """The open connection. Raises Retryable at once while the back-off after a failure lasts."""
        async with self._opening:
            if self._connection is not None:
                return self._connection
            loop = asyncio.get_running_loop()
            if loop.time() < self._not_before:
                raise Retryable(self.trouble or "libvirt: waiting before the next try")
            if self._opener.late:  # a libvirtd that hangs gets one caller, not one more each time
                raise Retryable(self.trouble or "libvirt: an earlier try to connect still hangs")
            # A lane of its own: hung calls of the old connection must not keep a new one from opening.
            try:
                connection = await self._opener.call(lambda: self._open(loop), deadline_s=OPEN_DEADLINE_S)
            except (libvirt.libvirtError, TimedOut) as error:
                self.trouble = f"cannot connect to {self._uri}: {error}"
                self._not_before = loop.time() + self._backoff_s
                self._backoff_s = min(self._backoff_s * 2, BACKOFF_LAST_S)
                raise Retryable(self.trouble) from None
            self._backoff_s = BACKOFF_FIRST_S
            self._connection, self.trouble = connection, None
            self._tell()
            return connection

    def drop(self, connection: Any, why: str) -> None:
        """Forget a broken connection; the next call opens a new one. Safe to repeat."""
        if self._connection is connection:
            self._connection, self.trouble = None, why
            self._tell()

    async def close(self) -> None:
        """Close for good. Does not wait for calls that hang."""
        connection, self._connection = self._connection, None
        self.trouble = "closed"
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError, TimedOut):
                await Lane(f"{self._name}-close", 1).call(connection.close, deadline_s=2.0)

    def _open(self, loop: asyncio.AbstractEventLoop) -> Any:
        def closed(connection: object, reason: int, _opaque: object) -> None:
            with contextlib.suppress(RuntimeError):  # the asyncio loop has ended
                loop.call_soon_threadsafe(self.drop, connection, f"closed by libvirt (reason {reason})")

        eventloop.start()
        connection = libvirt.open(self._uri)
        # Drivers inside this process (test:///) have no keepalive and cannot be lost.
        with contextlib.suppress(libvirt.libvirtError):
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        with contextlib.suppress(libvirt.libvirtError):
            connection.registerCloseCallback(closed, None)
        if self._opened is not None:
            self._opened(connection)
        return connection

    def _abandon_if_stuck(self, connection: Any) -> None:
        """All slots hang past their deadline: leave them behind and start over, a bounded number of times."""
        if self._lane.late >= self._slot_count and not self.exhausted:
            self._left_behind.append(self._lane)
            self._lane = Lane(self._name, self._slot_count)
            self.drop(connection, "libvirt does not answer on any slot; connecting anew")

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed()


def is_lost(connection: Any, error: libvirt.libvirtError) -> bool:
    """Is this error the connection's rather than the call's?"""
    if error.get_error_code() in (libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_NO_CONNECT):
        return True
    try:
        return not connection.isAlive()
    except libvirt.libvirtError:
        return True
