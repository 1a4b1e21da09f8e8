"""How a running attempt is heard and stopped."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from agents.protocol import MigrationProgress


@dataclass(slots=True)
class Control:
    """`abort` is set when the daemon asks the attempt to stop, `destroy_source` when it saw the guest run on
    the target. `latest` tells how far a migration is, `paused_at_s` since when its guest is paused to be
    switched over, by the loop's clock.
    """

    abort: asyncio.Event = field(default_factory=asyncio.Event)
    destroy_source: asyncio.Event = field(default_factory=asyncio.Event)
    latest: MigrationProgress | None = None
    paused_at_s: float | None = None

    @property
    def progress(self) -> MigrationProgress | None:
        """All that is known of a migration that runs."""
        if self.paused_at_s is None:
            return self.latest
        paused_s = asyncio.get_running_loop().time() - self.paused_at_s
        return replace(self.latest or MigrationProgress(), handing_over_s=round(paused_s, 3))
