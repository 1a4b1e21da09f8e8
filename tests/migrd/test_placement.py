"""In a large cluster a few hosts are asked first; a refusal, or a stop, is only said once all were asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from agents.protocol import HostReport, Preflight
from migrd.model import Cluster, Facts, Guest
from migrd.placement import Placement
from migrd.planning import BoundPlanner
from migrd.ports import RealClock
from migrd.sagas.commands import Choose
from storage.errors import Retryable
from tests.planner.build import GIB, POLICY, all_yes, cluster, guest, host, lun

OTHERS = [f"n{n:03}" for n in range(100)]
FULLEST = OTHERS[0]  # on no shortlist
SHORT = 64


class View:
    def __init__(self, snapshot: Cluster) -> None:
        self.snapshot = snapshot
        self.reread_hosts: list[str] = []

    def cluster(self) -> Cluster:
        return self.snapshot

    def silent_s(self) -> Mapping[str, float]:
        return {}

    async def reread(self, host: str, *, storage: bool = False) -> HostReport:
        self.reread_hosts.append(host)
        raise Retryable(f"{host}: nobody reads it here")


class Asked:
    """Answers yes for whoever is asked, `no` excepted."""

    def __init__(self, no: frozenset[str]) -> None:
        self.no = no
        self.rounds: list[set[str]] = []

    async def ask(self, cluster: Cluster, questions: Mapping[str, Preflight]) -> Facts:
        self.rounds.append(set(questions))
        yes = all_yes(cluster)
        return Facts(
            cpu={key: yes.cpu[key] for key in yes.cpu if key[0] in questions},
            volume={
                key: ("no path to it",) if key[0] in self.no else ()
                for key in yes.volume
                if key[0] in questions
            },
        )


class NoBmc:
    def has(self, host: str) -> bool:
        return False

    async def status(self, host: str) -> str:
        return "unknown: no BMC"

    async def switch(self, host: str, action: str) -> str:
        return "no BMC"


class Lab:
    """h1 has the guests. n000 is the fullest of a hundred others; `no`: who cannot open their disks."""

    def __init__(self, *guests: Guest, no: frozenset[str] = frozenset()) -> None:
        others = [
            host(name, memory_available_bytes=4 * GIB + number * GIB // 10)
            for number, name in enumerate(OTHERS)
        ]
        self.asked = Asked(no)
        self.view = View(cluster([host("h1"), *others], guests))
        self.placement = Placement(
            view=self.view,
            interviewer=self.asked,
            planner=BoundPlanner(POLICY),
            clock=RealClock(),
            in_flight=dict,
            powered_off=list,
            power=NoBmc(),
        )


ON_SAN = guest("a", "h1", volumes=(lun("a"),))
ALL_BUT_FULLEST = frozenset(OTHERS) - {FULLEST}


def test_a_plan_that_a_shortlist_makes_whole_asks_nobody_else() -> None:
    lab = Lab(ON_SAN)
    plan = asyncio.run(lab.placement.plan_drain("h1", ()))
    assert [move.target for move in plan.moves] == ["n099"]
    assert [len(each) for each in lab.asked.rounds] == [SHORT]


def test_what_a_shortlist_refuses_is_planned_with_all() -> None:
    lab = Lab(ON_SAN, no=ALL_BUT_FULLEST)
    plan = asyncio.run(lab.placement.plan_drain("h1", ()))
    assert ([move.target for move in plan.moves], plan.blockers) == ([FULLEST], ())
    assert [len(each) for each in lab.asked.rounds] == [SHORT, 100]
    moved = asyncio.run(lab.placement.plan_migrate(ON_SAN, None))
    assert [move.target for move in moved.moves] == [FULLEST]
    chosen = asyncio.run(lab.placement.choose(Choose(guest="uuid-a", source="h1")))
    assert chosen.target == FULLEST


def test_nobody_is_stopped_for_want_of_a_place_on_a_shortlist() -> None:
    """Consent is for a guest that can go nowhere (I5), and a shortlist is not everywhere."""
    lab = Lab(ON_SAN, no=ALL_BUT_FULLEST)
    plan = asyncio.run(lab.placement.plan_drain("h1", ("a",)))
    assert (plan.stops, [move.target for move in plan.moves]) == ((), [FULLEST])
    nowhere = Lab(ON_SAN, no=frozenset(OTHERS))
    assert asyncio.run(nowhere.placement.plan_drain("h1", ("a",))).stops == ("uuid-a",)


def test_a_refusal_names_the_hosts_left_out_as_well() -> None:
    lab = Lab(ON_SAN, no=frozenset(OTHERS))
    plan = asyncio.run(lab.placement.plan_drain("h1", ()))
    assert [blocker.reason for blocker in plan.blockers] == [f"{lun('a').name}: no path to it"]
    assert lab.view.reread_hosts == ["h1"]


@pytest.mark.parametrize("target", [FULLEST, "n050"])
def test_who_is_sent_to_one_host_asks_only_that_one(target: str) -> None:
    lab = Lab(ON_SAN)
    plan = asyncio.run(lab.placement.plan_migrate(ON_SAN, target))
    assert [move.target for move in plan.moves] == [target]
    chosen = asyncio.run(lab.placement.choose(Choose(guest="uuid-a", source="h1", to=target)))
    assert chosen.target == target
    assert lab.asked.rounds == [{target}, {target}]


def test_a_target_that_was_tried_makes_room_on_the_shortlist() -> None:
    lab = Lab(ON_SAN)
    chosen = asyncio.run(lab.placement.choose(Choose(guest="uuid-a", source="h1", exclude=("n099",))))
    assert chosen.target == "n098"
    assert "n099" not in lab.asked.rounds[0]


def test_a_guest_that_is_gone_is_said_to_be_gone_only_by_its_host() -> None:
    lab = Lab(replace(ON_SAN, host="h1"))
    lab.view.snapshot = cluster(lab.view.snapshot.hosts.values())
    chosen = asyncio.run(lab.placement.choose(Choose(guest="uuid-a", source="h1")))
    assert (chosen.target, chosen.gone) == ("", False)
    assert "nobody reads it here" in chosen.reasons[0]
