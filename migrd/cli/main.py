"""migrctl: assemble the commands, turn every error into an exit code and the next thing to type."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from migrd.cli import hosts, reads, work
from migrd.cli.errors import CliError, Interrupted
from migrd.cli.exits import Exit
from migrd.cli.fmt import cell, plain
from migrd.cli.session import DEFAULT_URL, Format, Settings, console, leave, print_json

app = typer.Typer(
    name="migrctl",
    help="Drain, migrate and look after virtualisation hosts. Exit codes: 0 done, 1 failed, 2 usage, "
    "3 refused (reasons printed), 4 daemon unreachable, 5 parked (needs an operator).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
host = typer.Typer(help="One host: show, add, remove, power.", no_args_is_help=True)
vm = typer.Typer(help="One guest: show.", no_args_is_help=True)
op = typer.Typer(help="One operation: show, watch, cancel, resume.", no_args_is_help=True)
volume = typer.Typer(help="One volume: show.", no_args_is_help=True)

for name, group in (("host", host), ("vm", vm), ("op", op), ("volume", volume)):
    app.add_typer(group, name=name)
app.command()(reads.status)
app.command()(reads.hosts)
app.command()(reads.vms)
app.command()(work.migrate)
app.command()(work.drain)
app.command()(work.undrain)
app.command()(reads.ops)
app.command()(reads.volumes)
app.command()(reads.events)
host.command("show")(reads.host_show)
host.command("add")(hosts.host_add)
host.command("remove")(hosts.host_remove)
host.command("power")(work.power)
vm.command("show")(reads.vm_show)
op.command("show")(reads.op_show)
op.command("watch")(work.op_watch)
op.command("cancel")(work.op_cancel)
op.command("resume")(work.op_resume)
volume.command("show")(reads.volume_show)


def _version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        number = version("migrd")
        if context.obj is Format.JSON:
            print_json({"version": number})
        else:
            typer.echo(f"migrctl {number}")
        raise typer.Exit


@app.callback()
def settings(
    context: typer.Context,
    *,
    url: Annotated[
        str, typer.Option(envvar="MIGRD_URL", help="https://HOST:PORT or unix:/PATH")
    ] = DEFAULT_URL,
    token_file: Annotated[
        Path | None, typer.Option(envvar="MIGRD_TOKEN_FILE", help="Default /etc/migrd/token.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(envvar="MIGRD_CA", help="Default /etc/migrd/ca.pem, else the system's.")
    ] = None,
    output: Annotated[
        Format, typer.Option("-o", "--output", help="json: exactly one JSON document on stdout.")
    ] = Format.TEXT,
    reconnect_s: Annotated[
        float, typer.Option(min=0, help="How long to wait for a daemon that went away.")
    ] = 120.0,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand in front of the command."""
    context.obj = Settings(url=url, token_file=token_file, ca=ca, output=output, reconnect_s=reconnect_s)


def run(argv: Sequence[str]) -> int:
    """The exit code; everything has been printed."""
    # `obj`: what is known before the options are read; `settings` puts its own there.
    early = Format.JSON if wants_json(argv) else Format.TEXT
    try:
        _only_text(argv)
        code = app(args=list(argv), prog_name="migrctl", standalone_mode=False, obj=early)
        if code is not None and code not in {known.value for known in Exit}:
            raise KeyboardInterrupt  # noqa: TRY301 - typer answers 130 for one outside of request and wait
    except BrokenPipeError:
        leave(sys.stdout)
        return Exit.FAILED
    except CliError as caught:
        error = caught
    except TyperException as caught:
        error = _usage(caught)
    except (Abort, KeyboardInterrupt):
        error = Interrupted(accepted=None)
    else:
        return Exit.DONE if code is None else Exit(code)  # None: --help, --version
    return _explain(error, as_json=early is Format.JSON)


def _only_text(argv: Sequence[str]) -> None:
    """Names go into URLs and documents, which are UTF-8. Raises CliError (usage) with every other word."""
    wrong = tuple(f"argument {plain(word)} is not UTF-8" for word in argv if not _is_utf8(word))
    if wrong:
        raise CliError(Exit.USAGE, "; ".join(wrong), wrong)


def _is_utf8(word: str) -> bool:
    """Bytes of an argument that are none arrive as lone surrogates (PEP 383)."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def wants_json(argv: Sequence[str]) -> bool:
    """Known even when the command line could not be understood."""
    joined = " ".join(argv).replace("--output", "-o").replace("=", " ").replace("-ojson", "-o json")
    return "-o json" in joined


def _usage(error: TyperException) -> CliError:
    message = getattr(error, "format_message", None)
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "migrctl"
    text = message() if callable(message) else str(error)
    return CliError(Exit.USAGE, text or "no command given", hint=f"`{where} --help` shows what there is")


def _explain(error: CliError, *, as_json: bool) -> int:
    """All reasons and what to type next, on stderr; with -o json also the one document on stdout."""
    err = console(stderr=True)
    if error.detail.startswith("Usage:"):
        first = error.detail
    elif len(error.reasons) > 1 and error.detail.startswith(error.reasons[0]):
        first = f"migrctl: {error.code.name.lower()}, for {len(error.reasons)} reasons:"
    else:
        first = f"migrctl: {error.detail}"
    err.print(cell(first), soft_wrap=True)
    for reason in error.reasons:
        if reason != error.detail:
            err.print(cell(f"  - {reason}"), soft_wrap=True)
    if error.hint:
        err.print(cell(error.hint), soft_wrap=True)
    if as_json and not error.document_shown:
        try:
            print_json(error.as_document())
        except BrokenPipeError:  # the exit code still tells the error
            leave(sys.stdout)
    return error.code


def main() -> None:
    """Entry point."""
    sys.exit(int(run(sys.argv[1:])))


if __name__ == "__main__":
    main()
