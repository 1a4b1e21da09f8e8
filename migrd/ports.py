"""All of the outside that the core touches, as small Protocols.

The daemon passes the real things (agents.client, migrd.journal, migrd.power, the clock); tests and the
simulator pass theirs. Nothing in the core reads a clock, opens a file or a socket by another way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from agents.protocol import (
    Attempt,
    AttemptReport,
    HostReport,
    MigrationProgress,
    Observation,
    Observe,
    Preflight,
)
from migrd.host_config import HostConfig
from migrd.model import Cluster, Facts, HostState, Plan
from migrd.operations import Operation
from migrd.projection import Record
from migrd.sagas.events import Event


class AgentPort(Protocol):
    """One host's agent; raises storage.errors only. `agents.client.AgentClient` is the real one."""

    async def report(self, *, storage: bool = False) -> HostReport: ...

    async def observe(self, question: Observe) -> Observation: ...

    async def submit(self, attempt: Attempt, wait_s: float = ...) -> AttemptReport: ...

    async def wait(self, operation: str, step: str, attempt: int, wait_s: float = ...) -> AttemptReport: ...

    async def abort(self, operation: str, step: str, attempt: int, *, epoch: int) -> AttemptReport: ...

    async def destroy_source(
        self, operation: str, step: str, attempt: int, *, epoch: int
    ) -> AttemptReport: ...


class ViewPort(Protocol):
    """The cluster as watched. `migrd.watch.ClusterView` is the real one."""

    def cluster(self) -> Cluster:
        """This moment. The very same object for as long as nothing changes."""
        ...

    def silent_s(self) -> Mapping[str, float]:
        """Host -> seconds since it was last heard; without those never heard."""
        ...

    async def reread(self, host: str, *, storage: bool = False) -> HostReport:
        """Ask the host now, past all caches; `storage`: its volumes are looked at anew for it, too.

        Raises storage.errors, KeyError for an unknown host.
        """
        ...


class InterviewerPort(Protocol):
    """Asks candidates what planning needs to know. `migrd.preflight.Interviewer` is the real one."""

    async def ask(self, cluster: Cluster, questions: Mapping[str, Preflight]) -> Facts: ...


class PowerPort(Protocol):
    """Power of hosts through their BMCs. `migrd.power.Power` is the real one."""

    def has(self, host: str) -> bool: ...

    async def status(self, host: str) -> str:
        """'on', 'off' or 'unknown: REASON'. Never raises (I3)."""
        ...

    async def switch(self, host: str, action: str) -> str:
        """Ask for 'on' or 'off'. Returns '' when the BMC accepted, else the reason. Never raises."""
        ...


class MembersPort(Protocol):
    """Hosts come and go while the daemon runs. `migrd.members.Members` is the real one."""

    @property
    def fixed(self) -> Mapping[str, HostConfig]:
        """The hosts of migrd.toml: they are changed there, and nowhere else."""
        ...

    def problems(self, host: HostConfig) -> list[str]:
        """What is wrong with the files that it names."""
        ...

    def take(self, name: str, host: HostConfig) -> None: ...

    def drop(self, name: str) -> None: ...


