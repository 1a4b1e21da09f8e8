"""What the operator fixes about placement: reserves, slots and the figures that estimates stand on."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Defaults suit a 10 Gbit/s migration network. Raises ValueError for a value that makes no sense."""

    memory_reserve_bytes: int = 512 * MIB  # never promised to guests, on each host; the larger reserve holds
    memory_reserve_ratio: float = 0.05  # the same as a share of the host's memory
    per_host_moves: int = 2  # at once, as source and, separately, as target
    bandwidth_bps: int = 1000 * MIB  # bytes per second that one host's migration link carries; for estimates
    move_overhead_s: float = 3.0  # preparation, handover and clean-up of one move; for estimates
    dirtied_ratio: float = 0.2  # memory copied again because the guest wrote to it; for estimates

    def __post_init__(self) -> None:
        if self.memory_reserve_bytes < 0:
            raise ValueError("memory_reserve_bytes must not be negative")
        if not 0 <= self.memory_reserve_ratio < 1:
            raise ValueError("memory_reserve_ratio must be at least 0 and below 1")
        if self.per_host_moves < 1:
            raise ValueError("per_host_moves must be at least 1")
        if self.bandwidth_bps < 1:
            raise ValueError("bandwidth_bps must be at least 1")
        if self.move_overhead_s < 0 or self.dirtied_ratio < 0:
            raise ValueError("move_overhead_s and dirtied_ratio must not be negative")

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
