"""What the surface shows of the cluster."""

from __future__ import annotations

import dataclasses

from agents.protocol import DomainState
from migrd.control import Readiness
from migrd.operations import OperationState
from tests.api.conftest import Surface
from tests.api.scripted import DB, IDLE, TWIN_A, TWIN_B, drain, move


async def test_status_tells_what_is_wrong_and_what_goes_on(surface: Surface) -> None:
    surface.control.add(drain("op-1", OperationState.DONE))
    surface.control.add(drain("op-2", OperationState.RUNNING))
    surface.control.add(move("op-3", "web", OperationState.PARKED, reason="h2 is gone"))
    surface.control.ready = Readiness(ready=False, reasons=("the journal is read-only",))
    status = await surface.get("/v1/status")
    assert status["version"] == "1.2.3"
    assert status["ready"] is False
    assert status["reasons"] == ["the journal is read-only"]
    assert status["hosts"] == {"online": 2, "suspect": 1}
    assert status["guests"] == {"running": 4, "shutoff": 1}  # db is on two hosts and counts once
    assert [op["id"] for op in status["open"]] == ["op-2"]  # type: ignore[attr-defined]
    assert [op["id"] for op in status["parked"]] == ["op-3"]  # type: ignore[attr-defined]
    assert status["problems"] == ["h3: libvirt does not answer", "drbd:web/0 on h2: 12% out of sync"]


async def test_hosts_in_order_with_what_they_carry(surface: Surface) -> None:
    hosts = (await surface.get("/v1/hosts"))["hosts"]
    shown = [(h["name"], h["state"], h["guests"], h["guests_off"], h["heard_ago_s"]) for h in hosts]  # type: ignore[attr-defined]
    assert shown == [("h1", "online", 3, 0, 0.5), ("h2", "online", 2, 1, 0.0), ("h3", "suspect", 0, 0, None)]


async def test_one_host_in_full(surface: Surface) -> None:
    surface.control.add(move("op-1", "db", OperationState.RUNNING))
    surface.control.add(move("op-2", "web", OperationState.DONE))
    host = await surface.get("/v1/hosts/h1")
    assert host["bridges"] == ["br0", "br1"]
    assert [guest["name"] for guest in host["guests"]] == ["db", "twin", "web"]  # type: ignore[attr-defined]
    assert [volume["name"] for volume in host["volumes"]] == ["drbd:web/0"]  # type: ignore[attr-defined]
    assert [op["id"] for op in host["operations"]] == ["op-1"]  # type: ignore[attr-defined]


async def test_a_guest_in_flight_is_one_guest_where_it_runs(surface: Surface) -> None:
    surface.control.add(move("op-1", "db", OperationState.RUNNING))
    guest = await surface.get(f"/v1/vms/{DB}")
    assert (guest["host"], guest["also_on"], guest["state"]) == ("h1", ["h2"], "running")
    assert guest["operation"] == "op-1"
    assert await surface.get("/v1/vms/db") == guest


async def test_every_state_of_a_guest_can_be_shown(surface: Surface) -> None:
    """A state that the view forgot would turn the whole list into an error 500."""
    cluster = surface.control.snapshot
    for state in DomainState:
        changed = tuple(dataclasses.replace(guest, state=state) for guest in cluster.guests)
        surface.control.snapshot = dataclasses.replace(cluster, guests=changed)
        vms = (await surface.get("/v1/vms"))["vms"]
        assert {vm["state"] for vm in vms} == {state.value}  # type: ignore[attr-defined]


async def test_guests_of_one_host(surface: Surface) -> None:
    vms = (await surface.get("/v1/vms?host=h2"))["vms"]
    assert [vm["uuid"] for vm in vms] == [DB, IDLE, TWIN_B]  # type: ignore[attr-defined]
    problem = await surface.get("/v1/vms?host=h9", 404)
    assert "no host 'h9'" in str(problem["detail"])


async def test_a_volume_is_as_healthy_as_its_sickest_copy(surface: Surface) -> None:
    volume = await surface.get("/v1/volumes/drbd:web/0")
    assert volume["health"] == "syncing"
    assert volume["guests"] == ["web"]
    assert [(copy["host"], copy["role"]) for copy in volume["copies"]] == [  # type: ignore[attr-defined]
        ("h1", "primary"),
        ("h2", "secondary"),
    ]
    assert await surface.get("/v1/volumes/drbd%3Aweb%2F0") == volume


