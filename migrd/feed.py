"""Cluster events for subscribers: a bounded memory, bounded queues, and no mercy for the slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Literal

from migrd.operations import ClusterEvent, Operation

KEPT = 2000  # events that a subscriber can still ask for
QUEUED = 500  # events that one subscriber may lag behind; a slower one is dropped
MAX_SUBSCRIBERS = 200
EPOCH_STEP = 1 << 32  # stays exact in JSON readers that have doubles only, up to two million starts


class Feed:
    """GET /v1/events and `migrctl events` read here. One event loop; publishing never waits.

    Numbers grow over restarts: they begin at epoch x 2^32, and the epoch counts the starts. A client that
    comes back with a number of an earlier life gets all that this life has kept.
    """

    def __init__(self, epoch: int = 0) -> None:
        self._kept: deque[ClusterEvent] = deque(maxlen=KEPT)
        self._seq = epoch * EPOCH_STEP
        self._queues: set[asyncio.Queue[ClusterEvent | None]] = set()

    def publish(
        self,
        at_s: float,
        kind: Literal["operation", "host", "guest", "alert"],
        message: str,
        *,
        operation: Operation | None = None,
        host: str = "",
        guest: str = "",
    ) -> None:
        """Tell everyone. `at_s`: wall clock."""
        self._seq += 1
        event = ClusterEvent(
            seq=self._seq,
            at_s=at_s,
            kind=kind,
            message=message,
            operation=operation,
            host=host,
            guest=guest,
        )
        self._kept.append(event)
        for queue in list(self._queues):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._queues.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)  # the end, behind what was queued

    async def events(self, after_seq: int | None) -> AsyncIterator[ClusterEvent]:
        """From now, or from `after_seq` as far as kept. Ends for a slow subscriber, or for one too many."""
        if len(self._queues) >= MAX_SUBSCRIBERS:
            return
        queue: asyncio.Queue[ClusterEvent | None] = asyncio.Queue(QUEUED)
        earlier = [] if after_seq is None else [event for event in self._kept if event.seq > after_seq]
        self._queues.add(queue)
        try:
            for event in earlier:
                yield event
            while (next_event := await queue.get()) is not None:
                yield next_event
        finally:
            self._queues.discard(queue)
