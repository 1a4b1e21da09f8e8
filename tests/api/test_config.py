"""migrd.toml: everything wrong with it at once, secrets kept, nothing opened."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.toml_config import ConfigError
from migrd.api.listen import parse_listen
from migrd.config import MovesConfig, load_daemon
from migrd.planner import Policy
from migrd.retention import Keep
from migrd.watch import WatchPolicy

MAKE_CERTS = Path(__file__).parents[2] / "deploy" / "pki" / "make-certs"


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    for words in (["init"], ["host", "h1", "127.0.0.1"], ["daemon"]):
        command, *rest = words
        subprocess.run([MAKE_CERTS, command, folder, *rest], check=True, capture_output=True, timeout=60)
    return folder


@pytest.fixture
def etc(pki: Path, tmp_path: Path) -> Path:
    """A folder as /etc/migrd would be."""
    folder = tmp_path / "etc"
    shutil.copytree(pki, folder)
    (folder / "bmc").write_text("hunter2-of-the-bmc\n")
    (folder / "bmc").chmod(0o600)
    (tmp_path / "state").mkdir()
    return folder


def good(etc: Path) -> str:
    return f"""
[api]
listen = "127.0.0.1:0"
cert = "{etc}/api.pem"
key = "{etc}/api.key"
token_file = "{etc}/token"

[agents]
cert = "{etc}/migrd.pem"
key = "{etc}/migrd.key"
ca = "{etc}/ca.pem"

[state]
dir = "{etc.parent}/state"

[policy]
per_host_moves = 3

[watch]
refresh_s = 5
thresholds = {{ suspect_after_s = 2, unreachable_after_s = 8 }}

[hosts.h1]
agent = "https://10.0.0.11:7443"

[hosts.h1.bmc]
address = "10.0.0.101"
user = "admin"
password_file = "{etc}/bmc"
options = {{ cipher = "3" }}

