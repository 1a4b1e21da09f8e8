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

from agents.tls import TlsFiles, server_context
from agents.toml_config import ConfigError, load

DEFAULT_PATH = Path("/etc/migrd/agent.toml")
HEARTBEAT_MAX_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """An IP address and a TCP port; port 0 takes a free one."""

    address: str = "0.0.0.0"  # noqa: S104 - mTLS decides who may speak, not the interface
    port: int = 7443

    def __post_init__(self) -> None:
        ipaddress.ip_address(self.address)
        _between("port", self.port, 0, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of everything that could grow (I20)."""

    attempts: int = 16  # running at once, over all guests
    migrations: int = 8  # running at once, out of this host; the daemon's own cap is usually lower
    subscribers: int = 16  # event streams
    event_queue: int = 1024  # events a subscriber may lag behind before it is dropped
    storage_deadline_s: float = 180.0  # one storage command on one guest, all its volumes
    inspect_deadline_s: float = 10.0  # one look at one volume
    libvirt_deadline_s: float = 10.0  # one libvirt call other than a migration
    ledger_rows: int = 20_000  # ended attempts that are remembered
    ledger_days: float = 30.0

    def __post_init__(self) -> None:
        for name in ("attempts", "migrations", "subscribers", "event_queue", "ledger_rows"):
            _between(name, getattr(self, name), 1, 1_000_000)
        for name in ("storage_deadline_s", "inspect_deadline_s", "libvirt_deadline_s", "ledger_days"):
            _between(name, getattr(self, name), 0.1, 100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """See the module's example. `metrics_listen` adds a plain HTTP port that serves /metrics only."""

    host: str
    tls: TlsFiles
    allowed_clients: tuple[str, ...]
    migration_uri: str
    migration_address: str
    listen: Listen = field(default_factory=Listen)
    metrics_listen: Listen | None = None
    libvirt_uri: str = "qemu:///system"
    state_dir: Path = Path("/var/lib/migrd-agent")
    chap_dir: Path = Path("/etc/migrd/chap")
    heartbeat_s: float = 0.5
    inventory_s: float = 2.0  # libvirt is read this often even when no event says so
    storage_s: float = 5.0  # every volume is inspected this often
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        wrong = [
            message
            for good, message in (
                (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", self.host), "host: not a host name"),
                (self.allowed_clients, "allowed_clients: at least one name, or no daemon could connect"),
                ("://" in self.migration_uri, "migration_uri: not a libvirt URI"),
                (
                    re.fullmatch(r"(tcp|rdma)://\S+", self.migration_address),
                    "migration_address: expected tcp://ADDRESS",
                ),
                (self.state_dir.is_absolute(), "state_dir: not an absolute path"),
                (
                    0.05 <= self.heartbeat_s <= HEARTBEAT_MAX_S,
                    f"heartbeat_s: expected 0.05 to {HEARTBEAT_MAX_S:g}",
                ),
                (0.2 <= self.inventory_s <= 60, "inventory_s: expected 0.2 to 60"),
                (0.2 <= self.storage_s <= 300, "storage_s: expected 0.2 to 300"),
            )
            if not good
        ]
        if wrong:
            raise ValueError("; ".join(wrong))


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low:g} to {high:g}")


def load_agent(path: Path) -> tuple[AgentConfig, ssl.SSLContext]:
    """Read agent.toml and the certificates it names. Raises ConfigError with every mistake."""
    config = load(path, AgentConfig)
    errors = [
        f"tls.{name}: {file}: {error.strerror or error}"
        for name in ("cert", "key", "ca")
        for file in (getattr(config.tls, name),)
        if (error := _unreadable(file)) is not None
    ]
    if errors:
        raise ConfigError(path, errors)
    try:
        return config, server_context(config.tls)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(path, [f"tls: {error} (cert and key must be PEM and belong together)"]) from None


def _unreadable(file: Path) -> OSError | None:
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as error:
        return error
    return None
