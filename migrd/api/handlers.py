"""One short function per route: read the request, ask Control, answer. No decision is made here."""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web

from migrd.api import names, views
from migrd.api.answer import Answer
from migrd.api.context import DESCRIPTION, Api
from migrd.api.requests import body_of, flag, number, query_of
from migrd.api.words import (
    DrainBody,
    GuestList,
    HostBody,
    HostList,
    MigrateBody,
    Nothing,
    OperationList,
    PowerBody,
    PowerStatus,
    Probe,
    VolumeList,
)
from migrd.control import DrainRequest, MigrateRequest, NotFound, UndrainRequest, reasons_of
from migrd.host_config import HostConfig
from migrd.operations import Operation
from storage.errors import Refused

NO_QUERY: frozenset[str] = frozenset()
DRY_RUN = frozenset({"dry_run"})
DEFAULT_OPERATIONS = 200


async def status(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    control = api.control
    operations = control.open_operations()
    view = views.status_view(control.cluster(), control.readiness(), operations, api.version)
    return Answer(status=200, value=view)


async def hosts(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    control = api.control
    return Answer(status=200, value=HostList(hosts=views.host_views(control.cluster(), control.silent_s())))


async def host(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    cluster = api.control.cluster()
    found = names.host_named(cluster, request.match_info["host"])
    operations = api.control.open_operations()
    silent_s = api.control.silent_s().get(found.name)
    return Answer(status=200, value=views.host_detail(cluster, found, operations, silent_s))


async def host_add(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    body = await body_of(request, HostBody)
    return accepted(await api.control.add_host(body.name, HostConfig(agent=body.agent, bmc=body.bmc)))


async def host_remove(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    await body_of(request, Nothing)
    return accepted(await api.control.remove_host(request.match_info["host"]))


async def drain(request: web.Request, api: Api) -> Answer:
    query = query_of(request, DRY_RUN)
    body = await body_of(request, DrainBody)
    cluster = api.control.cluster()
    found = names.host_named(cluster, request.match_info["host"])
    allow_stop, unclear = names.consent(cluster, body.allow_stop)
    wanted = DrainRequest(power_off=body.power_off, allow_stop=allow_stop)
    dry_run = body.dry_run or flag(query, "dry_run")
    if dry_run or unclear:
        plan = await api.control.plan_drain(found.name, wanted)
        plan = replace(plan, refusals=(*(f"allow_stop: {reason}" for reason in unclear), *plan.refusals))
        if dry_run:
            return Answer(status=200, value=plan)
        raise Refused(*reasons_of(plan))
    return accepted(await api.control.drain(found.name, wanted))


async def undrain(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    wanted = await body_of(request, UndrainRequest)
    found = names.host_named(api.control.cluster(), request.match_info["host"])
    return accepted(await api.control.undrain(found.name, wanted))


async def power_status(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    found = names.host_named(api.control.cluster(), request.match_info["host"])
    answer = await api.control.power_status(found.name)
    return Answer(status=200, value=PowerStatus(host=found.name, power=answer))


async def power(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    body = await body_of(request, PowerBody)
    found = names.host_named(api.control.cluster(), request.match_info["host"])
    return accepted(await api.control.power(found.name, body.action))


async def guests(request: web.Request, api: Api) -> Answer:
    query = query_of(request, frozenset({"host"}))
    cluster = api.control.cluster()
    found = views.guest_views(cluster, api.control.open_operations())
    if "host" in query:
        here = names.host_named(cluster, query["host"]).name
        found = tuple(guest for guest in found if here in (guest.host, *guest.also_on))
    return Answer(status=200, value=GuestList(vms=found))


async def guest(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    cluster = api.control.cluster()
    uuid = names.guest_uuid(cluster, request.match_info["vm"])
    operations = api.control.open_operations()
    found = next(view for view in views.guest_views(cluster, operations) if view.uuid == uuid)
    return Answer(status=200, value=found)


async def migrate(request: web.Request, api: Api) -> Answer:
    query = query_of(request, DRY_RUN)
    body = await body_of(request, MigrateBody)
    cluster = api.control.cluster()
    uuid, to = names.guest_and_host(cluster, request.match_info["vm"], body.to)
    wanted = MigrateRequest(to=to, cold=body.cold)
    if body.dry_run or flag(query, "dry_run"):
        return Answer(status=200, value=await api.control.plan_migrate(uuid, wanted))
    return accepted(await api.control.migrate(uuid, wanted))


async def operations(request: web.Request, api: Api) -> Answer:
    query = query_of(request, frozenset({"limit", "open", "parent"}))
    most = api.limits.operations
    limit = number(query.get("limit"), "limit", default=min(DEFAULT_OPERATIONS, most), low=1, high=most)
    if "parent" in query:
        children = api.control.operation(query["parent"]).children
        found = tuple(child for child in (_operation(api, id_) for id_ in reversed(children)) if child)
    elif flag(query, "open"):
        found = api.control.open_operations()
    else:
        found = api.control.operations(limit=limit)
    if flag(query, "open"):
        found = tuple(op for op in found if views.is_open(op))
    return Answer(status=200, value=OperationList(operations=found[:limit]))


def _operation(api: Api, operation_id: str) -> Operation | None:
    """None for a child that the journal no longer keeps."""
    try:
        return api.control.operation(operation_id)
    except NotFound:
        return None


async def operation(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    return Answer(status=200, value=api.control.operation(request.match_info["id"]))


async def cancel(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    await body_of(request, Nothing)
    return accepted(await api.control.cancel(request.match_info["id"]))


async def resume(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    await body_of(request, Nothing)
    return accepted(await api.control.resume(request.match_info["id"]))


async def volumes(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    return Answer(status=200, value=VolumeList(volumes=views.volume_views(api.control.cluster())))


async def volume(request: web.Request, api: Api) -> Answer:
    query_of(request, NO_QUERY)
    return Answer(status=200, value=names.volume_named(api.control.cluster(), request.match_info["volume"]))


async def openapi(request: web.Request, _api: Api) -> web.Response:
    query_of(request, NO_QUERY)
    return web.Response(body=request.app[DESCRIPTION], content_type="application/json")


async def healthz(_request: web.Request, _api: Api) -> Answer:
    return Answer(status=200, value=Probe(ok=True))


async def readyz(_request: web.Request, api: Api) -> Answer:
    readiness = api.control.readiness()
    return Answer(
        status=200 if readiness.ready else 503, value=Probe(ok=readiness.ready, reasons=readiness.reasons)
    )


async def metrics(_request: web.Request, api: Api) -> web.Response:
    return web.Response(
        body=api.exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )


def accepted(operation: Operation) -> Answer:
    """202: journalled, and its address."""
    return Answer(status=202, value=operation, headers={"Location": f"/v1/operations/{operation.id}"})
