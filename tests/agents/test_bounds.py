"""Numbers out of range are the caller's mistake: 400 with the path, and the agent goes on as before."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agents.protocol import MAX_INTEGER, Abort, Attempt
from agents.wire import BadDocument, read_request
from tests.agents.conftest import Certificates, StartWorld
from tests.agents.test_server import raw, sweep

MOVE = {"kind": "migrate-domain", "uuid": "u", "target_uri": "a", "target_address": "b"}


def document(command: dict[str, Any] | None = None, **changes: Any) -> bytes:
    row = {"operation": "op1", "step": "s", "attempt": 1, "epoch": 1, "command": command or MOVE, **changes}
    return json.dumps(row).encode()


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (document(attempt=10**9), "attempt"),
        (document(attempt=2**64), "attempt"),
        (document(attempt=-1), "attempt"),
        (document(epoch=MAX_INTEGER + 1), "epoch"),
        (document(epoch=2**200), "epoch"),
        (document(epoch=-1), "epoch"),
        (document({**MOVE, "downtime_limit_ms": 0}), "downtime_limit_ms"),
        (document({**MOVE, "downtime_limit_ms": 2**64}), "downtime_limit_ms"),
        (document({**MOVE, "bandwidth_bps": 0}), "bandwidth_bps"),
        (document({**MOVE, "bandwidth_bps": 2**64}), "bandwidth_bps"),
        (document({**MOVE, "deadline_s": 0}), "deadline_s"),
        (document({**MOVE, "deadline_s": 1e300}), "deadline_s"),
        (document({**MOVE, "deadline_s": float("nan")}), "deadline_s"),
        (document({**MOVE, "deadline_s": float("inf")}), "deadline_s"),
        (document({"kind": "shutdown-domain", "uuid": "u", "deadline_s": float("inf")}), "deadline_s"),
    ],
)
def test_numbers_out_of_range_are_named_with_their_path(body: bytes, path: str) -> None:
    with pytest.raises(BadDocument) as caught:
        read_request(Attempt, body)
    assert any(path in error.split(":")[0] for error in caught.value.errors)


def test_what_is_usual_is_in_range() -> None:
    assert (
        read_request(Attempt, document({**MOVE, "bandwidth_bps": 1 << 20, "deadline_s": 3600.0})).epoch == 1
    )
    assert read_request(Abort, b'{"epoch": 9007199254740992}').epoch == MAX_INTEGER
    with pytest.raises(BadDocument):
        read_request(Abort, b'{"epoch": 9007199254740993}')


async def test_i4_an_absurd_epoch_neither_breaks_nor_poisons_the_agent(
    start: StartWorld, certificates: Certificates
) -> None:
    async with start() as world:
        for epoch in (2**63 - 1, 2**63, 2**64):
            body = document({"kind": "sweep-target", "uuid": "u"}, epoch=epoch)
            status, problem = await raw(world, certificates.migrd, "POST", "/v1/attempts", body)
            assert (status, problem["type"]) == (400, "bad-request")
            assert "epoch" in str(problem["errors"])
        status, _ = await raw(
            world, certificates.migrd, "POST", "/v1/attempts/op/s/1/abort", b'{"epoch": 9223372036854775808}'
        )
        assert status == 400
        await world.client.submit(sweep(epoch=1))  # still the highest


async def test_a_wait_that_is_no_number_is_named(start: StartWorld, certificates: Certificates) -> None:
    async with start() as world:
        await world.client.submit(sweep())
        for word in ("nan", "x", "-nan"):
            status, problem = await raw(
                world, certificates.migrd, "GET", f"/v1/attempts/op1/s1/1?wait_s={word}"
            )
            assert (status, problem["errors"]) == (400, ["wait_s: not a number"])
