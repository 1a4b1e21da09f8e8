"""Power through a real BMC: what it answers is believed only when it is unmistakable (I3, I17)."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from agents.toml_config import ConfigError, parse
from migrd.host_config import Bmc
from migrd.power import Power, accepted, call_for, status_of
from storage.errors import Unknown
from storage.run import Completed, run
from tests.migrd.bmc import PASSWORD, USER, BmcSim, bmc_sim


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BmcSim]:
    with bmc_sim(tmp_path_factory.mktemp("bmc")) as running:
        yield running


def of(sim: BmcSim, **more: object) -> Bmc:
    """A BMC's config; ipmi_sim knows cipher suite 3 and not 17."""
    known = {"address": "127.0.0.1", "port": sim.port, "user": USER, "password_file": sim.password_file}
    suite = {"options": {"cipher": "3"}} if "agent" not in more else {}
    return Bmc(**{**known, **suite, **more})  # type: ignore[arg-type]


async def test_a_machine_is_switched_off_and_on_and_its_status_read(sim: BmcSim) -> None:
    power = Power({"h1": of(sim)})
    assert power.has("h1")
    assert not power.has("h2")
    assert await power.monitor("h1") == ""
    assert await power.status("h1") == "on"
    assert await power.switch("h1", "off") == ""
    assert not sim.powered
    assert await power.status("h1") == "off"
    assert await power.switch("h1", "on") == ""
    assert sim.powered
    assert await power.status("h1") == "on"


