"""Installs migrd in a running lab: certificates, configuration, systemd units where hosts have systemd.

On `uml` hosts the daemon runs on s1 and an agent on every other host, as the units of `systemd/` with one
drop-in that names this checkout's virtual environment (the hosts see it through their root). On `netns` hosts
there is no systemd: the same programs run as plain processes, the daemon on this machine.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from labkit import bmc, hosts, netns_host, process, state
from labkit.guest_image import CHECKOUT
from labkit.hosts import Host
from labkit.layout import BMC_USER, STORAGE_HOST, Layout
from labkit.sh import LabError, LabRefusedError, must, run
from labkit.state import Lab
from labkit.uml_host import UmlHost

API_PORT = 8443
AGENT_PORT = 7443
MIGRCTL_KEY = "migrctl"  # in Lab.extra: the environment that migrctl needs
_READY_DEADLINE_S = 90.0
_ETC = "/etc/migrd"

Files = Mapping[str, tuple[int, bytes]]  # path on a host -> mode and content


def deploy(lab: Lab, moves: int | None = None) -> dict[str, str]:
    """Install and start everything; returns migrctl's environment. May be repeated: restarts what runs.

    `moves`: the daemon's cap of moves per host; None for what suits the kind of host.

    Raises LabRefusedError without a virtual environment, LabError if a service does not come up.
    """
    layout = lab.layout
    venv = CHECKOUT / ".venv" / "bin"
    if not (venv / "migrd").exists():
        raise LabRefusedError(f"{venv}/migrd does not exist: run `make venv` first")
    pki = _certificates(layout)
    with ThreadPoolExecutor(2) as pool:
        for started in [pool.submit(_agent, lab, host, pki, venv) for host in layout.hosts]:
            started.result()
    _daemon(lab, pki, venv, moves or default_moves(layout))
    env = {
        "MIGRD_URL": f"https://{_api_address(layout)}:{API_PORT}",
        "MIGRD_CA": str(pki / "ca.pem"),
        "MIGRD_TOKEN_FILE": str(pki / "token"),
    }
    with state.edit(lab.name) as fresh:
        fresh.extra[MIGRCTL_KEY] = env
    _wait_ready(venv, env)
    return env


def _api_address(layout: Layout) -> str:
    if layout.kind == "uml":
        return layout.host_address(STORAGE_HOST, "management")
    return layout.gateway("management")


def _certificates(layout: Layout) -> Path:
    """One authority per lab; a certificate per host, one for the daemon, one for its API. May be repeated."""
    pki = layout.dir / "pki"
    there = {file.name for file in pki.iterdir()} if pki.exists() else set()
    to_make = certificates_to_make(layout, there)
    # First, so that what an interruption leaves is always missing, never an old file beside a new one.
    for file in {file for _, files in to_make for file in files}:
        (pki / file).unlink(missing_ok=True)
    for (verb, *names), _ in to_make:
        must([str(CHECKOUT / "deploy" / "pki" / "make-certs"), verb, str(pki), *names])
    return pki


def certificates_to_make(layout: Layout, there: Collection[str]) -> list[tuple[list[str], set[str]]]:
    """Pure: a verb of make-certs with its names, and its files, wherever one of these is not `there`.

    An interrupted deploy leaves some whole and one half-made. make-certs puts whole files in their place, so
    one that exists is good; but under a new authority nothing that the old one signed is.
    """
    wanted: list[tuple[list[str], set[str]]] = [
        (["init"], {"ca.pem", "ca.key"}),
        (
            ["daemon", _api_address(layout), STORAGE_HOST],
            {"migrd.pem", "migrd.key", "api.pem", "api.key", "token"},
        ),
    ]
    for host in layout.hosts:
        words = ["host", host, layout.host_address(host, "management")]
        wanted.append((words, {f"{host}.pem", f"{host}.key"}))
    new_authority = not {"ca.pem", "ca.key"} <= set(there)
    return [each for each in wanted if new_authority or not each[1] <= set(there)]


def agent_toml(layout: Layout, host: str) -> str:
    """agent.toml of a host: memory and disks travel over the storage network."""
    storage = layout.host_address(host, "storage")
    # A look at DRBD or libvirt costs a UML host many times what it costs a real one.
    looks = "inventory_s = 4.0\nstorage_s = 10.0\n" if layout.kind == "uml" else ""
    return f"""host = "{host}"
migration_uri = "qemu+tcp://{storage}/system"
migration_address = "tcp://{storage}"
allowed_clients = ["migrd"]
{looks}
[listen]
address = "{layout.host_address(host, "management")}"
port = {AGENT_PORT}

[tls]
cert = "{_ETC}/agent.pem"
key = "{_ETC}/agent.key"
ca = "{_ETC}/ca.pem"
"""


def default_moves(layout: Layout) -> int:
    """A UML host has one slow CPU: two guests that arrive at once keep each other waiting for it."""
    return 1 if layout.kind == "uml" else 2


def daemon_toml(layout: Layout, etc: str, state_dir: str, moves: int) -> str:
    """migrd.toml; `etc` holds certificates, token and BMC password."""
    tables = ""
    for host in layout.hosts:
        tables += (
            f'\n[hosts.{host}]\nagent = "https://{layout.host_address(host, "management")}:{AGENT_PORT}"\n'
        )
        tables += (
            f'\n[hosts.{host}.bmc]\naddress = "{layout.bmc_address(host)}"\nuser = "{BMC_USER}"\n'
            f'password_file = "{etc}/bmc-password"\noptions = {{ cipher = "3" }}\n'
        )
    return f"""[api]
