"""The real migrd as a process: ready, watched, stopped, and never two on one journal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from migrd.daemon import _tasks

MIGRD = str(Path(sys.executable).with_name("migrd"))
MAKE_CERTS = Path(__file__).parents[2] / "deploy" / "pki" / "make-certs"
DEADLINE_S = 60.0


class Daemon:
    """A configured folder, and what systemd would hear from a daemon that runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "api.sock"
        self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard.bind(str(folder / "notify"))
        self.heard.settimeout(DEADLINE_S)
        self.started: list[subprocess.Popen[str]] = []
        for words in (("init",), ("daemon",)):
            subprocess.run(
                [MAKE_CERTS, words[0], folder / "pki"], check=True, capture_output=True, timeout=60
            )
        (folder / "state").mkdir()
        pki = folder / "pki"
        (folder / "migrd.toml").write_text(
            f'[api]\nlisten = "unix:{self.socket}"\nplain = true\ntoken_file = "{pki}/token"\n'
            f'[agents]\ncert = "{pki}/migrd.pem"\nkey = "{pki}/migrd.key"\nca = "{pki}/ca.pem"\n'
            f'[state]\ndir = "{folder}/state"\n'
            '[hosts.h1]\nagent = "https://127.0.0.1:1"\n[hosts.h2]\nagent = "https://127.0.0.1:2"\n'
        )

    def start(self) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(MAKE_CERTS.parents[2]),  # the code beside this test, whatever is installed
            "NOTIFY_SOCKET": str(self.folder / "notify"),
            "WATCHDOG_USEC": "2000000",
        }
        argv = [MIGRD, "--config", str(self.folder / "migrd.toml")]
        process = subprocess.Popen(argv, env=environment, text=True, stderr=subprocess.PIPE)
        self.started.append(process)
        return process

    def hear(self, wanted: str) -> None:
        while self.heard.recv(1000).decode() != wanted:
            pass

    async def get(self, path: str) -> tuple[int, str]:
        return await self.call("GET", path)

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        token = (self.folder / "pki" / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector, headers=headers) as http,
            http.request(method, "http://migrd" + path, json=body) as answer,
        ):
            return answer.status, await answer.text()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    try:
        yield made
    finally:
        for process in made.started:
            process.kill()
            process.wait(DEADLINE_S)
            if process.stderr is not None:
                process.stderr.close()
        made.heard.close()


async def test_ready_watched_and_stopped_cleanly(daemon: Daemon) -> None:
    process = daemon.start()
    await asyncio.to_thread(daemon.hear, "READY=1")
    await asyncio.to_thread(daemon.hear, "WATCHDOG=1")
    status, text = await daemon.get("/v1/hosts")
    assert status == 200
    assert [host["state"] for host in json.loads(text)["hosts"]] == ["unknown", "unknown"]  # nobody answers
    assert (await daemon.get("/readyz"))[0] == 200
    assert 'migrd_hosts{state="unknown"} 2.0' in (await daemon.get("/metrics"))[1]
    process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(daemon.hear, "STOPPING=1")
    _, log = await asyncio.to_thread(process.communicate, None, DEADLINE_S)
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events == ["daemon ready", "daemon stopping", "daemon stopped"]
    token = (daemon.folder / "pki" / "token").read_text().strip()
    assert token not in log  # I17


async def test_never_two_on_one_journal(daemon: Daemon) -> None:
    daemon.start()
    await asyncio.to_thread(daemon.hear, "READY=1")
    second = daemon.start()
    _, log = await asyncio.to_thread(second.communicate, None, DEADLINE_S)
    assert second.returncode == 1
    assert "in use by another migrd" in log
    assert (await daemon.get("/healthz"))[0] == 200


