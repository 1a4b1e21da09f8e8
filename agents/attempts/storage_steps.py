"""The five storage commands: one driver call per volume, all volumes at once, each error kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence

import structlog

from agents.attempts.outcomes import Ended, merge
from agents.protocol import (
    AcquireVolumes,
    AttemptResult,
    CloseWindow,
    ConnectReplicas,
    DisconnectReplicas,
    OpenWindow,
    PrepareVolumes,
    ReleaseVolumes,
)
from storage.driver import Driver
from storage.errors import OutcomeError, Refused, Unknown
from storage.words import OtherVolume, Volume, VolumeReport, WindowOptions

log = structlog.get_logger()

StorageCommand = PrepareVolumes | OpenWindow | AcquireVolumes | ReleaseVolumes | CloseWindow
Drivers = Mapping[str, Driver]
"""Driver by Volume.kind."""


def driver_of(drivers: Drivers, volume: Volume) -> Driver:
    """The driver of a volume. Raises Refused when this host has none."""
    if isinstance(volume, OtherVolume):
        raise Refused(f"{volume.name}: {volume.reason}")
    driver = drivers.get(volume.kind)
    if driver is None:
        raise Refused(f"{volume.name}: this agent has no driver for {volume.kind}")
    return driver


async def run_storage(command: StorageCommand, drivers: Drivers, *, deadline_s: float) -> Ended:
    """Run the command on every volume. Never raises storage errors: they are in the outcome."""
    reports: dict[str, VolumeReport] = {}
    before: dict[str, WindowOptions] = {}
    calls = [
        _with_deadline(_call(command, drivers, volume, reports, before), volume, deadline_s)
        for volume in command.volumes
    ]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    _log_bugs(command, ended)
    outcome, reasons = merge(ended)
    order = [volume.name for volume in command.volumes]
    return Ended(
        outcome=outcome,
        reasons=reasons,
        result=AttemptResult(
            volumes=tuple(reports[name] for name in order if name in reports),
            before=tuple(before[name] for name in order if name in before),
        ),
    )


async def replicas(
    command: DisconnectReplicas | ConnectReplicas, drivers: Drivers, *, deadline_s: float
) -> Ended:
    """Every volume that the drivers hold, all at once. Never raises storage errors."""
    held = [(driver, volume) for driver in drivers.values() for volume in await driver.volumes()]
    leaves = isinstance(command, DisconnectReplicas)
    calls = [
        _with_deadline(driver.disconnect(volume) if leaves else driver.connect(volume), volume, deadline_s)
        for driver, volume in held
    ]
    outcome, reasons = merge(await asyncio.gather(*calls, return_exceptions=True))
    return Ended(outcome=outcome, reasons=reasons)


def _log_bugs(command: StorageCommand, ended: Sequence[BaseException | None]) -> None:
    """The outcome tells only the kind of an unforeseen error (I17) and points to this traceback."""
    for volume, error in zip(command.volumes, ended, strict=True):
        if error is not None and not isinstance(error, OutcomeError):
            log.error("storage driver failed by a bug", volume=volume.name, exc_info=error)


async def _with_deadline(call: Awaitable[None], volume: Volume, deadline_s: float) -> None:
    """Drivers bound their own waits; this one is for a driver that forgot."""
    try:
        async with asyncio.timeout(deadline_s):
            await call
    except TimeoutError:
        raise Unknown(f"{volume.name}: no answer from the storage driver in {deadline_s:g} s") from None


async def _call(
    command: StorageCommand,
    drivers: Drivers,
    volume: Volume,
    reports: dict[str, VolumeReport],
    before: dict[str, WindowOptions],
) -> None:
    driver = driver_of(drivers, volume)
    match command:
        case PrepareVolumes():
            await driver.prepare(volume, command.handover)
            reports[volume.name] = await driver.inspect(volume)
        case OpenWindow():
            options = await driver.open_window(volume, command.handover)
            if options is not None:
                before[volume.name] = options
        case AcquireVolumes():
            await driver.acquire(volume, command.handover)
        case ReleaseVolumes():
            await driver.release(volume, command.handover)
        case CloseWindow():
            options = next((each for each in command.before if each.volume == volume.name), None)
            await driver.close_window(volume, command.handover, options)
