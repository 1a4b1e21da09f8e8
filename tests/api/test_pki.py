"""make-certs: what it makes works in real TLS, both ways, and nothing else does."""

from __future__ import annotations

import asyncio
import ssl
import stat
import subprocess
from pathlib import Path

import pytest

from agents.tls import TlsFiles, certificate_names, client_context, server_context

MAKE_CERTS = Path(__file__).parents[2] / "deploy" / "pki" / "make-certs"


def make(*words: object) -> subprocess.CompletedProcess[str]:
    argv = [str(MAKE_CERTS), *(str(word) for word in words)]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for words in (("init",), ("host", "h1", "127.0.0.1"), ("daemon", "migrd.example")):
        ended = make(words[0], folder, *words[1:])
        assert ended.returncode == 0, ended.stderr
    return folder


def agent(pki: Path, name: str = "h1") -> ssl.SSLContext:
    return server_context(TlsFiles(cert=pki / f"{name}.pem", key=pki / f"{name}.key", ca=pki / "ca.pem"))


def daemon(pki: Path) -> ssl.SSLContext:
    return client_context(TlsFiles(cert=pki / "migrd.pem", key=pki / "migrd.key", ca=pki / "ca.pem"))


async def shake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> frozenset[str]:
    """The names that the server sees in the client's certificate. Raises ssl.SSLError."""
    seen: asyncio.Future[frozenset[str]] = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(certificate_names(writer.get_extra_info("peercert")))
        writer.write(b"x")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server) as listening:
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
        try:
            if not await asyncio.wait_for(reader.read(1), 5):
                raise ssl.SSLError("closed")
        finally:
            writer.close()
        return await seen


async def test_daemon_and_agent_trust_each_other(pki: Path) -> None:
    for name in ("h1", "127.0.0.1"):
        assert "migrd" in await shake(agent(pki), daemon(pki), name)


async def test_an_agent_under_another_name_is_refused(pki: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        await shake(agent(pki), daemon(pki), "h2")


async def test_an_agents_certificate_commands_no_agent(pki: Path) -> None:
    """A host that was broken into must not command the others: its certificate is for serving only."""
    as_client = client_context(TlsFiles(cert=pki / "h1.pem", key=pki / "h1.key", ca=pki / "ca.pem"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await shake(agent(pki), as_client, "h1")


async def test_a_client_without_a_certificate_is_refused(pki: Path) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await shake(agent(pki), ssl.create_default_context(cafile=str(pki / "ca.pem")), "h1")


async def test_another_authority_is_refused(pki: Path, tmp_path: Path) -> None:
    for words in (("init",), ("daemon",)):
        assert make(words[0], tmp_path, *words[1:]).returncode == 0
    with pytest.raises(ssl.SSLError):
        await shake(agent(pki), daemon(tmp_path), "h1")


async def test_the_apis_certificate_covers_this_machine_and_the_names_given(pki: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "api.pem", pki / "api.key")
    client = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    for name in ("localhost", "127.0.0.1", "::1", "migrd.example"):
        await shake(context, client, name)


def test_every_secret_is_0600(pki: Path) -> None:
    secret = [file for file in pki.rglob("*") if file.suffix == ".key" or file.name == "token"]
    assert len(secret) == 5
    assert {stat.S_IMODE(file.stat().st_mode) for file in secret} == {0o600}
    assert not list(pki.rglob("tmp*"))


def test_nothing_is_overwritten_unless_asked_and_the_token_never(pki: Path, tmp_path: Path) -> None:
    make("init", tmp_path)
    make("daemon", tmp_path)
    key, token = tmp_path / "api.key", tmp_path / "token"
    before = (key.read_text(), token.read_text())
    ended = make("daemon", tmp_path)
    assert ended.returncode == 1
    assert "--force" in ended.stderr
    assert (key.read_text(), token.read_text()) == before
    assert make("daemon", tmp_path, "--force").returncode == 0
    assert key.read_text() != before[0]
    assert token.read_text() == before[1]
    assert make("init", tmp_path).returncode == 1


def test_mistakes_are_told(tmp_path: Path) -> None:
    ended = make("host", tmp_path, "h1")
    assert ended.returncode == 1
    assert f"make-certs init {tmp_path}" in ended.stderr
    make("init", tmp_path)
    for words in (
        ("host", "../x"),
        ("host", "h1", "a,DNS:evil"),
        ("daemon", "a\nb"),
        ("daemon", "IP:1.2.3.4"),
        ("host", "x" * 65),
        ("host", "api"),
    ):
        ended = make(words[0], tmp_path, *words[1:])
        assert ended.returncode == 1, words
        assert "neither a DNS name" in ended.stderr or "longer" in ended.stderr or "taken" in ended.stderr
    assert make("fly", tmp_path).returncode == 2
    assert make("init", tmp_path, "--days", "0").returncode == 2
    assert {file.name for file in tmp_path.iterdir()} == {"ca.pem", "ca.key"}
