"""What a running instance offers, as one document: for people, shells, tests and the demo."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import Any

from labkit import bmc, process, state, switch
from labkit.deploy import MIGRCTL_KEY
from labkit.layout import BMC_USER, GUEST_BRIDGE, NETWORKS, STORAGE_HOST
from labkit.state import Lab
from labkit.uml_host import ssh_dir


def document(lab: Lab) -> dict[str, Any]:
    """Names, addresses and paths of credentials; the credentials themselves stay in their files (0600)."""
    layout = lab.layout
    uml = layout.kind == "uml"
    hosts = [
        {
            "name": host,
            "management": layout.host_address(host, "management"),
            "storage": layout.host_address(host, "storage"),
            "bmc": layout.bmc_address(host),
            "iqn": layout.iqn(host),
        }
        for host in layout.hosts
    ]
    return {
        "lab": layout.name,
        "kind": layout.kind,
        "namespace": layout.namespace,
        "directory": str(layout.dir),
        "machine_address": layout.gateway("management"),
        "networks": {network: layout.subnet(network) for network in NETWORKS},
        "guest_bridge": GUEST_BRIDGE,
        "hosts": hosts,
        "storage_host": layout.host_address(STORAGE_HOST, "storage") if uml else None,
        "ssh_key": str(ssh_dir(layout) / "id_ed25519") if uml else None,
        "ssh_known_hosts": str(ssh_dir(layout) / "known_hosts") if uml else None,
        "bmc_user": BMC_USER,
        "bmc_password_file": str(bmc.password_file(layout)),
        "migrctl": lab.extra.get(MIGRCTL_KEY, {}),  # after `lab deploy`: the environment that migrctl needs
    }


def status(lab: Lab) -> dict[str, Any]:
    """What is on and plugged in right now, asked of the machine."""
    layout = lab.layout
    roles = {one.role for one in process.owned(lab.name)}
    cables = switch.plugged(layout)
    hosts = []
    for host in layout.machines:
        answers = None if host == STORAGE_HOST else bmc.role(host) in roles
        hosts.append(
            {
                "name": host,
                "kind": layout.kind,
                "on": host in roles,
                "bmc": None if answers is None else ("on" if answers else "off"),
                "management": layout.host_address(host, "management"),
                "storage": layout.host_address(host, "storage"),
                "networks": cables.get(host, []),
            }
        )
    return {"lab": lab.name, "hosts": hosts, "disks": [disk.to_json() for disk in lab.disks.values()]}


def status_table(found: dict[str, Any]) -> str:
    """The status for people: one line per host, one per guest's disk."""
    lines = [f"{'host':5} {'kind':6} {'power':6} {'bmc':4} {'management':13} plugged in"]
    for row in found["hosts"]:
        power, cables = "on" if row["on"] else "off", ", ".join(row["networks"]) or "nothing"
        lines.append(
            f"{row['name']:5} {row['kind']:6} {power:6} {row['bmc'] or '-':4} {row['management']:13} {cables}"
        )
    if found["disks"]:
        lines.append(f"\n{'guest':15} {'disk':11} {'MiB':>6}  reached from")
    for disk in found["disks"]:
        lines.append(f"{disk['guest']:15} {disk['kind']:11} {disk['size_mib']:6}  {', '.join(disk['hosts'])}")
    return "\n".join(lines)


def answer(args: argparse.Namespace) -> int:
    """`lab env`: shell exports, or the document with -o json."""
    found = document(state.load(args.lab))
    if args.output == "json":
        print(json.dumps(found, indent=1))
        return 0
    exports = {
        "MIGRD_LAB": found["lab"],
        "MIGRD_LAB_DIR": found["directory"],
        "MIGRD_LAB_NETNS": found["namespace"],
        "MIGRD_LAB_MACHINE": found["machine_address"],
        "MIGRD_LAB_HOSTS": " ".join(host["name"] for host in found["hosts"]),
        "MIGRD_LAB_BMC_USER": found["bmc_user"],
        "MIGRD_LAB_BMC_PASSWORD_FILE": found["bmc_password_file"],
    }
    if found["ssh_key"]:
        exports["MIGRD_LAB_SSH_KEY"] = found["ssh_key"]
        exports["MIGRD_LAB_SSH_KNOWN_HOSTS"] = found["ssh_known_hosts"]
    exports |= found["migrctl"]
    for host in found["hosts"]:
        exports[f"MIGRD_LAB_{host['name'].upper()}"] = host["management"]
        exports[f"MIGRD_LAB_{host['name'].upper()}_BMC"] = host["bmc"]
    for key, value in exports.items():
        print(f"export {key}={shlex.quote(str(value))}")
    return 0
