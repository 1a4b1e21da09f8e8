"""The description is made from the route table and the dataclasses, and is complete."""

from __future__ import annotations

import re
from pathlib import Path

from migrd.api.openapi import document, openapi_path
from migrd.api.routes import ROUTES
from tests.api.conftest import Surface


async def test_every_route_that_the_application_serves_is_described(surface: Surface) -> None:
    described = (await surface.get("/v1/openapi.json"))["paths"]
    for route in ROUTES:
        assert route.method.lower() in described[openapi_path(route.path)]  # type: ignore[index]
    assert sum(len(methods) for methods in described.values()) == len(ROUTES)  # type: ignore[attr-defined,misc]


def test_every_reference_leads_somewhere() -> None:
    text = str(document("1"))
    names = set(re.findall(r"#/components/schemas/([\w.-]+)", text))
    assert {"Operation", "Plan", "Problem", "ClusterEvent", "DrainBody"} <= names
    assert names <= set(document("1")["components"]["schemas"])


def test_bodies_tell_what_they_need_and_refuse_the_rest() -> None:
    described = document("1")
    power = described["paths"]["/v1/hosts/{host}/power"]["post"]
    assert power["requestBody"]["required"] is True
    assert described["paths"]["/v1/hosts/{host}/drain"]["post"]["requestBody"]["required"] is False
    assert set(described["components"]["schemas"]["DrainBody"]["properties"]) == {
        "power_off",
        "allow_stop",
        "dry_run",
    }
    assert "409" in power["responses"]
    assert described["paths"]["/healthz"]["get"]["security"] == []


def test_the_document_of_the_docs_lists_every_route() -> None:
    text = (Path(__file__).parents[2] / "docs" / "API.md").read_text()
    for route in ROUTES:
        assert f"`{route.method} {openapi_path(route.path)}`" in text
