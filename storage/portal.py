"""Does an iSCSI portal answer at all? For planning: a TCP connection is opened and closed, nothing more."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

CONNECT_DEADLINE_S = 3.0


class PortalCheck(Protocol):
    """Why a portal ("10.0.0.5:3260") cannot be reached from here; None when it can."""

    async def __call__(self, portal: str) -> str | None: ...


async def check(portal: str) -> str | None:
    """Connect to the portal within `CONNECT_DEADLINE_S`."""
    host, _, port = portal.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        return f"iSCSI portal {portal!r} is no HOST:PORT"
    try:
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError) as error:
        return f"iSCSI portal {portal} does not answer from this host: {error or 'timeout'}"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None
