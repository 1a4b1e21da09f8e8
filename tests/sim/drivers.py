"""Storage drivers over the world's physics, with the guards of the real ones. See storage.driver.Driver."""

from __future__ import annotations

from storage.driver import Driver
from storage.errors import Failed, Refused, Retryable
from storage.words import (
    Handover,
    Health,
    Role,
    Side,
    Volume,
    VolumeReport,
    WindowOptions,
)
from tests.sim.drbd import Resource
from tests.sim.host import CALL_S, TOOL_S, Host

LUN_BYTES = 1 << 30


class SimDrbd:
    def __init__(self, host: Host) -> None:
        self._host = host

    def _of(self, volume: Volume) -> Resource:
        resource = self._host.world.resources.get(volume.name)
        if resource is None or self._host.name not in resource.replicas:
            raise Refused(f"{volume.name} is not in the DRBD configuration of this host ({self._host.name})")
        return resource

    async def volumes(self) -> tuple[Volume, ...]:
        await self._host.look()
        found = self._host.world.resources.values()
        return tuple(resource.volume for resource in found if self._host.name in resource.replicas)

    async def reach(self, volume: Volume) -> tuple[str, ...]:
        await self._host.pause(CALL_S)
        try:
            return self._of(volume).problems(self._host.name)
        except Refused as error:
            return tuple(error.reasons)

    async def inspect(self, volume: Volume) -> VolumeReport:
        await self._host.look()
        return self._of(volume).report(self._host.name)

    async def prepare(self, volume: Volume, handover: Handover) -> None:
        await self._host.pause(TOOL_S)
        resource = self._of(volume)
        reasons = list(resource.problems(self._host.name))
        role = resource.mine(self._host.name).role
        if handover.side is Side.TARGET and role is not Role.SECONDARY:
            reasons.append(f"{volume.name}: this host, the target, is {role}, not secondary")
        if reasons:
            raise Refused(*reasons)

    async def open_window(self, volume: Volume, handover: Handover) -> WindowOptions:
        resource, name = self._of(volume), self._host.name
        before = WindowOptions(volume=volume.name, allow_two_primaries=False)
        if resource.mine(name).flag:
            return before
        if reasons := resource.problems(name):
            raise Refused(*reasons)
        await self._flag(resource, allowed=True)
        return before

    async def acquire(self, volume: Volume, handover: Handover) -> None:
        resource, name = self._of(volume), self._host.name
        mine, peer = resource.mine(name), resource.peer(name)
        if mine.up and mine.role is Role.PRIMARY:
            return
        reasons = list(resource.problems(name))
        if not mine.flag and not (resource.connected and peer.role is Role.SECONDARY):
            reasons.append(f"{volume.name}: the peer is or may be primary, and two are not allowed")
        if reasons:
            raise Refused(*reasons)
        looked_s = self._host.world.loop.time()
        refused = await self._host.tool(f"promote {volume.name}", lambda: self._promote(resource, looked_s))
        if refused:
            raise Failed(f"{volume.name} could not be promoted: {refused}")
        if apart := resource.problems(name):  # the link broke meanwhile: nobody keeps a copy that may be old
            await self._host.tool(f"demote {volume.name}", lambda: self._demote(resource))
            raise Refused(*apart)

    def _promote(self, resource: Resource, looked_s: float) -> str:
        """What breaks between look and act cannot be known: the driver looks again after it, and demotes."""
        name, world = self._host.name, self._host.world
        known = resource.connected or resource.lost_s < looked_s
        if known and not resource.current(name):
            world.trace.violate("I7", f"{resource.name} is promoted on {name}, a stale copy")
        refused = resource.promote(name)
        world.changed(name, f"promotes {resource.name}: {refused or 'done'}")
        return refused

    async def reasons_apart(self, volume: Volume, handover: Handover) -> tuple[str, ...]:
        await self._host.pause(CALL_S)
        return self._of(volume).problems(self._host.name)

    async def release(self, volume: Volume, handover: Handover) -> None:
        resource, name = self._of(volume), self._host.name
        await self._host.look()
        if not resource.mine(name).up or resource.mine(name).role is Role.SECONDARY:
            return
        if await self._host.in_use(handover.domain_uuid):
            raise Refused(f"{volume.name}: QEMU of domain {handover.domain_uuid} still exists on this host")
        refused = await self._host.tool(f"demote {volume.name}", lambda: self._demote(resource))
        if refused:
            raise Retryable(f"{volume.name} could not be demoted: {refused}")

    def _demote(self, resource: Resource) -> str:
        name, world = self._host.name, self._host.world
        owner = world.owner(resource.name)
        open_by = f"QEMU of {owner.name}" if self._host.machine.has_process(owner.uuid) else ""
        refused = resource.demote(name, open_by=open_by)
        world.changed(name, f"demotes {resource.name}: {refused or 'done'}")
        return refused

    async def disconnect(self, volume: Volume) -> None:
        resource, name = self._of(volume), self._host.name
        await self._host.look()
        mine = resource.mine(name)
        if not mine.up or mine.standalone:
            return
        if mine.role is Role.PRIMARY:
            raise Refused(f"{volume.name}: this host is primary")
        if refused := await self._host.tool(f"disconnect {volume.name}", lambda: self._leave(resource)):
            raise Retryable(f"{volume.name} could not be disconnected: {refused}")

    def _leave(self, resource: Resource) -> str:
        world = self._host.world
        mine = resource.mine(self._host.name)
        mine.standalone = mine.left = True
        world.drop_link(resource, f"{self._host.name} leaves")
        return ""

    async def connect(self, volume: Volume) -> None:
        resource = self._of(volume)
        if refused := await self._host.tool(f"connect {volume.name}", lambda: self._join(resource)):
            raise Retryable(f"{volume.name} could not be connected: {refused}")

    def _join(self, resource: Resource) -> str:
        mine = resource.mine(self._host.name)
        mine.standalone = mine.left = False
        self._host.world.reconnect_all()
        return ""

    async def close_window(self, volume: Volume, handover: Handover, before: WindowOptions | None) -> None:
        resource, name = self._of(volume), self._host.name
        await self._host.look()
        mine, peer = resource.mine(name), resource.peer(name)
        if mine.up and mine.flag and not (before is not None and before.allow_two_primaries):
            if resource.connected and mine.role is peer.role is Role.PRIMARY:
                raise Refused(f"{volume.name} is primary on both hosts: demote one")
            await self._flag(resource, allowed=False)
        if mine.up and mine.standalone and not mine.left:
            await self.connect(volume)

    async def _flag(self, resource: Resource, *, allowed: bool) -> None:
        name, world = self._host.name, self._host.world

        def put() -> str:
            if resource.by_hand and not allowed:
                world.trace.violate("I6", f"{resource.name}: a window that somebody else opened is closed")
            refused = resource.set_flag(name, allowed=allowed)
            world.changed(name, f"two primaries of {resource.name} -> {allowed}: {refused or 'done'}")
            return refused

        word = "allow" if allowed else "disallow"
        refused = await self._host.tool(f"{word} two {resource.name}", put)
        if refused:
            raise Retryable(f"{resource.name}: {refused}")


