"""Asking for work: 202 and an operation, a plan, or every reason why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrd.control import DrainRequest, MigrateRequest, UndrainRequest
from migrd.host_config import Bmc, HostConfig
from migrd.operations import Operation, OperationKind, OperationState
from migrd.ports import JournalReadOnly
from storage.errors import Failed, Retryable, Unknown
from tests.api.conftest import Surface
from tests.api.scripted import BLOCKED, DB, IDLE, REFUSED, TWIN_A, TWIN_B, WEB, drain, move


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
        (JournalReadOnly("the journal cannot be written: disk is full"), 503, "journal-read-only"),
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
    problem = await surface.post("/v1/vms/nobody/migrate", {"to": "h9"}, 404)
    assert [reason.split("'")[1] for reason in problem["reasons"]] == ["nobody", "h9"]  # type: ignore[attr-defined]
    assert surface.control.asked == []


async def test_every_unclear_consent_and_what_else_is_against_the_drain(surface: Surface) -> None:
    """Nothing is begun, and the answer of the planner is not lost behind the first wrong name."""
    surface.control.plan = BLOCKED
    body = {"allow_stop": ["nobody", "web", "twin", "noone"]}
    problem = await surface.post("/v1/hosts/h1/drain", body, 409)
    reasons = problem["reasons"]
    assert isinstance(reasons, list)
    assert problem["type"] == "refused"
    assert [reason for reason in reasons if "nobody" in reason or "noone" in reason] == reasons[:3:2]
    assert TWIN_A in reasons[1]
    assert TWIN_B in reasons[1]
    assert "USB device" in reasons[3]
    assert surface.control.asked == [("plan_drain", "h1", DrainRequest(allow_stop=(WEB,)))]
    plan = await surface.post("/v1/hosts/h1/drain", {**body, "dry_run": True}, 200)
    assert len(plan["refusals"]) == 3  # type: ignore[arg-type]
    assert len(plan["blockers"]) == 2  # type: ignore[arg-type]


async def test_a_plan_names_who_stays(surface: Surface) -> None:
    plan = await surface.post("/v1/hosts/h1/drain", {"dry_run": True}, 200)
    assert plan["stays"] == [IDLE]
    assert plan["names"] == {IDLE: "idle"}


async def test_a_host_is_added_and_removed(surface: Surface) -> None:
    surface.control.add(
        Operation(id="op-1", kind=OperationKind.HOST, state=OperationState.DONE, subject="h4")
    )
    bmc = {"address": "b4", "user": "admin", "password_file": "/etc/migrd/b4", "options": {"cipher": "3"}}
    body = {"name": "h4", "agent": "https://h4:7443/", "bmc": bmc}
    assert (await surface.post("/v1/hosts", body))["kind"] == "host"
    assert (await surface.call("DELETE", "/v1/hosts/h4", 202))["id"] == "op-1"
    wanted = HostConfig(
        agent="https://h4:7443",
        bmc=Bmc(address="b4", user="admin", password_file=Path("/etc/migrd/b4"), options={"cipher": "3"}),
    )
    assert surface.control.asked == [("add_host", "h4", wanted), ("remove_host", "h4")]


async def test_a_host_is_checked_as_in_the_file_every_mistake_at_once(surface: Surface) -> None:
    bmc = {"address": "-x", "password_file": "/x", "port": 0, "options": {"colour": "3"}, "deadline_s": -1}
    problem = await surface.post("/v1/hosts", {"name": "h 4", "agent": "http://h4", "bmc": bmc, "x": 1}, 422)
    paths = [reason.split(": ")[0] for reason in problem["reasons"]]  # type: ignore[attr-defined]
    assert sorted(paths) == [
        "agent",
        "bmc.address",
        "bmc.deadline_s",
        "bmc.options.colour",
        "bmc.port",
        "bmc.user",
        "name",
        "x",
    ]
    assert "force: unknown key" in str(
        await surface.call("DELETE", "/v1/hosts/h4", 422, json={"force": True})
    )
    secret = {"password_file": "/x", "address": "b", "user": "u", "options": {"passwd": "hunter2"}}
    problem = await surface.post("/v1/hosts", {"name": "h4", "agent": "https://h:1", "bmc": secret}, 422)
    assert "hunter2" not in str(problem)  # I17
    assert surface.control.asked == []
