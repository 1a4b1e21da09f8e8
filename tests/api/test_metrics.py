"""The registry and its document agree; series of a move end with the move."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from migrd.control import Readiness
from migrd.metrics import Metrics
from migrd.operations import Operation, OperationKind, OperationState
from tests.api.scripted import DB, WEB, ScriptedControl, drain, move, progress


@pytest.fixture
def control() -> ScriptedControl:
    return ScriptedControl()


@pytest.fixture
def metrics(control: ScriptedControl) -> Metrics:
    made = Metrics("1.2.3")
    made.follow(control)
    return made


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_metric_is_in_the_document_and_no_other(metrics: Metrics, control: ScriptedControl) -> None:
    control.add(move("op-1", "web", OperationState.RUNNING, progress=progress(5)))
    text = (Path(__file__).parents[2] / "docs" / "METRICS.md").read_text()
    documented = {}
    for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\|", text, re.MULTILINE):
        documented[name] = (kind, tuple(re.findall(r"`(\w+)`", labels)))
    found = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        found[name] = (family.type, labels)
    found = {name: known for name, known in found.items() if not name.endswith("_created")}
    assert set(found) == set(documented)
    for name, (kind, labels) in found.items():
        assert documented[name][0] == kind, name
        assert labels <= set(documented[name][1]), name


def test_hosts_and_guests_by_state_with_zeroes(metrics: Metrics) -> None:
    assert value(metrics, "migrd_hosts", state="online") == 2
    assert value(metrics, "migrd_hosts", state="off") == 0
    assert value(metrics, "migrd_guests", state="running") == 4
    assert value(metrics, "migrd_guests", state="paused-incoming") == 0
    assert value(metrics, "migrd_build_info", version="1.2.3") == 1


def test_a_move_has_series_only_while_it_is_in_flight(metrics: Metrics, control: ScriptedControl) -> None:
    where = {"guest": WEB, "source": "h1", "target": "h2"}
    control.add(move("op-1", "web", OperationState.RUNNING, progress=progress(7 << 20)))
    control.add(move("op-2", "db", OperationState.PENDING))
    assert value(metrics, "migrd_moves_in_flight") == 1
    assert value(metrics, "migrd_move_remaining_bytes", **where) == 7 << 20
    assert value(metrics, "migrd_move_total_bytes", **where) == 100 << 20
    assert value(metrics, "migrd_move_processed_bytes", **where) == 30 << 20
    assert value(metrics, "migrd_move_dirty_rate_bytes_per_second", **where) == 3 << 20
    assert value(metrics, "migrd_operations_open", state="pending") == 1
    control.add(move("op-1", "web", OperationState.DONE, progress=progress(0)))
    assert value(metrics, "migrd_moves_in_flight") == 0
    assert value(metrics, "migrd_move_remaining_bytes", **where) is None
    assert DB not in metrics.exposition().decode()


def test_an_open_operation_is_counted_however_old(metrics: Metrics, control: ScriptedControl) -> None:
    control.add(drain("op-000001", OperationState.PARKED))
    for number in range(2, 5100):
        control.add(move(f"op-{number:06d}", "web", OperationState.DONE))
    assert value(metrics, "migrd_operations_open", state="parked") == 1


def test_outcomes_durations_and_downtime(metrics: Metrics) -> None:
    ended = drain(
        "op-1",
        OperationState.DONE,
        requested_at_s=9.5,
        started_at_s=10.0,
        first_call_at_s=10.25,
        ended_at_s=51.0,
    )
    metrics.operation_ended(ended)
    metrics.operation_changed(drain("op-2", OperationState.RUNNING))
    for _ in range(3):  # one row after another while it is parked
        metrics.operation_changed(drain("op-2", OperationState.PARKED))
    metrics.downtime(0.134)
    assert value(metrics, "migrd_operations_total", kind="drain", outcome="done") == 1
    assert value(metrics, "migrd_operations_total", kind="drain", outcome="parked") == 1
    assert value(metrics, "migrd_operations_total", kind="migrate", outcome="failed") == 0
    assert value(metrics, "migrd_operation_duration_seconds_sum", kind="drain") == 41
    assert value(metrics, "migrd_drain_first_move_seconds_sum") == 0.75
    assert value(metrics, "migrd_move_downtime_seconds_bucket", le="0.2") == 1
    assert value(metrics, "migrd_move_downtime_seconds_bucket", le="0.1") == 0


def test_what_the_api_and_the_loop_tell(metrics: Metrics, control: ScriptedControl) -> None:
    metrics.request("GET", "/v1/hosts", 200, 0.01)
    metrics.request("GET", "/v1/events", 200, 3600)
    metrics.auth_failure("wrong")
    metrics.streams(3)
    metrics.lag(-0.1)
    metrics.journal_read_only("disk full")
    control.ready = Readiness(ready=False)
    assert value(metrics, "migrd_api_requests_total", method="GET", route="/v1/hosts", status="200") == 1
    assert value(metrics, "migrd_api_request_duration_seconds_count", route="/v1/events") is None
    assert value(metrics, "migrd_api_auth_failures_total", reason="wrong") == 1
    assert value(metrics, "migrd_api_event_streams") == 3
    assert value(metrics, "migrd_event_loop_lag_seconds_sum") == 0
    assert value(metrics, "migrd_journal_read_only") == 1
    assert value(metrics, "migrd_ready") == 0
    metrics.journal_read_only("")
    assert value(metrics, "migrd_journal_read_only") == 0


def test_a_failed_power_operation_without_times(metrics: Metrics) -> None:
    failed = Operation(id="op-1", kind=OperationKind.POWER, state=OperationState.FAILED, subject="h1")
    metrics.operation_ended(failed)
    assert value(metrics, "migrd_operations_total", kind="power", outcome="failed") == 1
    assert value(metrics, "migrd_operation_duration_seconds_count", kind="power") is None
