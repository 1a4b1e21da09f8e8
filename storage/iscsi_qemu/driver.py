"""The driver for LUNs that QEMU opens by itself: the secret is there first, and the LUN is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from storage import chap, portal
from storage.calls import Lane
from storage.driver import InUse
from storage.errors import Failed, OutcomeError, Refused, Retryable, Unknown
from storage.iscsi.decide import is_name
from storage.iscsi_qemu import inq
from storage.iscsi_qemu.secrets import SecretStore
from storage.run import Runner
from storage.run import run as run_tool
from storage.words import (
    Handover,
    Health,
    IscsiQemuVolume,
    Role,
    Side,
    Volume,
    VolumeReport,
    WindowOptions,
)

A = TypeVar("A")
B = TypeVar("B")

ASK_DEADLINE_S = 15.0
FRESH_S = 30.0  # reports repeat often; each question is a login at the target
MAX_CACHED = 1024
FILE_SLOTS = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What the LUN said. `asked_s` is monotonic."""

    identity: str | None
    size_bytes: int | None
    problems: tuple[str, ...]
    asked_s: float


class IscsiQemuDriver:
    """LUNs of QEMU's own initiator. The secret's value comes from this host's credential file (I17).

    `in_use` is taken for symmetry with the other drivers and never needed: on release nothing is taken away.
    """

    def __init__(
        self,
        *,
        in_use: InUse,
        secrets: SecretStore,
        run: Runner = run_tool,
        chap_dir: Path = chap.CHAP_DIR,
        check_portal: portal.PortalCheck = portal.check,
    ) -> None:
        self._in_use = in_use
        self._secrets = secrets
        self._run = run
        self._chap_dir = chap_dir
        self._check_portal = check_portal
        self._files = Lane("CHAP file", FILE_SLOTS)
        self._answers: dict[IscsiQemuVolume, Answer] = {}

    async def volumes(self) -> tuple[IscsiQemuVolume, ...]:
        """Always empty: a host holds nothing of such a volume, only the domains name it."""
        return ()

    async def reach(self, volume: Volume) -> tuple[str, ...]:
        """For planning: does the portal answer, and is the secret here or can it be made?"""
        assert isinstance(volume, IscsiQemuVolume)
        try:
            reasons = list(self._secret_reasons(volume, await self._credential(volume)))
        except OutcomeError as error:
            reasons = list(error.reasons)
        problem = await self._check_portal(volume.portal)
        return (*reasons, problem) if problem else tuple(reasons)

    async def inspect(self, volume: Volume) -> VolumeReport:
        """Credentials in place (ATTACHED) or not, and who the LUN says it is."""
        assert isinstance(volume, IscsiQemuVolume)
        try:
            attached = not _wants_secret(volume) or await self._has_secret(volume)
        except OutcomeError as error:
            return _report(volume, Role.UNKNOWN, Answer(None, None, tuple(error.reasons), 0.0))
        answer = self._answers.get(volume)
        if answer is None or _now_s() - answer.asked_s > FRESH_S:
            answer = await self._ask(volume)
        return _report(volume, Role.ATTACHED if attached else Role.DETACHED, answer)

    async def prepare(self, volume: Volume, handover: Handover) -> None:
        """Both sides: the LUN answers to the credential of this host's file; then the secret is put right.

        On the target libvirt's secret always gets the value that was just proved: libvirt does not say
        whether a private secret has a value, let alone the right one, and with a wrong one the migration
        fails. On the source QEMU is logged in already: there a secret is only made if it is missing.
        """
        assert isinstance(volume, IscsiQemuVolume)
        if not is_name(volume.iqn):
            raise Refused(f"{volume.name}: {volume.iqn!r} is no iSCSI name")
        credential = await self._credential(volume)
        reasons = self._secret_reasons(volume, credential)
        if reasons:
            raise Refused(*reasons)
        asked = self._identify(volume, inq.environment(credential))
        # Never an old answer: this one is the proof for I9.
        if handover.side is Side.TARGET:
            found = await asked
            await self._put_secret(volume, credential)
        else:
            _, found = await _both(self._ensure_secret(volume, credential), asked)
        self._remember(volume, Answer(*found, (), _now_s()))

    async def open_window(self, volume: Volume, handover: Handover) -> WindowOptions | None:
        """Nothing to open: the target admits both hosts or it does not."""
        return None

    async def acquire(self, volume: Volume, handover: Handover) -> None:
        """Nothing to take: QEMU logs in by itself. The secret must be there by now."""
        assert isinstance(volume, IscsiQemuVolume)
        if _wants_secret(volume) and not await self._has_secret(volume):
            raise Refused(f"{volume.name}: libvirt on this host has no secret {_secret_word(volume)}")

    async def reasons_apart(self, volume: Volume, handover: Handover) -> tuple[str, ...]:
        """Never: both hosts open one and the same LUN."""
        return ()

    async def release(self, volume: Volume, handover: Handover) -> None:
        """Nothing to give up: QEMU's session ended with QEMU. The secret stays: other guests may share it."""

    async def disconnect(self, volume: Volume) -> None:
        """Nothing is replicated by this host."""

    async def connect(self, volume: Volume) -> None:
        """Nothing is replicated by this host."""

    async def close_window(self, volume: Volume, handover: Handover, before: WindowOptions | None) -> None:
        """Nothing was opened."""

    # -- parts -----------------------------------------------------------------------------------

    async def _has_secret(self, volume: IscsiQemuVolume) -> bool:
        return await self._secrets.has(uuid=volume.secret_uuid, usage=volume.secret_usage)

    async def _credential(self, volume: IscsiQemuVolume) -> chap.Credential | None:
        return await chap.find(self._chap_dir, iqn=volume.iqn, portal=volume.portal, lane=self._files)

    def _secret_reasons(self, volume: IscsiQemuVolume, credential: chap.Credential | None) -> tuple[str, ...]:
        if not _wants_secret(volume):
            return ()
        if credential is None:
            # Even with the secret in libvirt, which tells it to nobody, the LUN could not be asked who it is.
            return (
                f"{volume.name}: no CHAP credential for {volume.iqn} at {volume.portal} in {self._chap_dir} "
                f"on this host",
            )
        if volume.chap_user is not None and credential.username != volume.chap_user:
            return (
                f"{volume.name}: the domain logs in as {volume.chap_user}, but {self._chap_dir} has "
                f"the password of {credential.username}",
            )
        return ()

    async def _ensure_secret(self, volume: IscsiQemuVolume, credential: chap.Credential | None) -> None:
        if _wants_secret(volume) and not await self._has_secret(volume):
            await self._put_secret(volume, credential)

    async def _put_secret(self, volume: IscsiQemuVolume, credential: chap.Credential | None) -> None:
        if not _wants_secret(volume):
            return
        assert credential is not None, "a missing one is a reason not to prepare"
        await self._secrets.define(
            uuid=volume.secret_uuid,
            usage=volume.secret_usage,
            value=credential.password.encode("utf-8"),
        )
        if not await self._has_secret(volume):
            raise Failed(f"{volume.name}: libvirt did not keep the secret {_secret_word(volume)}")

    async def _ask(self, volume: IscsiQemuVolume) -> Answer:
        try:
            found = await self._identify(volume, inq.environment(await self._credential(volume)))
            answer = Answer(*found, (), _now_s())
        except OutcomeError as error:
            answer = Answer(None, None, tuple(error.reasons), _now_s())
        return self._remember(volume, answer)

    def _remember(self, volume: IscsiQemuVolume, answer: Answer) -> Answer:
        if len(self._answers) >= MAX_CACHED:
            self._answers.clear()
        self._answers[volume] = answer
        return answer

    async def _identify(self, volume: IscsiQemuVolume, env: dict[str, str]) -> tuple[str, int]:
        """Identity and size; each question is a login of its own, so both are asked at once."""
        try:
            page, answer = await _both(
                self._run(inq.designators(volume), deadline_s=ASK_DEADLINE_S, env=env),
                self._run(inq.capacity(volume), deadline_s=ASK_DEADLINE_S, env=env),
            )
        except Refused as error:
            raise Refused(
                f"{volume.name}: its identity cannot be read: {error}: install {inq.PACKAGE}"
            ) from None
        if page.rc != 0:
            raise Retryable(f"{volume.name}: the target does not let this host see the LUN: {page.said}")
        identity = inq.identity(volume, page.stdout)
        if identity is None:
            serial = await self._run(inq.serial_number(volume), deadline_s=ASK_DEADLINE_S, env=env)
            identity = inq.identity_by_serial(volume, serial.stdout) if serial.rc == 0 else None
        if identity is None:
            raise Refused(f"{volume.name}: the LUN gives no identity (VPD pages 0x83, 0x80)")
        size = inq.size_bytes(answer.stdout) if answer.rc == 0 else None
        if size is None:
            raise Unknown(f"{volume.name}: its size could not be read: {answer.said}")
        return identity, size


async def _both(first: Awaitable[A], second: Awaitable[B]) -> tuple[A, B]:
    """Both results. Waits for both, so that nothing is left running; then the first's error comes first."""
    one, two = await asyncio.gather(first, second, return_exceptions=True)
    for found in (one, two):
        if isinstance(found, BaseException):
            raise found
    return one, two  # type: ignore[return-value]  # mypy does not see that neither is an exception


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _wants_secret(volume: IscsiQemuVolume) -> bool:
    return volume.secret_uuid is not None or volume.secret_usage is not None


def _secret_word(volume: IscsiQemuVolume) -> str:
    return volume.secret_uuid or f"with usage {volume.secret_usage}"


def _report(volume: IscsiQemuVolume, role: Role, answer: Answer) -> VolumeReport:
    health = Health.OK if not answer.problems else Health.UNREACHABLE
    return VolumeReport(
        volume=volume,
        role=role,
        health=Health.UNKNOWN if role is Role.UNKNOWN else health,
        identity=answer.identity,
        size_bytes=answer.size_bytes,
        problems=answer.problems,
    )
