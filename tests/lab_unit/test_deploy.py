"""A deploy that was interrupted is repeated: what is whole is kept, what is not is made anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from labkit.deploy import _certificates, certificates_to_make
from labkit.layout import Layout

LAYOUT = Layout(name="deploy", slot=0, hosts=("h1", "h2"))
DAEMON = {"migrd.pem", "migrd.key", "api.pem", "api.key", "token"}
HOSTS = {"h1.pem", "h1.key", "h2.pem", "h2.key"}
ALL = {"ca.pem", "ca.key", *DAEMON, *HOSTS}


def made(there: set[str]) -> list[str]:
    words = [words for words, _ in certificates_to_make(LAYOUT, there)]
    return [f"{verb} {names[0]}" if verb == "host" else verb for verb, *names in words]


def test_what_is_missing_is_made_in_the_order_that_works() -> None:
    assert made(set()) == ["init", "daemon", "host h1", "host h2"]
    assert made(ALL) == []


@pytest.mark.parametrize("missing", sorted(DAEMON))
def test_a_half_made_daemon_is_made_anew(missing: str) -> None:
    assert made(ALL - {missing}) == ["daemon"]


@pytest.mark.parametrize("missing", ["h2.pem", "h2.key"])
def test_a_half_made_host_is_made_anew(missing: str) -> None:
    assert made(ALL - {missing}) == ["host h2"]


@pytest.mark.parametrize("missing", ["ca.pem", "ca.key"])
def test_under_a_new_authority_everything_is_made_anew(missing: str) -> None:
    assert made(ALL - {missing}) == ["init", "daemon", "host h1", "host h2"]


def test_an_interrupted_deploy_is_repeated_with_the_real_make_certs() -> None:
    """As a kill leaves it: the key of one host is in its place, its certificate is not."""
    pki = _certificates(LAYOUT)

    def whole() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in Path(pki).iterdir()}

    before = whole()
    assert before.keys() == ALL
    (pki / "h1.pem").unlink()
    _certificates(LAYOUT)
    after = whole()
    assert after.keys() == ALL
    assert {name for name in ALL if before[name] != after[name]} == {"h1.pem", "h1.key"}
