"""Asks all candidates at once what planning needs to know. No answer in time = not known (I19)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from agents.protocol import Preflight, PreflightReport
from migrd.model import Cluster, Facts
from storage.errors import OutcomeError

AT_ONCE = 64  # questions under way
MAX_REMEMBERED = 20_000  # CPU verdicts

Reasons = tuple[str, ...]


class Asked(Protocol):
    async def preflight(self, question: Preflight) -> PreflightReport: ...


class Interviewer:
    """Gathers Facts. Remembers CPUs that a host can run, per boot of it: a yes ends with the boot at most.

    What is said about volumes is never remembered: a path can go at any moment.
    """

    def __init__(self, agents: Mapping[str, Asked], *, deadline_s: float = 5.0) -> None:
        self._agents = agents
        self._deadline_s = deadline_s
        self._cpus: dict[tuple[str, str, str], Reasons] = {}

    async def ask(self, cluster: Cluster, questions: Mapping[str, Preflight]) -> Facts:
        """`questions` as `migrd.planner.questions` makes them. Never raises: what failed is missing."""
        slots = asyncio.Semaphore(AT_ONCE)
        cpu: dict[tuple[str, str], Reasons] = {}
        volume: dict[tuple[str, str], Reasons] = {}

        async def ask_one(name: str, question: Preflight) -> None:
            boot = cluster.hosts[name].boot_id
            known = {
                text: self._cpus[key] for text in question.cpus if (key := (name, boot, text)) in self._cpus
            }
            cpu.update(((name, text), reasons) for text, reasons in known.items())
            rest = Preflight(
                cpus=tuple(text for text in question.cpus if text not in known), volumes=question.volumes
            )
            if not rest.cpus and not rest.volumes:
                return
            async with slots:
                report = await self._answer(name, rest)
            if report is None:
                return
            for text, reasons in zip(rest.cpus, report.cpus, strict=True):
                cpu[name, text] = reasons
                if boot and not reasons:  # a no may come from a libvirt that is in trouble just now
                    self._remember((name, boot, text), reasons)
            for each, reasons in zip(rest.volumes, report.volumes, strict=True):
                volume[name, each.name] = reasons

        async with asyncio.TaskGroup() as tasks:
            for name, question in questions.items():
                if name in self._agents and name in cluster.hosts:
                    tasks.create_task(ask_one(name, question))
        return Facts(cpu=cpu, volume=volume)

    async def _answer(self, name: str, question: Preflight) -> PreflightReport | None:
        agent = self._agents.get(name)
        if agent is None:
            return None  # removed since the snapshot
        try:
            async with asyncio.timeout(self._deadline_s):
                report = await agent.preflight(question)
        except (OutcomeError, TimeoutError):
            return None
        whole = len(report.cpus) == len(question.cpus) and len(report.volumes) == len(question.volumes)
        return report if whole else None  # answers go by position: a short list answers nothing

    def _remember(self, key: tuple[str, str, str], reasons: Reasons) -> None:
        if len(self._cpus) >= MAX_REMEMBERED:
            self._cpus.pop(next(iter(self._cpus)))
        self._cpus[key] = reasons
