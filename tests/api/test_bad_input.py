"""Bad input and bad tokens: a problem document that names every mistake, and nothing is asked of the core."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from migrd.operations import OperationState
from tests.api.conftest import TOKEN, Surface
from tests.api.scripted import drain

DRAIN = "/v1/hosts/h1/drain"


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b'{"power_off": nope}', b"[" * 5000, b"{} {}"])
async def test_what_is_no_json_is_400(surface: Surface, text: bytes) -> None:
    problem = await surface.call("POST", DRAIN, 400, data=text)
    assert problem["type"] == "bad-json"
    assert surface.control.asked == []


@pytest.mark.parametrize("text", [b"null", b"[]", b"3", b'"x"', b"true"])
async def test_json_that_is_no_object_is_422(surface: Surface, text: bytes) -> None:
    assert (await surface.call("POST", DRAIN, 422, data=text))["type"] == "bad-fields"


async def test_every_wrong_field_is_named_with_its_path(surface: Surface) -> None:
    body = {"powr_off": True, "power_off": "yes", "allow_stop": ["web", 3], "dry_run": 1}
    problem = await surface.post(DRAIN, body, 422)
    assert problem["reasons"] == [
        "power_off: Input should be a valid boolean",
        "allow_stop.1: Input should be a valid string",
        "dry_run: Input should be a valid boolean",
        "powr_off: unknown key",
    ]
    assert surface.control.asked == []


async def test_each_body_refuses_what_it_does_not_know(surface: Surface) -> None:
    for path in (
        "/v1/hosts/h1/undrain",
        "/v1/hosts/h1/power",
        "/v1/vms/web/migrate",
        "/v1/operations/op-1/cancel",
        "/v1/operations/op-1/resume",
    ):
        problem = await surface.post(path, {"force": True}, 422)
        assert "force: unknown key" in problem["reasons"]  # type: ignore[operator]
    problem = await surface.post("/v1/hosts/h1/power", {"action": "cycle"}, 422)
    assert "action" in str(problem["reasons"])
    await surface.post("/v1/hosts/h1/power", {}, 422)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_body_that_cannot_be_decoded_is_400(surface: Surface, coding: str) -> None:
    problem = await surface.call("POST", DRAIN, 400, data=b"garbage", headers={"Content-Encoding": coding})
    assert problem["type"] == "bad-request"
    assert surface.control.asked == []


async def test_an_expectation_nobody_can_meet_is_417(surface: Surface) -> None:
    problem = await surface.call("POST", DRAIN, 417, data=b"{}", headers={"Expect": "wonders"})
    assert (problem["type"], problem["status"]) == ("bad-request", 417)
    assert surface.seen.requests == [("POST", "/v1/hosts/{host}/drain", 417)]
    surface.control.add(drain("op-1", OperationState.PENDING))
    await surface.call("POST", DRAIN, 202, data=b"{}", headers={"Expect": "100-continue"})


async def test_a_body_over_1_mib_is_413(surface: Surface) -> None:
    problem = await surface.call("POST", DRAIN, 413, data=b" " * (1 << 20) + b"{}")
    assert problem["type"] == "too-large"


async def test_a_body_of_exactly_1_mib_is_read(surface: Surface) -> None:
    text = b'{"x":1}'
    await surface.call("POST", DRAIN, 422, data=b" " * ((1 << 20) - len(text)) + text)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/operations?limit=0",
        "/v1/operations?limit=1001",
        "/v1/operations?limit=-1",
        "/v1/operations?limit=many",
        "/v1/operations?limit=%C2%B2",
        "/v1/operations?open=perhaps",
        "/v1/operations?limit=1&limit=2",
        "/v1/operations?colour=red",
        "/v1/events?after=x",
        "/v1/hosts?x=1",
    ],
)
async def test_wrong_query_parameters_are_400(surface: Surface, path: str) -> None:
    problem = await surface.get(path, 400)
    assert problem["type"] == "bad-request"
    assert problem["reasons"]


async def test_paths_and_methods_that_do_not_exist(surface: Surface) -> None:
    assert (await surface.get("/v1/nothing", 404))["type"] == "not-found"
    async with surface.http.delete(surface.url + "/v1/hosts") as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, POST"
        assert (await answer.json(content_type="application/problem+json"))["type"] == "method-not-allowed"
    assert ("GET", "none", 404) in surface.seen.requests


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "missing"),
        ("", "missing"),
        ("Bearer", "missing"),
        ("Bearer ", "missing"),
        (f"Basic {TOKEN}", "missing"),
        ("Bearer wrong", "wrong"),
        (f"Bearer {TOKEN}x", "wrong"),
        (f"Bearer {TOKEN[:-1]}", "wrong"),
        ("Bearer ü", "wrong"),
    ],
)
async def test_without_the_token_nothing_answers(surface: Surface, header: str | None, reason: str) -> None:
    surface.http.headers.clear()
    headers = {} if header is None else {"Authorization": header}
    for method, path in (("GET", "/v1/hosts"), ("POST", DRAIN), ("GET", "/metrics"), ("GET", "/v1/nothing")):
        async with surface.http.request(method, surface.url + path, headers=headers) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            document = await answer.text()
            assert TOKEN not in document
    assert surface.seen.failures == [reason] * 4
    assert surface.control.asked == []


@pytest.mark.parametrize(("header", "reason"), [("", "missing"), ("Bearer not-the-token", "wrong")])
async def test_i17_a_refused_token_is_logged_with_who_and_what_and_not_itself(
    surface: Surface, header: str, reason: str
) -> None:
    """A wrong one may be the right one of another daemon."""
    with structlog.testing.capture_logs() as lines:
        await surface.call("POST", DRAIN, 401, headers={"Authorization": header})
    (line,) = [line for line in lines if line["event"] == "request refused"]
    assert (line["reason"], line["path"], line["remote"]) == (f"token {reason}", DRAIN, "127.0.0.1")
    assert line["log_level"] == "warning"
    assert "not-the-token" not in str(lines)


async def test_the_token_is_asked_for_before_the_body_is_read(surface: Surface) -> None:
    """A stranger cannot make the daemon wait for, or hold, a body."""
    host, port = surface.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {DRAIN} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
    line = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    assert b" 401 " in line


async def test_requests_are_counted_by_template(surface: Surface) -> None:
    await surface.get("/v1/hosts/h1")
    await surface.get("/v1/hosts/h9", 404)
    assert surface.seen.requests == [("GET", "/v1/hosts/{host}", 200), ("GET", "/v1/hosts/{host}", 404)]
    async with surface.http.request("PROPFIND", surface.url + "/v1/hosts") as answer:
        assert answer.status == 405
    assert surface.seen.requests[-1] == ("other", "none", 405)
