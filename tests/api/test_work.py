"""Asking for work: 202 and an operation, a plan, or every reason why not."""

from __future__ import annotations

import pytest

from migrd.control import DrainRequest, MigrateRequest, UndrainRequest
from migrd.operations import Operation, OperationKind, OperationState
from storage.errors import Failed, Retryable, Unknown
from tests.api.conftest import Surface
from tests.api.scripted import BLOCKED, DB, REFUSED, WEB, drain, move


async def test_a_drain_is_accepted_and_says_where_to_look(surface: Surface) -> None:
    surface.control.add(drain("op-1", OperationState.PENDING))
    body = {"power_off": True, "allow_stop": ["web", DB, "web"]}
    async with surface.http.post(surface.url + "/v1/hosts/h1/drain", json=body) as answer:
        assert answer.status == 202
        assert answer.headers["Location"] == "/v1/operations/op-1"
        assert (await answer.json())["state"] == "pending"
    # I5: consent travels by uuid, so that it cannot slide to another guest of the same name.
    assert surface.control.asked == [("drain", "h1", DrainRequest(power_off=True, allow_stop=(WEB, DB)))]


async def test_a_body_may_be_left_out(surface: Surface) -> None:
    surface.control.add(drain("op-1", OperationState.PENDING))
    await surface.post("/v1/hosts/h1/drain")
    assert surface.control.asked == [("drain", "h1", DrainRequest())]


@pytest.mark.parametrize(
    ("query", "body"), [("", {"dry_run": True}), ("?dry_run", {}), ("?dry_run=true", {})]
)
async def test_a_dry_run_answers_the_plan_and_starts_nothing(
    surface: Surface, query: str, body: dict[str, object]
) -> None:
    surface.control.plan = BLOCKED
    plan = await surface.call("POST", f"/v1/hosts/h1/drain{query}", 200, json=body)
    assert [move["target"] for move in plan["moves"]] == ["h2", "h2"]  # type: ignore[attr-defined]
    assert [blocker["reason"] for blocker in plan["blockers"]] == [  # type: ignore[attr-defined]
        "has the USB device 1d6b:0002",
        "h3 is suspect",
    ]
    plan = await surface.call("POST", f"/v1/vms/web/migrate{query}", 200, json=body)
    assert [call[0] for call in surface.control.asked] == ["plan_drain", "plan_migrate"]


async def test_every_kind_of_work_reaches_control(surface: Surface) -> None:
    control = surface.control
    control.add(move("op-1", "web", OperationState.PENDING))
    control.add(Operation(id="op-2", kind=OperationKind.UNDRAIN, state=OperationState.PENDING, subject="h1"))
    control.add(Operation(id="op-3", kind=OperationKind.POWER, state=OperationState.PENDING, subject="h1"))
    await surface.post("/v1/vms/web/migrate", {"to": "h2"})
    await surface.post(f"/v1/vms/{WEB}/migrate", {})
    await surface.post("/v1/vms/web/migrate", {"cold": True})
    await surface.post("/v1/vms/web/migrate", {"cold": "yes"}, 422)
    await surface.post("/v1/hosts/h1/undrain", {"restore": True})
    await surface.post("/v1/hosts/h1/power", {"action": "on"})
    await surface.post("/v1/operations/op-1/cancel")
    await surface.post("/v1/operations/op-1/resume", {})
    assert await surface.get("/v1/hosts/h1/power") == {"host": "h1", "power": "on"}
    assert control.asked == [
        ("migrate", WEB, MigrateRequest(to="h2")),
        ("migrate", WEB, MigrateRequest(to=None)),
        ("migrate", WEB, MigrateRequest(cold=True)),
        ("undrain", "h1", UndrainRequest(restore=True)),
        ("power", "h1", "on"),
        ("cancel", "op-1"),
        ("resume", "op-1"),
        ("power_status", "h1"),
    ]


async def test_a_refusal_carries_every_reason(surface: Surface) -> None:
    surface.control.refusal = REFUSED
    surface.control.add(drain("op-1", OperationState.PENDING))
    problem = await surface.post("/v1/hosts/h1/drain", {}, 409)
    assert problem["type"] == "refused"
    assert problem["title"] == "Conflict"
    assert problem["instance"] == "/v1/hosts/h1/drain"
    assert problem["reasons"] == list(REFUSED.reasons)
    assert "and 1 more" in str(problem["detail"])


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Retryable("h2: timeout"), 503, "unavailable"),
        (Failed("it broke"), 500, "failed"),
        (Unknown("reply lost"), 500, "failed"),
    ],
)
async def test_other_outcomes(surface: Surface, error: Exception, status: int, kind: str) -> None:
    surface.control.refusal = error
    surface.control.add(drain("op-1", OperationState.PENDING))
    problem = await surface.post("/v1/hosts/h1/drain", {}, status)
    assert (problem["type"], problem["reasons"]) == (kind, [str(error)])


async def test_a_bug_is_a_500_that_tells_nothing_of_the_inside(surface: Surface) -> None:
    surface.control.refusal = ZeroDivisionError("secret-thing")
    surface.control.add(drain("op-1", OperationState.PENDING))
    problem = await surface.post("/v1/hosts/h1/drain", {}, 500)
    assert problem["type"] == "internal"
    assert "secret-thing" not in str(problem)


async def test_unknown_names_are_refused_before_anything_is_asked(surface: Surface) -> None:
    await surface.post("/v1/hosts/h9/drain", {}, 404)
    await surface.post("/v1/hosts/h9/undrain", {}, 404)
    await surface.post("/v1/hosts/h9/power", {"action": "on"}, 404)
    await surface.get("/v1/hosts/h9/power", 404)
    await surface.post("/v1/vms/nobody/migrate", {}, 404)
    await surface.post("/v1/vms/web/migrate", {"to": "h9"}, 404)
    await surface.post("/v1/hosts/h1/drain", {"allow_stop": ["nobody"]}, 404)
    await surface.post("/v1/hosts/h1/drain", {"allow_stop": ["twin"]}, 409)
    assert surface.control.asked == []
