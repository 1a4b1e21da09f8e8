"""/v1/openapi.json (OpenAPI 3.1), generated from the route table and the dataclasses themselves."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from migrd.api.answer import adapter
from migrd.api.problems import CONTENT_TYPE, Problem
from migrd.api.routes import ROUTES, Route

REF = "#/components/schemas/{model}"
Schemas = dict[tuple[object, JsonSchemaMode], dict[str, Any]]

PROBLEMS = {
    "400": "Not JSON, or a wrong query parameter",
    "401": "No token, or not the right one",
    "404": "No such host, guest, volume or operation; near names in `detail`",
    "409": "Refused with all reasons, or an ambiguous name; nothing was touched",
    "413": "Body over 1 MiB",
    "422": "Unknown fields or wrong types, each with its path",
    "503": "Not now; Retry-After says when",
}


def document(version: str) -> dict[str, Any]:
    """The whole description. Every route of the table is in it."""
    schemas, components = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(openapi_path(route.path), {})[route.method.lower()] = _operation(
            route, schemas, components
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "migrd",
            "version": version,
            "description": "Live-migration and storage-replication orchestrator for libvirt hosts.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def openapi_path(path: str) -> str:
    """`/a/{b:.+}` (aiohttp) -> `/a/{b}` (OpenAPI)."""
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path)


@lru_cache(maxsize=1)
def _schemas() -> tuple[Schemas, dict[str, Any]]:
    wanted: dict[tuple[object, JsonSchemaMode], TypeAdapter[Any]] = {
        (Problem, "serialization"): adapter(Problem)
    }
    for route in ROUTES:
        for answer in (*route.answers.values(), route.streams):
            if answer is not None:
                wanted[(answer, "serialization")] = adapter(answer)
        if route.body is not None:
            wanted[(route.body, "validation")] = adapter(route.body)
    inputs = [(cls, mode, adapter) for (cls, mode), adapter in wanted.items()]
    found, defs = TypeAdapter.json_schemas(inputs, ref_template=REF)
    return dict(found), dict(defs.get("$defs", {}))


def _operation(route: Route, schemas: Schemas, components: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-zA-Z0-9]+', '_', openapi_path(route.path))}",
        "parameters": _parameters(route),
        "responses": {
            str(status): _response(route, status, answer, schemas) for status, answer in route.answers.items()
        },
    }
    if route.public:
        operation["security"] = []
    if route.body is not None:
        content = {"application/json": {"schema": schemas[(route.body, "validation")]}}
        operation["requestBody"] = {"content": content, "required": _needed(content, components)}
    for status, text in PROBLEMS.items():
        if status not in operation["responses"] and not route.public:
            problem = {CONTENT_TYPE: {"schema": schemas[(Problem, "serialization")]}}
            operation["responses"][status] = {"description": text, "content": problem}
    return operation


def _needed(content: dict[str, Any], components: dict[str, Any]) -> bool:
    """A body may be left out unless it has a field without a default."""
    name = str(content["application/json"]["schema"].get("$ref", "")).rpartition("/")[2]
    return bool(components.get(name, {}).get("required"))


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)[:}]", route.path)
    ]
    in_query = [
        {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in route.query.items()
    ]
    return in_path + in_query


def _response(route: Route, status: int, answer: type | None, schemas: Schemas) -> dict[str, Any]:
    text = {200: "The answer", 202: "Accepted: the operation that was journalled", 503: "Not ready"}[status]
    content: dict[str, Any] = {}
    if answer is not None:
        content["application/json"] = {"schema": schemas[(answer, "serialization")]}
    if answer is None or route.streams is not None:
        schema = {} if route.streams is None else schemas[(route.streams, "serialization")]
        content[route.media] = {"schema": schema}
    return {"description": text, "content": content}
