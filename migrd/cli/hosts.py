"""`host add` and `host remove`: hosts that come and go without an edit of migrd.toml."""

from __future__ import annotations

from typing import Annotated

import typer

from migrd.cli.client import segment
from migrd.cli.errors import CliError
from migrd.cli.exits import Exit, of_operation
from migrd.cli.fmt import cell
from migrd.cli.session import Output, session
from migrd.operations import Operation

NewHost = Annotated[str, typer.Argument(metavar="NAME", help="As `host` in the host's agent.toml.")]


def host_add(
    context: typer.Context,
    name: NewHost,
    *,
    url: Annotated[
        str, typer.Option(metavar="URL", help="Its agent: https://ADDRESS:PORT, as in its certificate.")
    ],
    bmc_address: Annotated[str | None, typer.Option(help="Without a BMC nothing here can switch it.")] = None,
    bmc_username: Annotated[str | None, typer.Option()] = None,
    bmc_password_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="On the daemon's machine; absolute, mode 0600.")
    ] = None,
    bmc_agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="Default ipmitool; or a fence agent.")
    ] = None,
    bmc_port: Annotated[int | None, typer.Option()] = None,
    bmc_deadline_s: Annotated[float | None, typer.Option(help="For each question. Default 20.")] = None,
    bmc_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For example cipher=17; repeatable.")
    ] = None,
    output: Output = None,
) -> int:
    """Follow one host more, at once and over restarts of the daemon. Its agent runs already, or will."""
    here = session(context, output)
    given: dict[str, object] = {
        "address": bmc_address,
        "user": bmc_username,
        "password_file": bmc_password_file,
        "agent": bmc_agent,
        "port": bmc_port,
        "deadline_s": bmc_deadline_s,
        "options": _options(bmc_option) if bmc_option else None,
    }
    bmc = {key: value for key, value in given.items() if value is not None}
    body: dict[str, object] = {"name": name, "agent": url, **({"bmc": bmc} if bmc else {})}
    reply = here.client.post(Operation, "/v1/hosts", body)
    text = f"{name} is added and followed ({reply.value.id}); see migrctl host show {name}"
    here.show(reply.document, cell(text))
    return of_operation(reply.value)


def host_remove(context: typer.Context, name: NewHost, output: Output = None) -> int:
    """Follow an added host no longer. Refused while anything speaks for it; what it runs is not touched."""
    here = session(context, output)
    reply = here.client.delete(Operation, f"/v1/hosts/{segment(name)}")
    here.show(reply.document, cell(f"{name} is removed and no longer followed ({reply.value.id})"))
    return of_operation(reply.value)


def _options(words: list[str]) -> dict[str, str]:
    """Raises CliError (usage)."""
    wrong = tuple(f"--bmc-option {word}: must be KEY=VALUE" for word in words if "=" not in word)
    if wrong:
        raise CliError(Exit.USAGE, "; ".join(wrong), wrong)
    return {key: value for key, _, value in (word.partition("=") for word in words)}