class NoMembers:
    """Hosts neither come nor go: what is followed is fixed by whoever built the view."""

    fixed: Mapping[str, HostConfig] = MappingProxyType({})

    def problems(self, host: HostConfig) -> list[str]:
        return []

    def take(self, name: str, host: HostConfig) -> None: ...

    def drop(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one guest may go. Empty `host`: nowhere, and `reasons` says why, host by host."""

    host: str
    reasons: tuple[str, ...] = ()


class PlannerPort(Protocol):
    """The pure planner with its policy bound. `migrd.planning.BoundPlanner` is the real one.

    `promised`: guests that open operations move, uuid -> target; their memory is spoken for there.
    `among`: the only targets to look at. A refusal that came of a shortlist says nothing about the others.
    """

    def plan_drain(
        self,
        cluster: Cluster,
        host: str,
        facts: Facts,
        *,
        allow_stop: Collection[str],
        promised: Mapping[str, str],
        among: Collection[str] | None = None,
    ) -> Plan: ...

    def plan_migrate(
        self,
        cluster: Cluster,
        guest: str,
        to: str | None,
        facts: Facts,
        *,
        promised: Mapping[str, str],
        cold: bool = False,
        among: Collection[str] | None = None,
    ) -> Plan: ...

    def choose(
        self,
        cluster: Cluster,
        guest: str,
        facts: Facts,
        *,
        promised: Mapping[str, str],
        exclude: Collection[str],
        among: Collection[str] | None = None,
    ) -> Target: ...

    def questions(
        self,
        cluster: Cluster,
        host: str,
        guest: str = "",
        *,
        cold: bool = False,
        among: Collection[str] | None = None,
    ) -> Mapping[str, Preflight]: ...

    def shortlist(
        self,
        cluster: Cluster,
        host: str,
        guest: str = "",
        *,
        promised: Mapping[str, str],
        exclude: Collection[str] = (),
    ) -> tuple[str, ...] | None:
        """Whom to ask first about the guests of `host`, or one of them. None: everybody."""
        ...

    def reasons_not_to_power_off(
        self, host: str, reports: Mapping[str, tuple[HostReport, float]], unheard: Collection[str]
    ) -> tuple[str, ...]: ...


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def wall(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class RealClock:
    """Of this machine."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One journalled event. `at_s`: wall clock, for people only."""

    seq: int
    operation: str
    event: Event
    at_s: float


class JournalReadOnly(Exception):  # noqa: N818 - a state
    """The journal cannot be written (disk full, error, hangs). Nothing may be begun; the message says why."""


class JournalError(Exception):
    """The journal cannot be used at all; the message says why and what to do. The daemon must not start."""


class JournalPort(Protocol):
    @property
    def epoch(self) -> int:
        """This start's number; written durably before anything else (I4)."""
        ...

    @property
    def read_only(self) -> str:
        """Why it cannot be written at the moment; '' when it can."""
        ...

    def life(self, seq: int) -> str:
        """Names the daemon's start that wrote row `seq`, unlike any other. '' before lives were named."""
        ...

    async def ended(self) -> Sequence[Record]:
        """Ended operations whose folded state is kept, in no order: their rows need not be folded."""
        ...

    async def load(self, skip: Container[str] = ()) -> Sequence[Row]:
        """Every row of operations that are not in `skip`, oldest first. Raises JournalError."""
        ...

    async def append(self, operation: str, event: Event, at_s: float) -> Row:
        """Durable when it returns. Raises JournalReadOnly; then nothing was written (see Journal.append).

        While its disk hangs it does neither: a person must not be left to wait for it.
        """
        ...

    async def condense(self, records: Sequence[Record]) -> None:
        """Keep the folded state of these ended operations for the next start. Raises JournalReadOnly."""
        ...

    async def drop(self, operations: Sequence[str]) -> None:
        """Forget whole operations: all of these or, if it raises JournalReadOnly, none."""
        ...

    async def probe(self) -> None:
        """Try a write, to learn whether a read-only journal has recovered. Bounded. Never raises."""
        ...


class Observer(Protocol):
    """Hooks for metrics. Called from the event loop; must return at once and never raise."""

    def operation_changed(self, operation: Operation) -> None: ...

    def operation_ended(self, operation: Operation) -> None: ...

    def move_started(self, operation: Operation) -> None: ...

    def move_progress(self, operation: Operation, progress: MigrationProgress) -> None: ...

    def move_ended(self, operation: Operation) -> None: ...

    def downtime(self, seconds: float) -> None: ...

    def journal_read_only(self, reason: str) -> None: ...


class NullObserver:
    """Nobody measures."""

    def operation_changed(self, operation: Operation) -> None: ...

    def operation_ended(self, operation: Operation) -> None: ...

    def move_started(self, operation: Operation) -> None: ...

    def move_progress(self, operation: Operation, progress: MigrationProgress) -> None: ...

    def move_ended(self, operation: Operation) -> None: ...

    def downtime(self, seconds: float) -> None: ...

    def journal_read_only(self, reason: str) -> None: ...


Administrative = Mapping[str, HostState]
"""Host -> DRAINING, DRAINED or OFF, as the journal has it; a host that is not in it is in use."""
