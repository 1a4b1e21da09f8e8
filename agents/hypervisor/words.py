"""The `Hypervisor` an agent works with, and the plain facts it answers with.

Everything raises storage.errors and nothing else, and every call ends by its deadline (I20). Tests and
the simulator stand a fake behind this Protocol; `libvirt_hypervisor.LibvirtHypervisor` is the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from agents.protocol import DomainState, MigrationProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainFacts:
    """State of one domain, now. `job`: libvirt runs a job on it; `incoming`: that job is its arrival here."""

    uuid: str
    state: DomainState
    reason: str
    persistent: bool = False
    job: bool = False

    @staticmethod
    def absent(uuid: str) -> DomainFacts:
        """Neither running nor defined here."""
        return DomainFacts(uuid=uuid, state=DomainState.ABSENT, reason="absent")


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainFull:
    """A domain with its definitions. `live_xml` equals `xml` when it does not run. XML without secrets."""

    facts: DomainFacts
    name: str
    autostart: bool
    live_xml: str
    xml: str
    host_cpu_xml: str = ""  # <cpu> of the host it is on, for guests that see it as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorReport:
    """Everything libvirt tells about a host."""

    cpu_xml: str
    arch: str
    versions: dict[str, str]
    networks: tuple[str, ...]
    domains: tuple[DomainFull, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A running job. `outgoing`: certainly a migration that leaves this host. `foreign`: certainly none
    (an arrival, a snapshot, a save). Neither: libvirt does not say what it is.
    """

    outgoing: bool
    foreign: bool = False
    progress: MigrationProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateRequest:
    """virDomainMigrateToURI3: live, peer-to-peer, no disk copy, never UNSAFE, never TUNNELLED."""

    uuid: str
    target_uri: str
    target_address: str
    downtime_limit_ms: int
    bandwidth_bps: int | None  # bytes per second
    # Asked in the call's own thread, right before libvirt is: an earlier abort finds no job to end.
    unwanted: Callable[[], bool] = field(default=lambda: False)


@dataclass(slots=True)
class Changes:
    """Called in the event loop when something changed: a domain (uuid), or the connection (None)."""

    listeners: list[Callable[[str | None], None]] = field(default_factory=list)

    def tell(self, uuid: str | None) -> None:
        """Tell every listener."""
        for listener in self.listeners:
            listener(uuid)


class Hypervisor(Protocol):
    """One host's hypervisor. Reads raise Retryable; a domain that is not there is ABSENT, not an error."""

    changes: Changes

    @property
    def trouble(self) -> str | None:
        """Why the hypervisor cannot be used at the moment; None when it can."""
        ...

    async def report(self) -> HypervisorReport:
        """Host, networks and every domain. Raises Retryable."""
        ...

    async def facts(self, uuid: str) -> DomainFacts:
        """One domain, never from a cache. Raises Retryable."""
        ...

    async def handing_over(self, uuid: str) -> bool:
        """Is the guest paused because a migration from here is in its switch-over, as far as the state says?

        Waits for no other call on the domain, and for no QEMU. False for a domain that is not here. Raises
        Retryable.
        """
        ...

    async def cpu_reasons(self, question: str) -> tuple[str, ...]:
        """Why this host cannot run a guest with that machine and CPU (agents.cpu_question). Retryable."""
        ...

    async def migrate(self, request: MigrateRequest) -> None:
        """Returns when libvirt says the guest has moved. Raises:

        - Refused, Failed, Retryable: libvirt's error proves that no guest memory was ever sent.
        - Unknown: anything else, a lost connection included. The guest may be on either host.
        """
        ...

    async def job(self, uuid: str) -> Job | None:
        """The job that runs on the domain, if any. Has its own slot, also when all others hang. Retryable."""
        ...

    async def last_job(self, uuid: str, *, wait_s: float) -> MigrationProgress | None:
        """Final figures of the domain's last finished migration from here; waits for them. Never raises."""
        ...

    async def abort(self, uuid: str) -> None:
        """Ask libvirt to abort the job. Has its own slot. No job is no error. Raises Retryable."""
        ...

    async def set_downtime(self, uuid: str, downtime_limit_ms: int) -> None:
        """Change the limit of a migration, usually while it runs. Raises Retryable, Refused."""
        ...

    async def destroy_incoming(self, uuid: str) -> None:
        """Kill the QEMU of an arrival that never ran here. Refused, Unknown."""
        ...

    async def destroy_outgoing(self, uuid: str) -> None:
        """Kill the QEMU of a guest that runs on the target by now. Its definition stays.

        Only one that is paused for its switch-over, looked at in the very thread that kills it. A domain that
        is not here is no error. Raises Refused (it runs again, or is anything else), Retryable, Unknown.
        """
        ...

    async def undefine(self, uuid: str) -> None:
        """Remove a shut-off definition; NVRAM, snapshots and saved state are never removed with it.

        Raises Refused (libvirt will not, e.g. it has a saved state), Retryable, Unknown.
        """
        ...

    async def shutdown(self, uuid: str) -> None:
        """Ask the guest to shut down (ACPI or guest agent); returns at once.

        Raises Refused, Retryable, Unknown.
        """
        ...

    async def move_definition(self, uuid: str, target_uri: str, target_address: str) -> None:
        """Move a shut-off definition to another host; returns when libvirt says it is there and not here.

        Raises Refused (it is not shut off, or libvirt will not), Retryable (the target's libvirtd was not
        reached), Unknown (it may be here, there, or on both).
        """
        ...

    async def settle(self, uuid: str) -> None:
        """Returns when libvirt runs no job on the domain, and it is defined here. Waits for one that runs.

        Raises Retryable: it is not here, a job outlasts the wait, or libvirt does not answer.
        """
        ...

    async def start(self, uuid: str) -> None:
        """Start a shut-off domain; returns when it runs. A domain that is in any other state is refused.

        Raises Refused, Failed (libvirt could not, and it is shut off), Retryable, Unknown.
        """
        ...