async def test_a_taken_address_ends_it_with_one_line(daemon: Daemon) -> None:
    """No traceback of a loop that died: none did."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = daemon.folder / "migrd.toml"
        config.write_text(config.read_text().replace(f"unix:{daemon.socket}", address))
        process = daemon.start()
        _, log = await asyncio.to_thread(process.communicate, None, DEADLINE_S)
    assert process.returncode == 1
    last = json.loads(log.splitlines()[-1])
    assert (last["event"], last["level"]) == ("daemon cannot run", "error")
    assert last["error"] == f"api.listen: cannot listen on {address}: Address already in use"
    assert "Traceback" not in log
    assert "exception" not in last


async def test_killed_and_started_again(daemon: Daemon) -> None:
    """kill -9 leaves a socket and a lock file behind: neither may stop the next start."""
    first = daemon.start()
    await asyncio.to_thread(daemon.hear, "READY=1")
    first.kill()
    first.wait(DEADLINE_S)
    daemon.start()
    await asyncio.to_thread(daemon.hear, "READY=1")
    assert (await daemon.get("/readyz"))[0] == 200


async def test_hosts_come_and_go_without_a_restart_and_survive_one(daemon: Daemon) -> None:
    async def hosts() -> dict[str, bool]:
        status, text = await daemon.get("/v1/hosts")
        assert status == 200
        return {host["name"]: host["has_bmc"] for host in json.loads(text)["hosts"]}

    process = daemon.start()
    await asyncio.to_thread(daemon.hear, "READY=1")
    secret = daemon.folder / "bmc"
    secret.write_text("hunter2\n")
    secret.chmod(0o644)
    bmc = {"address": "127.0.0.1", "port": 9, "user": "u", "password_file": str(secret), "deadline_s": 1}
    body = {"name": "h3", "agent": "https://127.0.0.1:3", "bmc": bmc}
    status, text = await daemon.call("POST", "/v1/hosts", {**body, "agent": "https://127.0.0.1:1"})
    assert status == 409
    assert "agent of h1" in text
    assert "chmod 0600" in text
    secret.chmod(0o600)
    assert (await daemon.call("POST", "/v1/hosts", body))[0] == 202
    assert await hosts() == {"h1": False, "h2": False, "h3": True}
    assert (await daemon.call("POST", "/v1/hosts", body))[0] == 409
    process.kill()
    process.wait(DEADLINE_S)
    process = daemon.start()
    await asyncio.to_thread(daemon.hear, "READY=1")
    assert await hosts() == {"h1": False, "h2": False, "h3": True}
    status, text = await daemon.call("DELETE", "/v1/hosts/h1")
    assert (status, "remove [hosts.h1] there" in text) == (409, True)
    assert (await daemon.call("DELETE", "/v1/hosts/h3"))[0] == 202
    assert await hosts() == {"h1": False, "h2": False}
    assert (await daemon.call("DELETE", "/v1/hosts/h3"))[0] == 404
    process.send_signal(signal.SIGTERM)
    _, log = await asyncio.to_thread(process.communicate, None, DEADLINE_S)
    assert process.returncode == 0
    assert "Traceback" not in log
    daemon.start()
    await asyncio.to_thread(daemon.hear, "READY=1")
    assert await hosts() == {"h1": False, "h2": False}


async def test_a_background_loop_that_dies_ends_everything() -> None:
    async def breaks() -> None:
        await asyncio.sleep(0)
        raise OSError("disk gone")

    async def returns() -> None:
        await asyncio.sleep(0)

    async def turns() -> None:
        await asyncio.Event().wait()

    for loop, error in ((breaks(), OSError), (returns(), RuntimeError)):
        with pytest.raises(ExceptionGroup) as caught:
            async with _tasks(broken=loop, fine=turns()):
                await asyncio.Event().wait()
        assert caught.group_contains(error)


async def test_leaving_stops_the_loops() -> None:
    stopped = asyncio.Event()

    async def turns() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with asyncio.timeout(DEADLINE_S), _tasks(fine=turns()):
        await asyncio.sleep(0)
    assert stopped.is_set()
