"""The node record of open-iscsi: where CHAP credentials go, instead of into iscsiadm's argv (I17).

A record is text, `name = value` per line between "# BEGIN RECORD" and "# END RECORD", kept as
NODES/IQN/ADDRESS,PORT (made by hand) or NODES/IQN/ADDRESS,PORT,TPGT/IFACE (made by discovery).
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from storage.chap import Credential

_AUTH = "node.session.auth."
_AUTH_LINE = re.compile(r"node\.session\.auth\.(authmethod|username|password)\s*=")


def with_chap(text: str, credential: Credential) -> str:
    """The record with CHAP set; every other line stays as it is."""
    lines = [line for line in text.splitlines() if not _AUTH_LINE.match(line)]
    wanted = [
        f"{_AUTH}authmethod = CHAP",
        f"{_AUTH}username = {credential.username}",
        f"{_AUTH}password = {credential.password}",
    ]
    end = next((n for n, line in enumerate(lines) if line.startswith("# END RECORD")), len(lines))
    return "\n".join([*lines[:end], *wanted, *lines[end:]]) + "\n"


def files(nodes: Path, iqn: str, portal: str) -> tuple[Path, ...]:
    """Record files of a target at a portal, empty if none. `iqn` was checked to be no path."""
    address, _, port = portal.rpartition(":")
    directory = nodes / iqn
    prefix = f"{address.strip('[]')},{port}"
    found: list[Path] = []
    for entry in sorted(directory.iterdir()) if directory.is_dir() else []:
        if entry.name == prefix or entry.name.startswith(f"{prefix},"):
            found += sorted(entry.iterdir()) if entry.is_dir() else [entry]
    return tuple(found)


def write(path: Path, text: str) -> None:
    """Replace a record in one step, mode 0600 from the first byte on; raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".migrd-")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