listen = "{_api_address(layout)}:{API_PORT}"
cert = "{etc}/api.pem"
key = "{etc}/api.key"
token_file = "{etc}/token"

[agents]
cert = "{etc}/migrd.pem"
key = "{etc}/migrd.key"
ca = "{etc}/ca.pem"

[state]
dir = "{state_dir}"

[policy]
per_host_moves = {moves}
{tables}"""


def _agent(lab: Lab, name: str, pki: Path, venv: Path) -> None:
    layout = lab.layout
    host: Host = UmlHost(layout, name) if layout.kind == "uml" else netns_host.host(lab, name)
    files = {f"{_ETC}/agent.toml": (0o644, agent_toml(layout, name).encode())}
    for file, source in (("ca.pem", "ca.pem"), ("agent.pem", f"{name}.pem"), ("agent.key", f"{name}.key")):
        files[f"{_ETC}/{file}"] = (0o600, (pki / source).read_bytes())
    if layout.kind == "uml":
        put(host, {**files, **_unit("migrd-agent", venv)})
        _restart(host, "migrd-agent")
    else:
        put(host, files)
        start_netns_agent(lab, name)


def start_netns_agent(lab: Lab, name: str) -> None:
    """Start (again) the agent of a netns host: inside its PID namespace, so that a power cut takes it too."""
    layout = lab.layout
    _end(layout.name, f"agent-{name}")
    inside = netns_host.host(lab, name).enter()
    if inside is None:
        raise LabError(f"{name} is off")
    agent = [str(CHECKOUT / ".venv" / "bin" / "migrd-agent"), "--config", f"{_ETC}/agent.toml"]
    process.spawn(
        [*inside, *agent], lab=layout.name, role=f"agent-{name}", log=layout.dir / f"agent-{name}.log"
    )


def _daemon(lab: Lab, pki: Path, venv: Path, moves: int) -> None:
    layout = lab.layout
    if layout.kind == "netns":
        toml = layout.dir / "migrd.toml"
        toml.write_text(daemon_toml(layout, str(pki), str(layout.dir / "migrd-state"), moves))
        shutil.copy(bmc.password_file(layout), pki / "bmc-password")
        (layout.dir / "migrd-state").mkdir(mode=0o700, exist_ok=True)
        _end(layout.name, "migrd")
        argv = [str(venv / "migrd"), "--config", str(toml)]
        process.spawn(argv, lab=layout.name, role="migrd", log=layout.dir / "migrd.log")
        return
    host = UmlHost(layout, STORAGE_HOST)
    names = ("ca.pem", "api.pem", "api.key", "migrd.pem", "migrd.key", "token")
    files = {f"{_ETC}/{name}": (0o600, (pki / name).read_bytes()) for name in names}
    files[f"{_ETC}/bmc-password"] = (0o600, bmc.password_file(layout).read_bytes())
    files[f"{_ETC}/migrd.toml"] = (0o600, daemon_toml(layout, _ETC, "/var/lib/migrd", moves).encode())
    put(host, {**files, **_unit("migrd", venv)})
    _restart(host, "migrd")


def _unit(unit: str, venv: Path) -> Files:
    """The project's own unit, with the program's path of this checkout."""
    text = (CHECKOUT / "systemd" / f"{unit}.service").read_bytes()
    # The unit has a /tmp of its own; a checkout in /tmp is to be seen all the same.
    dropin = f"[Service]\nExecStart=\nExecStart={venv / unit}\nBindReadOnlyPaths={CHECKOUT}\n"
    place = f"/etc/systemd/system/{unit}.service"
    return {place: (0o644, text), f"{place}.d/checkout.conf": (0o644, dropin.encode())}


def _restart(host: Host, unit: str) -> None:
    verbs = ("daemon-reload", f"enable -q {unit}", f"restart --no-block {unit}")
    hosts.must(host, ["sh", "-c", " && ".join(f"systemctl {words}" for words in verbs)])


def put(host: Host, files: Files) -> None:
    """Write files on a host, all over one connection."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, (mode, data) in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode, entry.mtime = len(data), mode, int(time.time())
            tar.addfile(entry, io.BytesIO(data))
    hosts.must(host, ["tar", "-x", "-C", "/"], input=archive.getvalue())


def _end(lab: str, role: str) -> None:
    for leader in process.with_role(lab, role):
        process.kill_session(leader)


def _wait_ready(venv: Path, env: dict[str, str]) -> None:
    """Until migrctl says that every host is online; raises LabError with its last words."""
    end = time.monotonic() + _READY_DEADLINE_S
    said = ""
    while time.monotonic() < end:
        done = run([str(venv / "migrctl"), "-o", "json", "hosts"], env={**os.environ, **env})
        said = done.stdout + done.stderr
        if done.ok and all(host["state"] == "online" for host in json.loads(done.stdout)["hosts"]):
            return
        time.sleep(0.5)
    raise LabError(f"not every host is online after {_READY_DEADLINE_S:.0f} s: {said}")
