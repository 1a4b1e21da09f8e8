"""sd_notify(3): tell systemd that the agent is ready, alive, or stopping. A datagram to $NOTIFY_SOCKET."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping


def notify(message: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send e.g. "READY=1"; False when systemd did not start us or does not listen. Never raises."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.sendto(message.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
    except OSError:
        return False
    return True


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Half of systemd's WatchdogSec, the pace sd_watchdog_enabled(3) recommends; None if there is none."""
    try:
        usec = int(environment.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return usec / 2_000_000 if usec > 0 else None


async def feed_watchdog(period_s: float) -> None:
    """From the event loop on purpose: a loop that is stuck must be restarted."""
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(period_s)
