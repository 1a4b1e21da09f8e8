"""What a netns host sees that this machine does not: its files and its network script. Pure."""

from __future__ import annotations

from labkit import libvirt_conf
from labkit.layout import GUEST_BRIDGE, NETWORKS, STORAGE_HOST, Layout
from labkit.uml_seed import host_uuid

# Directories of this machine that must not shine through the overlay: a host starts without domains,
# without libvirt's default network and without anything of the lab or of another migrd.
HIDDEN_DIRS = (
    "etc/libvirt/qemu",
    "etc/libvirt/hooks",
    "etc/libvirt/secrets",
    "etc/libvirt/nwfilter",
    "etc/libvirt/storage",
    "etc/migrd",
    "etc/iscsi",
    "var/lib/libvirt",
    "var/lib/migrd",
    "var/lib/migrd-lab",
    "var/cache/libvirt",
    "var/log",
    "var/tmp",
    "tmp",
)
# Empty directories that programs expect to find in a fresh root.
DIRECTORIES = ("var/log/libvirt/qemu", "var/lib/libvirt/qemu", "var/log/migrd", "etc/migrd/chap")


def files(layout: Layout, host: str) -> dict[str, str]:
    """Path (no leading slash) -> content of every file that differs from this machine's."""
    names = {**layout.names}
    if STORAGE_HOST not in names:
        names[STORAGE_HOST] = names[f"{STORAGE_HOST}-storage"] = layout.host_address(STORAGE_HOST, "storage")
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
    found = {
        "etc/hostname": f"{host}\n",
        "etc/hosts": "\n".join(lines) + "\n",
        "etc/lab/network.batch": network_batch(layout, host),
    }
    if host != STORAGE_HOST:
        found["etc/machine-id"] = host_uuid(layout, host).replace("-", "") + "\n"
        found["etc/iscsi/initiatorname.iscsi"] = f"InitiatorName={layout.iqn(host)}\n"
        found["etc/libvirt/libvirtd.conf"] = libvirt_conf.libvirtd(
            layout, host_uuid(layout, host), host, "file:/var/log/libvirt/libvirtd.log"
        )
        found["etc/libvirt/qemu.conf"] = libvirt_conf.qemu(layout, host)
    return found


def network_batch(layout: Layout, host: str) -> str:
    """`ip -batch` script: the veth ends are already there under the networks' names."""
    lines = ["link set lo up"]
    for network in NETWORKS:
        if network != "guests":
            lines.append(f"address add {layout.host_address(host, network)}/24 dev {network}")
        elif host != STORAGE_HOST:
            lines.append(f"link add {GUEST_BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0")
            lines.append(f"link set guests master {GUEST_BRIDGE}")
            lines.append(f"link set {GUEST_BRIDGE} up")
        lines.append(f"link set {network} up")
    lines.append(f"route add default via {layout.gateway('management')}")
    return "\n".join(lines) + "\n"
