"""`drbdsetup show RES --show-defaults`: the options in force, in the bracket grammar of drbd.conf(5).

8.4 prints one `net` section beside `_this_host`/`_remote_host`; 9 prints a `connection` section per peer.
Secrets in the text are dropped while it is read (I17).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from storage.drbd.model import Options, Path

_SECRETS = frozenset({"shared-secret"})
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{};]|#[^\n]*|[^\s{};"#]+')
_MAX_DEPTH = 16


@dataclass(slots=True)
class _Section:
    words: tuple[str, ...]
    options: list[tuple[str, ...]] = field(default_factory=list)
    sections: list[_Section] = field(default_factory=list)

    def find(self, name: str) -> list[_Section]:
        return [section for section in self.sections if section.words[:1] == (name,)]

    def option(self, name: str) -> tuple[str, ...]:
        return next((words[1:] for words in self.options if words[:1] == (name,)), ())


def parse(text: str, resource: str) -> Options:
    """Options of one resource. `complete` only if its section is there and every bracket was closed."""
    root, closed = _tree(text)
    for section in root.find("resource"):
        if section.words[1:2] == (resource,):
            paths = _paths_9(section) if section.find("connection") else _paths_84(section)
            return Options(resource, paths, complete=closed)
    return Options(resource)


def _tree(text: str) -> tuple[_Section, bool]:
    root = _Section(())
    stack = [root]
    words: list[str] = []
    for part in _TOKEN.findall(text):
        if part.startswith("#"):
            continue
        if part == "{":
            section = _Section(tuple(words))
            stack[-1].sections.append(section)
            stack.append(section)
            if len(stack) > _MAX_DEPTH:
                return root, False
            words = []
        elif part == "}":
            if len(stack) == 1 or words:
                return root, False
            stack.pop()
        elif part == ";":
            stack[-1].options.append(tuple(words))
            words = []
        else:
            words.append(part.strip('"'))
    return root, len(stack) == 1 and not words


def _net(section: _Section) -> tuple[tuple[str, str], ...]:
    found = [
        (words[0], " ".join(words[1:]))
        for net in section.find("net")
        for words in net.options
        if words and words[0] not in _SECRETS
    ]
    return tuple(found)


def _address(words: tuple[str, ...]) -> str:
    """("ipv4", "10.0.0.1:7788") as drbdsetup takes it: "ipv4:10.0.0.1:7788"."""
    return ":".join(words[:2]) if len(words) >= 2 else ""


def _paths_84(resource: _Section) -> tuple[Path, ...]:
    """One connection, or none: a torn down one (StandAlone) has no address and no option left."""
    local = next((_address(host.option("address")) for host in resource.find("_this_host")), "")
    remote = next((_address(host.option("address")) for host in resource.find("_remote_host")), "")
    net = _net(resource)
    if not (local and remote) and not net:
        return ()
    return (Path(0, "peer", local, remote, net),)


def _paths_9(resource: _Section) -> tuple[Path, ...]:
    found: list[Path] = []
    for connection in resource.find("connection"):
        node = connection.option("_peer_node_id")[:1]
        net = _net(connection)
        ends = connection.find("path")
        local = _address(ends[0].option("_this_host")) if ends else ""
        remote = _address(ends[0].option("_remote_host")) if ends else ""
        node_id = int(node[0]) if node and node[0].isdecimal() else -1
        found.append(Path(node_id, dict(net).get("_name", ""), local, remote, net))
    return tuple(found)
