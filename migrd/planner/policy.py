"""What the operator fixes about placement: reserves, slots and the figures that estimates stand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from agents.mistakes import MAX_DURATION_S

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Defaults suit a 10 Gbit/s migration network. The constraints hold for what a configuration gives."""

    # never promised to guests, on each host; the larger reserve holds
    memory_reserve_bytes: Annotated[int, Field(ge=0)] = 512 * MIB
    memory_reserve_ratio: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.05  # as a share
    per_host_moves: Annotated[int, Field(ge=1, le=1000)] = 2  # at once, as source and, separately, as target
    # bytes per second that one host's migration link carries; for estimates
    bandwidth_bps: Annotated[int, Field(ge=1)] = 1000 * MIB
    # preparation, handover and clean-up of one move; for estimates
    move_overhead_s: Annotated[float, Field(ge=0, le=MAX_DURATION_S, allow_inf_nan=False)] = 3.0
    # memory copied again because the guest wrote to it; for estimates
    dirtied_ratio: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.2

    def reserve_bytes(self, total_bytes: int) -> int:
        """Bytes of a host with `total_bytes` of memory that no guest may be promised."""
        return max(self.memory_reserve_bytes, int(total_bytes * self.memory_reserve_ratio))


def amount(size_bytes: int) -> str:
    """Memory for people: `512 MiB`, `1.5 GiB`; a negative amount is shown as none."""
    if size_bytes <= 0:
        return "0 MiB"
    if size_bytes < GIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / GIB:.1f} GiB"
