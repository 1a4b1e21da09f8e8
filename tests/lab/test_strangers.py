"""The wrong certificate or token gets nothing from the lab's own daemon and agents, and is counted."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.caller import Caller
from tests.lab.labctl import REPO, LabCtl, until
from tests.lab.reading import counter

pytestmark = pytest.mark.lab
AGENT_PORT = 7443


@pytest.fixture
def pki(lab_session: LabCtl) -> Path:
    return Path(lab_session.env["MIGRD_CA"]).parent


@pytest.fixture
def agent(lab_session: LabCtl) -> str:
    hosts = {host["name"]: host["management"] for host in lab_session.lab("env")["hosts"]}
    return f"https://{hosts['h1']}:{AGENT_PORT}"


@pytest.mark.parametrize(("token", "reason"), [(None, "missing"), ("not-the-token", "wrong")])
def test_a_wrong_token_is_refused_and_counted(
    lab_session: LabCtl, pki: Path, token: str | None, reason: str
) -> None:
    url, good = lab_session.env["MIGRD_URL"], (pki / "token").read_text().strip()
    caller = Caller(pki / "ca.pem")
    series = f'migrd_api_auth_failures_total{{reason="{reason}"}}'
    before = counter(caller.get(f"{url}/metrics", good)[1], series)
    status, said = caller.get(f"{url}/v1/hosts", token)
    assert status == 401
    assert f"the bearer token is {reason}" in said
    assert "h1" not in said
    assert counter(caller.get(f"{url}/metrics", good)[1], series) == before + 1


def refused(agent: str, pki: Path, reason: str, own: Path | None) -> None:
    daemon = Caller(pki / "ca.pem", pki / "migrd.pem")
    series = f'migrd_agent_auth_failures_total{{reason="{reason}"}}'
    before = counter(daemon.get(f"{agent}/metrics")[1], series)
    with pytest.raises(OSError, match=r"alert|reset|EOF|closed"):
        # TLS 1.3: the client may believe that it is connected until it reads
        Caller(pki / "ca.pem", own).get(f"{agent}/v1/report")
    until("counted", lambda: counter(daemon.get(f"{agent}/metrics")[1], series) == before + 1, deadline_s=10)


def test_no_client_certificate_is_refused_and_counted(agent: str, pki: Path) -> None:
    refused(agent, pki, "no-certificate", None)


def test_a_certificate_of_another_authority_is_refused_and_counted(
    agent: str, pki: Path, tmp_path: Path
) -> None:
    make = REPO / "deploy" / "pki" / "make-certs"
    for words in (["init", str(tmp_path)], ["daemon", str(tmp_path)]):
        subprocess.run([make, *words], check=True, capture_output=True)
    refused(agent, pki, "bad-certificate", tmp_path / "migrd.pem")


def test_an_agents_own_certificate_is_none_for_clients(agent: str, pki: Path) -> None:
    """h2's, signed by the right authority: an agent does not command agents."""
    refused(agent, pki, "bad-certificate", pki / "h2.pem")


def test_a_client_of_another_name_is_refused_and_counted(agent: str, pki: Path, tmp_path: Path) -> None:
    """Signed by the right authority for clients, but allowed_clients does not name it."""
    daemon = Caller(pki / "ca.pem", pki / "migrd.pem")
    series = 'migrd_agent_auth_failures_total{reason="name"}'
    before = counter(daemon.get(f"{agent}/metrics")[1], series)
    status, said = Caller(pki / "ca.pem", signed(pki, "backup", tmp_path)).get(f"{agent}/v1/report")
    assert status == 403
    assert "Not an allowed client" in said
    assert counter(daemon.get(f"{agent}/metrics")[1], series) == before + 1


def signed(pki: Path, name: str, folder: Path) -> Path:
    """A client certificate of the lab's authority, as somebody else in the house might have one."""
    key, cert = folder / f"{name}.key", folder / f"{name}.pem"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    authority = ["-CA", str(pki / "ca.pem"), "-CAkey", str(pki / "ca.key"), "-days", "2"]
    usage = ["-subj", f"/CN={name}", "-addext", "extendedKeyUsage=clientAuth"]
    plain = ["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*request, *authority, *usage, *plain], check=True, capture_output=True)
    time.sleep(1)  # valid from the second of its making on: the host's clock may be some milliseconds behind
    return cert
