"""Pure: the words for an address to listen on, shared by config, server and migrctl."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Either a TCP address or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @property
    def local(self) -> bool:
        """Nobody on the network can reach it, so plain HTTP shows the token to nobody else."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_listen(word: str) -> Listen:
    """`HOST:PORT`, `[V6]:PORT` or `unix:/PATH`. Raises ValueError with what is wrong."""
    if word.startswith("unix:"):
        path = Path(word.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError("unix: takes an absolute path")
        return Listen(path=path)
    host, colon, port = word.rpartition(":")
    if not colon or not host:
        raise ValueError("must be HOST:PORT, [IPV6]:PORT or unix:/PATH")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError("the port must be a number from 0 to 65535")
    bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if ":" in bare and not host.startswith("["):
        raise ValueError("an IPv6 address goes into brackets: [::1]:7440")
    return Listen(host=bare, port=int(port))
