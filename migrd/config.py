"""migrd.toml: what the daemon is told. Every mistake is reported together, before any port is opened.

docs/CONFIG.md has a full example. Policies are the very dataclasses that planner, watch and core use, so a
new option of theirs is a new key here.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from agents.mistakes import Mistake, Seconds, raise_all
from agents.tls import TlsFiles, client_context
from agents.toml_config import ConfigError, load, raw, table
from migrd.acts import Patience
from migrd.api.listen import Listen, parse_listen
from migrd.engine import Settings
from migrd.host_config import HostConfig, HostName, doubles
from migrd.planner import Policy
from migrd.retention import Keep
from migrd.slots import Caps
from migrd.watch import WatchPolicy

DEFAULT_PATH = Path("/etc/migrd/migrd.toml")
DEFAULT_TOKEN_FILE = Path("/etc/migrd/token")
DEFAULT_STATE_DIR = Path("/var/lib/migrd")
MIN_TOKEN_CHARS = 20


def _listen_word(word: str) -> str:
    parse_listen(word)
    return word


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """[api]. `listen`: HOST:PORT, [IPV6]:PORT or unix:/PATH. `cert`, `key`: PEM files, unless `plain`."""

    listen: Annotated[str, AfterValidator(_listen_word)] = "127.0.0.1:7440"
    cert: Path | None = None
    key: Path | None = None
    plain: bool = False  # HTTP without TLS: on loopback and unix sockets only
    token_file: Path = DEFAULT_TOKEN_FILE

    def __post_init__(self) -> None:
        raise_all(self._mistakes())

    def _mistakes(self) -> Iterator[Mistake]:
        if self.plain and not self.address.local:
            message = "is for loopback and unix sockets only: the token would cross the network"
            yield Mistake(("plain",), message, (("listen",),))
        for name in ("cert", "key") if not self.plain else ():
            if getattr(self, name) is None:
                yield Mistake((name,), "required unless plain = true", (("plain",),))

    @property
    def address(self) -> Listen:
        return parse_listen(self.listen)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfig:
    """[state]. `dir` holds the journal and must be writable. `keep`: how much of what has ended it keeps."""

    dir: Path = DEFAULT_STATE_DIR
    keep: Keep = field(default_factory=Keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovesConfig:
    """[moves]: how one move is carried out. How many at once is policy.per_host_moves."""

    # QEMU's own bounds for the switch-over's target
    downtime_limit_ms: Annotated[int, Field(ge=1, le=2_000_000)] = 300
    # bytes per second and move; not set = no limit; libvirt counts in MiB per second
    bandwidth_bps: Annotated[int, Field(ge=1 << 20)] | None = None
    deadline_s: Seconds = 3600.0  # a move that copies for longer is aborted
    patience: Patience = field(default_factory=Patience)


def _hosts(hosts: Mapping[str, HostConfig]) -> Mapping[str, HostConfig]:
    if not hosts:
        raise ValueError("at least one [hosts.NAME] is needed")
    raise_all(doubles(hosts))
    return hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrdConfig:
    """The whole file."""

    api: ApiConfig
    agents: TlsFiles  # how the daemon proves itself to agents: its client certificate, and their authority
    hosts: Annotated[Mapping[HostName, HostConfig], AfterValidator(_hosts)]
    state: StateConfig = field(default_factory=StateConfig)
    policy: Policy = field(default_factory=Policy)
    watch: WatchPolicy = field(default_factory=WatchPolicy)
    moves: MovesConfig = field(default_factory=MovesConfig)

    def settings(self) -> Settings:
        """For the core; planner and core share one cap per host, so that estimates fit what is done."""
        return Settings(
            caps=Caps(per_source=self.policy.per_host_moves, per_target=self.policy.per_host_moves),
            patience=self.moves.patience,
            downtime_limit_ms=self.moves.downtime_limit_ms,
            bandwidth_bps=self.moves.bandwidth_bps,
            migrate_deadline_s=self.moves.deadline_s,
            keep=self.state.keep,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration with everything it names opened and proved. The token and the contexts are secrets."""

    config: MigrdConfig
    token: bytes = field(repr=False)
    api_tls: ssl.SSLContext | None
    agent_tls: ssl.SSLContext


def load_daemon(path: Path) -> Loaded:
    """Read migrd.toml and the files it names. Raises ConfigError with every mistake; opens no port."""
    config: MigrdConfig | None = None
    errors: list[str] = []
    try:
        config = load(path, MigrdConfig)
    except ConfigError as error:
        errors += error.errors
    # Also when keys are wrong: who corrects a file wants the whole list, not the next one.
    document = raw(path)
    errors += file_problems(document)
    opened = _open(document)
    errors += opened.errors
    if errors or config is None or opened.agent_tls is None:
        raise ConfigError(path, errors)
    return Loaded(config=config, token=opened.token, api_tls=opened.api_tls, agent_tls=opened.agent_tls)


