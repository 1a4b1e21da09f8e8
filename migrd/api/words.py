"""The API's own answers and bodies: projections of the model for people and scripts.

Everything else that the API answers (Operation, Plan, ClusterEvent) is the core's own dataclass.
Bytes, seconds and counts have the unit in the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from agents.protocol import AnyVolume, DomainState
from migrd.control import DrainRequest, MigrateRequest
from migrd.host_config import HostConfig, HostName
from migrd.model import HostState
from migrd.operations import ClusterEvent, Operation
from storage.words import Health, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """One line of `migrctl hosts`."""

    name: str
    state: HostState
    observed: HostState  # what its agent shows, whatever was decided about it
    node: str
    guests: int  # with a QEMU process, or possibly with one
    guests_off: int  # defined here, shut off
    memory_total_bytes: int
    memory_available_bytes: int
    threads: int
    has_bmc: bool
    heard_ago_s: float | None  # None = never since the daemon started
    problems: tuple[str, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestView:
    """A guest, wherever it is. During a migration it is on two hosts: `also_on` names the other."""

    uuid: str
    name: str
    host: str
    also_on: tuple[str, ...]
    state: DomainState
    memory_bytes: int
    vcpus: int
    persistent: bool
    autostart: bool
    volumes: tuple[str, ...]
    bridges: tuple[str, ...]
    networks: tuple[str, ...]
    blockers: tuple[str, ...]
    operation: str  # id of the open operation that moves it, or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyView:
    """What one host sees of a volume."""

    host: str
    role: Role
    health: Health
    identity: str | None
    size_bytes: int | None
    dual_primary_allowed: bool
    sole_current_copy: bool
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeView:
    """A volume as the whole cluster sees it; `health` is the worst that any host reports."""

    name: str
    kind: str
    health: Health
    guests: tuple[str, ...]
    copies: tuple[CopyView, ...]
    volume: AnyVolume


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDetail:
    host: HostView
    bridges: tuple[str, ...]
    networks: tuple[str, ...]
    migration_uri: str
    guests: tuple[GuestView, ...]
    volumes: tuple[VolumeView, ...]
    operations: tuple[Operation, ...]  # open ones that concern this host


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """One look at 3 a.m.: is anything wrong, is anything going on."""

    version: str
    ready: bool
    reasons: tuple[str, ...]  # why it is not ready
    hosts: Mapping[str, int]  # by state
    guests: Mapping[str, int]  # by state
    problems: tuple[str, ...]  # "HOST: problem", sick volumes included
    open: tuple[Operation, ...]  # pending, running, cancelling
    parked: tuple[Operation, ...]  # need an operator


@dataclass(frozen=True, slots=True, kw_only=True)
class HostList:
    hosts: tuple[HostView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestList:
    vms: tuple[GuestView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeList:
    volumes: tuple[VolumeView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationList:
    operations: tuple[Operation, ...]  # newest first


@dataclass(frozen=True, slots=True, kw_only=True)
class EventList:
    events: tuple[ClusterEvent, ...]  # oldest first


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerStatus:
    """What the BMC says now: 'on', 'off' or 'unknown: REASON'."""

    host: str
    power: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """/healthz and /readyz."""

    ok: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainBody(DrainRequest):
    dry_run: bool = False  # answer the plan, touch nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateBody(MigrateRequest):
    dry_run: bool = False  # answer the plan, touch nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerBody:
    action: Literal["on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBody(HostConfig):
    """A host's table of migrd.toml, and its name."""

    name: HostName


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """The body of a request that takes no field: empty, or {}."""
