"""The DRBD driver: reads, lets decide.py judge, acts through drbdadm/drbdsetup, reads back what it did."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path as File

from storage.drbd import argv, decide, parse, show
from storage.drbd.model import Configured, Link, Options, Status
from storage.driver import InUse
from storage.errors import Failed, OutcomeError, Refused, Retryable, Unknown
from storage.run import Completed, Runner
from storage.run import run as run_tool
from storage.users import Openers
from storage.words import (
    DrbdVolume,
    Handover,
    Health,
    Role,
    Side,
    Volume,
    VolumeReport,
    WindowOptions,
)

READ_DEADLINE_S = 10.0
ACT_DEADLINE_S = 30.0
LOCK_DEADLINE_S = 60.0
DEMOTE_PAUSE_S = 0.5
DEMOTE_DEADLINE_S = 20.0  # QEMU's last close can come seconds after its process is gone from the list
MODULE_MISSING = "the DRBD kernel module is not loaded on this host: modprobe drbd"


@dataclass(frozen=True, slots=True)
class View:
    """One resource as read in one go: state, then options."""

    major: int
    status: Status
    options: Options


class DrbdDriver:
    """DRBD 8.4 and 9 through drbd-utils. One lock per resource: a stuck one never stalls another.

    `node` is `uname -n`; `in_use` guards the demotion (I11); `openers` names the processes that hold a
    device open; `proc_drbd` tells the version of the loaded module.
    """

    def __init__(
        self,
        *,
        in_use: InUse,
        node: str,
        run: Runner = run_tool,
        openers: Openers | None = None,
        proc_drbd: File = File("/proc/drbd"),
        demote_deadline_s: float = DEMOTE_DEADLINE_S,
    ) -> None:
        self._in_use = in_use
        self._node = node
        self._run = run
        self._openers = openers
        self._proc = proc_drbd
        self._demote_deadline_s = demote_deadline_s
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    # -- reads -----------------------------------------------------------------------------------

    async def volumes(self) -> tuple[DrbdVolume, ...]:
        """Volumes of drbd.conf on this host, up or not. Empty without DRBD tools or without resources."""
        return tuple(
            DrbdVolume(resource=c.resource, volume_nr=c.volume, minor=c.minor, nodes=c.nodes)
            for c in await self._configured()
        )

    async def reach(self, volume: Volume) -> tuple[str, ...]:
        """For planning: is this host a healthy node of the resource? Reads only."""
        assert isinstance(volume, DrbdVolume)
        if self._node not in volume.nodes:
            return (f"{volume.name}: this host ({self._node}) is no node of it ({', '.join(volume.nodes)})",)
        try:
            reasons = await self._config_reasons(volume)
            if reasons:
                return reasons
            view = await self._view(volume.resource)
        except OutcomeError as error:
            return tuple(error.reasons)
        return decide.all_reasons(view.status)

    async def inspect(self, volume: Volume) -> VolumeReport:
        """Role, health, identity. A sick or unreadable resource is reported, never raised."""
        assert isinstance(volume, DrbdVolume)
        try:
            if self._major() is None:
                return VolumeReport(
                    volume=volume,
                    role=Role.DETACHED,
                    health=Health.UNREACHABLE,
                    identity=None,
                    size_bytes=None,
                    sole_current_copy=True,  # what its disk holds, nobody can tell
                    problems=(f"{volume.name}: {MODULE_MISSING}",),
                )
            view = await self._view(volume.resource)
            uuid, ancestors = await self._generations(view, volume)
        except OutcomeError as error:
            return self._fallback(volume, tuple(error.reasons))
        return self._report(volume, view, uuid, ancestors)

    def _report(
        self, volume: DrbdVolume, view: View, uuid: str | None, ancestors: tuple[str, ...]
    ) -> VolumeReport:
        status = view.status
        device = next((d for d in status.devices if d.volume == volume.volume_nr), None)
        absent = status.complete and device is None
        size = device.size_kib if device else None
        return VolumeReport(
            volume=volume,
            role=Role.DETACHED if absent else status.role,
            health=Health.UNREACHABLE if absent else decide.health(status),
            identity=decide.identity(status, view.options, volume.volume_nr, uuid),
            size_bytes=None if size is None else size * 1024,
            dual_primary_allowed=view.options.dual_primary_allowed and not absent,
            peer_role=decide.peer_role(status),
            sole_current_copy=decide.sole_current_copy(status, volume.volume_nr),
            problems=decide.all_reasons(status),
            generation=uuid,
            ancestors=ancestors,
        )

    def _fallback(self, volume: DrbdVolume, reasons: tuple[str, ...]) -> VolumeReport:
        """When the tools hang, /proc/drbd (8.4) often still shows the roles. Shown, never decided from."""
        try:
            seen = parse.proc_drbd(self._proc_text() or "", volume.minor)
        except Unknown:
            seen = None
        return VolumeReport(
            volume=volume,
            role=seen.role if seen else Role.UNKNOWN,
            health=Health.UNKNOWN,
            identity=None,
            size_bytes=None,
            dual_primary_allowed=True,  # not known, so it may be
            peer_role=seen.connections[0].role if seen else Role.UNKNOWN,
            sole_current_copy=True,
            problems=reasons,
        )

    # -- the handover ----------------------------------------------------------------------------

    async def prepare(self, volume: Volume, handover: Handover) -> None:
        """Prove the resource whole on both ends, and the window possible; changes nothing."""
        assert isinstance(volume, DrbdVolume)
        reasons = [*await self._config_reasons(volume)]
        view = await self._whole_view(volume.resource)
        peer, major = handover.peer_node, view.major
        if peer not in volume.nodes:
            reasons.append(f"{volume.name}: {peer} is no node of it ({', '.join(volume.nodes)})")
        reasons += decide.reasons_not_to_open(view.status, view.options, peer_node=peer, major=major)
        if handover.side is Side.TARGET and view.status.role is not Role.SECONDARY:
            reasons.append(
                f"{volume.name}: this host, the target, is {view.status.role.value}, not secondary: "
                f"see who uses it, then drbdadm secondary {volume.resource}"
            )
        if handover.side is Side.SOURCE:
            reasons += await self._sharers(view.status, volume, handover)
        if reasons:
            raise Refused(*dict.fromkeys(reasons))

    async def open_window(self, volume: Volume, handover: Handover) -> WindowOptions:
        """Allow two primaries on the connection to the peer, and read it back (I6).

        `allow_two_primaries` of the answer is the administrator's setting in drbd.conf, not the kernel's:
        so a repeat after a crash does not take the open window itself for the state before it.
        """
        assert isinstance(volume, DrbdVolume)
        async with self._locked(volume.resource):
            configured = await self._configured_volume(volume)
            before = WindowOptions(volume=volume.name, allow_two_primaries=configured.two_primaries)
            view = await self._view(volume.resource)
            peer, major = handover.peer_node, view.major
            if decide.is_open(view.options, peer, major) is True:
                return before
            _need_whole(view)
            reasons = decide.reasons_not_to_open(view.status, view.options, peer_node=peer, major=major)
            if reasons:
                raise Refused(*reasons)
            await self._set_flag(view, peer, allowed=True)
            return before

    async def acquire(self, volume: Volume, handover: Handover) -> None:
        """Promote, never by force (I8), only a copy known to be current (I7), and look again afterwards.

        The link can break between the look and the promotion: both ends are then Primary, each for itself.
        """
        assert isinstance(volume, DrbdVolume)
        name = volume.resource
        async with self._locked(name):
            view = await self._view(name)
            if view.status.role is Role.PRIMARY and self._has(view.status, volume):
                await self._still_whole(view.status, handover, view.major)
                return
            _need_whole(view)
            reasons = decide.reasons_not_to_promote(
                view.status, view.options, peer_node=handover.peer_node, major=view.major
            )
            if reasons:
                raise Refused(*reasons)
            done = await self._run(argv.primary(name), deadline_s=ACT_DEADLINE_S)
            status = (await self._view(name)).status
            role = status.role
            if role is Role.PRIMARY:
                await self._still_whole(status, handover, view.major)
                return
            if role is Role.SECONDARY:
                raise Failed(f"DRBD resource {name} could not be promoted: {done.said}")
            raise Unknown(f"DRBD resource {name}: role after promotion is not known: {done.said}")

    async def reasons_apart(self, volume: Volume, handover: Handover) -> tuple[str, ...]:
        """One read of the status: Connected, Established, UpToDate on both ends, nothing out of sync?"""
        assert isinstance(volume, DrbdVolume)
        major = self._major()
        if major is None:
            raise Unknown(f"DRBD resource {volume.resource}: {MODULE_MISSING}")
        status = await self._status(volume.resource, major)
        if not status.complete:
            raise Retryable(f"DRBD resource {volume.resource}: its status could not be read completely")
        connection = decide.peer_of(status, handover.peer_node, major)
        return decide.reasons_unhealthy(status, connection, handover.peer_node)

    async def release(self, volume: Volume, handover: Handover) -> None:
        """Demote, once this host's QEMU of the guest is gone (I11). Retryable while it is held open."""
        assert isinstance(volume, DrbdVolume)
        name = volume.resource
        async with self._locked(name):
            if self._major() is None:
                return  # no module: no role to give up
            status = (await self._view(name)).status
            if status.complete and (not status.devices or status.role is Role.SECONDARY):
                return
            if await self._in_use(handover.domain_uuid):
                raise Refused(
                    f"{volume.name}: QEMU of domain {handover.domain_uuid} still exists on this host"
                )
            await self._demote(volume, handover)

    async def close_window(self, volume: Volume, handover: Handover, before: WindowOptions | None) -> None:
        """Clear the flag and read it back; kept only if drbd.conf itself sets it (`before`).

        Two ends that met while only one had it set have given the connection up (StandAlone): it is taken up
        again. That resolves nothing by itself (I8): over data that have parted DRBD gives it up once more.
        """
        assert isinstance(volume, DrbdVolume)
        async with self._locked(volume.resource):
            if self._major() is None:
                return  # no module: no connection, so no flag
            await self._clear_flag(volume, handover, before)
            status = (await self._view(volume.resource)).status
            if any(connection.link is Link.STANDALONE for connection in status.connections):
                await self._run(argv.connect(volume.resource), deadline_s=ACT_DEADLINE_S)

    async def _clear_flag(self, volume: DrbdVolume, handover: Handover, before: WindowOptions | None) -> None:
        wanted = before is not None and before.allow_two_primaries
        view = await self._view(volume.resource)
        is_open = decide.is_open(view.options, handover.peer_node, view.major)
        if view.status.complete and not view.status.devices and not view.status.connections:
            return  # the resource is down: no connection, so no flag
        if is_open is None:
            raise Unknown(f"DRBD resource {volume.resource}: its options could not be read completely")
        if is_open is wanted or wanted:
            return
        _need_whole(view)
        reasons = decide.reasons_not_to_close(view.status, resource=volume.resource)
        if reasons:
            raise Refused(*reasons)
        await self._set_flag(view, handover.peer_node, allowed=False)

    async def disconnect(self, volume: Volume) -> None:
        """Leave the connection, as a secondary only, and look that it is left."""
        assert isinstance(volume, DrbdVolume)
        name = volume.resource
        async with self._locked(name):
            if self._major() is None:
                return  # no module: no connection
            status = (await self._view(name)).status
            if status.complete and not status.devices:
                return
            if status.role is not Role.SECONDARY:
                raise Refused(f"DRBD resource {name}: this host is {status.role.value}, not secondary")
            if not decide.is_linked(status):
                return
            done = await self._run(argv.disconnect(name), deadline_s=ACT_DEADLINE_S)
            after = (await self._view(name)).status
            if not after.complete or decide.is_linked(after):
                raise Retryable(f"DRBD resource {name} could not be disconnected: {done.said}")

    async def connect(self, volume: Volume) -> None:
        """Whatever drbd.conf says; DRBD itself refuses what would be a split brain (I8)."""
        assert isinstance(volume, DrbdVolume)
        async with self._locked(volume.resource):
            if self._major() is None:
                return
            done = await self._run(argv.connect(volume.resource), deadline_s=ACT_DEADLINE_S)
            if done.rc != 0:
                raise Retryable(f"DRBD resource {volume.resource} could not be connected: {done.said}")

    # -- parts -----------------------------------------------------------------------------------

    async def _still_whole(self, status: Status, handover: Handover, major: int) -> None:
        """Raise unless this end, Primary by now, still gets every write of the other; demote it before (I7).

        DRBD refuses the demotion while a QEMU has the device open, so nothing is taken from a guest here.
        """
        name, peer = status.resource, handover.peer_node
        reasons = decide.reasons_unhealthy(status, decide.peer_of(status, peer, major), peer)
        if not reasons:
            return
        done = await self._run(argv.secondary(name), deadline_s=ACT_DEADLINE_S)
        if (await self._view(name)).status.role is not Role.SECONDARY:
            raise Unknown(*reasons, f"DRBD resource {name}: it could not be demoted again: {done.said}")
        if not status.complete:
            raise Retryable(*reasons)
        raise Refused(*reasons)

    async def _demote(self, volume: DrbdVolume, handover: Handover) -> None:
        name = volume.resource
        clock = asyncio.get_running_loop().time
        end_s = clock() + self._demote_deadline_s
        while True:
            done = await self._run(argv.secondary(name), deadline_s=ACT_DEADLINE_S)
            status = (await self._view(name)).status
            if status.role is Role.SECONDARY:
                return
            if status.role is not Role.PRIMARY:
                raise Unknown(f"DRBD resource {name}: role after demotion is not known: {done.said}")
            if not decide.is_held_open(done.said):
                raise Failed(f"DRBD resource {name} could not be demoted: {done.said}")
            if clock() >= end_s:
                break
            await asyncio.sleep(DEMOTE_PAUSE_S)
        users = await self._users(status, volume)
        raise Retryable(f"DRBD resource {name} is held open{users}, so it cannot be demoted")

    async def _set_flag(self, view: View, peer: str, *, allowed: bool) -> None:
        name = view.options.resource
        path = decide.path_of(view.options, peer, view.major)
        assert path is not None, "is_open() and reasons_not_to_open() were asked first"
        command = argv.allow_two_primaries(view.major, view.options, path, allowed)
        done = await self._run(command, deadline_s=ACT_DEADLINE_S)
        options = await self._options(name)
        now = decide.is_open(options, peer, view.major)
        if now is allowed:
            return
        word = "allowed" if allowed else "disallowed"
        if now is None:
            raise Unknown(f"DRBD resource {name}: two primaries could not be read back: {done.said}")
        raise Retryable(f"DRBD resource {name}: two primaries could not be {word}: {done.said}")

    async def _sharers(self, status: Status, volume: DrbdVolume, handover: Handover) -> tuple[str, ...]:
        """Other processes on sibling volumes: a resource is demoted as a whole, so they would block it."""
        if self._openers is None:
            return ()
        reasons: list[str] = []
        for device in status.devices:
            if device.volume == volume.volume_nr:
                continue
            for user in await self._openers(os.makedev(147, device.minor)):
                if user.domain_uuid != handover.domain_uuid:
                    reasons.append(
                        f"DRBD {volume.resource}/{device.volume} belongs to the same resource and is in use "
                        f"by {user}: put the volumes of different guests into different resources"
                    )
        return tuple(reasons)

    async def _users(self, status: Status, volume: DrbdVolume) -> str:
        if self._openers is None:
            return ""
        found = [str(u) for d in status.devices for u in await self._openers(os.makedev(147, d.minor))]
        return (
            f" by {', '.join(found)}"
            if found
            else " (by no process seen in /proc: a mount or device-mapper?)"
        )

    @staticmethod
    def _has(status: Status, volume: DrbdVolume) -> bool:
        return any(device.volume == volume.volume_nr for device in status.devices)

    async def _view(self, resource: str) -> View:
        major = self._major()
        if major is None:
            raise Refused(f"DRBD resource {resource}: {MODULE_MISSING}")
        status = await self._status(resource, major)
        if status.complete and not status.devices and not status.connections:
            return View(major, status, Options(resource, complete=True))  # it is down: no options in force
        return View(major, status, await self._options(resource))

    async def _status(self, resource: str, major: int) -> Status:
        command = argv.status_9(resource) if major >= 9 else argv.status_84(resource)
        done = await self._run(command, deadline_s=READ_DEADLINE_S)
        if _no_such(done):
            return Status(resource, Role.UNKNOWN, "no", complete=True)
        return (
            parse.status_json(done.stdout, resource) if major >= 9 else parse.events2(done.stdout, resource)
        )

    async def _whole_view(self, resource: str) -> View:
        view = await self._view(resource)
        _need_whole(view)
        return view

    async def _options(self, resource: str) -> Options:
        done = await self._run(argv.show(resource), deadline_s=READ_DEADLINE_S)
        return show.parse(done.stdout, resource)

    async def _generations(self, view: View, volume: DrbdVolume) -> tuple[str | None, tuple[str, ...]]:
        """The current one (None if the connections tell different ones), and those it descends from."""
        if not self._has(view.status, volume):
            return None, ()
        if view.major < 9:
            commands = [argv.generation_84(volume.minor)]
        else:
            commands = [
                argv.generation_9(volume.resource, c.node_id, volume.volume_nr)
                for c in view.status.connections
            ]
        said = [(await self._run(command, deadline_s=READ_DEADLINE_S)).stdout for command in commands]
        current = {parse.current_uuid(text) for text in said}
        ancestors = dict.fromkeys(uuid for text in said for uuid in parse.ancestor_uuids(text))
        return (current.pop() if len(current) == 1 else None), tuple(ancestors)

    async def _configured(self) -> tuple[Configured, ...]:
        try:
            done = await self._run(argv.dump_xml(), deadline_s=READ_DEADLINE_S)
        except Refused:
            return ()  # no drbd-utils: no DRBD on this host
        found = parse.dump_xml(done.stdout, self._node) if done.rc == 0 else None
        if found is None:
            if "no resources defined" in done.stderr:
                return ()
            raise Failed(f"drbdadm cannot read the DRBD configuration of this host: {done.said}")
        return found

    async def _configured_volume(self, volume: DrbdVolume) -> Configured:
        for found in await self._configured():
            if (found.resource, found.volume) == (volume.resource, volume.volume_nr):
                return found
        raise Refused(f"{volume.name} is not in the DRBD configuration of this host ({self._node})")

    async def _config_reasons(self, volume: DrbdVolume) -> tuple[str, ...]:
        try:
            found = await self._configured_volume(volume)
        except Refused as error:
            return tuple(error.reasons)
        if found.minor != volume.minor:
            # /dev/drbdN of the domain would open another volume here.
            return (f"{volume.name} is minor {found.minor} on this host and {volume.minor} on the other",)
        return ()

    def _proc_text(self) -> str | None:
        """None only if the file does not exist, which is how a module that is not loaded looks."""
        try:
            return self._proc.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unknown(f"{self._proc} cannot be read: {error.strerror}") from error

    def _major(self) -> int | None:
        """Of the loaded module; None: it is not loaded. Raises Unknown when that cannot be told (I19)."""
        text = self._proc_text()
        if text is None:
            return None
        found = parse.version(text)
        if found is None:
            raise Unknown(f"{self._proc} does not name a DRBD version that is understood")
        return found[0]

    @asynccontextmanager
    async def _locked(self, resource: str) -> AsyncIterator[None]:
        lock = self._locks[resource]
        try:
            async with asyncio.timeout(LOCK_DEADLINE_S):
                await lock.acquire()
        except TimeoutError:
            raise Retryable(f"DRBD resource {resource}: another command is still at work on it") from None
        try:
            yield
        finally:
            lock.release()


def _need_whole(view: View) -> None:
    """A cut or failed read says nothing against the resource: look again, undo no move for it (I19)."""
    for what, complete in (("status", view.status.complete), ("options", view.options.complete)):
        if not complete:
            raise Retryable(f"DRBD resource {view.status.resource}: its {what} could not be read completely")


def _no_such(done: Completed) -> bool:
    return done.rc != 0 and "no such resource" in done.stderr.lower()
