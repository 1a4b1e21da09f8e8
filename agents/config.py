"""agent.toml: what one agent is told. Every mistake is reported together, before any port is opened.

Example (every key without a default is required):

    host = "h1"                                  # the name migrd knows this host by
    migration_uri = "qemu+tls://h1/system"       # how another host's libvirtd reaches this one's
    migration_address = "tcp://10.0.1.11"        # where guests' memory is sent to: the storage network
    allowed_clients = ["migrd"]                  # names in the certificates of daemons

    [listen]
    address = "0.0.0.0"
    port = 7443

    [tls]
    cert = "/etc/migrd/agent.pem"
    key = "/etc/migrd/agent.key"
    ca = "/etc/migrd/ca.pem"
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from agents.tls import TlsFiles, server_context
from agents.toml_config import ConfigError, load, raw, table

DEFAULT_PATH = Path("/etc/migrd/agent.toml")
HEARTBEAT_MAX_S = 1.0


def _fits(pattern: str, why: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(why)
        return text

    return AfterValidator(check)


def _ip_address(text: str) -> str:
    ipaddress.ip_address(text)
    return text


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("not an absolute path")
    return path


def _not_empty(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("at least one name, or no daemon could connect")
    return names


Count = Annotated[int, Field(ge=1, le=1_000_000)]
Duration = Annotated[float, Field(ge=0.1, le=100_000, allow_inf_nan=False)]
Folder = Annotated[Path, AfterValidator(_absolute)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """An IP address and a TCP port; port 0 takes a free one."""

    address: Annotated[str, AfterValidator(_ip_address)] = "0.0.0.0"  # noqa: S104 - mTLS decides who may speak
    port: Annotated[int, Field(ge=0, le=65535)] = 7443


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of everything that could grow (I20)."""

    attempts: Count = 16  # running at once, over all guests
    migrations: Count = 8  # running at once, out of this host; the daemon's own cap is usually lower
    subscribers: Count = 16  # event streams
    event_queue: Count = 1024  # events a subscriber may lag behind before it is dropped
    storage_deadline_s: Duration = 180.0  # one storage command on one guest, all its volumes
    inspect_deadline_s: Duration = 10.0  # one look at one volume
    libvirt_deadline_s: Duration = 10.0  # one libvirt call other than a migration
    ledger_rows: Count = 20_000  # ended attempts that are remembered
    ledger_days: Duration = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """See the module's example. `metrics_listen` adds a plain HTTP port that serves /metrics only."""

    host: Annotated[str, _fits(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", "not a host name")]
    tls: TlsFiles
    allowed_clients: Annotated[tuple[str, ...], AfterValidator(_not_empty)]
    migration_uri: Annotated[str, _fits(r"(?s).*://.*", "not a libvirt URI")]
    migration_address: Annotated[str, _fits(r"(tcp|rdma)://\S+", "expected tcp://ADDRESS")]
    listen: Listen = field(default_factory=Listen)
    metrics_listen: Listen | None = None
    libvirt_uri: str = "qemu:///system"
    state_dir: Folder = Path("/var/lib/migrd-agent")
    chap_dir: Folder = Path("/etc/migrd/chap")
    heartbeat_s: Annotated[float, Field(ge=0.05, le=HEARTBEAT_MAX_S, allow_inf_nan=False)] = 0.5
    # libvirt is read this often even when no event says so
    inventory_s: Annotated[float, Field(ge=0.2, le=60, allow_inf_nan=False)] = 2.0
    # every volume is inspected this often
    storage_s: Annotated[float, Field(ge=0.2, le=300, allow_inf_nan=False)] = 5.0
    limits: Limits = field(default_factory=Limits)


def load_agent(path: Path) -> tuple[AgentConfig, ssl.SSLContext]:
    """Read agent.toml and the certificates it names. Raises ConfigError with every mistake."""
    errors: list[str] = []
    config: AgentConfig | None = None
    try:
        config = load(path, AgentConfig)
    except ConfigError as error:
        errors += error.errors
    tls: ssl.SSLContext | None = None
    # From the unchecked file: who corrects it wants the whole list, not the next mistake.
    found = table(raw(path), "tls")
    named = {name: Path(file) for name in ("cert", "key", "ca") if isinstance(file := found.get(name), str)}
    broken = {name: why for name, file in named.items() if (why := _unreadable(file))}
    errors += [f"tls.{name}: {named[name]}: {why}" for name, why in broken.items()]
    if len(named) == 3 and not broken:
        try:
            tls = server_context(TlsFiles(**named))
        except (ssl.SSLError, OSError) as error:
            errors.append(f"tls: {error} (cert and key must be PEM and belong together)")
    if errors or config is None or tls is None:
        raise ConfigError(path, errors)
    return config, tls


def _unreadable(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        return getattr(error, "strerror", None) or str(error)
    return ""
