"""The planner with the operator's policy bound to it: what controller and executor call."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agents.protocol import HostReport, Preflight
from migrd import planner
from migrd.model import Blocker, Cluster, Facts, Guest, Plan, Promise
from migrd.planner import Policy
from migrd.ports import Target
from migrd.safety import reasons_not_to_power_off


class BoundPlanner:
    """Implements `migrd.ports.PlannerPort`. Holds nothing but the policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def plan_drain(
        self,
        cluster: Cluster,
        host: str,
        facts: Facts,
        *,
        allow_stop: Collection[str],
        promised: Mapping[str, str],
    ) -> Plan:
        return planner.plan_drain(
            cluster,
            host,
            facts,
            self._policy,
            allow_stop=allow_stop,
            busy=_busy(promised),
            promises=_promises(cluster, promised),
        )

    def plan_migrate(
        self,
        cluster: Cluster,
        guest: str,
        to: str | None,
        facts: Facts,
        *,
        promised: Mapping[str, str],
        cold: bool = False,
    ) -> Plan:
        return planner.plan_migrate(
            cluster,
            guest,
            to,
            facts,
            self._policy,
            busy=_busy(promised),
            promises=_promises(cluster, promised),
            cold=cold,
        )

    def choose(
        self,
        cluster: Cluster,
        guest: str,
        facts: Facts,
        *,
        promised: Mapping[str, str],
        exclude: Collection[str],
        to: str = "",
    ) -> Target:
        """`to`: this target or none."""
        if to:
            exclude = {*exclude, *(name for name in cluster.hosts if name != to)}
        choice = planner.choose_target(
            cluster, guest, facts, self._policy, promises=_promises(cluster, promised), exclude=exclude
        )
        if choice.move is not None:
            return Target(host=choice.move.target)
        return Target(host="", reasons=tuple(sentence(blocker) for blocker in choice.blockers))

    def questions(
        self, cluster: Cluster, host: str, guest: str = "", *, cold: bool = False
    ) -> Mapping[str, Preflight]:
        if not guest:
            return planner.questions(cluster, host)
        asking = [each for each in cluster.guests if _is(each, guest, host)]
        return planner.questions_for(cluster, asking, cold=cold)

    def reasons_not_to_power_off(
        self, host: str, reports: Mapping[str, tuple[HostReport, float]], unheard: Collection[str]
    ) -> tuple[str, ...]:
        return reasons_not_to_power_off(host, reports, unheard)


def sentence(blocker: Blocker) -> str:
    """A blocker as one line of text."""
    where = f"{blocker.target}: " if blocker.target else ""
    return f"{where}{blocker.reason} ({blocker.remedy})" if blocker.remedy else f"{where}{blocker.reason}"


def _busy(promised: Mapping[str, str]) -> dict[str, str]:
    return {guest: f"a move to {target}" for guest, target in promised.items()}


def _promises(cluster: Cluster, promised: Mapping[str, str]) -> list[Promise]:
    """What each guest in flight needs on its target: the most that any host says of it."""
    memory: dict[str, int] = {}
    for each in cluster.guests:
        if each.uuid in promised:
            memory[each.uuid] = max(memory.get(each.uuid, 0), each.memory_bytes)
    return [
        Promise(guest=guest, target=target, memory_bytes=memory.get(guest, 0))
        for guest, target in sorted(promised.items())
    ]


def _is(guest: Guest, uuid: str, host: str) -> bool:
    return guest.uuid == uuid and (not host or guest.host == host)
