"""Facts: asked of all at once, within one deadline; what was not answered is missing, never yes (I19)."""

from __future__ import annotations

import asyncio

from agents.protocol import Preflight, PreflightReport
from migrd.model import Cluster, Facts
from migrd.preflight import Interviewer
from storage.errors import Retryable
from tests.core.vloop import run
from tests.migrd.agent import ScriptedAgent
from tests.planner.build import cluster, host, lun

LUN = lun("a")
BOTH = Preflight(cpus=("<cpu/>",), volumes=(LUN,))


def ask(
    *agents: ScriptedAgent, of: Cluster | None = None, times: int = 1, question: Preflight = BOTH
) -> tuple[Facts, float]:
    """The facts of the last of `times` rounds, and how long it took."""

    async def rounds() -> tuple[Facts, float]:
        known = of or cluster([host(agent.name) for agent in agents])
        interviewer = Interviewer({agent.name: agent for agent in agents}, deadline_s=5.0)
        took_s, facts = 0.0, Facts(cpu={}, volume={})
        for _ in range(times):
            began_s = asyncio.get_running_loop().time()
            facts = await interviewer.ask(known, {agent.name: question for agent in agents})
            took_s = asyncio.get_running_loop().time() - began_s
        return facts, took_s

    return run(rounds())


def test_all_are_asked_at_once_and_silence_is_missing() -> None:
    agents = [ScriptedAgent(f"h{n}") for n in range(20)]
    for agent in agents:
        agent.answer_takes_s = 2.0
    agents[7].answer_takes_s = 60.0
    agents[8].answer = Retryable("h8: connection refused")
    facts, took_s = ask(*agents)
    assert took_s == 5.0
    missing = {f"h{n}" for n in range(20)} - {name for name, _ in facts.cpu}
    assert missing == {"h7", "h8"}
    assert {name for name, _ in facts.volume} == {f"h{n}" for n in range(20)} - missing


def test_an_answer_of_the_wrong_length_answers_nothing() -> None:
    short, long = ScriptedAgent("h1"), ScriptedAgent("h2")
    short.answer = PreflightReport(cpus=(), volumes=((),))
    long.answer = PreflightReport(cpus=((), ()), volumes=((),))
    facts, _ = ask(short, long)
    assert facts == Facts(cpu={}, volume={})


def test_reasons_are_kept_as_said() -> None:
    agent = ScriptedAgent("h1")
    agent.answer = PreflightReport(cpus=(("lacks avx512f",),), volumes=(("no path",),))
    facts, _ = ask(agent)
    assert facts.cpu == {("h1", "<cpu/>"): ("lacks avx512f",)}
    assert facts.volume == {("h1", LUN.name): ("no path",)}


def test_a_cpu_is_asked_once_per_boot_and_a_volume_every_time() -> None:
    agent = ScriptedAgent("h1")
    facts, _ = ask(agent, times=3)
    assert agent.asked == [BOTH, Preflight(volumes=(LUN,)), Preflight(volumes=(LUN,))]
    assert set(facts.cpu) == {("h1", "<cpu/>")}
    unknown_boot = ScriptedAgent("h1")
    ask(unknown_boot, times=2, of=cluster([host("h1", boot_id="")]))
    assert unknown_boot.asked == [BOTH, BOTH], "a boot that is not known is not the same boot"


def test_nothing_new_to_ask_asks_nothing() -> None:
    agent = ScriptedAgent("h1")
    facts, _ = ask(agent, times=2, question=Preflight(cpus=("<cpu/>",)))
    assert len(agent.asked) == 1
    assert set(facts.cpu) == {("h1", "<cpu/>")}


def test_another_boot_is_asked_again() -> None:
    async def two_boots() -> list[Preflight]:
        agent = ScriptedAgent("h1")
        interviewer = Interviewer({"h1": agent})
        for boot in ("one", "two", "two"):
            known = cluster([host("h1", boot_id=boot)])
            await interviewer.ask(known, {"h1": Preflight(cpus=("<cpu/>",)), "gone": BOTH})
        return agent.asked

    assert len(run(two_boots())) == 2


def test_a_host_removed_meanwhile_is_missing_and_no_bug() -> None:
    async def removed() -> Facts:
        agents = {name: ScriptedAgent(name) for name in ("h1", "h2")}
        interviewer = Interviewer(agents)
        asking = asyncio.create_task(
            interviewer.ask(cluster([host("h1"), host("h2")]), dict.fromkeys(agents, BOTH))
        )
        await asyncio.sleep(0)
        del agents["h2"]
        return await asking

    assert {name for name, _ in run(removed()).cpu} == {"h1"}
