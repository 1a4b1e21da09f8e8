"""How a running attempt is heard and stopped."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from agents.protocol import MigrationProgress


@dataclass(slots=True)
class Control:
    """`abort` is set when the daemon asks the attempt to stop; `latest` tells how far a migration is."""

    abort: asyncio.Event = field(default_factory=asyncio.Event)
    latest: MigrationProgress | None = None
