"""What is not in a table is illegal and changes nothing: every stage of every kind, and every event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import get_args

import pytest

from migrd import saga
from migrd.saga import SagaState
from migrd.sagas import cold, drain, migrate, power, roster, undrain
from migrd.sagas.cold_state import ColdStage, ColdState
from migrd.sagas.commands import IllegalEvent
from migrd.sagas.events import Event, Request
from migrd.sagas.migrate_state import MigrateState, Stage
from tests.core.every_event import EVERY_EVENT, REQUESTS

TABLES: Mapping[str, tuple[Mapping[tuple[object, type], object], Iterable[object]]] = {
    "migrate-requested": (migrate.TABLE, Stage),
    "cold-requested": (cold.TABLE, ColdStage),
    "drain-requested": (drain.TABLE, drain.Phase),
    "undrain-requested": (undrain.TABLE, undrain.Phase),
    "power-requested": (power.TABLE, power.Phase),
    "host-added": ({}, roster.Phase),
    "host-removed": ({}, roster.Phase),
}
PLACES = [
    pytest.param(request, at, id=f"{request.kind}-{at}")
    for request in REQUESTS
    for at in TABLES[request.kind][1]
]


def standing(request: Request, at: object) -> SagaState:
    """An operation of that kind, put where `at` says."""
    state, _ = saga.start("op", request)
    if isinstance(state, MigrateState | ColdState):
        return replace(state, stage=at)  # type: ignore[arg-type]
    return replace(state, phase=at)  # type: ignore[arg-type]


def test_there_is_one_event_of_every_kind() -> None:
    assert {type(event) for event in EVERY_EVENT} == set(get_args(Event))
    assert {type(request) for request in REQUESTS} == set(get_args(Request))


@pytest.mark.parametrize(("request_", "at"), PLACES)
def test_an_event_without_a_row_raises_and_changes_nothing(request_: Request, at: object) -> None:
    state = standing(request_, at)
    before = repr(state)
    without_a_row = [each for each in EVERY_EVENT if (at, type(each)) not in TABLES[request_.kind][0]]
    assert without_a_row
    for event in without_a_row:
        with pytest.raises(IllegalEvent):  # its traceback names the event
            saga.step(state, event)
    assert repr(state) == before


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: each.kind)
def test_after_its_end_nothing_can_happen_to_an_operation(request_: Request) -> None:
    """No table has a row there, so that no late answer brings an operation back to life."""
    table, stages = TABLES[request_.kind]
    for at in stages:
        if saga.ended(standing(request_, at)):
            assert not [event for stage, event in table if stage == at]
