"""The lab's command line. Exit codes: 0 done, 1 failed, 2 usage, 3 refused (nothing was touched)."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from labkit import bmc, cli_deploy, cli_env, cli_guest, deploy, instance, needs, process, state, switch
from labkit import cli_words as words
from labkit.cli_words import Answer, say
from labkit.layout import NETWORKS, STORAGE_HOST, check_lab_name
from labkit.machines import machine
from labkit.netns_host import NetnsHost
from labkit.sh import LabError, LabRefusedError
from labkit.state import Lab
from labkit.uml_host import UmlHost

MAX_UP_HOSTS = 9
MIN_MEMORY_MIB = 512  # a host with systemd, libvirtd and no guest
MAX_MEMORY_MIB = 65536
RC_UNREACHABLE = 255  # what ssh answers for a machine that it cannot reach


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, translate errors into exit codes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        check_lab_name(args.lab)
    except ValueError as bad:
        parser.error(str(bad))
    try:
        process.mark_helpers(args.lab)
        answer: Answer = args.answer
        # A package that was removed since `up` must not keep anybody from taking the lab down.
        needs.check_rights() if answer is _down else needs.check()
        return answer(args)
    except LabRefusedError as refused:
        print(f"lab: {refused}", file=sys.stderr)
        return 3
    except LabError as failed:
        print(f"lab: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lab: interrupted; `lab --lab {args.lab} down` removes what was made", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Every verb of the lab."""
    parser = argparse.ArgumentParser(prog="lab", description="A cluster of real Linux hosts on this machine.")
    default = os.environ.get("MIGRD_LAB", "lab")
    parser.add_argument(
        "--lab", default=default, metavar="NAME", help="instance (default: $MIGRD_LAB or lab)"
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = words.verb(verbs, "up", _up, "make the instance and wait until every host is ready")
    verb.add_argument("--hosts", type=words.whole(1, MAX_UP_HOSTS, "hosts"), default=3, metavar="N")
    verb.add_argument("--host-kind", choices=("uml", "netns"), default="uml")
    memory = words.whole(MIN_MEMORY_MIB, MAX_MEMORY_MIB, "MiB")
    verb.add_argument("--memory", type=memory, default=1536, metavar="MiB", help="per host (default 1536)")
    words.verb(verbs, "down", _down, "remove every trace of the instance")
    words.verb(verbs, "status", _status, "hosts, power, cables, guests")
    verb = words.verb(verbs, "env", cli_env.answer, "addresses and credentials, as shell exports or JSON")
    verb = words.verb(
        verbs, "exec", _exec, "run a command on a host; its exit code is passed on", json_answer=False
    )
    verb.add_argument("-i", "--stdin", action="store_true", help="pass standard input on")
    verb.add_argument("host")
    verb.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD ...")
    verb = words.verb(verbs, "power", _power, "work a host's power through its BMC")
    verb.add_argument("host")
    verb.add_argument("action", choices=("on", "off", "cycle", "status"))
    verb = words.verb(verbs, "cut", _cut, "power loss: the host is dead at once, its BMC too if told")
    verb.add_argument("host")
    verb.add_argument("--with-bmc", action="store_true", help="the BMC shares the host's power")
    verb.add_argument(
        "--restore", action="store_true", help="power is back: the BMC answers, the host stays off"
    )
    verb = words.verb(verbs, "net", _net, "pull or plug a host's cables")
    verb.add_argument("host")
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("--drop", choices=NETWORKS)
    which.add_argument(
        "--mute", type=int, metavar="PORT", help="lose what it sends from this TCP port (storage)"
    )
    which.add_argument("--heal", action="store_true")
    verb = verbs.add_parser("bmc-hook")  # called by ipmi_sim, not by people
    verb.set_defaults(answer=_bmc_hook)
    verb.add_argument("host")
    verb.add_argument("words", nargs="+")
    _register_other_verbs(verbs)
    return parser


def _register_other_verbs(verbs: Any) -> None:
    for module in (cli_deploy, cli_guest):
        module.register(verbs)


def _check_bmc(lab: Lab, name: str) -> None:
    machine(lab, name)
    if name == STORAGE_HOST:
        raise LabRefusedError(
            f"{STORAGE_HOST} has no BMC: use `lab cut {STORAGE_HOST}` and `lab cut {STORAGE_HOST} --restore`"
        )


def _up(args: argparse.Namespace) -> int:
    lab = instance.up(args.lab, args.hosts, args.host_kind, args.memory, words.note)
    say(
        args, cli_env.document(lab), f"lab {lab.name} is up; `lab --lab {lab.name} env` prints what it offers"
    )
    return 0


def _down(args: argparse.Namespace) -> int:
    removed = instance.down(args.lab)
    left = instance.leftovers(args.lab)
    if left:
        raise LabError(f"still there: {', '.join(left)}")
    say(
        args,
        {"removed": removed},
        f"lab {args.lab}: removed {len(removed)} things" if removed else "nothing to remove",
    )
    return 0


def _status(args: argparse.Namespace) -> int:
    lab = state.load(args.lab)
    document = cli_env.status(lab)
    return say(args, document, cli_env.status_table(document))


def _exec(args: argparse.Namespace) -> int:
    lab = state.load(args.lab)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise LabRefusedError("exec: no command given: lab exec HOST -- CMD ...")
    host = machine(lab, args.host)
    stdin = None if args.stdin else subprocess.DEVNULL
    reach = host.reach(command) if host.is_running() else None
    if reach is None:
        print(f"lab: {args.host} is off: {_way_on(args.host)}", file=sys.stderr)
        return RC_UNREACHABLE
    return exit_code(subprocess.call(reach, stdin=stdin))


def exit_code(returncode: int) -> int:
    """What a shell says of a command: 128+N if signal N ended it."""
    return 128 - returncode if returncode < 0 else returncode


def _way_on(host: str) -> str:
    return f"`lab cut {host} --restore`" if host == STORAGE_HOST else f"`lab power {host} on`"


def _power(args: argparse.Namespace) -> int:
    lab = state.load(args.lab)
    _check_bmc(lab, args.host)
    now = bmc.power(lab.layout, args.host, args.action)
    return say(args, {"host": args.host, "power": now}, f"{args.host} is {now}")


def _cut(args: argparse.Namespace) -> int:
    lab = state.load(args.lab)
    host = machine(lab, args.host)
    has_bmc = args.host != STORAGE_HOST
    if args.restore:
        if has_bmc:
            bmc.start(lab.layout, args.host)
            bmc.wait_answers(lab.layout, args.host)
        else:
            host.start()
        return say(args, {"host": args.host, "mains": True}, f"{args.host} has mains power again")
    host.kill()
    if args.with_bmc and has_bmc:
        bmc.stop(lab.layout, args.host)
    return say(args, {"host": args.host, "mains": not args.with_bmc, "power": "off"}, f"{args.host} is dead")


def _net(args: argparse.Namespace) -> int:
    lab = state.load(args.lab)
    host = machine(lab, args.host)
    if host.kind == "netns" and not host.is_running():
        raise LabRefusedError(f"{args.host} is off, and a netns host has its cables only while it is on")
    if args.heal:
        switch.heal(lab.layout, args.host)
    elif args.mute is not None:
        switch.mute(lab.layout, args.host, args.mute)
    else:
        switch.drop(lab.layout, args.host, args.drop)
    now = switch.plugged(lab.layout).get(args.host, [])
    return say(args, {"host": args.host, "networks": now}, f"{args.host}: {', '.join(now) or 'no network'}")


def _boot(lab: Lab, host: UmlHost | NetnsHost) -> None:
    """Power on. A netns host has no systemd that would start its agent, so that is done here."""
    if host.is_running():
        return
    host.start()
    if lab.layout.kind == "netns" and deploy.MIGRCTL_KEY in lab.extra:
        deploy.start_netns_agent(lab, host.name)


def _bmc_hook(args: argparse.Namespace) -> int:
    """`get power` or `set power 0|1`, as ipmi_sim calls its chassis_control program."""
    lab = state.load(args.lab)
    host = machine(lab, args.host)
    asked = args.words
    if asked[:2] == ["get", "power"]:
        print(f"power:{int(host.is_running())}")
        return 0
    if asked[:2] == ["set", "power"] and len(asked) > 2:
        if asked[2] == "1":
            _boot(lab, host)
        else:
            host.kill()
        return 0
    if asked[:2] == ["set", "reset"]:
        host.kill()
        _boot(lab, host)
        return 0
    print(f"lab: chassis control {' '.join(asked)!r} is not known", file=sys.stderr)
    return 1
