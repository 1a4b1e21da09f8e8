"""One host as the operator names it: [hosts.NAME] of migrd.toml, and the body of POST /v1/hosts. Pure.

The fields' own constraints hold wherever pydantic reads the class: configuration, API and journal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo

from agents.mistakes import Mistake, Seconds, raise_all

# Agents of fence-agents 4.12 that put the password, or an SNMP community, on a command line.
_LEAKING = re.compile(
    r"fence_(ipmilan(plus)?|ilo[345]|idrac|imm|amt|vmware|.*snmp|cisco_mds|emerson|ibmblade|ifmib"
    r"|intelmodular|ipdu|lindypdu)$"
)
IPMITOOL_OPTIONS = {"cipher": "17", "privilege": "ADMINISTRATOR", "retry_s": "2", "retries": "3"}


def _host_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", name):
        raise ValueError(f"{name[:80]!r} is not a host name: letters, digits, '.', '_' and '-'")
    return name


def _agent_url(url: str) -> str:
    parts = urlsplit(url)
    rest = (parts.query, parts.fragment)
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or any(rest):
        raise ValueError("must be https://ADDRESS:PORT")
    if not re.fullmatch(r"[\w.:%-]+", parts.hostname):
        raise ValueError("must be https://ADDRESS:PORT, and the address a name or an IP address")
    if parts.username is not None or not parts.port:  # .port raises ValueError when it is no port
        raise ValueError("must be https://ADDRESS:PORT, with a port and without a user")
    return url.rstrip("/")


def _fence_agent(agent: str) -> str:
    if agent != "ipmitool" and not re.fullmatch(r"fence_[a-z0-9_]+", agent):
        raise ValueError('must be "ipmitool" or the name of a fence agent ("fence_...")')
    if _LEAKING.fullmatch(agent):
        raise ValueError(f'{agent} shows the password in a command line: use agent = "ipmitool"')
    return agent


def _word(text: str) -> str:
    """Becomes an argument or a line of a tool's input."""
    if not text.isprintable() or text.startswith("-"):
        raise ValueError("must not begin with '-' or contain a newline or another control character")
    return text


def _option(name: str) -> str:
    if name == "action" or re.search("passw|secret|token|community", name):  # I17: it would be journalled
        raise ValueError(f"{name} is no option: action is migrd's, the password belongs in password_file")
    return _word(name)


def _options(options: Mapping[str, str], info: ValidationInfo) -> Mapping[str, str]:
    """Here and not in a __post_init__: shows also while another field is wrong."""
    unknown = sorted(set(options) - set(IPMITOOL_OPTIONS)) if info.data.get("agent") == "ipmitool" else []
    known = ", ".join(IPMITOOL_OPTIONS)
    raise_all(Mistake((name,), f"ipmitool has no option {name} (it has {known})") for name in unknown)
    return options


HostName = Annotated[str, AfterValidator(_host_name)]
AgentUrl = Annotated[str, AfterValidator(_agent_url)]
Word = Annotated[str, AfterValidator(_word)]
Option = Annotated[str, AfterValidator(_option)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bmc:
    """[hosts.NAME.bmc].

    `options` for ipmitool: cipher (3 or 17; without it ipmitool loses 10 s to a probe on each call),
    privilege, retry_s, retries. For a fence agent: any of its parameters, e.g. plug, ssl_insecure.
    """

    agent: Annotated[str, AfterValidator(_fence_agent)] = "ipmitool"
    address: Annotated[Word, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)] | None = None  # None = the agent's own default, 623 for IPMI
    user: Word
    password_file: Path
    options: Annotated[Mapping[Option, Word], AfterValidator(_options)] = field(default_factory=dict)
    deadline_s: Seconds = 20.0  # for each question or request


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """`agent`: https://ADDRESS:PORT; the address must be in the agent's certificate."""

    agent: AgentUrl
    bmc: Bmc | None = None


def doubles(hosts: Mapping[str, HostConfig]) -> Iterator[Mistake]:
    """Hosts whose agent is another host's: one machine under two names would be counted twice (I1)."""
    seen: dict[str, str] = {}
    for name, host in hosts.items():
        if host.agent in seen:
            yield Mistake((name, "agent"), f"{host.agent} is the agent of {seen[host.agent]} already")
        seen.setdefault(host.agent, name)
