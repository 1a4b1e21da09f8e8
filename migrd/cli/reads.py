"""Commands that look: status, hosts, guests, volumes, operations, events."""

from __future__ import annotations

from typing import Annotated

import typer

from migrd.api.words import (
    EventList,
    GuestList,
    GuestView,
    HostDetail,
    HostList,
    OperationList,
    StatusView,
    VolumeList,
    VolumeView,
)
from migrd.cli import render
from migrd.cli.client import segment
from migrd.cli.exits import Exit
from migrd.cli.follow import follow as follow_events
from migrd.cli.session import Host, OpId, Output, Vm, VolumeName, session
from migrd.cli.watch import look_at


def status(context: typer.Context, output: Output = None) -> int:
    """What is wrong, what goes on, what needs an operator."""
    here = session(context, output)
    reply = here.client.get(StatusView, "/v1/status")
    here.show(reply.document, render.status(reply.value))
    return Exit.DONE


def hosts(context: typer.Context, output: Output = None) -> int:
    """All hosts."""
    here = session(context, output)
    reply = here.client.get(HostList, "/v1/hosts")
    here.show(reply.document, render.hosts(reply.value.hosts))
    return Exit.DONE


def host_show(context: typer.Context, host: Host, output: Output = None) -> int:
    """One host with its guests, volumes and open operations."""
    here = session(context, output)
    reply = here.client.get(HostDetail, f"/v1/hosts/{segment(host)}")
    here.show(reply.document, render.host(reply.value))
    return Exit.DONE


def vms(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(metavar="HOST", help="Only guests on this host.")] = None,
    output: Output = None,
) -> int:
    """All guests."""
    here = session(context, output)
    reply = here.client.get(GuestList, "/v1/vms", {"host": host} if host else None)
    here.show(reply.document, render.guests(reply.value.vms))
    return Exit.DONE


def vm_show(context: typer.Context, vm: Vm, output: Output = None) -> int:
    """One guest, by name or uuid."""
    here = session(context, output)
    reply = here.client.get(GuestView, f"/v1/vms/{segment(vm)}")
    here.show(reply.document, render.guest(reply.value))
    return Exit.DONE


def ops(
    context: typer.Context,
    open_only: Annotated[bool, typer.Option("--open", help="Only those that have not ended.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    output: Output = None,
) -> int:
    """Operations, newest first."""
    here = session(context, output)
    query = {"limit": str(limit), **({"open": "true"} if open_only else {})}
    reply = here.client.get(OperationList, "/v1/operations", query)
    here.show(reply.document, render.operations(reply.value.operations))
    return Exit.DONE


def op_show(context: typer.Context, operation_id: OpId, output: Output = None) -> int:
    """One operation with its steps."""
    here = session(context, output)
    look = look_at(here.client, operation_id)
    here.show(look.document, render.operation(look.operation, look.children))
    return Exit.DONE


def volumes(context: typer.Context, output: Output = None) -> int:
    """All volumes."""
    here = session(context, output)
    reply = here.client.get(VolumeList, "/v1/volumes")
    here.show(reply.document, render.volumes(reply.value.volumes))
    return Exit.DONE


def volume_show(context: typer.Context, volume: VolumeName, output: Output = None) -> int:
    """One volume with every host's view of it."""
    here = session(context, output)
    reply = here.client.get(VolumeView, f"/v1/volumes/{segment(volume)}")
    here.show(reply.document, render.volume(reply.value))
    return Exit.DONE


def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest so many (without --follow).")] = 50,
    output: Output = None,
) -> int:
    """What happened lately; with --follow what happens now (with -o json: one array, closed at Ctrl-C)."""
    here = session(context, output)
    if follow:
        return follow_events(here)
    reply = here.client.get(EventList, "/v1/events", {"follow": "false", "limit": str(limit)})
    here.show(reply.document, *(render.event(item) for item in reply.value.events))
    return Exit.DONE
