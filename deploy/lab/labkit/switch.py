"""The switches: a network namespace with three bridges, and this machine joined to one of them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from labkit import layout as names
from labkit import mounts
from labkit.layout import NETWORKS, Layout, Network
from labkit.sh import LabError, must, run

KEEPALIVE_BYTES = 80  # libvirt's, 28 bytes, in an IPv4 packet with TCP timestamps
NETNS_DIR = Path("/run/netns")  # of ip-netns(8)


def machine_link(layout: Layout) -> str:
    """This machine's interface on the management network."""
    return f"mlab-{layout.name}"


def inside(layout: Layout) -> list[str]:
    """Prefix of a command that runs in the switches' namespace (network only, same files)."""
    return ["nsenter", f"--net=/run/netns/{layout.namespace}"]


def batch(layout: Layout, lines: list[str]) -> None:
    """Run many `ip` commands in the namespace with one process; all or an error."""
    script = "\n".join(lines) + "\n"
    must([*inside(layout), "ip", "-batch", "-"], input=script.encode())


def up(layout: Layout) -> None:
    """Make the namespace, the bridges and the addresses of this machine and of the observer."""
    if str(NETNS_DIR) not in mounts.mount_points():
        _netns_mark().touch()  # `ip netns add` mounts the directory onto itself and never unmounts it
    must(["ip", "netns", "add", layout.namespace])
    lines = ["link set lo up"]
    for network in NETWORKS:
        lines.append(f"link add {network} type bridge forward_delay 0 stp_state 0 mcast_snooping 0")
        if network != "management":
            lines.append(f"address add {layout.gateway(network)}/24 dev {network}")
        lines.append(f"link set {network} up")
    batch(layout, lines)
    link = machine_link(layout)
    must(["ip", "link", "add", link, "type", "veth", "peer", "name", "machine", "netns", layout.namespace])
    must(["ip", "address", "add", f"{layout.gateway('management')}/24", "dev", link])
    must(["ip", "link", "set", link, "up"])
    batch(layout, ["link set machine master management up"])


def add_bmc_address(layout: Layout, host: str) -> None:
    """Give the management bridge the address that the host's BMC answers on."""
    run([*inside(layout), "ip", "address", "add", f"{layout.bmc_address(host)}/24", "dev", "management"])


def remove_bmc_address(layout: Layout, host: str) -> None:
    """The BMC has no power any more: its address stops answering ARP."""
    run([*inside(layout), "ip", "address", "del", f"{layout.bmc_address(host)}/24", "dev", "management"])


def add_taps(layout: Layout, host: str) -> None:
    """One tap per network for a UML host, plugged into its bridge."""
    lines: list[str] = []
    for network in NETWORKS:
        tap = layout.tap(host, network)
        lines.append(f"tuntap add dev {tap} mode tap")
        lines.append(f"link set {tap} master {network} up")
    batch(layout, lines)


def drop(layout: Layout, host: str, network: Network) -> None:
    """Pull the cable: the port leaves its bridge, so packets vanish and nobody gets an error."""
    batch(layout, [f"link set {layout.tap(host, network)} nomaster"])


def mute(layout: Layout, host: str, port: int) -> None:
    """What a program on the host says from this TCP port of the storage network is lost on its way.

    What is said to it arrives, is acknowledged by its kernel (else the sender's TCP would hold back the next
    request), and is answered by keepalives (else libvirt would give up before there is anything to say).
    """
    tap = layout.tap(host, "storage")
    rules = (
        f"add table bridge lab; add chain bridge lab {host} {{ type filter hook forward priority 0; }}; "
        f"add rule bridge lab {host} iifname {tap} tcp sport {port} ip length > {KEEPALIVE_BYTES} drop"
    )
    must([*inside(layout), "nft", rules])


def heal(layout: Layout, host: str) -> None:
    """Plug every cable of the host in again, and let all through that it sends."""
    run([*inside(layout), "nft", f"delete chain bridge lab {host}"])  # fine if it was never muted
    batch(layout, [f"link set {layout.tap(host, network)} master {network} up" for network in NETWORKS])


def plugged(layout: Layout) -> dict[str, list[str]]:
    """Host name -> networks whose cable is plugged in, asked of the kernel."""
    done = run([*inside(layout), "ip", "-o", "link", "show", "type", "tun"])
    veths = run([*inside(layout), "ip", "-o", "link", "show", "type", "veth"])
    if not done.ok:
        raise LabError(f"cannot read the switches of lab {layout.name}: {done.stderr.strip()}")
    return parse_plugged(done.stdout + veths.stdout)


def parse_plugged(text: str) -> dict[str, list[str]]:
    """`ip -o link` lines -> host -> networks. Only ports that are in the bridge of their own name count."""
    found: dict[str, list[str]] = {}
    port = re.compile(r"^\d+: (?P<host>[a-z]\d+)-(?P<network>[a-z]+)[@:].*? master (?P<bridge>\S+) ")
    for line in text.splitlines():
        match = port.match(line)
        if match and match["network"] == match["bridge"]:
            found.setdefault(match["host"], []).append(match["network"])
    return found


def down(layout_name: str) -> None:
    """Remove the namespace with all it holds, and this machine's link. Fine when there is none."""
    namespace = f"mlab-{layout_name}"
    run(["ip", "link", "del", f"mlab-{layout_name}"])
    if (NETNS_DIR / namespace).exists():
        must(["ip", "netns", "del", namespace])


def forget_netns_dir() -> None:
    """Give /run/netns back if a lab was the first to need it and nobody needs it now.

    To be called under the lock of the slots, when no instance is left.
    """
    if not _netns_mark().exists():
        return
    if str(NETNS_DIR) in mounts.mount_points() and not any(NETNS_DIR.iterdir()):
        run(["umount", str(NETNS_DIR)])
    with contextlib.suppress(OSError):  # somebody has begun to use it
        NETNS_DIR.rmdir()
    _netns_mark().unlink()


def _netns_mark() -> Path:
    return names.ROOT / ".netns-dir-is-ours"
