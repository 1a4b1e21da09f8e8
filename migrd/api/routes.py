"""The table of all routes: the application and /v1/openapi.json are both made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from migrd.api import handlers
from migrd.api.answer import Answer
from migrd.api.context import Api
from migrd.api.events import stream_events
from migrd.api.words import (
    DrainBody,
    EventList,
    GuestList,
    GuestView,
    HostBody,
    HostDetail,
    HostList,
    MigrateBody,
    Nothing,
    OperationList,
    PowerBody,
    PowerStatus,
    Probe,
    StatusView,
    VolumeList,
    VolumeView,
)
from migrd.control import UndrainRequest
from migrd.model import Plan
from migrd.operations import ClusterEvent, Operation

Handler = Callable[[web.Request, Api], Awaitable[Answer | web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """`answers`: status -> type; a type of None is not JSON (metrics, the event stream, openapi)."""

    method: str
    path: str  # aiohttp template; `{name:.+}` also takes slashes
    handler: Handler
    summary: str
    answers: Mapping[int, type | None]
    body: type | None = None
    query: Mapping[str, str] = field(default_factory=dict)  # parameter -> what it means
    public: bool = False  # answers without a token
    media: str = "application/json"
    streams: type | None = None  # what each server-sent event carries


_DRY = {"dry_run": "true: answer the plan (200) and touch nothing"}

ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/status",
        handler=handlers.status,
        summary="Counts, problems, open and parked operations",
        answers={200: StatusView},
    ),
    Route(
        method="GET",
        path="/v1/hosts",
        handler=handlers.hosts,
        summary="All hosts",
        answers={200: HostList},
    ),
    Route(
        method="GET",
        path="/v1/hosts/{host}",
        handler=handlers.host,
        summary="One host with its guests, volumes and open operations",
        answers={200: HostDetail},
    ),
    Route(
        method="POST",
        path="/v1/hosts",
        handler=handlers.host_add,
        summary="Follow one host more, at once and over restarts",
        answers={202: Operation},
        body=HostBody,
    ),
    Route(
        method="DELETE",
        path="/v1/hosts/{host}",
        handler=handlers.host_remove,
        summary="Follow an added host no longer; hosts of migrd.toml are removed there",
        answers={202: Operation},
        body=Nothing,
    ),
    Route(
        method="POST",
        path="/v1/hosts/{host}/drain",
        handler=handlers.drain,
        summary="Move every guest off the host; no guest is stopped without consent by name",
        answers={200: Plan, 202: Operation},
        body=DrainBody,
        query=_DRY,
    ),
    Route(
        method="POST",
        path="/v1/hosts/{host}/undrain",
        handler=handlers.undrain,
        summary="Make a drained host usable again; restore: power it on and move back what its drain moved",
        answers={202: Operation},
        body=UndrainRequest,
    ),
    Route(
        method="GET",
        path="/v1/hosts/{host}/power",
        handler=handlers.power_status,
        summary="Ask the BMC now",
        answers={200: PowerStatus},
    ),
    Route(
        method="POST",
        path="/v1/hosts/{host}/power",
        handler=handlers.power,
        summary="Power the host on, or off (off only when nothing on it would be lost)",
        answers={202: Operation},
        body=PowerBody,
    ),
    Route(
        method="GET",
        path="/v1/vms",
        handler=handlers.guests,
        summary="All guests",
        answers={200: GuestList},
        query={"host": "only guests on this host"},
    ),
    Route(
        method="GET",
        path="/v1/vms/{vm}",
        handler=handlers.guest,
        summary="One guest by name or uuid; a name of two guests is 409 with their uuids",
        answers={200: GuestView},
    ),
    Route(
        method="POST",
        path="/v1/vms/{vm}/migrate",
        handler=handlers.migrate,
        summary="Move one guest live, to a host or to the best one",
        answers={200: Plan, 202: Operation},
        body=MigrateBody,
        query=_DRY,
    ),
    Route(
        method="GET",
        path="/v1/operations",
        handler=handlers.operations,
        summary="Operations, newest first",
        answers={200: OperationList},
        query={
            "limit": "at most so many (1 to 1000, default 200)",
            "open": "true: only those that have not ended",
            "parent": "only the children of this operation",
        },
    ),
    Route(
        method="GET",
        path="/v1/operations/{id}",
        handler=handlers.operation,
        summary="One operation",
        answers={200: Operation},
    ),
    Route(
        method="POST",
        path="/v1/operations/{id}/cancel",
        handler=handlers.cancel,
        summary="Go back if it is not past its commit point, else finish it",
        answers={202: Operation},
        body=Nothing,
    ),
    Route(
        method="POST",
        path="/v1/operations/{id}/resume",
        handler=handlers.resume,
        summary="Continue a parked operation",
        answers={202: Operation},
        body=Nothing,
    ),
    Route(
        method="GET",
        path="/v1/volumes",
        handler=handlers.volumes,
        summary="All volumes with every host's view of them",
        answers={200: VolumeList},
    ),
    Route(
        method="GET",
        path="/v1/volumes/{volume:.+}",
        handler=handlers.volume,
        summary="One volume",
        answers={200: VolumeView},
    ),
    Route(
        method="GET",
        path="/v1/events",
        handler=stream_events,
        summary="Server-sent events; Last-Event-ID (or after) resumes as far as events are kept",
        answers={200: EventList},
        query={
            "after": "start after this sequence number",
            "follow": "false: answer what is kept as one JSON document",
            "limit": "with follow=false: the newest so many (1 to 1000)",
        },
        media="text/event-stream",
        streams=ClusterEvent,
    ),
    Route(
        method="GET",
        path="/v1/openapi.json",
        handler=handlers.openapi,
        summary="This description",
        answers={200: None},
    ),
    Route(
        method="GET",
        path="/healthz",
        handler=handlers.healthz,
        summary="The process answers",
        answers={200: Probe},
        public=True,
    ),
    Route(
        method="GET",
        path="/readyz",
        handler=handlers.readyz,
        summary="The journal is writable and agents are followed",
        answers={200: Probe, 503: Probe},
        public=True,
    ),
    Route(
        method="GET",
        path="/metrics",
        handler=handlers.metrics,
        summary="Prometheus text format",
        answers={200: None},
        media="text/plain",
    ),
)
