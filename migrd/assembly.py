"""The daemon's core put together: what `migrd.daemon` serves over HTTP and the simulator drives directly."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from migrd.changes import Change
from migrd.controller import Controller
from migrd.engine import Settings
from migrd.model import HostState
from migrd.planner import Policy
from migrd.planning import BoundPlanner
from migrd.ports import AgentPort, Clock, JournalPort, MembersPort, Observer, PowerPort
from migrd.preflight import Asked, Interviewer
from migrd.watch import Agent, ClusterView, WatchPolicy


class AnyAgent(AgentPort, Asked, Agent, Protocol):
    """All that the core asks of one host. `agents.client.AgentClient` is the real one."""


def assemble(
    agents: Mapping[str, AnyAgent],
    *,
    journal: JournalPort,
    power: PowerPort,
    with_bmc: Collection[str],
    policy: Policy,
    watch: WatchPolicy,
    settings: Settings,
    observer: Observer,
    members: MembersPort | None = None,
    clock: Clock | None = None,
    share: Callable[[], float] = random.random,
) -> tuple[ClusterView, Controller]:
    """View and controller need each other: the view shows what was decided, the controller what is seen.

    Nothing runs yet: `await controller.recover()`, then run both. `members` takes hosts in and lets them go
    while it runs; without it nobody does. `share` jitters the view's back-off.
    """
    controller: Controller | None = None

    def administrative() -> Mapping[str, HostState]:
        return controller.administrative() if controller is not None else {}

    def on_change(change: Change) -> None:
        if controller is not None:
            controller.on_change(change)

    view = ClusterView(
        agents,
        administrative=administrative,
        on_change=on_change,
        policy=watch,
        with_bmc=with_bmc,
        share=share,
    )
    controller = Controller(
        view=view,
        interviewer=Interviewer(agents, deadline_s=watch.preflight_deadline_s),
        planner=BoundPlanner(policy),
        agents=agents,
        journal=journal,
        power=power,
        settings=settings,
        clock=clock,
        observer=observer,
        members=members,
    )
    return view, controller
