"""agent.toml and the command: every mistake at once, exit 2, before a port is opened."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agents.config import AgentConfig, load_agent
from agents.ledger import only_user
from agents.listening import ListenError, only_listen_error
from agents.notify import notify, watchdog_s
from agents.toml_config import ConfigError, parse
from tests.agents.conftest import Certificates

GOOD = """
host = "h1"
migration_uri = "qemu+tls://h1/system"
migration_address = "tcp://10.0.1.11"
allowed_clients = ["migrd"]
libvirt_uri = "test:///default"
state_dir = "{state}"

[listen]
address = "127.0.0.1"
port = {port}

[tls]
cert = "{tls.cert}"
key = "{tls.key}"
ca = "{tls.ca}"
"""


def written(tmp_path: Path, certificates: Certificates, *, port: int = 0, more: str = "") -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(more + GOOD.format(state=tmp_path / "state", port=port, tls=certificates.agent))
    return path


def agent(*argv: str) -> list[str]:
    return [sys.executable, "-m", "agents.main", *argv]


def run_agent(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(agent(*argv), check=False, capture_output=True, text=True, timeout=60)


def test_a_good_file(tmp_path: Path, certificates: Certificates) -> None:
    config, _ = load_agent(written(tmp_path, certificates))
    assert (config.host, config.listen.port, config.limits.migrations) == ("h1", 0, 8)


def test_every_mistake_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            {
                "host": "h1",
                "heartbeats": 1,
                "allowed_clients": "migrd",
                "listen": {"address": "everywhere", "port": 1},
                "limits": {"attempts": 0, "ledger_days": float("nan")},
                "storage_s": 0,
                "tls": {"cert": "/c"},
            },
            AgentConfig,
        )
    text = str(caught.value)
    assert "storage_s: " in text, "also while required keys are missing"
    assert "limits.ledger_days: " in text
    for word in (
        "heartbeats: unknown key",
        "allowed_clients: ",
        "listen.address: 'everywhere' does not appear to be",
        "limits.attempts: ",
        "tls.key: required",
        "tls.ca: required",
        "migration_uri: required",
        "migration_address: required",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"heartbeat_s": 1.5}, "heartbeat_s: "),
        ({"allowed_clients": []}, "allowed_clients: at least one"),
        ({"migration_address": "10.0.0.1"}, "migration_address: expected tcp"),
        ({"host": "a b"}, "host: not a host name"),
    ],
)
def test_values_that_make_no_sense(changes: dict[str, object], word: str) -> None:
    document: dict[str, object] = {
        "host": "h1",
        "tls": {"cert": "/c", "key": "/k", "ca": "/a"},
        "allowed_clients": ["migrd"],
        "migration_uri": "qemu+tls://h1/system",
        "migration_address": "tcp://h1",
    }
    parse(document, AgentConfig)
    with pytest.raises(ConfigError, match=word):
        parse({**document, **changes}, AgentConfig)


def test_certificates_are_checked_too(tmp_path: Path, certificates: Certificates) -> None:
    path = written(tmp_path, certificates)
    path.write_text(path.read_text().replace(str(certificates.agent.key), str(certificates.migrd.key)))
    with pytest.raises(ConfigError, match="belong together"):
        load_agent(path)
    path.write_text(path.read_text().replace(str(certificates.migrd.key), "/nonexistent"))
    with pytest.raises(ConfigError, match=r"tls\.key: /nonexistent: No such file"):
        load_agent(path)


def test_wrong_keys_and_unreadable_files_together(tmp_path: Path, certificates: Certificates) -> None:
    path = written(tmp_path, certificates, more="heartbeat_s = nan\n")
    path.write_text(path.read_text().replace(str(certificates.agent.key), "/nonexistent"))
    with pytest.raises(ConfigError) as caught:
        load_agent(path)
    assert [error.split(": ")[0] for error in caught.value.errors] == ["heartbeat_s", "tls.key"]


def test_the_command_exits_2_with_every_mistake(tmp_path: Path, certificates: Certificates) -> None:
    path = written(tmp_path, certificates, more="nonsense = 1\nmore = 2\n")
    done = run_agent("--config", str(path))
    assert done.returncode == 2
    assert "nonsense: unknown key" in done.stderr
    assert "more: unknown key" in done.stderr
    assert not (tmp_path / "state").exists()


def test_check_says_good_and_starts_nothing(tmp_path: Path, certificates: Certificates) -> None:
    path = written(tmp_path, certificates)
    done = run_agent("--check", "--config", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "state").exists()


def test_the_command_runs_tells_systemd_and_stops_on_sigterm(
    tmp_path: Path, certificates: Certificates
) -> None:
    """The real program on libvirt's own test driver."""
    said = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    said.bind(str(tmp_path / "notify"))
    said.settimeout(60)
    process = subprocess.Popen(
        agent("--config", str(written(tmp_path, certificates))),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"},
    )
    try:
        first = {said.recv(100), said.recv(100)}
        assert first == {b"READY=1", b"WATCHDOG=1"}
        assert said.recv(100) == b"WATCHDOG=1"
        process.send_signal(signal.SIGTERM)
        while said.recv(100) != b"STOPPING=1":
            pass
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
        said.close()
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["event"] for line in lines if line["event"].startswith("agent")] == [
        "agent ready",
        "agent stopping",
        "agent stopped",
    ]


def test_a_second_agent_touches_nothing_of_the_first(tmp_path: Path, certificates: Certificates) -> None:
    """I4: it would take the attempts that run for those of a dead agent, and end their rows."""
    path = written(tmp_path, certificates)
    with only_user(tmp_path / "state"):
        done = run_agent("--config", str(path))
        assert not (tmp_path / "state" / "ledger.sqlite").exists()
    assert done.returncode == 1
    assert "in use by another migrd-agent: only one may run" in done.stderr


def last_words(log: str) -> dict[str, object]:
    """The last line, without its time."""
    found: dict[str, object] = json.loads(log.splitlines()[-1])
    return {key: value for key, value in found.items() if key != "timestamp"}


@pytest.mark.parametrize("key", ["listen", "metrics_listen"])
def test_a_taken_port_ends_the_command_with_one_line(
    tmp_path: Path, certificates: Certificates, key: str
) -> None:
    """No traceback of a loop that died: none did."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = written(tmp_path, certificates, port=port if key == "listen" else 0)
        if key == "metrics_listen":
            path.write_text(path.read_text() + f'[{key}]\naddress = "127.0.0.1"\nport = {port}\n')
        done = run_agent("--config", str(path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert last_words(done.stderr) == {
        "event": "agent cannot run",
        "error": f"{key}: cannot listen on 127.0.0.1 port {port}: Address already in use",
        "level": "error",
    }


def test_a_loop_that_died_meanwhile_is_not_passed_over() -> None:
    taken = ListenError("listen", "::1 port 1", OSError(errno.EADDRINUSE, "in use"))
    assert only_listen_error(ExceptionGroup("tasks", [taken])) is taken
    assert only_listen_error(ExceptionGroup("tasks", [taken, RuntimeError("a bug")])) is None


def test_notify_without_systemd_does_nothing(tmp_path: Path) -> None:
    assert not notify("READY=1", {})
    assert not notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert watchdog_s({}) is None
    assert watchdog_s({"WATCHDOG_USEC": "soon"}) is None
    assert watchdog_s({"WATCHDOG_USEC": "20000000"}) == 10