@dataclass(slots=True)
class _Opened:
    token: bytes = field(default=b"", repr=False)
    agent_tls: ssl.SSLContext | None = None
    api_tls: ssl.SSLContext | None = None
    errors: list[str] = field(default_factory=list)


def _open(document: Mapping[str, object]) -> _Opened:
    """What is in the files that can be read: token and certificates."""
    opened = _Opened()
    files = {w: file for w, file, secret in _named_files(document) if not _file_problem(file, secret=secret)}
    if token_file := files.get("api.token_file"):
        try:
            opened.token = read_token(token_file)
        except ValueError as error:
            opened.errors.append(f"api.token_file: {error}")
    own = {name: files[f"agents.{name}"] for name in ("cert", "key", "ca") if f"agents.{name}" in files}
    if len(own) == 3:
        try:
            opened.agent_tls = client_context(TlsFiles(**own))
        except (OSError, ssl.SSLError) as error:
            opened.errors.append(f"agents: {_tls_words(error)}")
    plain = table(document, "api").get("plain") is True
    if not plain and "api.cert" in files and "api.key" in files:
        try:
            opened.api_tls = _server_tls(files["api.cert"], files["api.key"])
        except (OSError, ssl.SSLError) as error:
            opened.errors.append(f"api.cert: {_tls_words(error)}")
    return opened


def file_problems(document: Mapping[str, object]) -> list[str]:
    """What is wrong with the files that a TOML document names; values of a wrong type are skipped here."""
    found = []
    for where, file, secret in _named_files(document):
        reason = _file_problem(file, secret=secret)
        if reason:
            found.append(f"{where}: {file}: {reason}")
    state = table(document, "state").get("dir", str(DEFAULT_STATE_DIR))
    if isinstance(state, str):
        reason = _directory_problem(Path(state))
        if reason:
            found.append(f"state.dir: {state}: {reason}")
    return found


def secret_problem(path: Path) -> str:
    """Why a file cannot be used as a secret; '' when it can: absolute, readable, nobody else's to read."""
    return _file_problem(path, secret=True)


def read_token(path: Path) -> bytes:
    """The bearer token: one line of printable ASCII without blanks. Raises ValueError, without the token."""
    try:
        text = path.read_bytes()[:4097].decode("ascii").rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not ASCII") from None
    if not MIN_TOKEN_CHARS <= len(text) <= 4096 or not text.isprintable() or " " in text:
        raise ValueError(f"{path}: must hold one token of at least {MIN_TOKEN_CHARS} characters, no blanks")
    return text.encode()


def _named_files(document: Mapping[str, object]) -> Iterator[tuple[str, Path, bool]]:
    """(path in the document, file, is it a secret) of every file that the document names."""
    api, agents, hosts = (table(document, name) for name in ("api", "agents", "hosts"))
    wanted: list[tuple[str, object, bool]] = [
        ("api.cert", api.get("cert"), False),
        ("api.key", api.get("key"), True),
        ("api.token_file", api.get("token_file", str(DEFAULT_TOKEN_FILE)), True),
        ("agents.cert", agents.get("cert"), False),
        ("agents.key", agents.get("key"), True),
        ("agents.ca", agents.get("ca"), False),
    ]
    for name in hosts:
        file = table(table(hosts, name), "bmc").get("password_file")
        wanted.append((f"hosts.{name}.bmc.password_file", file, True))
    for where, file, secret in wanted:
        if isinstance(file, str):
            yield where, Path(file), secret


def _file_problem(path: Path, *, secret: bool) -> str:
    """'' when the file can be used. A secret is its owner's, and at most its group's to read (0640)."""
    if not path.is_absolute() or not str(path).isprintable():
        return "must be an absolute path, without control characters"
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if not stat.S_ISREG(status.st_mode):
        return "is not a file"
    if secret and status.st_mode & 0o037:
        mode = stat.S_IMODE(status.st_mode)
        return f"is a secret with mode {mode:04o}: chmod 0600 (or 0640 for its group)"
    if secret and status.st_uid not in (0, os.geteuid()):
        return "is a secret that belongs to another user than root and migrd's own"
    return ""


def _directory_problem(path: Path) -> str:
    if not path.is_absolute():
        return "must be an absolute path"
    if not path.is_dir():
        return "is not a directory: create it, owned by the user that runs migrd"
    return "" if os.access(path, os.W_OK | os.X_OK) else "cannot be written by the user that runs migrd"


def _server_tls(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer, no client certificate: the token says who may speak."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    return context


def _tls_words(error: OSError | ssl.SSLError) -> str:
    return f"{error.strerror or error} (cert and key must be PEM and belong together)"
