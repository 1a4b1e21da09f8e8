"""Power through a host's BMC. What it answers is believed only when it is unmistakable (I3).

Two ways behind one interface: `ipmitool` driven here, and any other of the distribution's fence agents
(key=value on stdin, FenceAgentAPI). fence_ipmilan and its kin are refused: they pass the password on in
ipmitool's argv (I17), see docs/adr/0010-bmc.md. The password stays in its file until the moment of use.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from migrd.host_config import IPMITOOL_OPTIONS, Bmc
from storage.errors import OutcomeError
from storage.run import Completed, Runner, run

Action = Literal["on", "off", "status", "monitor"]

_MAX_PASSWORD_BYTES = 4096
_REASON_LENGTH = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    argv: tuple[str, ...]
    input: bytes | None = None


def call_for(bmc: Bmc, action: Action, password: str) -> Call:
    """What to run. The password goes to a fence agent's stdin, or stays in the file that ipmitool reads."""
    if bmc.agent == "ipmitool":
        with_defaults = {**IPMITOOL_OPTIONS, **bmc.options}
        words = {
            "-H": bmc.address,
            "-p": str(bmc.port or 623),
            "-U": bmc.user,
            "-f": str(bmc.password_file),
            "-C": with_defaults["cipher"],
            "-L": with_defaults["privilege"],
            "-N": with_defaults["retry_s"],
            "-R": with_defaults["retries"],
        }
        verb = "status" if action == "monitor" else action
        flat = [word for pair in words.items() for word in pair]
        return Call(argv=("ipmitool", "-I", "lanplus", *flat, "chassis", "power", verb))
    lines = {**bmc.options, "ip": bmc.address, "username": bmc.user, "password": password, "action": action}
    if bmc.port is not None:
        lines["ipport"] = str(bmc.port)
    text = "".join(f"{key}={value}\n" for key, value in lines.items())
    return Call(argv=(bmc.agent,), input=text.encode())


def status_of(bmc: Bmc, rc: int, stdout: str) -> Literal["on", "off"] | None:
    """The state, if exit code and words agree; None for all else.

    Fence agents exit 0 for on and 2 for off, but Python exits 2 as well when it cannot open a script: the
    word must be there too.
    """
    found = None
    if bmc.agent == "ipmitool":
        if rc == 0:
            found = re.fullmatch(r"Chassis Power is (on|off)", stdout.strip())
        return None if found is None else "on" if found[1] == "on" else "off"
    found = re.search(r"^Status: (ON|OFF)$", stdout, re.MULTILINE)
    match (rc, found[1] if found else ""):
        case (0, "ON"):
            return "on"
        case (2, "OFF"):
            return "off"
        case _:
            return None


def accepted(bmc: Bmc, rc: int, stdout: str) -> bool:
    """Did the BMC take an on or off? This is no proof that the power changed."""
    return rc == 0 and (bmc.agent != "ipmitool" or "Chassis Power Control:" in stdout)


class Power:
    """The BMCs of the cluster, one question at a time each: small BMCs know few sessions.

    Never raises: every trouble is a reason in words. Lists no secret.
    """

    def __init__(self, bmcs: Mapping[str, Bmc], runner: Runner = run) -> None:
        self._bmcs = dict(bmcs)
        self._run = runner
        self._turns = {host: asyncio.Lock() for host in bmcs}

    def add(self, host: str, bmc: Bmc) -> None:
        """From now on this is the host's BMC."""
        self._bmcs[host] = bmc
        self._turns.setdefault(host, asyncio.Lock())

    def remove(self, host: str) -> None:
        """A question under way ends by itself."""
        self._bmcs.pop(host, None)
        self._turns.pop(host, None)

    def has(self, host: str) -> bool:
        return host in self._bmcs

    async def status(self, host: str) -> str:
        """'on', 'off' or 'unknown: REASON'. A timeout, an error or garbage is unknown, never off (I3)."""
        answer = await self._ask(host, "status")
        if isinstance(answer, str):
            return f"unknown: {answer}"
        bmc, ended = answer
        return status_of(bmc, ended.rc, ended.stdout) or f"unknown: {_words(ended)}"

    async def switch(self, host: str, action: str) -> str:
        """Ask for "on" or "off". '' when the BMC took it, else the reason. Read `status` afterwards."""
        match action:
            case "on":
                answer = await self._ask(host, "on")
            case "off":
                answer = await self._ask(host, "off")
            case _:
                raise ValueError(f"power action {action!r}")
        if isinstance(answer, str):
            return answer
        bmc, ended = answer
        return "" if accepted(bmc, ended.rc, ended.stdout) else _words(ended)

    async def monitor(self, host: str) -> str:
        """Could the power be worked now: address, user and password? '' = yes, else the reason."""
        answer = await self._ask(host, "monitor")
        if isinstance(answer, str):
            return answer
        bmc, ended = answer
        fine = status_of(bmc, ended.rc, ended.stdout) if bmc.agent == "ipmitool" else ended.rc == 0
        return "" if fine else _words(ended)

    async def _ask(self, host: str, action: Action) -> tuple[Bmc, Completed] | str:
        """The BMC that was asked (it may be another one by the time it answers) and what the tool said."""
        bmc, turn = self._bmcs.get(host), self._turns.get(host)
        if bmc is None or turn is None:
            return f"no BMC is configured for {host}: add [hosts.{host}.bmc] to migrd.toml"
        try:
            password = await asyncio.to_thread(_read_password, bmc.password_file)
        except (OSError, ValueError) as error:
            return f"password_file {bmc.password_file}: {getattr(error, 'strerror', None) or error}"
        call = call_for(bmc, action, password)
        try:
            async with turn:
                ended = await self._run(call.argv, deadline_s=bmc.deadline_s, input=call.input)
        except OutcomeError as error:
            return _hide(str(error), password)
        hidden = replace(ended, stdout=_hide(ended.stdout, password), stderr=_hide(ended.stderr, password))
        return bmc, hidden


def _read_password(path: Path) -> str:
    """One line. An empty one is refused: ipmitool would silently try without a password."""
    with path.open("rb") as file:
        lines = file.read(_MAX_PASSWORD_BYTES).decode("utf-8").splitlines()
    if len(lines) != 1 or not lines[0]:
        raise ValueError("must hold the password and nothing else, on one line")
    return lines[0]


def _hide(text: str, password: str) -> str:
    return text.replace(password, "[password]")


def _words(ended: Completed) -> str:
    """What the tool said, short enough for a message."""
    said = " ".join((ended.stderr.strip() or ended.stdout.strip()).split())
    # What ipmitool 1.8.19 says when the BMC does not know the suite of -C.
    suite = "algorithm" in said or "cipher suite" in said
    hint = '; for an older BMC set options.cipher = "3"' if suite else ""
    return f"{said[:_REASON_LENGTH] or 'no answer'} (exit {ended.rc}){hint}"
