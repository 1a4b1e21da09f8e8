"""Usage, tokens, certificates, and a daemon that is not there: the exit code and the next thing to type."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from migrd.api.app import build_app
from migrd.api.listen import Listen
from migrd.api.server import serving
from migrd.cli import fmt
from migrd.cli.main import wants_json
from migrd.config import _server_tls
from tests.cli.conftest import TOKEN, Cli

MAKE_CERTS = Path(__file__).parents[2] / "deploy" / "pki" / "make-certs"


async def test_usage_is_2_and_a_document_when_json_was_asked_for(cli: Cli) -> None:
    wrong = [
        "dran h1",
        "drain",
        "drain h1 --force",
        "ops --limit 0",
        "migrate web --to",
        "op",
        "-o json dran h1",
    ]
    *texts, document = await cli.run_each(wrong)
    for command, ended in zip(wrong, texts, strict=False):
        assert (ended.code, ended.out) == (2, ""), command
        assert "--help" in ended.err, command
    assert document.code == 2
    assert "Did you mean 'drain'" in document.document["detail"]


async def test_an_argument_that_is_no_utf_8_is_usage(cli: Cli) -> None:
    wrong = os.fsdecode(b"h\xff")
    commands = [("drain", wrong), ("migrate", "web", "--to", wrong), ("-o", "json", "vm", "show", wrong)]
    for ended in await cli.run_each(commands):
        assert (ended.code, ended.err) == (2, "migrctl: argument h� is not UTF-8\n")
    assert ended.document["reasons"] == ["argument h� is not UTF-8"]
    two = await cli.run("drain", wrong, "--allow-stop", wrong + "2")
    assert two.err.count("is not UTF-8") == 2
    assert cli.control.asked == []


async def test_an_address_that_is_no_utf_8_can_be_told_as_json(cli: Cli) -> None:
    ended = await cli.run("-o", "json", "status", MIGRD_URL=os.fsdecode(b"unix:/\xff"))
    assert (ended.code, ended.document["type"]) == (4, "unreachable")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
async def test_a_pipe_that_was_closed_does_not_hide_an_error(cli: Cli, closed: str) -> None:
    """The exit code tells it, and what can still be written is."""
    await cli.down()
    ended = await cli.run_without(closed, "-o", "json", "status")
    assert ended.code == 4
    if closed == "stdout":
        assert "Traceback" not in ended.err
        assert "does not answer" in ended.err
    else:
        assert ended.document["type"] == "unreachable"


async def test_a_reader_that_has_enough_ends_a_command_quietly(cli: Cli) -> None:
    for command in (("hosts",), ("-o", "json", "hosts"), ("--help",)):
        ended = await cli.run_without("stdout", *command)
        assert (ended.code, ended.err) == (1, ""), command


async def test_help_is_0(cli: Cli) -> None:
    ended = await cli.run("drain", "--help")
    assert ended.code == 0
    assert "--allow-stop VM" in ended.out


async def test_no_daemon_is_4_and_says_where_it_looked(cli: Cli) -> None:
    await cli.down()
    text, document = await cli.run_each(["status", "status -o json"])
    assert (text.code, document.code) == (4, 4)
    assert cli.environment["MIGRD_URL"] in text.err
    assert "systemctl status migrd" in text.err
    assert document.document["type"] == "unreachable"


async def test_tokens(cli: Cli, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-token-0123456789")
    refused = await cli.run("--token-file", str(wrong), "hosts")
    assert refused.code == 3
    assert "MIGRD_TOKEN_FILE" in refused.err
    missing = await cli.run("--token-file", str(tmp_path / "absent"), "hosts")
    assert missing.code == 2
    assert "No such file" in missing.err
    wrong.write_text("two\nlines")
    assert (await cli.run("--token-file", str(wrong), "hosts")).code == 2


async def test_the_token_never_crosses_a_network_in_plain_text(cli: Cli) -> None:
    ended = await cli.run("--url", "http://192.0.2.1:7440", "hosts")
    assert ended.code == 2
    assert "plain text" in ended.err
    for url in ("ftp://x", "https://", "https://h:port", "https://h:1/path"):
        assert (await cli.run("--url", url, "hosts")).code == 2


async def test_https_with_the_authority_and_not_without(cli: Cli, tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    for word in ("init", "daemon"):
        subprocess.run([MAKE_CERTS, word, pki], check=True, capture_output=True, timeout=60)  # noqa: ASYNC221
    tls = _server_tls(pki / "api.pem", pki / "api.key")
    async with serving(build_app(cli.api), Listen(host="127.0.0.1"), tls) as url:
        good = await cli.run("--url", url, "--ca", str(pki / "ca.pem"), "hosts")
        assert good.code == 0, good.err
        bad = await cli.run("--url", url, "hosts")
        assert bad.code == 4
        assert "MIGRD_CA" in bad.err
    ended = await cli.run("--url", url, "--ca", str(tmp_path / "absent"), "hosts")
    assert ended.code == 2


async def test_a_unix_socket(cli: Cli, tmp_path: Path) -> None:
    async with serving(build_app(cli.api), Listen(path=tmp_path / "api.sock"), None) as url:
        ended = await cli.run("hosts", MIGRD_URL=url)
        assert ended.code == 0, ended.err
    assert TOKEN not in ended.out + ended.err


def test_json_is_recognised_however_it_is_written() -> None:
    for words in (["-o", "json"], ["-ojson"], ["--output", "json"], ["--output=json"], ["x", "-o=json"]):
        assert wants_json(words)
    assert not wants_json(["-o", "text", "json"])


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (fmt.size(0), "0 B"),
        (fmt.size(1536), "1.5 KiB"),
        (fmt.size(300 << 20), "300 MiB"),
        (fmt.size(5 << 40), "5.0 TiB"),
        (fmt.seconds(None), "-"),
        (fmt.seconds(0.44), "0.4 s"),
        (fmt.seconds(59.7), "1 min 00 s"),
        (fmt.seconds(185), "3 min 05 s"),
        (fmt.seconds(7800), "2 h 10 min"),
        (fmt.plain("a\x1b[31m\tb"), "a�[31m�b"),
        (fmt.count(1, "guest"), "1 guest"),
    ],
)
def test_numbers_and_words(got: str, wanted: str) -> None:
    assert got == wanted
