"""Names, addresses and paths of a lab instance. Pure: no file, process or network is touched here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labkit.hosts import HostKind

ROOT = Path(os.environ.get("MIGRD_LAB_ROOT", "/var/lib/migrd-lab")).resolve()
MAX_SLOTS = 10
MAX_HOSTS = 16
MAX_GUESTS = 90
STORAGE_HOST = "s1"
GUEST_BRIDGE = "br-guests"
IQN_PREFIX = "iqn.2026-11.org.lab"
BMC_USER = "admin"

Network = Literal["management", "storage", "guests"]
NETWORKS: tuple[Network, ...] = ("management", "storage", "guests")

_NAME = re.compile(r"[a-z][a-z0-9]{0,7}\Z")
_HOST = re.compile(r"h([1-9][0-9]?)\Z")


def check_lab_name(name: str) -> str:
    """Return the name, or raise ValueError. Short, because it becomes part of 15-byte interface names."""
    if not _NAME.match(name):
        raise ValueError(f"lab name {name!r}: one lower-case letter, then at most 7 letters or digits")
    return name


def host_index(host: str) -> int:
    """1 for h1, 2 for h2, ...; raises ValueError for anything else, s1 included."""
    found = _HOST.match(host)
    if not found or int(found[1]) > MAX_HOSTS:
        raise ValueError(f"no such host name: {host!r} (h1 to h{MAX_HOSTS})")
    return int(found[1])


@dataclass(frozen=True)
class Layout:
    """One instance. `slot` picks the subnets, so that several instances live side by side."""

    name: str
    slot: int
    hosts: tuple[str, ...]
    kind: HostKind = "uml"
    memory_mib: int = 1536
    storage_memory_mib: int = 512

    @property
    def namespace(self) -> str:
        """The network namespace that holds the three bridges (the "switches")."""
        return f"mlab-{self.name}"

    @property
    def dir(self) -> Path:
        """Everything of the instance; `down` removes it."""
        return ROOT / self.name

    @property
    def machines(self) -> tuple[str, ...]:
        """All hosts that have power, the storage host first."""
        return (STORAGE_HOST, *self.hosts)

    @property
    def memory_dir(self) -> Path:
        """A tmpfs of the instance's own: memory of UML hosts, upper layers of netns hosts."""
        return self.dir / "memory"

    def host_dir(self, host: str) -> Path:
        """Root disk, console log and sockets of one host."""
        return self.dir / host

    def net(self, network: Network) -> str:
        """The network's first three numbers: "10.77.0"."""
        return f"10.{77 + self.slot}.{NETWORKS.index(network)}"

    def subnet(self, network: Network) -> str:
        """The network in CIDR notation."""
        return f"{self.net(network)}.0/24"

    def gateway(self, network: Network) -> str:
        """.1: this machine on management, the observer in the namespace on storage and guests."""
        return f"{self.net(network)}.1"

    def host_address(self, host: str, network: Network) -> str:
        """Address of a host on management or storage; hosts have none on the guest network."""
        if network == "guests":
            raise ValueError("hosts have no address on the guest network")
        return f"{self.net(network)}.{5 if host == STORAGE_HOST else 10 + host_index(host)}"

    def bmc_address(self, host: str) -> str:
        """Where the host's BMC answers IPMI on UDP port 623."""
        return f"{self.net('management')}.{100 + host_index(host)}"

    def guest_address(self, number: int) -> str:
        """Address of guest number 0..MAX_GUESTS-1 on the guest network."""
        if not 0 <= number < MAX_GUESTS:
            raise ValueError(f"guest number {number}: 0 to {MAX_GUESTS - 1}")
        return f"{self.net('guests')}.{150 + number}"

    def guest_mac(self, number: int) -> str:
        """MAC of guest number `number`; 52:54:00 is QEMU's own prefix."""
        return f"52:54:00:{77 + self.slot:02x}:01:{number:02x}"

    def host_mac(self, host: str, network: Network) -> str:
        """MAC of a host's interface (locally administered)."""
        number = 0 if host == STORAGE_HOST else host_index(host)
        return f"02:4d:{77 + self.slot:02x}:00:{NETWORKS.index(network):02x}:{number:02x}"

    def tap(self, host: str, network: Network) -> str:
        """Name of the tap (uml) or veth (netns) of a host inside the lab's namespace."""
        return f"{host}-{network}"

    def iqn(self, host: str) -> str:
        """iSCSI initiator name of a host."""
        return f"{IQN_PREFIX}:{host}"

    @property
    def total_memory_mib(self) -> int:
        """What all machines take at most, once they have touched all of it."""
        return len(self.hosts) * self.memory_mib + self.storage_memory_mib

    @property
    def names(self) -> dict[str, str]:
        """Every name that resolves in every host: h1 (management), h1-storage, s1 ..."""
        found: dict[str, str] = {}
        for host in self.machines:
            found[host] = self.host_address(host, "management")
            found[f"{host}-storage"] = self.host_address(host, "storage")
        return found
