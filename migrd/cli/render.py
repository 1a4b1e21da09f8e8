"""Pure: what the API answered -> rich tables and lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from migrd.api.words import GuestView, HostDetail, HostView, StatusView, VolumeView
from migrd.cli.fmt import cell, clock, count, plain, seconds, size, word
from migrd.model import Plan
from migrd.operations import ClusterEvent, Operation, OperationState


def table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def status(view: StatusView) -> RenderableType:
    parts: list[RenderableType] = [
        Text.assemble("migrd ", plain(view.version), ": ", word("ready" if view.ready else "not ready"))
    ]
    parts += [Text(f"  ! {plain(reason)}", style="red") for reason in view.reasons]
    parts += [
        cell("hosts:  " + (", ".join(f"{n} {state}" for state, n in view.hosts.items()) or "none")),
        cell("guests: " + (", ".join(f"{n} {state}" for state, n in view.guests.items()) or "none")),
    ]
    parts += [Text(f"  ! {plain(problem)}", style="yellow") for problem in view.problems]
    for operation in view.parked:
        parts.append(Text.assemble(headline(operation), style="bold red"))
        parts.append(cell(f"  why:  {operation.reason or 'no reason given'}"))
        parts.append(cell(f"  next: {operation.remedy or f'migrctl op show {operation.id}'}"))
    parts += [Text(headline(operation)) for operation in view.open if not operation.parent]
    return Group(*parts)


def headline(operation: Operation) -> str:
    """op-000004 drain h1: running"""
    where = f" {operation.source} -> {operation.target}" if operation.source and operation.target else ""
    return plain(f"{operation.id} {operation.kind} {operation.subject}{where}: {operation.state}")


def hosts(views: Sequence[HostView]) -> RenderableType:
    made = table("HOST", "STATE", "GUESTS", "MEMORY FREE", "OF", "HEARD", "BMC", "PROBLEMS")
    for view in views:
        made.add_row(
            cell(view.name),
            word(view.state),
            cell(view.guests),
            cell(size(view.memory_available_bytes)),
            cell(size(view.memory_total_bytes)),
            cell("never" if view.heard_ago_s is None else f"{seconds(view.heard_ago_s)} ago"),
            cell("yes" if view.has_bmc else "no"),
            cell(
                f"{view.problems[0]} (+{len(view.problems) - 1})"
                if view.problems[1:]
                else "".join(view.problems)
            ),
        )
    return made


def host(detail: HostDetail) -> RenderableType:
    view = detail.host
    facts = [
        ("state", view.state + (f" (agent: {view.observed})" if view.observed != view.state else "")),
        ("node", view.node or "-"),
        ("memory", f"{size(view.memory_available_bytes)} free of {size(view.memory_total_bytes)}"),
        ("cpu threads", str(view.threads)),
        ("bmc", "yes" if view.has_bmc else "no"),
        ("bridges", ", ".join(detail.bridges) or "-"),
        ("networks", ", ".join(detail.networks) or "-"),
        ("versions", ", ".join(f"{name} {version}" for name, version in view.versions.items()) or "-"),
    ]
    parts: list[RenderableType] = [cell(view.name), _facts(facts)]
    parts += [Text(f"! {plain(problem)}", style="yellow") for problem in view.problems]
    parts += [Text(headline(operation)) for operation in detail.operations]
    if detail.guests:
        parts += [Text(), guests(detail.guests)]
    if detail.volumes:
        parts += [Text(), volumes(detail.volumes)]
    return Group(*parts)


def _facts(facts: Iterable[tuple[str, str]]) -> Table:
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for name, value in facts:
        made.add_row(cell(name), cell(value))
    return made


def guests(views: Sequence[GuestView]) -> RenderableType:
    made = table("GUEST", "STATE", "HOST", "MEMORY", "VOLUMES", "UUID", "NOTE")
    for view in views:
        note = f"moving: {view.operation}" if view.operation else "; ".join(view.blockers)
        where = view.host + (f" (+ {', '.join(view.also_on)})" if view.also_on else "")
        made.add_row(
            cell(view.name),
            word(view.state),
            cell(where),
            cell(size(view.memory_bytes)),
            cell(", ".join(view.volumes) or "-"),
            cell(view.uuid),
            cell(note),
        )
    return made


def guest(view: GuestView) -> RenderableType:
    facts = [
        ("uuid", view.uuid),
        ("state", str(view.state)),
        ("host", view.host + (f", also on {', '.join(view.also_on)}" if view.also_on else "")),
        ("memory", size(view.memory_bytes)),
        ("vcpus", str(view.vcpus)),
        ("autostart", "yes" if view.autostart else "no"),
        ("bridges", ", ".join(view.bridges) or "-"),
        ("networks", ", ".join(view.networks) or "-"),
        ("volumes", ", ".join(view.volumes) or "-"),
        ("operation", view.operation or "-"),
    ]
    blockers = [Text(f"cannot move live: {plain(blocker)}", style="yellow") for blocker in view.blockers]
    return Group(cell(view.name), _facts(facts), *blockers)


def volumes(views: Sequence[VolumeView]) -> RenderableType:
    made = table("VOLUME", "HEALTH", "SIZE", "GUESTS", "HOSTS")
    for view in views:
        sizes = [copy.size_bytes for copy in view.copies if copy.size_bytes is not None]
        made.add_row(
            cell(view.name),
            word(view.health),
            cell(size(max(sizes)) if sizes else "-"),
            cell(", ".join(view.guests) or "-"),
            cell(", ".join(f"{copy.host}:{copy.role}" for copy in view.copies) or "-"),
        )
    return made


def volume(view: VolumeView) -> RenderableType:
    made = table("HOST", "ROLE", "HEALTH", "SIZE", "IDENTITY", "NOTE")
    for copy in view.copies:
        notes = [*copy.problems]
        notes += ["two primaries allowed"] if copy.dual_primary_allowed else []
        notes += ["perhaps the only current copy"] if copy.sole_current_copy else []
        made.add_row(
            cell(copy.host),
            word(copy.role),
            word(copy.health),
            cell("-" if copy.size_bytes is None else size(copy.size_bytes)),
            cell(copy.identity or "not provable"),
            cell("; ".join(notes)),
        )
    line = Text.assemble(plain(view.name), ": ", word(view.health))
    return Group(line, cell(f"guests: {', '.join(view.guests) or '-'}"), made)


def operations(found: Sequence[Operation]) -> RenderableType:
    made = table("OPERATION", "KIND", "SUBJECT", "FROM", "TO", "STATE", "REQUESTED", "TOOK", "NOTE")
    for operation in found:
        made.add_row(
            cell(operation.id),
            cell(operation.kind),
            cell(operation.subject),
            cell(operation.source or "-"),
            cell(operation.target or "-"),
            word(operation.state),
            cell(clock(operation.requested_at_s)),
            cell(seconds(took_s(operation))),
            cell(operation.reason),
        )
    return made


def took_s(operation: Operation) -> float | None:
    if operation.started_at_s is None or operation.ended_at_s is None:
        return None
    return max(0.0, operation.ended_at_s - operation.started_at_s)


def operation(shown: Operation, children: Sequence[Operation]) -> RenderableType:
    facts = [
        ("requested", clock(shown.requested_at_s)),
        ("started", clock(shown.started_at_s)),
        ("ended", clock(shown.ended_at_s)),
    ]
    facts += [("downtime", f"{shown.downtime_ms} ms")] if shown.downtime_ms is not None else []
    facts += [("part of", shown.parent)] if shown.parent else []
    facts += (
        [("asked", ", ".join(f"{key}={value}" for key, value in shown.request.items()))]
        if shown.request
        else []
    )
    parts: list[RenderableType] = [Text(headline(shown)), _facts(facts), *ending(shown)]
    if shown.steps:
        made = table("STEP", "STATE", "TRY", "REASONS")
        for step in shown.steps:
            made.add_row(cell(step.name), word(step.state), cell(step.attempt), cell("; ".join(step.reasons)))
        parts += [Text(), made]
    if children:
        parts += [Text(), moves(children)]
    return Group(*parts)


def ending(shown: Operation) -> list[Text]:
    """Why it stands where it stands, and what to type next."""
    lines = []
    if shown.reason:
        lines.append(Text(f"why:  {plain(shown.reason)}", style="red" if not shown.state.ended else ""))
    if shown.remedy:
        lines.append(cell(f"next: {shown.remedy}"))
    elif shown.state is OperationState.PARKED:
        lines.append(cell(f"next: migrctl op show {shown.id}, then migrctl op resume {shown.id}"))
    return lines


def moves(children: Sequence[Operation]) -> RenderableType:
    """One line per guest of a drain or undrain."""
    made = table("GUEST", "FROM", "TO", "STATE", "TOOK", "DOWNTIME", "NOTE")
    for child in children:
        made.add_row(
            cell(child.subject),
            cell(child.source or "-"),
            cell(child.target or "-"),
            word(child.state),
            cell(seconds(took_s(child))),
            cell("-" if child.downtime_ms is None else f"{child.downtime_ms} ms"),
            cell(child.reason),
        )
    return made


def plan(shown: Plan) -> RenderableType:
    """A dry run: every move, target, estimate and blocker."""
    parts: list[RenderableType] = []
    if shown.moves:
        made = table("GUEST", "FROM", "TO", "ESTIMATE", "UUID")
        for move in shown.moves:
            made.add_row(
                cell(move.name),
                cell(move.source),
                cell(move.target),
                cell(seconds(move.estimate_s)),
                cell(move.guest),
            )
        parts += [made, Text()]
    parts += [
        cell(f"will be shut down, with your consent: {_guest_name(shown, uuid)}") for uuid in shown.stops
    ]
    parts += [
        cell(f"is shut off and stays on {shown.host}: {_guest_name(shown, uuid)}") for uuid in shown.stays
    ]
    parts += [Text(f"refused: {plain(reason)}", style="red") for reason in shown.refusals]
    for blocker in shown.blockers:
        where = f" to {blocker.target}" if blocker.target else ""
        parts.append(Text(f"blocked: {plain(blocker.name)}{where}: {plain(blocker.reason)}", style="red"))
        if blocker.remedy:
            parts.append(cell(f"         {blocker.remedy}"))
    if shown.blockers or shown.refusals:
        parts.append(Text("would be refused; nothing was touched", style="bold red"))
    elif shown.moves or shown.stops:
        total = seconds(shown.estimate_s)
        parts.append(cell(f"{count(len(shown.moves), 'guest')} to move, about {total}; nothing was touched"))
    else:
        parts.append(cell("nothing to move; nothing was touched"))
    return Group(*parts)


def _guest_name(shown: Plan, uuid: str) -> str:
    return f"{shown.names[uuid]} ({uuid})" if uuid in shown.names else uuid


def event(item: ClusterEvent) -> Text:
    return cell(f"{clock(item.at_s)} {item.kind:<9} {item.message}")