class SimIscsi:
    def __init__(self, host: Host) -> None:
        self._host = host

    async def volumes(self) -> tuple[Volume, ...]:
        await self._host.look()
        guests = self._host.world.guests.values()
        return tuple(v for g in guests for v in g.volumes if v.name in self._host.machine.sessions)

    async def reach(self, volume: Volume) -> tuple[str, ...]:
        await self._host.pause(CALL_S)
        return ()

    async def inspect(self, volume: Volume) -> VolumeReport:
        await self._host.look()
        there = volume.name in self._host.machine.sessions
        return VolumeReport(
            volume=volume,
            role=Role.ATTACHED if there else Role.DETACHED,
            health=Health.OK if there else Health.UNREACHABLE,
            identity=self._host.world.identity(self._host.name, volume) if there else None,
            size_bytes=LUN_BYTES if there else None,
            problems=() if there else (f"{volume.name}: no session",),
        )

    async def prepare(self, volume: Volume, handover: Handover) -> None:
        await self._host.pause(CALL_S)
        if volume.name not in self._host.machine.sessions:
            _may_log_in(self._host, volume)
            await self._host.tool(f"login {volume.name}", lambda: self._session(volume, there=True))

    def _session(self, volume: Volume, *, there: bool) -> str:
        sessions, name = self._host.machine.sessions, self._host.name
        if there:
            sessions.add(volume.name)
        else:
            sessions.discard(volume.name)
        self._host.world.changed(name, f"{'logs in to' if there else 'logs out of'} {volume.name}")
        return ""

    async def open_window(self, volume: Volume, handover: Handover) -> WindowOptions | None:
        return None

    async def acquire(self, volume: Volume, handover: Handover) -> None:
        await self._host.pause(CALL_S)
        if volume.name not in self._host.machine.sessions:
            raise Refused(f"{volume.name}: no session on this host")

    async def reasons_apart(self, volume: Volume, handover: Handover) -> tuple[str, ...]:
        return ()

    async def release(self, volume: Volume, handover: Handover) -> None:
        self._host.world.lets_go(self._host.name, volume)
        await self._host.pause(CALL_S)
        if volume.name not in self._host.machine.sessions:
            return
        if await self._host.in_use(handover.domain_uuid):
            raise Refused(f"{volume.name}: QEMU of domain {handover.domain_uuid} still exists on this host")
        await self._host.tool(f"logout {volume.name}", lambda: self._session(volume, there=False))

    async def disconnect(self, volume: Volume) -> None:
        return

    async def connect(self, volume: Volume) -> None:
        return

    async def close_window(self, volume: Volume, handover: Handover, before: WindowOptions | None) -> None:
        """Nothing was opened."""


