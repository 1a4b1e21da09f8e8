"""The planner with the operator's policy bound to it: what controller and executor call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

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
        among: Collection[str] | None = None,
    ) -> Plan:
        return planner.plan_drain(
            cluster,
            host,
            facts,
            self._policy,
            allow_stop=allow_stop,
            busy=_busy(promised),
            promises=_promises(cluster, promised),
            among=among,
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
        among: Collection[str] | None = None,
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
            among=among,
        )

    def choose(
        self,
        cluster: Cluster,
        guest: str,
        facts: Facts,
        *,
        promised: Mapping[str, str],
        exclude: Collection[str],
        among: Collection[str] | None = None,
    ) -> Target:
        choice = planner.choose_target(
            cluster,
            guest,
            facts,
            self._policy,
            promises=_promises(cluster, promised),
            exclude=exclude,
            among=among,
        )
        if choice.move is not None:
            return Target(host=choice.move.target)
        return Target(host="", reasons=tuple(sentence(blocker) for blocker in choice.blockers))

    def questions(
        self,
        cluster: Cluster,
        host: str,
        guest: str = "",
        *,
        cold: bool = False,
        among: Collection[str] | None = None,
    ) -> Mapping[str, Preflight]:
        return planner.questions_for(cluster, _asking(cluster, host, guest), among, cold=cold)

    def shortlist(
        self,
        cluster: Cluster,
        host: str,
        guest: str = "",
        *,
        promised: Mapping[str, str],
        exclude: Collection[str] = (),
    ) -> tuple[str, ...] | None:
        return planner.shortlist(
            cluster,
            _asking(cluster, host, guest),
            self._policy,
            promises=_promises(cluster, promised),
            exclude=exclude,
        )

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
    return [
        Promise(
            guest=guest,
            target=target,
            memory_bytes=max((each.memory_bytes for each in cluster.instances(guest)), default=0),
        )
        for guest, target in sorted(promised.items())
    ]


def _asking(cluster: Cluster, host: str, guest: str) -> Sequence[Guest]:
    """All guests of `host`, or the one of this uuid there."""
    here = cluster.guests_on(host)
    return [each for each in here if each.uuid == guest] if guest else here
