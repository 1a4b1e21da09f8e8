"""The verb `deploy` of the lab's command line."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from labkit import cli_words as words
from labkit import deploy, state


def register(verbs: Any) -> None:
    """Add the verb to the lab's parser."""
    text = "install migrd and its agents in the lab, as systemd units where hosts have systemd"
    verb = words.verb(verbs, "deploy", _deploy, text)
    said = "moves per host at once (default: 1 on uml hosts, 2 on netns hosts)"
    verb.add_argument("--moves", type=words.whole(1, 32, "moves"), metavar="N", help=said)


def _deploy(args: argparse.Namespace) -> int:
    env = deploy.deploy(state.load(args.lab), args.moves)
    exports = [f"export {key}={shlex.quote(value)}" for key, value in env.items()]
    return words.say(args, env, "\n".join(["migrd is up; for migrctl:", *exports]))