class SimIscsiQemu:
    """QEMU logs in by itself: nothing is held and nothing is done here."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def volumes(self) -> tuple[Volume, ...]:
        return ()

    async def reach(self, volume: Volume) -> tuple[str, ...]:
        await self._host.pause(CALL_S)
        return ()

    async def inspect(self, volume: Volume) -> VolumeReport:
        await self._host.look()
        return VolumeReport(
            volume=volume,
            role=Role.ATTACHED,
            health=Health.OK,
            identity=self._host.world.identity(self._host.name, volume),
            size_bytes=LUN_BYTES,
        )

    async def prepare(self, volume: Volume, handover: Handover) -> None:
        await self._host.pause(TOOL_S)
        _may_log_in(self._host, volume)

    async def open_window(self, volume: Volume, handover: Handover) -> WindowOptions | None:
        return None

    async def acquire(self, volume: Volume, handover: Handover) -> None:
        await self._host.pause(CALL_S)

    async def reasons_apart(self, volume: Volume, handover: Handover) -> tuple[str, ...]:
        return ()

    async def release(self, volume: Volume, handover: Handover) -> None:
        await self._host.pause(CALL_S)

    async def disconnect(self, volume: Volume) -> None:
        return

    async def connect(self, volume: Volume) -> None:
        return

    async def close_window(self, volume: Volume, handover: Handover, before: WindowOptions | None) -> None:
        """Nothing was opened."""


def _may_log_in(host: Host, volume: Volume) -> None:
    """iscsiadm's exit codes as storage.iscsi reads them: 24 will not change by itself, 8 may."""
    match host.world.no_login.get((host.name, volume.name), ""):
        case "chap":
            raise Failed(f"{volume.name}: login failed: authorization failure")
        case "down":
            raise Retryable(f"{volume.name}: login failed: connection timed out")
        case _:
            return


def drivers(host: Host) -> dict[str, Driver]:
    """By Volume.kind."""
    return {"drbd": SimDrbd(host), "iscsi": SimIscsi(host), "iscsi-qemu": SimIscsiQemu(host)}
