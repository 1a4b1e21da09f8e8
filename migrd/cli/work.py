"""Commands that ask for work: drain, undrain, migrate, power, and what to do with operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import RenderableType

from migrd.api.words import PowerStatus
from migrd.cli import render
from migrd.cli.client import Reply, segment
from migrd.cli.errors import CliError, Detached
from migrd.cli.exits import Exit, of_cancelled, of_operation, of_plan
from migrd.cli.fmt import cell, count, seconds
from migrd.cli.live import view_for
from migrd.cli.session import Host, OpId, Output, Session, Vm, session
from migrd.cli.watch import PARENTS, Look, look_at, wait
from migrd.model import Plan
from migrd.operations import Operation, OperationState

POLL_TERMINAL_S = 0.5
POLL_PIPE_S = 1.0

NoWait = Annotated[bool, typer.Option("--no-wait", help="Return once it is accepted.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show every move, target, estimate and blocker.")]


class Power(StrEnum):
    ON = "on"
    OFF = "off"
    STATUS = "status"


def drain(
    context: typer.Context,
    host: Host,
    *,
    dry_run: DryRun = False,
    power_off: Annotated[
        bool, typer.Option("--power-off", help="Then power it off, once nothing would be lost.")
    ] = False,
    allow_stop: Annotated[
        list[str] | None, typer.Option(metavar="VM", help="May be shut down if it cannot move; repeatable.")
    ] = None,
    no_wait: NoWait = False,
    output: Output = None,
) -> int:
    """Move every guest off HOST, live. No guest is stopped without --allow-stop for it."""
    here = session(context, output)
    body: dict[str, object] = {"power_off": power_off, "allow_stop": allow_stop or []}
    path = f"/v1/hosts/{segment(host)}/drain"
    return _plan(here, path, body) if dry_run else _work(here, path, body, no_wait)


def undrain(
    context: typer.Context,
    host: Host,
    restore: Annotated[
        bool, typer.Option("--restore", help="Power it on if it is off, and move back what its drain moved.")
    ] = False,
    no_wait: NoWait = False,
    output: Output = None,
) -> int:
    """Make a drained HOST usable again; one that migrd has switched off is powered on."""
    return _work(
        session(context, output), f"/v1/hosts/{segment(host)}/undrain", {"restore": restore}, no_wait
    )


def migrate(
    context: typer.Context,
    vm: Vm,
    *,
    to: Annotated[str | None, typer.Option(metavar="HOST", help="Where to; default: the best host.")] = None,
    cold: Annotated[
        bool,
        typer.Option(
            "--cold", help="Without its memory: shut it down here if it runs, and start it there again."
        ),
    ] = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    output: Output = None,
) -> int:
    """Move one guest, live unless --cold is given. VM is a name or a uuid."""
    here = session(context, output)
    body: dict[str, object] = {} if to is None else {"to": to}
    if cold:
        body["cold"] = True
    path = f"/v1/vms/{segment(vm)}/migrate"
    return _plan(here, path, body) if dry_run else _work(here, path, body, no_wait)


def power(
    context: typer.Context,
    host: Host,
    action: Power,
    no_wait: NoWait = False,
    output: Output = None,
) -> int:
    """Ask HOST's BMC: on, off (only when nothing on it would be lost) or status."""
    here = session(context, output)
    path = f"/v1/hosts/{segment(host)}/power"
    if action is not Power.STATUS:
        return _work(here, path, {"action": action.value}, no_wait)
    reply = here.client.get(PowerStatus, path)
    here.show(reply.document, cell(f"{reply.value.host}: {reply.value.power}"))
    return Exit.DONE if reply.value.power in ("on", "off") else Exit.FAILED


def op_watch(context: typer.Context, operation_id: OpId, output: Output = None) -> int:
    """Wait for an operation; Ctrl-C detaches and leaves it running."""
    return _follow(session(context, output), operation_id)


def op_cancel(
    context: typer.Context, operation_id: OpId, no_wait: NoWait = False, output: Output = None
) -> int:
    """Go back if it is not past its commit point, else finish it. Guests already moved stay."""
    here = session(context, output)
    reply = here.client.post(Operation, f"/v1/operations/{segment(operation_id)}/cancel", {})
    if no_wait:
        return _accepted(here, reply)
    code = _follow(here, reply.value.id, verdict=of_cancelled)
    if code is Exit.FAILED:
        here.err.print(cell("not cancelled: see above; `migrctl op show` has the steps"))
    return code


def op_resume(
    context: typer.Context, operation_id: OpId, no_wait: NoWait = False, output: Output = None
) -> int:
    """Continue a parked operation, after its reason was removed."""
    here = session(context, output)
    reply = here.client.post(Operation, f"/v1/operations/{segment(operation_id)}/resume", {})
    return _accepted(here, reply) if no_wait else _follow(here, reply.value.id, was_parked=True)


def _plan(here: Session, path: str, body: dict[str, object]) -> int:
    reply = here.client.post(Plan, path, {**body, "dry_run": True}, changes=False)
    here.show(reply.document, render.plan(reply.value))
    return of_plan(reply.value)


def _work(here: Session, path: str, body: dict[str, object], no_wait: bool) -> int:
    reply = here.client.post(Operation, path, body)
    return _accepted(here, reply) if no_wait else _follow(here, reply.value.id)


def _accepted(here: Session, reply: Reply[Operation]) -> int:
    operation = reply.value
    next_ = f"watch it: migrctl op watch {operation.id}; stop it: migrctl op cancel {operation.id}"
    here.show(reply.document, cell(render.headline(operation)), *render.ending(operation), cell(next_))
    return of_operation(operation)


def _follow(
    here: Session,
    operation_id: str,
    *,
    verdict: Callable[[Operation], Exit] = of_operation,
    was_parked: bool = False,
) -> Exit:
    """Wait, show the end, and say how it ended."""
    poll_s = POLL_TERMINAL_S if here.talk.is_terminal else POLL_PIPE_S
    try:
        look = wait(
            here.client,
            operation_id,
            view_for(here.talk),
            reconnect_s=here.reconnect_s,
            poll_s=poll_s,
            was_parked=was_parked,
        )
    except Detached as error:
        raise _with_last_look(here, operation_id, error) from None
    here.show(look.document, *_summary(look))
    return verdict(look.operation)


def _with_last_look(here: Session, operation_id: str, error: Detached) -> CliError:
    """With -o json the operation as it stands is still the one document."""
    if here.as_json:
        try:
            document = look_at(here.client, operation_id).document
        except (CliError, KeyboardInterrupt):
            return error
        if isinstance(document, dict):
            return dataclasses.replace(CliError(error.code, error.detail, (), error.hint), document=document)
    return error


def _summary(look: Look) -> list[RenderableType]:
    operation, moved = look.operation, [m for m in look.children if m.state is OperationState.DONE]
    line = render.headline(operation)
    took = render.took_s(operation)
    line += f" in {seconds(took)}" if took is not None else ""
    if operation.kind in PARENTS:
        line += f", {count(len(moved), 'guest')} moved"
        downtimes = [m.downtime_ms for m in moved if m.downtime_ms is not None]
        line += f", longest downtime {max(downtimes)} ms" if downtimes else ""
    table = [render.moves(look.children)] if look.children else []
    return [*table, cell(line), *render.ending(operation)]
