"""A scripted Control and a small cluster for it: what the surface shows without a core behind it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from typing import Literal, TypeVar

from agents.protocol import DomainState, MigrationProgress
from migrd.control import DrainRequest, MigrateRequest, NotFound, Readiness, UndrainRequest
from migrd.host_config import HostConfig
from migrd.model import Blocker, Cluster, Guest, Host, HostState, Move, Plan
from migrd.operations import ClusterEvent, Operation, OperationKind, OperationState, StepView
from storage.errors import Refused
from storage.words import DrbdVolume, Health, IscsiVolume, Role, VolumeReport

T = TypeVar("T")

GIB = 1 << 30
WEB, DB, TWIN_A, TWIN_B, IDLE = (f"0000000{n}-0000-4000-8000-000000000000" for n in range(1, 6))

_DRBD = DrbdVolume(resource="web", volume_nr=0, minor=1, nodes=("h1", "h2"))
_LUN = IscsiVolume(portal="10.0.0.5:3260", iqn="iqn.2026-11.org.lab:db", lun=1, device="/dev/disk/by-path/x")


def _report(role: Role, health: Health = Health.OK, *problems: str) -> VolumeReport:
    return VolumeReport(
        volume=_DRBD, role=role, health=health, identity="ABCD", size_bytes=GIB, problems=problems
    )


def cluster() -> Cluster:
    """h1 runs web (DRBD), db (iSCSI, on its way to h2) and one of two guests called twin; h3 is suspect."""

    def host(name: str, state: HostState, **more: object) -> Host:
        known = {"node": name, "memory_total_bytes": 8 * GIB, "memory_available_bytes": 4 * GIB, "threads": 4}
        return Host(name=name, state=state, bridges=frozenset({"br1", "br0"}), **{**known, **more})  # type: ignore[arg-type]

    def guest(uuid: str, name: str, place: str, **more: object) -> Guest:
        known = {"state": DomainState.RUNNING, "memory_bytes": GIB // 4}
        return Guest(uuid=uuid, name=name, host=place, **{**known, **more})  # type: ignore[arg-type]

    web_there = _report(Role.SECONDARY, Health.SYNCING, "12% out of sync")
    return Cluster(
        hosts={
            "h1": host(
                "h1",
                HostState.ONLINE,
                volumes={_DRBD.name: _report(Role.PRIMARY)},
                has_bmc=True,
                versions={"qemu": "7.2", "libvirt": "9.0"},
            ),
            "h2": host("h2", HostState.ONLINE, volumes={_DRBD.name: web_there}),
            "h3": host("h3", HostState.SUSPECT, problems=("libvirt does not answer",)),
        },
        guests=(
            guest(WEB, "web", "h1", volumes=(_DRBD,), bridges=("br0",)),
            guest(DB, "db", "h2", state=DomainState.PAUSED_INCOMING, volumes=(_LUN,)),
            guest(DB, "db", "h1", volumes=(_LUN,), job=True),
            guest(TWIN_A, "twin", "h1"),
            guest(TWIN_B, "twin", "h2"),
            guest(IDLE, "idle", "h2", state=DomainState.SHUTOFF),
        ),
    )


def move(id_: str, guest: str, state: OperationState, **more: object) -> Operation:
    fields = {"source": "h1", "target": "h2", "guest": {"web": WEB, "db": DB}.get(guest, ""), **more}
    return Operation(id=id_, kind=OperationKind.MIGRATE, state=state, subject=guest, **fields)  # type: ignore[arg-type]


def drain(id_: str, state: OperationState, **more: object) -> Operation:
    return Operation(id=id_, kind=OperationKind.DRAIN, state=state, subject="h1", **more)  # type: ignore[arg-type]


def progress(remaining: int, elapsed_s: float = 1.0) -> MigrationProgress:
    return MigrationProgress(
        elapsed_s=elapsed_s,
        memory_total_bytes=100 << 20,
        memory_processed_bytes=30 << 20,
        memory_remaining_bytes=remaining,
        bandwidth_bps=50 << 20,
        dirty_rate_bps=3 << 20,
        iteration=2,
    )


PLAN = Plan(
    host="h1",
    moves=(
        Move(guest=WEB, name="web", source="h1", target="h2", estimate_s=4.0),
        Move(guest=DB, name="db", source="h1", target="h2", estimate_s=6.5),
    ),
    stays=(IDLE,),
    names={IDLE: "idle"},
    estimate_s=10.5,
)

BLOCKED = dataclasses.replace(
    PLAN,
    blockers=(
        Blocker(
            guest=TWIN_A, name="twin", target="", reason="has the USB device 1d6b:0002", remedy="detach it"
        ),
        Blocker(guest=WEB, name="web", target="h3", reason="h3 is suspect"),
    ),
)


class ScriptedControl:
    """Control with every answer given beforehand. `asked` records the calls in order."""

    def __init__(self, cluster_: Cluster | None = None) -> None:
        self.snapshot = cluster_ or cluster()
        self.ready = Readiness(ready=True)
        self.plan = PLAN
        self.refusal: Exception | None = None
        self.by_id: dict[str, Operation] = {}
        self.script: dict[str, list[Operation]] = {}  # id -> what each look at it finds, the last one stays
        self.kept: list[ClusterEvent] = []
        self.live: asyncio.Queue[ClusterEvent] = asyncio.Queue()
        self.subscribers = 0
        self.asked: list[tuple[object, ...]] = []

    def cluster(self) -> Cluster:
        return self.snapshot

    def silent_s(self) -> Mapping[str, float]:
        return {"h1": 0.5, "h2": 0.0}

    def readiness(self) -> Readiness:
        return self.ready

    def add(self, *states: Operation) -> Operation:
        """An operation that goes through `states`, one per look."""
        self.script[states[0].id] = list(states)
        self.by_id[states[0].id] = states[0]
        return states[0]

    async def plan_drain(self, host: str, request: DrainRequest) -> Plan:
        return self._ask(self.plan, "plan_drain", host, request)

    async def drain(self, host: str, request: DrainRequest) -> Operation:
        return self._ask(self._first(OperationKind.DRAIN), "drain", host, request)

    async def undrain(self, host: str, request: UndrainRequest) -> Operation:
        return self._ask(self._first(OperationKind.UNDRAIN), "undrain", host, request)

    async def plan_migrate(self, guest: str, request: MigrateRequest) -> Plan:
        return self._ask(self.plan, "plan_migrate", guest, request)

    async def migrate(self, guest: str, request: MigrateRequest) -> Operation:
        return self._ask(self._first(OperationKind.MIGRATE), "migrate", guest, request)

    async def power(self, host: str, action: Literal["on", "off"]) -> Operation:
        return self._ask(self._first(OperationKind.POWER), "power", host, action)

    async def power_status(self, host: str) -> str:
        return self._ask("on", "power_status", host)

    async def add_host(self, name: str, host: HostConfig) -> Operation:
        return self._ask(self._first(OperationKind.HOST), "add_host", name, host)

    async def remove_host(self, name: str) -> Operation:
        return self._ask(self._first(OperationKind.HOST), "remove_host", name)

    def operations(self, *, limit: int = 200) -> tuple[Operation, ...]:
        return tuple(sorted(self.by_id.values(), key=lambda op: op.id, reverse=True))[:limit]

    def open_operations(self) -> tuple[Operation, ...]:
        return tuple(op for op in self.operations(limit=len(self.by_id)) if not op.state.ended)

    def operation(self, operation_id: str) -> Operation:
        if operation_id not in self.by_id:
            raise NotFound(f"no operation {operation_id!r} (`migrctl ops` lists all)")
        states = self.script[operation_id]
        self.by_id[operation_id] = states.pop(0) if len(states) > 1 else states[0]
        return self.by_id[operation_id]

    async def cancel(self, operation_id: str) -> Operation:
        return self._ask(self.operation(operation_id), "cancel", operation_id)

    async def resume(self, operation_id: str) -> Operation:
        return self._ask(self.operation(operation_id), "resume", operation_id)

    async def events(self, after_seq: int | None = None) -> AsyncIterator[ClusterEvent]:
        self.subscribers += 1
        try:
            for event in self.kept if after_seq is not None else ():
                if event.seq > (after_seq or 0):
                    yield event
            while True:
                yield await self.live.get()
        finally:
            self.subscribers -= 1

    def _first(self, kind: OperationKind) -> Operation:
        return next(op for op in self.by_id.values() if op.kind is kind and not op.parent)

    def _ask(self, answer: T, *call: object) -> T:
        self.asked.append(call)
        if self.refusal is not None:
            raise self.refusal
        return answer


REFUSED = Refused("h1 is drained already: `migrctl undrain h1` first", "h1 is the last usable host")
STEPS = (
    StepView(name="precheck", state="done", attempt=1),
    StepView(name="migrate", state="running", attempt=1),
)
