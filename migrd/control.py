"""What the HTTP API may ask of the daemon: the only door between surface and core.

Implemented by `migrd.controller.Controller`; the API's tests use a scripted one. Refusals are
storage.errors.Refused with all reasons; an unknown name is `NotFound`; work that cannot be written down is
`migrd.ports.JournalReadOnly`, and nothing of it was begun; if the disk hangs over it, storage.errors.Unknown.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from migrd.host_config import HostConfig
from migrd.model import Blocker, Cluster, Plan
from migrd.operations import ClusterEvent, Operation


class NotFound(Exception):  # noqa: N818 - an answer, not a malfunction
    """No such host, guest or operation. Each reason names one and what exists that is close."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequest:
    power_off: bool = False
    allow_stop: tuple[str, ...] = ()  # guests by name or uuid that may be shut down if they cannot move (I5)


@dataclass(frozen=True, slots=True, kw_only=True)
class UndrainRequest:
    restore: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateRequest:
    to: str | None = None
    cold: bool = False  # consent by name: the guest may be shut down for its move, and is started again (I5)


PowerAction = Literal["on", "off", "status"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """`/readyz`: journal read and writable, no newer daemon is master. Silent hosts are no reason."""

    ready: bool
    reasons: tuple[str, ...] = ()


def reasons_of(plan: Plan) -> list[str]:
    """Why this plan is refused as a whole, all at once; empty = it is not."""
    return [*plan.refusals, *(_sentence(blocker) for blocker in plan.blockers)]


def _sentence(blocker: Blocker) -> str:
    where = f" to {blocker.target}" if blocker.target else ""
    remedy = f" ({blocker.remedy})" if blocker.remedy else ""
    return f"{blocker.name or blocker.guest}{where}: {blocker.reason}{remedy}"


class Control(Protocol):
    def cluster(self) -> Cluster: ...

    def silent_s(self) -> Mapping[str, float]:
        """Host -> seconds since it was last heard; without those never heard since the daemon started."""
        ...

    def readiness(self) -> Readiness: ...

    async def plan_drain(self, host: str, request: DrainRequest) -> Plan: ...

    async def drain(self, host: str, request: DrainRequest) -> Operation: ...

    async def undrain(self, host: str, request: UndrainRequest) -> Operation: ...

    async def plan_migrate(self, guest: str, request: MigrateRequest) -> Plan: ...

    async def migrate(self, guest: str, request: MigrateRequest) -> Operation: ...

    async def power(self, host: str, action: Literal["on", "off"]) -> Operation: ...

    async def add_host(self, name: str, host: HostConfig) -> Operation:
        """Follow one host more, at once and over restarts."""
        ...

    async def remove_host(self, name: str) -> Operation:
        """Follow it no longer. Only what was added: hosts of migrd.toml are removed there."""
        ...

    async def power_status(self, host: str) -> str:
        """'on', 'off' or 'unknown: REASON', asked of the BMC now."""
        ...

    def operations(self, *, limit: int = 200) -> tuple[Operation, ...]:
        """Newest first, children included, as far as kept."""
        ...

    def open_operations(self) -> tuple[Operation, ...]:
        """All that have not ended, newest first, however old. Cheap: ended ones are not looked at."""
        ...

    def operation(self, operation_id: str) -> Operation: ...

    async def cancel(self, operation_id: str) -> Operation: ...

    async def resume(self, operation_id: str) -> Operation:
        """Continue a parked operation after the operator removed the reason."""
        ...

    def events(self, after_seq: int | None = None) -> AsyncIterator[ClusterEvent]:
        """From now, or from `after_seq` as far as kept. Ends only with the subscriber."""
        ...