async def test_a_volume_that_no_host_reports_is_unknown_not_healthy(surface: Surface) -> None:
    """I19: silence is not health."""
    volumes = {v["name"]: v for v in (await surface.get("/v1/volumes"))["volumes"]}  # type: ignore[attr-defined]
    assert volumes["iscsi:iqn.2026-11.org.lab:db/1"]["health"] == "unknown"


async def test_operations_newest_first_open_and_children(surface: Surface) -> None:
    control = surface.control
    control.add(drain("op-1", OperationState.RUNNING, children=("op-2", "op-3", "op-gone")))
    control.add(move("op-2", "web", OperationState.DONE, parent="op-1"))
    control.add(move("op-3", "db", OperationState.PENDING, parent="op-1"))

    async def ids(query: str) -> list[str]:
        return [op["id"] for op in (await surface.get(f"/v1/operations{query}"))["operations"]]  # type: ignore[attr-defined]

    assert await ids("") == ["op-3", "op-2", "op-1"]
    assert await ids("?limit=1") == ["op-3"]
    assert await ids("?open") == ["op-3", "op-1"]
    assert await ids("?open=false") == ["op-3", "op-2", "op-1"]
    assert await ids("?parent=op-1") == ["op-3", "op-2"]
    assert (await surface.get("/v1/operations/op-2"))["subject"] == "web"


async def test_names_that_do_not_fit_say_which_are_near(surface: Surface) -> None:
    problem = await surface.get("/v1/hosts/h11", 404)
    assert problem["type"] == "not-found"
    assert "near: h1" in str(problem["detail"])
    assert "migrctl hosts" in str(problem["detail"])
    assert "near: web" in str((await surface.get("/v1/vms/wen", 404))["detail"])
    assert "near: drbd:web/0" in str((await surface.get("/v1/volumes/drbd:web/1", 404))["detail"])
    assert "op-9" in str((await surface.get("/v1/operations/op-9", 404))["detail"])


async def test_a_name_of_two_guests_is_refused_with_their_uuids(surface: Surface) -> None:
    for method, path in (("GET", "/v1/vms/twin"), ("POST", "/v1/vms/twin/migrate")):
        problem = await surface.call(method, path, 409)
        assert problem["type"] == "ambiguous"
        assert problem["reasons"] == [f"{TWIN_A} on h1", f"{TWIN_B} on h2"]
    assert surface.control.asked == []
    assert (await surface.get(f"/v1/vms/{TWIN_B.upper()}"))["host"] == "h2"


async def test_health_and_readiness_need_no_token(surface: Surface) -> None:
    surface.http.headers.clear()
    assert await surface.get("/healthz") == {"ok": True, "reasons": []}
    assert await surface.get("/readyz") == {"ok": True, "reasons": []}
    surface.control.ready = Readiness(ready=False, reasons=("h2 is not followed",))
    assert await surface.get("/readyz", 503) == {"ok": False, "reasons": ["h2 is not followed"]}
    assert surface.seen.failures == []


async def test_metrics_as_prometheus_wants_them(surface: Surface) -> None:
    async with surface.http.get(surface.url + "/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert await answer.text() == "migrd_up 1\n"


async def test_an_open_operation_is_shown_however_old(surface: Surface) -> None:
    surface.control.add(drain("op-000001", OperationState.PARKED))
    surface.control.add(move("op-000002", "web", OperationState.RUNNING))
    for number in range(3, 5100):
        surface.control.add(move(f"op-{number:06d}", "db", OperationState.DONE))
    status = await surface.get("/v1/status")
    assert [op["id"] for op in status["parked"]] == ["op-000001"]  # type: ignore[attr-defined]
    shown = await surface.get("/v1/operations?open")
    assert [op["id"] for op in shown["operations"]] == ["op-000002", "op-000001"]  # type: ignore[attr-defined]
    assert (await surface.get("/v1/vms/web"))["operation"] == "op-000002"
    detail = await surface.get("/v1/hosts/h1")
    assert [op["id"] for op in detail["operations"]] == ["op-000002", "op-000001"]  # type: ignore[attr-defined]
