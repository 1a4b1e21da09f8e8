"""The files in which a UML host differs from this machine. Pure: names and contents, nothing written.

A host's root is an overlay over this machine's `/`; these files are its upper layer at first boot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from labkit import libvirt_conf, uml_units
from labkit.layout import GUEST_BRIDGE, NETWORKS, STORAGE_HOST, Layout

# Directories whose content on this machine must not shine through (overlay "opaque" directories).
HIDDEN_DIRS = (
    "etc/systemd/system",
    "etc/systemd/network",
    "etc/libvirt/qemu",
    "etc/libvirt/hooks",
    "etc/drbd.d",
    "etc/iscsi",
    "etc/modules-load.d",
    "etc/migrd",
    "etc/rtslib-fb-target",
    "etc/ssh/sshd_config.d",
    "var/lib/libvirt",
    "var/lib/iscsi",
    "var/lib/drbd",
    "var/lib/migrd",
    "var/lib/migrd-lab",  # the secrets and disks of the lab itself are none of a host's business
    "var/log",
    "var/cache/libvirt",
    "var/tmp",
    "tmp",
    "run",
)

HIDDEN_FILES = (
    ".dockerenv",  # systemd would take the host for a container, not a machine
    "root/.bash_profile",
    "root/.bashrc",  # whatever it starts would run on every `ssh HOST CMD`: seconds on a UML host
    "root/.profile",
    "root/.ssh",
)

KERNEL_MODULES_DIR = "/usr/lib/uml/modules"

HOST_MODULES = ("drbd", "iscsi_tcp", "sd_mod", "softdog", "bridge", "tun", "8021q", "configfs")
STORAGE_MODULES = (
    "configfs",
    "target_core_mod",
    "target_core_iblock",
    "target_core_file",
    "iscsi_target_mod",
)


@dataclass(frozen=True)
class Seed:
    """What to put into the upper layer: files with their mode, symlinks, hidden directories and files."""

    files: Mapping[str, tuple[int, bytes]]
    links: Mapping[str, str]
    hidden: tuple[str, ...] = HIDDEN_DIRS
    absent: tuple[str, ...] = HIDDEN_FILES
    directories: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Facts:
    """What of this machine and of the lab's secrets goes into a seed."""

    kernel: str  # version of the UML kernel's modules, "6.1.176"
    shadow: str  # this machine's /etc/shadow
    iscsid_conf: str  # this machine's /etc/iscsi/iscsid.conf
    public_key: str  # the lab's ssh key
    host_key: bytes  # private ssh host key
    host_key_public: bytes
    chap_secret: str  # of this host; empty for the storage host
    machine_id: str
    generators: tuple[str, ...]  # names of this machine's systemd generators


def seed(layout: Layout, host: str, facts: Facts) -> Seed:
    """The whole upper layer of one host."""
    files = {
        **_identity(layout, host, facts),
        **_ssh(facts),
        **{path: (0o644, text.encode()) for path, text in uml_units.files(layout, host).items()},
    }
    if host != STORAGE_HOST:
        files |= _hypervisor(layout, host)
        files |= _initiator(layout, host, facts)
        files |= _drbd()
    links = dict(uml_units.links(host))
    links |= {f"etc/systemd/system-generators/{name}": "/dev/null" for name in facts.generators}
    # With the modules where kmod looks for them, modprobe, udev and systemd-modules-load just work.
    links[f"usr/lib/modules/{facts.kernel}"] = f"{KERNEL_MODULES_DIR}/{facts.kernel}"
    return Seed(
        files=files, links=links, directories=("var/log/journal", "var/log/libvirt/qemu", "etc/migrd/chap")
    )


