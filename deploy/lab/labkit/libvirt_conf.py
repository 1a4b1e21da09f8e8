"""Configuration of the libvirtd in every host, whichever kind it is. Pure."""

from __future__ import annotations

from labkit.layout import Layout

MIGRATION_PORTS = (49152, 49215)
"""libvirt's own range. It lies within the kernel's ephemeral ports, so without a reservation any connection
may take the port that an arriving QEMU is about to listen on ("Failed to find an available port")."""

RESERVED_PORTS = "-".join(map(str, MIGRATION_PORTS))
"""For net.ipv4.ip_local_reserved_ports (kernel, networking/ip-sysctl)."""


def libvirtd(layout: Layout, uuid: str, host: str, log: str) -> str:
    """libvirtd.conf; `log` as in log_outputs ("journald", "file:PATH")."""
    return f"""# Lab only: no authentication on the lab's own storage network.
listen_tls = 0
listen_tcp = 1
listen_addr = "{layout.host_address(host, "storage")}"
auth_tcp = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
host_uuid = "{uuid}"
keepalive_interval = 2
keepalive_count = 5
log_outputs = "2:{log}"
"""


def qemu(layout: Layout, host: str) -> str:
    """qemu.conf: no confinement that a lab host could not give, migrations over the storage network."""
    address = layout.host_address(host, "storage")
    return f"""security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
auto_start_bypass_cache = 0
keepalive_interval = 2
keepalive_count = 5
migration_address = "{address}"
migration_host = "{address}"
migration_port_min = {MIGRATION_PORTS[0]}
migration_port_max = {MIGRATION_PORTS[1]}
"""
