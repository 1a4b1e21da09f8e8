"""libvirt's numbers to this project's words. Pure; numbers from libvirt-domain.h, so no libvirt is needed.

A number of a newer libvirt becomes UNKNOWN or "unknown" (I19); nothing that decides treats it as safe.
"""

from __future__ import annotations

from collections.abc import Mapping

from agents.protocol import DomainState, MigrationProgress

# virDomainState
_STATES = {
    1: DomainState.RUNNING,
    2: DomainState.BLOCKED,
    3: DomainState.PAUSED,
    4: DomainState.SHUTDOWN,
    5: DomainState.SHUTOFF,
    6: DomainState.CRASHED,
    7: DomainState.PMSUSPENDED,
}

# virDomainRunningReason, virDomainPausedReason, virDomainShutdownReason, virDomainShutoffReason, ...
_REASONS: dict[DomainState, tuple[str, ...]] = {
    DomainState.RUNNING: (
        "unknown", "booted", "migrated", "restored", "from snapshot", "unpaused", "migration canceled",
        "save canceled", "wakeup", "crashed", "post-copy", "post-copy failed",
    ),
    DomainState.PAUSED: (
        "unknown", "user", "migration", "save", "dump", "ioerror", "watchdog", "from snapshot",
        "shutting down", "snapshot", "crashed", "starting up", "post-copy", "post-copy failed", "api error",
    ),
    DomainState.SHUTDOWN: ("unknown", "user"),
    DomainState.SHUTOFF: (
        "unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot",
        "daemon",
    ),
    DomainState.CRASHED: ("unknown", "panicked"),
}  # fmt: skip

# virDomainJobType: the ones in which no job runs any more
_ENDED = (0, 3, 4, 5)  # none, completed, failed, cancelled
# virDomainJobOperation
OPERATION_MIGRATION_IN = 4
OPERATION_MIGRATION_OUT = 5

ARRIVAL: Mapping[str, object] = {"type": 2, "operation": OPERATION_MIGRATION_IN}
"""Stands for the statistics of an arrival, which libvirt keeps on the source only."""

MAYBE_INCOMING = ("migration", "starting up", "unknown")
"""Reasons under which a paused domain may be a migration that arrives: ask for its job."""


def state_of(state: int, reason: int) -> tuple[DomainState, str]:
    """State and reason as words."""
    found = _STATES.get(state, DomainState.UNKNOWN)
    names = _REASONS.get(found, ())
    word = names[reason] if 0 <= reason < len(names) else "unknown"
    if found is DomainState.PAUSED and word in ("post-copy", "post-copy failed"):
        found = DomainState.PAUSED_POSTCOPY
    return found, word


def with_job(state: DomainState, reason: str, job: Mapping[str, object] | None) -> DomainState:
    """PAUSED becomes PAUSED_INCOMING only if libvirt itself says that the job is an incoming migration.

    On the source, too, a guest is paused with reason "migration" at the end: the reason alone proves nothing.
    """
    if state is DomainState.PAUSED and reason in MAYBE_INCOMING and job is not None and is_incoming(job):
        return DomainState.PAUSED_INCOMING
    return state


def is_running_job(job: Mapping[str, object]) -> bool:
    """Does virDomainGetJobStats describe a job that has not ended? An unknown type counts as one."""
    return _int(job, "type") not in _ENDED


def is_incoming(job: Mapping[str, object]) -> bool:
    """Is it a migration arriving here?"""
    return is_running_job(job) and _int(job, "operation") == OPERATION_MIGRATION_IN


def is_outgoing(job: Mapping[str, object]) -> bool:
    """Is it a migration leaving this host?"""
    return is_running_job(job) and _int(job, "operation") == OPERATION_MIGRATION_OUT


def is_foreign(job: Mapping[str, object]) -> bool:
    """Is it certainly no migration leaving this host? 0 is libvirt's "unknown operation"."""
    return _int(job, "operation") not in (0, OPERATION_MIGRATION_OUT)


def progress_of(job: Mapping[str, object], *, final: bool = False) -> MigrationProgress:
    """virDomainGetJobStats in base units. The dirty rate comes in pages per second.

    While a migration runs, `downtime` is QEMU's expectation (seen: the limit itself); only the figures
    of a completed job hold what was measured.
    """
    downtime = job.get("downtime") if final else None
    return MigrationProgress(
        elapsed_s=_int(job, "time_elapsed") / 1000,
        memory_total_bytes=_int(job, "memory_total"),
        memory_processed_bytes=_int(job, "memory_processed"),
        memory_remaining_bytes=_int(job, "memory_remaining"),
        bandwidth_bps=_int(job, "memory_bps"),
        dirty_rate_bps=_int(job, "memory_dirty_rate") * (_int(job, "memory_page_size") or 4096),
        iteration=_int(job, "memory_iteration"),
        downtime_ms=downtime if isinstance(downtime, int) else None,
    )


def _int(job: Mapping[str, object], key: str) -> int:
    value = job.get(key, 0)
    return value if isinstance(value, int) else 0