[hosts.h2]
agent = "https://[fd00::12]:7443"
"""


def errors_of(etc: Path, text: str) -> list[str]:
    file = etc / "migrd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_daemon(file)
    return caught.value.errors


def test_a_good_file(etc: Path) -> None:
    (etc / "migrd.toml").write_text(good(etc))
    loaded = load_daemon(etc / "migrd.toml")
    assert loaded.config.policy == Policy(per_host_moves=3)
    assert loaded.config.watch.thresholds.suspect_after_s == 2
    bmc = loaded.config.hosts["h1"].bmc
    assert bmc is not None
    assert (bmc.agent, bmc.options) == ("ipmitool", {"cipher": "3"})
    assert loaded.config.hosts["h2"].bmc is None
    assert isinstance(loaded.api_tls, ssl.SSLContext)
    assert loaded.token.decode() == (etc / "token").read_text().strip()
    assert loaded.token.decode() not in repr(loaded)


def test_every_mistake_at_once_in_keys_and_in_files(etc: Path) -> None:
    text = (
        good(etc)
        .replace("per_host_moves = 3", 'per_host_moves = "3"\nper_host_movse = 3')
        .replace(f"{etc}/api.pem", f"{etc}/absent.pem")
        .replace('agent = "https://[fd00::12]:7443"', 'agent = "http://h2:7443"\ncolour = "red"')
        .replace("[state]", "[stat]\n[state]")
    )
    (etc / "token").chmod(0o644)
    (etc / "bmc").chmod(0o666)
    errors = errors_of(etc, text)
    assert [error.split(": ")[0] for error in errors] == [
        "hosts.h2.agent",
        "hosts.h2.colour",
        "policy.per_host_moves",
        "policy.per_host_movse",
        "stat",
        "api.cert",
        "api.token_file",
        "hosts.h1.bmc.password_file",
    ]
    assert "unknown key" in errors[1]
    assert "No such file" in errors[5]
    assert "0644: chmod 0600" in errors[6]


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("watch", "tick_s = 0"),
        ("watch", "tick_s = nan"),
        ("watch", "silence_s = -1"),
        ("watch", "backoff_base_s = 6"),
        ("watch.thresholds", "suspect_after_s = nan"),
        ("moves", "deadline_s = nan"),
        ("moves", "deadline_s = inf"),
        ("moves.patience", "poll_s = 0"),
        ("moves.patience", "retry_s = 0"),
        ("policy", "move_overhead_s = inf"),
        ("policy", "dirtied_ratio = nan"),
    ],
)
def test_numbers_that_would_hang_or_spin(etc: Path, section: str, line: str) -> None:
    text = good(etc).split("[policy]")[0] + good(etc)[good(etc).index("[hosts.h1]") :]
    errors = errors_of(etc, f"{text}\n[{section}]\n{line}\n")
    assert len(errors) == 1
    assert errors[0].startswith(f"{section}.{line.partition(' ')[0]}: ")


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ('user = "admin"', 'user = "a\\u0000b"', "hosts.h1.bmc.user"),
        ('address = "', 'address = "\\u0000', "hosts.h1.bmc.address"),
        ('/bmc"', '/b\\u0000mc"', "hosts.h1.bmc.password_file"),
        ('/token"', '/to\\u0007ken"', "api.token_file"),
    ],
)
def test_control_characters_are_mistakes(etc: Path, old: str, new: str, where: str) -> None:
    """A null byte ends the daemon when a program is to be started with it."""
    assert old in good(etc)
    errors = errors_of(etc, good(etc).replace(old, new, 1))
    assert errors
    assert errors[0].startswith(f"{where}: ")


def test_every_mistake_of_one_table_and_of_all_tables_together(etc: Path) -> None:
    """What fields say together shows as well, though a neighbour has the wrong type."""
    text = (
        good(etc)
        .replace("per_host_moves = 3", "per_host_moves = 0\nmemory_reserve_ratio = 2\ndirtied_ratio = -1")
        .replace(f'cert = "{etc}/api.pem"\nkey = "{etc}/api.key"\n', "plaim = true\n")
        .replace('user = "admin"', 'user = "-x"\nport = 0\ndeadline_s = nan')
        .replace('options = { cipher = "3" }', 'options = { colour = "3" }')
        .replace("https://[fd00::12]:7443", "https://10.0.0.11:7443/")
        .replace("suspect_after_s = 2,", "suspect_after_s = 20, typo = 1,")
        .replace("[hosts.h2]", '[hosts."h 2"]')
    )
    (etc / "token").write_text("short")
    shutil.copy(etc / "migrd.key", etc / "kept")
    shutil.copy(etc / "api.key", etc / "migrd.key")
    errors = errors_of(etc, text + '[hosts.h3]\nagent = "https://10.0.0.11:7443"\n')
    assert sorted(error.split(": ")[0] for error in errors) == [
        "agents",
        "api.cert",
        "api.key",
        "api.plaim",
        "api.token_file",
        "hosts.h 2",
        "hosts.h1.bmc.deadline_s",
        "hosts.h1.bmc.options.colour",
        "hosts.h1.bmc.port",
        "hosts.h1.bmc.user",
        "hosts.h3.agent",
        "policy.dirtied_ratio",
        "policy.memory_reserve_ratio",
        "policy.per_host_moves",
        "watch.thresholds.suspect_after_s",
        "watch.thresholds.typo",
    ]


def test_a_table_that_is_missing_hides_nothing(etc: Path) -> None:
    text = (
        good(etc).replace("[agents]", "[agent]").replace("https://[fd00::12]:7443", "https://10.0.0.11:7443")
    )
    assert [error.split(": ")[0] for error in errors_of(etc, text)] == ["agents", "hosts.h2.agent", "agent"]


def test_leaving_out_what_is_wrong_causes_no_mistakes_of_its_own(etc: Path) -> None:
    text = good(etc).replace(f'cert = "{etc}/api.pem"', "cert = 3")
    text = text.replace("unreachable_after_s = 8", 'unreachable_after_s = "8"').replace(
        "suspect_after_s = 2", "suspect_after_s = 11"
    )
    assert [error.split(": ")[0] for error in errors_of(etc, text)] == [
        "api.cert",
        "watch.thresholds.unreachable_after_s",
    ]


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ('listen = "127.0.0.1:0"', 'listen = "here"', "HOST:PORT"),
        ('listen = "127.0.0.1:0"', 'listen = "10.0.0.1:7440"\nplain = true', "loopback"),
        (
            '[hosts.h2]\nagent = "https://[fd00::12]:7443"',
            '[hosts."h 2"]\nagent = "https://h2:1"',
            "host name",
        ),
        ("https://[fd00::12]:7443", "https://10.0.0.11:7443", "the agent of h1 already"),
        ("https://[fd00::12]:7443", "https://h2", "with a port"),
        ("https://[fd00::12]:7443", "https://h2:99999", "Port out of range"),
        ("https://[fd00::12]:7443", "https://h2:0", "with a port"),
        ("https://[fd00::12]:7443", "https://h2:1#x", "https://ADDRESS:PORT"),
        ("https://[fd00::12]:7443", "https://h 2:1", "name or an IP address"),
        ('options = { cipher = "3" }', 'options = { colour = "3" }', "no option colour"),
        ('user = "admin"', 'user = "admin"\nagent = "fence_ipmilan"', "command line"),
        ("unreachable_after_s = 8", "unreachable_after_s = 1", "unreachable_after_s"),
        ("per_host_moves = 3", "per_host_moves = 0", "equal to 1"),
        ("/state", "/nowhere", "not a directory"),
    ],
)
def test_values_that_make_no_sense(etc: Path, before: str, after: str, word: str) -> None:
    text = good(etc)
    assert before in text
    errors = errors_of(etc, text.replace(before, after, 1))
    assert len(errors) == 1
    assert word in errors[0]


def test_no_host_is_no_cluster(etc: Path) -> None:
    assert "at least one" in "".join(errors_of(etc, good(etc).split("[hosts.h1]")[0] + "[hosts]\n"))


def test_tls_without_plain_needs_a_certificate(etc: Path) -> None:
    text = good(etc).replace(f'cert = "{etc}/api.pem"\n', "")
    assert errors_of(etc, text) == ["api.cert: required unless plain = true"]
    (etc / "migrd.toml").write_text(text.replace("[api]", "[api]\nplain = true"))
    assert load_daemon(etc / "migrd.toml").api_tls is None


def test_a_key_that_does_not_fit_its_certificate(etc: Path) -> None:
    shutil.copy(etc / "migrd.key", etc / "api.key")
    errors = errors_of(etc, good(etc))
    assert len(errors) == 1
    assert errors[0].startswith("api.cert: ")


@pytest.mark.parametrize("token", ["", "short", "has a blank in the middle of it", "x" * 5000, "ü" * 30])
def test_a_token_that_is_none_is_refused_and_not_repeated(etc: Path, token: str) -> None:
    (etc / "token").write_text(token)
    errors = errors_of(etc, good(etc))
    assert errors[0].startswith("api.token_file: ")
    assert not token or token not in errors[0]


def test_a_secret_of_somebody_else_is_refused(etc: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    os.chown(etc / "token", 12345, 12345)
    assert "another user" in errors_of(etc, good(etc))[0]


@pytest.mark.parametrize("word", ["", "x", ":1", "h:port", "h:70000", "h:²", "::1:7440", "unix:relative"])
def test_addresses_that_cannot_be_listened_on(word: str) -> None:
    with pytest.raises(ValueError):
        parse_listen(word)


def test_addresses() -> None:
    assert parse_listen("[::1]:7440").local
    assert parse_listen("unix:/run/x").local
    assert parse_listen("localhost:1").local
    assert not parse_listen("0.0.0.0:7440").local


@pytest.mark.parametrize("check", [["--check"], []])
def test_the_daemon_exits_2_before_any_port_is_opened(etc: Path, check: list[str]) -> None:
    """A broken file: every error on stderr, exit 2, no journal, no socket."""
    socket = etc.parent / "api.sock"
    text = good(etc).replace("127.0.0.1:0", f"unix:{socket}").replace("[policy]", "[polic]")
    (etc / "migrd.toml").write_text(text)
    ended = subprocess.run(
        [Path(sys.executable).with_name("migrd"), "--config", etc / "migrd.toml", *check],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},  # the code beside these tests
    )
    assert ended.returncode == 2
    assert f"{etc}/migrd.toml: polic: unknown key" in ended.stderr
    assert list((etc.parent / "state").iterdir()) == []
    assert not socket.exists()


def test_check_of_a_good_file_is_0_and_starts_nothing(etc: Path) -> None:
    (etc / "migrd.toml").write_text(good(etc))
    ended = subprocess.run(
        [Path(sys.executable).with_name("migrd"), "--config", etc / "migrd.toml", "--check"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},  # the code beside these tests
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "2 hosts" in ended.stdout
    assert list((etc.parent / "state").iterdir()) == []


def _keys(cls: type, prefix: str) -> Iterator[tuple[str, object]]:
    """(key, default) of every leaf of a section."""
    for each in dataclasses.fields(cls):
        value = each.default if each.default is not dataclasses.MISSING else None
        if each.default_factory is not dataclasses.MISSING:
            value = each.default_factory()
        if dataclasses.is_dataclass(value):
            yield from _keys(type(value), f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, value


def test_the_document_has_every_key_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "CONFIG.md").read_text()
    documented: dict[str, str] = {}
    for keys, defaults in re.findall(r"^\| (`\w+\..*?) \| (.*?) \|", text, re.MULTILINE):
        documented |= dict(zip(re.findall(r"`([\w.]+)`", keys), defaults.split(", "), strict=True))
    wanted: dict[str, object] = {}
    sections = {"policy.": Policy, "moves.": MovesConfig, "watch.": WatchPolicy, "state.keep.": Keep}
    for prefix, cls in sections.items():
        wanted |= dict(_keys(cls, prefix))
    shown = {key: "no limit" if value is None else str(value) for key, value in wanted.items()}
    assert documented == shown