async def test_a_wrong_password_switches_nothing_and_is_never_off(sim: BmcSim, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wrong\n")
    power = Power(
        {"h1": of(sim, password_file=wrong, options={"cipher": "3", "retries": "1", "retry_s": "1"})}
    )
    assert (await power.status("h1")).startswith("unknown: ")
    assert await power.switch("h1", "off") != ""
    assert await power.monitor("h1") != ""
    assert sim.powered


async def test_a_cipher_suite_that_the_bmc_lacks_is_named_with_what_to_do(sim: BmcSim) -> None:
    assert 'options.cipher = "3"' in await Power({"h1": of(sim, options={"cipher": "17"})}).status("h1")


async def test_a_silent_bmc_is_unknown_within_its_deadline(sim: BmcSim) -> None:
    """A BMC that shares the host's power cannot answer after a power cut: that is not "off" (I3)."""
    power = Power({"h1": of(sim, port=9, deadline_s=1.0)})  # nobody listens on discard
    began_s = asyncio.get_running_loop().time()
    assert (await power.status("h1")).startswith("unknown: ")
    assert asyncio.get_running_loop().time() - began_s < 3.0


async def test_the_password_is_in_no_command_line_and_no_environment(sim: BmcSim) -> None:
    """Looks at every process of the machine while the BMC is asked (I17)."""
    seen: set[str] = set()
    leaks: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    command = (process / "cmdline").read_bytes()
                    secrets = command + (process / "environ").read_bytes()
                except OSError:
                    continue
                if b"ipmitool" in command:
                    seen.add(process.name)
                    if PASSWORD.encode() in secrets:
                        leaks.add(command.decode())

    looking = asyncio.create_task(asyncio.to_thread(look))
    await Power({"h1": of(sim)}).status("h1")
    stop.set()
    await looking
    assert seen, "the look-out must have seen ipmitool run"
    assert not leaks


async def test_no_bmc_and_no_password_are_reasons_that_say_what_to_do(sim: BmcSim, tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.write_text("\n")
    power = Power({"h1": of(sim, password_file=missing), "h2": of(sim, password_file=empty)})
    assert "[hosts.h9.bmc]" in await power.switch("h9", "off")
    assert str(missing) in await power.status("h1")
    assert "one line" in await power.status("h2")


class Scripted:
    """Stands where a tool is run: notes what was asked, answers as told."""

    def __init__(self, *answers: Completed | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[tuple[str, ...], bytes | None]] = []
        self.under_way = 0
        self.most_at_once = 0

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        self.asked.append((tuple(argv), input))
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        await asyncio.sleep(0.01)
        self.under_way -= 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def said(rc: int, stdout: str = "", stderr: str = "") -> Completed:
    return Completed(("tool",), rc, stdout, stderr)


@pytest.mark.parametrize(
    "answer",
    [
        said(0, ""),
        said(0, "Chassis Power is"),
        said(0, "Chassis Power is offline\n"),
        said(0, "Chassis Power is off\nChassis Power is on\n"),
        said(1, "Chassis Power is off\n"),
        said(2, "Chassis Power is off\n"),
        said(1, "", "Unable to establish IPMI v2 / RMCP+ session"),
        Unknown("ipmitool did not end within 20 s and was killed"),
    ],
)
async def test_nothing_but_a_clean_answer_of_ipmitool_is_off(
    sim: BmcSim, answer: Completed | Exception
) -> None:
    assert (await Power({"h1": of(sim)}, Scripted(answer)).status("h1")).startswith("unknown: ")


@pytest.mark.parametrize(
    ("rc", "stdout", "state"),
    [
        (0, "Status: ON\n", "on"),
        (2, "Status: OFF\n", "off"),
        (2, "", None),  # Python's own exit code when a script cannot be opened
        (0, "Status: OFF\n", None),
        (2, "Status: ON\n", None),
        (1, "Status: OFF\n", None),
        (0, "", None),
        (137, "", None),
    ],
)
def test_exit_code_and_word_of_a_fence_agent_must_agree(rc: int, stdout: str, state: str | None) -> None:
    bmc = Bmc(agent="fence_redfish", address="bmc", user="u", password_file=Path("/p"))
    assert status_of(bmc, rc, stdout) == state


def test_an_accepted_request_needs_the_word_of_ipmitool() -> None:
    bmc = Bmc(address="bmc", user="u", password_file=Path("/p"))
    assert accepted(bmc, 0, "Chassis Power Control: Down/Off\n")
    assert not accepted(bmc, 0, "")
    assert not accepted(bmc, 1, "Chassis Power Control: Down/Off\n")


async def test_a_fence_agent_of_the_distribution_runs_with_its_words_on_stdin(tmp_path: Path) -> None:
    """The real fence_dummy: on, status, off; the password is a line of stdin, not of argv (I17)."""
    state, secret = tmp_path / "state", tmp_path / "password"
    state.write_text("off")
    secret.write_text(PASSWORD)
    bmc = Bmc(
        agent="fence_dummy",
        address="nowhere",
        user="u",
        password_file=secret,
        options={"status_file": str(state)},
    )
    os.environ["PATH"].index("/usr/sbin")  # where Debian keeps fence agents; the unit's PATH has it too
    power = Power({"h1": bmc})
    assert await power.status("h1") == "off"
    assert await power.switch("h1", "on") == ""
    assert state.read_text() == "on"
    assert await power.status("h1") == "on"
    assert await power.monitor("h1") == ""
    call = call_for(bmc, "status", PASSWORD)
    assert PASSWORD not in " ".join(call.argv)
    assert f"password={PASSWORD}\n".encode() in (call.input or b"")


async def test_a_tool_that_repeats_the_password_does_not_make_it_a_reason(sim: BmcSim) -> None:
    script = Scripted(said(1, "", f"bad login {USER}:{PASSWORD}"), Unknown(f"killed: {PASSWORD}"))
    power = Power({"h1": of(sim, agent="fence_redfish")}, script)
    for _ in range(2):
        assert PASSWORD not in await power.status("h1")


async def test_one_bmc_gets_one_question_at_a_time(sim: BmcSim) -> None:
    script = Scripted(*[said(0, "Chassis Power is on\n")] * 6)
    power = Power({"h1": of(sim), "h2": of(sim)}, script)
    await asyncio.gather(*(power.status("h1") for _ in range(5)))
    assert script.most_at_once == 1
    assert len(script.asked) == 5


async def test_an_uninstalled_tool_is_a_reason(sim: BmcSim) -> None:
    assert "not installed" in await Power({"h1": of(sim, agent="fence_none_such")}, run).status("h1")


def test_a_bmc_that_cannot_work_or_would_leak_is_a_mistake_of_the_config() -> None:
    good = {"address": "10.0.0.9", "user": "u", "password_file": "/p"}
    assert parse(dict(good), Bmc).agent == "ipmitool"
    mistakes: list[tuple[dict[str, object], str]] = [
        ({"agent": "fence_ipmilan"}, "command line"),
        ({"agent": "fence_ilo4"}, "command line"),
        ({"agent": "fence_apc_snmp"}, "command line"),
        ({"agent": "/bin/sh"}, "fence agent"),
        ({"port": 0}, "port"),
        ({"deadline_s": 0.0}, "deadline_s"),
        ({"options": {"ciphre": "17"}}, "ciphre"),
        ({"user": "u\naction=on"}, "newline"),
        ({"address": "-oops"}, "'-'"),
        ({"agent": "fence_redfish", "options": {"passwd": "x"}}, "password_file"),
    ]
    for wrong, word in mistakes:
        with pytest.raises(ConfigError, match=word):
            parse({**good, **wrong}, Bmc)
