"""The driver for LUNs of the kernel initiator: sysfs is read, iscsiadm logs in and out."""

from __future__ import annotations

import asyncio
import os
import stat
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from storage import chap, portal
from storage.calls import Lane, NoSlot, TimedOut
from storage.driver import InUse
from storage.errors import Failed, OutcomeError, Refused, Retryable, Unknown
from storage.iscsi import argv, decide, parse, record, sysfs
from storage.iscsi.sysfs import Lun, Session
from storage.run import Runner
from storage.run import run as run_tool
from storage.users import Openers
from storage.words import Handover, Health, IscsiVolume, Role, Volume, VolumeReport, WindowOptions

LOGIN_DEADLINE_S = 60.0  # iscsid itself gives up after its login_timeout and retries
LOGOUT_DEADLINE_S = 45.0
READ_DEADLINE_S = 10.0
LOCK_DEADLINE_S = 120.0
DEVICE_DEADLINE_S = 20.0  # from login to the udev link
POLL_S = 0.1
SLOTS = 4
NODES_DIR = Path("/etc/iscsi/nodes")
_T = TypeVar("_T")


class IscsiDriver:
    """Kernel-initiator LUNs. One login or logout per target at a time: iscsiadm dies of concurrent ones.

    `in_use` guards the logout (I11); `openers` says whether anyone has a device open; `chap_dir` holds the
    credential files (see storage.chap). Paths are parameters so that tests point them at a captured tree.
    """

    def __init__(
        self,
        *,
        in_use: InUse,
        openers: Openers,
        run: Runner = run_tool,
        chap_dir: Path = chap.CHAP_DIR,
        nodes_dir: Path = NODES_DIR,
        sys: Path = Path("/sys"),
        dev: Path = Path("/dev"),
        check_portal: portal.PortalCheck = portal.check,
        device_deadline_s: float = DEVICE_DEADLINE_S,
        file_deadline_s: float = READ_DEADLINE_S,
    ) -> None:
        self._in_use = in_use
        self._openers = openers
        self._run = run
        self._chap_dir = chap_dir
        self._nodes = nodes_dir
        self._sys = sys
        self._dev = dev
        self._check_portal = check_portal
        self._device_deadline_s = device_deadline_s
        self._file_deadline_s = file_deadline_s
        # Separate, so that a write into a dying device does not keep anyone from reading.
        self._reads = Lane("sysfs read", SLOTS)
        self._writes = Lane("sysfs write", SLOTS)
        self._files = Lane("/etc file", SLOTS)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    # -- reads -----------------------------------------------------------------------------------

    async def volumes(self) -> tuple[IscsiVolume, ...]:
        """Every LUN of every session, by its by-path name."""
        return tuple(
            IscsiVolume(
                portal=session.portal,
                iqn=session.iqn,
                lun=lun.lun,
                device=parse.device_of(session.portal, session.iqn, lun.lun),
            )
            for session in await self._sessions()
            for lun in session.luns
        )

    async def links(self) -> dict[str, IscsiVolume]:
        """What stable device names (by-path, by-id) of this host open, for storage.discover."""
        found = await self._sessions()
        names = await self._in(self._reads, lambda: sysfs.links(self._dev, found))
        return {
            name: IscsiVolume(portal=session.portal, iqn=session.iqn, lun=lun.lun, device=name)
            for name, (session, lun) in names.items()
        }

    async def reach(self, volume: Volume) -> tuple[str, ...]:
        """For planning: is the LUN here already, or does its portal answer? Logs in to nothing."""
        assert isinstance(volume, IscsiVolume)
        try:
            if not decide.is_name(volume.iqn):
                return (f"{volume.name}: {volume.iqn!r} is no iSCSI name",)
            session = decide.session_of(await self._sessions(), volume)
            if session and session.find(volume.lun):
                return decide.problems(volume, session, await self._opens(volume))
            await chap.find(self._chap_dir, iqn=volume.iqn, portal=volume.portal, lane=self._files)
        except OutcomeError as error:
            return tuple(error.reasons)
        problem = await self._check_portal(volume.portal)
        return (problem,) if problem else ()

    async def inspect(self, volume: Volume) -> VolumeReport:
        """Session, device and WWID as seen here."""
        assert isinstance(volume, IscsiVolume)
        try:
            session = decide.session_of(await self._sessions(), volume)
            opens = await self._opens(volume)
        except OutcomeError as error:
            return VolumeReport(
                volume=volume,
                role=Role.UNKNOWN,
                health=Health.UNKNOWN,
                identity=None,
                size_bytes=None,
                problems=tuple(error.reasons),
            )
        lun = session.find(volume.lun) if session else None
        return VolumeReport(
            volume=volume,
            role=Role.ATTACHED if lun else Role.DETACHED,
            health=decide.health(volume, session, opens),
            identity=decide.identity(volume, session),
            size_bytes=lun.size_bytes if lun else None,
            problems=decide.problems(volume, session, opens),
        )

    # -- the handover ----------------------------------------------------------------------------

    async def prepare(self, volume: Volume, handover: Handover) -> None:
        """Both sides: log in if needed and prove that the domain's device name opens this very LUN."""
        assert isinstance(volume, IscsiVolume)
        if not decide.is_name(volume.iqn):
            raise Refused(f"{volume.name}: {volume.iqn!r} is no iSCSI name")
        async with self._locked(volume.iqn):
            session = decide.session_of(await self._sessions(), volume)
            if session is None:
                await self._login(volume)
            elif session.find(volume.lun) is None:
                await self._scan(session, volume)
            await self._appear(volume)

    async def open_window(self, volume: Volume, handover: Handover) -> WindowOptions | None:
        """Nothing to open: a LUN is shared as soon as both hosts are logged in."""
        return None

    async def acquire(self, volume: Volume, handover: Handover) -> None:
        """Nothing to take, but look once more: the device must still open this LUN."""
        assert isinstance(volume, IscsiVolume)
        session = decide.session_of(await self._sessions(), volume)
        reasons = decide.problems(volume, session, await self._opens(volume))
        if reasons:
            raise Refused(*reasons)

    async def reasons_apart(self, volume: Volume, handover: Handover) -> tuple[str, ...]:
        """Never: both hosts open one and the same LUN."""
        return ()

    async def release(self, volume: Volume, handover: Handover) -> None:
        """Log out, or drop only this LUN when its session serves others; only once QEMU is gone (I11)."""
        assert isinstance(volume, IscsiVolume)
        async with self._locked(volume.iqn):
            session = decide.session_of(await self._sessions(), volume)
            lun = session.find(volume.lun) if session else None
            if session is None or lun is None:
                return
            if await self._in_use(handover.domain_uuid):
                raise Refused(
                    f"{volume.name}: QEMU of domain {handover.domain_uuid} still exists on this host"
                )
            await self._idle(volume, lun)
            if decide.ends_session(session, lun):
                await self._logout(volume)
            else:
                await self._delete(volume, session, lun)

    async def disconnect(self, volume: Volume) -> None:
        """Nothing is replicated by this host."""

    async def connect(self, volume: Volume) -> None:
        """Nothing is replicated by this host."""

    async def close_window(self, volume: Volume, handover: Handover, before: WindowOptions | None) -> None:
        """Nothing was opened."""

    # -- parts -----------------------------------------------------------------------------------

    async def _login(self, volume: IscsiVolume) -> None:
        credential = await chap.find(self._chap_dir, iqn=volume.iqn, portal=volume.portal, lane=self._files)
        if not await self._in(self._files, lambda: record.files(self._nodes, volume.iqn, volume.portal)):
            done = await self._run(argv.new_record(volume), deadline_s=READ_DEADLINE_S)
            if done.rc != 0:
                raise Failed(f"{volume.name}: no node record could be made: {done.said}")
        if credential is not None:
            await self._set_chap(volume, credential)
        done = await self._run(argv.login(volume), deadline_s=LOGIN_DEADLINE_S)
        reason = f"{volume.name}: login to {volume.iqn} at {volume.portal} failed: {done.said}"
        match parse.login_verdict(done.rc):
            case parse.Verdict.RETRY:
                raise Retryable(reason)
            case parse.Verdict.FINAL:
                raise Failed(reason)
            case parse.Verdict.DONE:
                return

    async def _set_chap(self, volume: IscsiVolume, credential: chap.Credential) -> None:
        def rewrite() -> bool:
            paths = record.files(self._nodes, volume.iqn, volume.portal)
            for path in paths:
                old = path.read_text(encoding="utf-8")
                new = record.with_chap(old, credential)
                if new != old:
                    record.write(path, new)
            return bool(paths)

        if not await self._in(self._files, rewrite):
            raise Failed(f"{volume.name}: iscsiadm made no node record below {self._nodes}")

    async def _scan(self, session: Session, volume: IscsiVolume) -> None:
        """Ask for this one LUN only: a rescan of the session would bring back LUNs released earlier."""
        hosts = [p for p in self._session_dir(session).resolve().parents if p.name.startswith("host")]
        if not hosts:
            raise Failed(f"{volume.name}: session {session.sid} has no SCSI host in sysfs")
        host = hosts[0].name
        target = self._sys / "class" / "scsi_host" / host / "scan"
        await self._in(self._writes, lambda: target.write_text(f"0 0 {volume.lun}", encoding="ascii"))

    async def _delete(self, volume: IscsiVolume, session: Session, lun: Lun) -> None:
        target = self._sys / "block" / lun.name / "device" / "delete"
        await self._in(self._writes, lambda: target.write_text("1", encoding="ascii"))
        left = decide.session_of(await self._sessions(), volume)
        if left and left.find(volume.lun):
            raise Retryable(f"{volume.name}: {lun.name} is still there after it was removed")

    async def _logout(self, volume: IscsiVolume) -> None:
        done = await self._run(argv.logout(volume), deadline_s=LOGOUT_DEADLINE_S)
        if decide.session_of(await self._sessions(), volume) is None:
            return
        reason = f"{volume.name}: logout from {volume.iqn} at {volume.portal} failed: {done.said}"
        if parse.logout_verdict(done.rc) is parse.Verdict.FINAL:
            raise Failed(reason)
        raise Retryable(reason)

    async def _idle(self, volume: IscsiVolume, lun: Lun) -> None:
        """Raise Retryable while anyone but the departed guest still has the LUN open or stacked upon."""
        if lun.holders:
            raise Retryable(f"{volume.name}: {lun.name} is used by {', '.join(lun.holders)}")
        for rdev in lun.rdevs:
            users = await self._openers(rdev)
            if users:
                raise Retryable(f"{volume.name}: {lun.name} is open by {', '.join(str(u) for u in users)}")

    async def _appear(self, volume: IscsiVolume) -> None:
        """Wait for kernel and udev; writing to the path too early would make a plain file."""
        reasons: tuple[str, ...] = ()
        for _ in range(max(1, int(self._device_deadline_s / POLL_S))):
            session = decide.session_of(await self._sessions(), volume)
            reasons = decide.problems(volume, session, await self._opens(volume))
            if not reasons:
                return
            await asyncio.sleep(POLL_S)
        raise Failed(*reasons)

    async def _opens(self, volume: IscsiVolume) -> str | None:
        """Kernel name of the block device behind the domain's device path; None if it is none."""
        path = self._dev / volume.device.removeprefix("/dev/")

        def look() -> str | None:
            try:
                found = path.stat()
            except OSError:
                return None
            return os.path.basename(os.path.realpath(path)) if stat.S_ISBLK(found.st_mode) else None

        return await self._in(self._reads, look)

    def _session_dir(self, session: Session) -> Path:
        return self._sys / "class" / "iscsi_session" / f"session{session.sid}" / "device"

    async def _sessions(self) -> tuple[Session, ...]:
        return await self._in(self._reads, lambda: sysfs.sessions(self._sys))

    async def _in(self, lane: Lane, work: Callable[[], _T]) -> _T:
        """File access with a deadline: sysfs of a dying device can block, and then keeps its thread."""
        try:
            return await lane.call(work, deadline_s=self._file_deadline_s)
        except NoSlot:
            raise Retryable(f"{SLOTS} earlier calls ({lane.name}) still hang: see dmesg") from None
        except (TimedOut, TimeoutError):
            raise Unknown(f"a {lane.name} did not end within {self._file_deadline_s:g} s") from None
        except OSError as error:
            raise Failed(f"{error.filename or 'a file'}: {error.strerror}") from error

    @asynccontextmanager
    async def _locked(self, iqn: str) -> AsyncIterator[None]:
        lock = self._locks[iqn]
        try:
            async with asyncio.timeout(LOCK_DEADLINE_S):
                await lock.acquire()
        except TimeoutError:
            raise Retryable(f"iSCSI target {iqn}: another command is still at work on it") from None
        try:
            yield
        finally:
            lock.release()