def host_uuid(layout: Layout, host: str) -> str:
    """libvirt's host UUID: steady over power cycles, different for every host and lab."""
    digest = hashlib.sha256(f"{layout.name}/{layout.slot}/{host}".encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"


def _identity(layout: Layout, host: str, facts: Facts) -> dict[str, tuple[int, bytes]]:
    names = [f"{address} {name}" for name, address in layout.names.items()]
    hosts = "\n".join(["127.0.0.1 localhost", *names]) + "\n"
    modules = STORAGE_MODULES if host == STORAGE_HOST else HOST_MODULES
    return {
        "etc/hostname": (0o644, f"{host}\n".encode()),
        "etc/machine-id": (0o444, f"{facts.machine_id}\n".encode()),
        "etc/hosts": (0o644, hosts.encode()),
        "etc/fstab": (0o644, b""),
        "etc/shadow": (0o640, unlocked_root(facts.shadow).encode()),
        "etc/modules-load.d/lab.conf": (0o644, "".join(f"{name}\n" for name in modules).encode()),
        "etc/lab/network.batch": (0o644, network_batch(layout, host).encode()),
    }


def unlocked_root(shadow: str) -> str:
    """sshd without PAM refuses keys for an account locked with "!"; "*" means: no password, keys are fine."""
    lines = [line for line in shadow.splitlines() if not line.startswith("root:")]
    return "\n".join(["root:*:19000:0:99999:7:::", *lines]) + "\n"


def network_batch(layout: Layout, host: str) -> str:
    """`ip -batch` script of a host: vec0, vec1, vec2 become management, storage and the guest bridge."""
    lines = ["link set lo up"]
    for number, network in enumerate(NETWORKS):
        if network == "guests":
            lines.append(f"link add {GUEST_BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0")
            lines.append(f"link set vec{number} name {network} master {GUEST_BRIDGE} up")
            lines.append(f"link set {GUEST_BRIDGE} up")
        else:
            lines.append(f"link set vec{number} name {network}")
            lines.append(f"address add {layout.host_address(host, network)}/24 dev {network}")
            lines.append(f"link set {network} up")
    lines.append(f"route add default via {layout.gateway('management')}")
    return "\n".join(lines) + "\n"


def _ssh(facts: Facts) -> dict[str, tuple[int, bytes]]:
    config = """HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/lab_authorized_keys
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
MaxSessions 64
Subsystem sftp /usr/lib/openssh/sftp-server
"""
    return {
        "etc/ssh/sshd_config": (0o644, config.encode()),
        "etc/ssh/ssh_host_ed25519_key": (0o600, facts.host_key),
        "etc/ssh/ssh_host_ed25519_key.pub": (0o644, facts.host_key_public),
        "etc/ssh/lab_authorized_keys": (0o600, facts.public_key.encode()),
    }


def _hypervisor(layout: Layout, host: str) -> dict[str, tuple[int, bytes]]:
    libvirtd = libvirt_conf.libvirtd(layout, host_uuid(layout, host), host, "journald")
    qemu = "seccomp_sandbox = 0\n" + libvirt_conf.qemu(layout, host)
    return {
        "etc/libvirt/libvirtd.conf": (0o644, libvirtd.encode()),
        "etc/libvirt/qemu.conf": (0o644, qemu.encode()),
    }


def _initiator(layout: Layout, host: str, facts: Facts) -> dict[str, tuple[int, bytes]]:
    chap = f"""
# The lab: CHAP credentials of this host.
node.session.auth.authmethod = CHAP
node.session.auth.username = {host}
node.session.auth.password = {facts.chap_secret}
"""
    return {
        "etc/iscsi/initiatorname.iscsi": (0o600, f"InitiatorName={layout.iqn(host)}\n".encode()),
        "etc/iscsi/iscsid.conf": (0o600, (facts.iscsid_conf + chap).encode()),
    }


def _drbd() -> dict[str, tuple[int, bytes]]:
    # usage-count no: drbdadm would otherwise wait at a prompt. Small disks, so resync at full speed.
    common = """global { usage-count no; udev-always-use-vnr; }
common {
  disk { c-plan-ahead 0; resync-rate 100M; }
  net {
    protocol C;
    connect-int 2;
    ping-timeout 10;
    after-sb-0pri disconnect;
    after-sb-1pri disconnect;
    after-sb-2pri disconnect;
  }
}
"""
    return {"etc/drbd.d/global_common.conf": (0o644, common.encode())}
