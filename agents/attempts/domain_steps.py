"""Sweeping up after a migration, and asking a guest to shut down."""

from __future__ import annotations

import asyncio
import contextlib

from agents.attempts.control import Control
from agents.attempts.outcomes import Ended
from agents.hypervisor.words import DomainFacts, Hypervisor
from agents.protocol import DomainState, Outcome, ShutdownDomain, SweepTarget, UndefineDomain
from storage.driver import InUse
from storage.errors import Refused, Retryable, Unknown

SWEEP_LOOK_AGAIN_S = 1.0
SHUTDOWN_POLL_S = 0.5
RAN_HERE = ("shutdown", "crashed", "saved", "from snapshot", "migrated")
"""Reasons of a shut-off domain that prove that it ran on this host: its definition is not a left-over."""


def reasons_not_to_sweep(facts: DomainFacts) -> tuple[str, ...]:
    """Why this domain must stay as it is (I1, I5). Only what provably never ran here may go."""
    match facts.state:
        case DomainState.ABSENT | DomainState.PAUSED_INCOMING:
            return ()
        case DomainState.SHUTOFF if facts.reason not in RAN_HERE:
            return ()
        case DomainState.SHUTOFF:
            return (
                f"domain {facts.uuid} is shut off here because of: {facts.reason}. It ran on this host, so it"
                " is not a left-over; remove it by hand with `virsh undefine` if it really is one",
            )
        case _:
            return (
                f"domain {facts.uuid} is {facts.state} ({facts.reason}) on this host: it may run or have run"
                " here and is never swept",
            )


async def sweep(command: SweepTarget, hypervisor: Hypervisor) -> Ended:
    """Remove an arrival that will not complete, and its definition. Raises Refused, Retryable, Unknown.

    libvirt cannot "destroy if still incoming" in one step, so an arrival that completes between the look
    and the kill would be lost. Two guards close that gap: the daemon sweeps only after it saw the guest
    run on the source without a job, and here the arrival must look the same twice, a second apart.
    """
    facts = await _look(command.uuid, hypervisor)
    if facts.state is DomainState.PAUSED_INCOMING:
        await asyncio.sleep(SWEEP_LOOK_AGAIN_S)
        facts = await _look(command.uuid, hypervisor)
    if facts.state is DomainState.PAUSED_INCOMING:
        await hypervisor.destroy_incoming(command.uuid)
        facts = await _look(command.uuid, hypervisor)
        if facts.state is DomainState.PAUSED_INCOMING:
            raise Retryable(f"domain {command.uuid}: its QEMU has not ended yet")
    if facts.state is DomainState.SHUTOFF:
        await hypervisor.undefine(command.uuid)
        facts = await _look(command.uuid, hypervisor)
    if facts.state is not DomainState.ABSENT:
        raise Unknown(f"domain {command.uuid} is {facts.state} ({facts.reason}) after the sweep")
    return Ended(outcome=Outcome.DONE)


async def _look(uuid: str, hypervisor: Hypervisor) -> DomainFacts:
    facts = await hypervisor.facts(uuid)
    if facts.state is DomainState.PAUSED and facts.reason == "starting up":
        raise Retryable(f"domain {uuid}: libvirt is still starting its QEMU here")
    reasons = reasons_not_to_sweep(facts)
    if reasons:
        raise Refused(*reasons)
    return facts


async def undefine(command: UndefineDomain, hypervisor: Hypervisor, in_use: InUse) -> Ended:
    """Remove a definition that its guest has left behind. Raises Refused, Retryable, Unknown."""
    facts = await hypervisor.facts(command.uuid)
    if facts.state is DomainState.ABSENT:
        return Ended(outcome=Outcome.DONE)
    reasons = reasons_not_shut_off(facts, await in_use(command.uuid))
    if reasons:
        raise Refused(*reasons)
    await hypervisor.undefine(command.uuid)
    after = await hypervisor.facts(command.uuid)
    if after.state is not DomainState.ABSENT:
        raise Unknown(f"domain {command.uuid} is {after.state} ({after.reason}) after it was undefined")
    return Ended(outcome=Outcome.DONE)


def reasons_not_shut_off(facts: DomainFacts, qemu: bool) -> tuple[str, ...]:
    """Why this domain is not certainly at rest here. `qemu`: a process of it is seen in /proc (I11)."""
    if facts.state is DomainState.ABSENT:
        return (f"domain {facts.uuid} is not defined on this host",)
    if facts.state is not DomainState.SHUTOFF:
        return (f"domain {facts.uuid} is {facts.state} ({facts.reason}) on this host, not shut off",)
    if qemu:
        return (f"domain {facts.uuid}: libvirt calls it shut off, but its QEMU still exists on this host",)
    return ()


async def shut_down(command: ShutdownDomain, hypervisor: Hypervisor, control: Control) -> Ended:
    """Ask the guest to shut down and wait. Never destroys it (I5). Raises Refused, Retryable, Unknown.

    Unknown at the deadline or on abort: the guest has been asked, and may still do it.
    """
    facts = await hypervisor.facts(command.uuid)
    if _has_stopped(facts):
        return Ended(outcome=Outcome.DONE)
    if facts.job:
        raise Retryable(f"domain {command.uuid}: a libvirt job runs on it")
    await hypervisor.shutdown(command.uuid)
    loop = asyncio.get_running_loop()
    ends = loop.time() + command.deadline_s
    while loop.time() < ends and not control.abort.is_set():
        with contextlib.suppress(Retryable):
            facts = await hypervisor.facts(command.uuid)
            if _has_stopped(facts):
                return Ended(outcome=Outcome.DONE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_POLL_S):
                await control.abort.wait()
    raise Unknown(
        f"the guest was asked to shut down and is still {facts.state} after {command.deadline_s:g} s at most"
    )


def _has_stopped(facts: DomainFacts) -> bool:
    """Raises Refused for a crashed guest whose QEMU is kept: it will never follow the request."""
    if facts.state is DomainState.CRASHED:
        raise Refused(
            f"domain {facts.uuid} has crashed ({facts.reason}) and its QEMU is kept: save what you need,"
            f" then virsh destroy {facts.uuid}"
        )
    return not facts.state.has_process
