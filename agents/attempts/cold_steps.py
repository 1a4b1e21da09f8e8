"""A cold move's steps on a domain: hand its definition to another host, wait for that, start it.

Handing over and starting look at this host right before they act, and say DONE only for what they read back.
What other hosts hold is the daemon's word; these guards stand on their own (I1, I11).
"""

from __future__ import annotations

from agents.attempts.domain_steps import reasons_not_shut_off
from agents.attempts.outcomes import Ended
from agents.attempts.storage_steps import Drivers, driver_of
from agents.hypervisor.words import Hypervisor
from agents.protocol import DomainState, MoveDefinition, Outcome, SettleDomain, StartDomain
from storage.driver import InUse
from storage.errors import OutcomeError, Refused, Unknown
from storage.words import Role

HELD = (Role.PRIMARY, Role.ATTACHED)
RUNS = (DomainState.RUNNING, DomainState.BLOCKED)


async def move_definition(command: MoveDefinition, hypervisor: Hypervisor, in_use: InUse) -> Ended:
    """Hand the definition over. Raises Refused, Retryable, Unknown (it may be on both hosts)."""
    facts = await hypervisor.facts(command.uuid)
    reasons = reasons_not_shut_off(facts, await in_use(command.uuid))
    if not reasons and not facts.persistent:
        reasons = (f"domain {command.uuid} is transient: it has no definition to move",)
    if reasons:
        raise Refused(*reasons)
    await hypervisor.move_definition(command.uuid, command.target_uri, command.target_address)
    after = await hypervisor.facts(command.uuid)
    if after.state is not DomainState.ABSENT:
        raise Unknown(f"libvirt reported success, and domain {command.uuid} is still {after.state} here")
    return Ended(outcome=Outcome.DONE)


async def settle(command: SettleDomain, hypervisor: Hypervisor) -> Ended:
    """Only what is defined here, with no job of libvirt's on it, is settled. Raises Retryable."""
    await hypervisor.settle(command.uuid)
    return Ended(outcome=Outcome.DONE)


async def start(command: StartDomain, hypervisor: Hypervisor, drivers: Drivers, in_use: InUse) -> Ended:
    """Start it, if this host is fit for it. Raises Refused, Retryable, Failed (it is shut off), Unknown."""
    uuid = command.handover.domain_uuid
    facts = await hypervisor.facts(uuid)
    if facts.state in RUNS:
        return Ended(outcome=Outcome.DONE)  # a repetition
    reasons = [*reasons_not_shut_off(facts, await in_use(uuid)), *await _not_held(command, drivers)]
    if reasons:
        raise Refused(*reasons)
    await hypervisor.start(uuid)
    after = await hypervisor.facts(uuid)
    if after.state not in RUNS:
        raise Unknown(f"libvirt reported success, and domain {uuid} is {after.state} ({after.reason}) here")
    return Ended(outcome=Outcome.DONE)


async def _not_held(command: StartDomain, drivers: Drivers) -> list[str]:
    """Volumes that this host may not write to; a volume that cannot be looked at is one of them (I19)."""
    reasons: list[str] = []
    for volume in command.volumes:
        try:
            seen = await driver_of(drivers, volume).inspect(volume)
        except OutcomeError as error:
            reasons += error.reasons
            continue
        if seen.role not in HELD:
            told = f" ({'; '.join(seen.problems)})" if seen.problems else ""
            reasons.append(f"{volume.name}: this host does not hold it: its role here is {seen.role}{told}")
    return reasons
