"""Guest disks on the storage host's LIO target: one target with one LUN per guest.

`iscsi`: the host's kernel initiator logs in with the host's own name and CHAP secret, and QEMU opens
/dev/disk/by-path/... `iscsi-qemu`: QEMU logs in by itself, with the guest's name and CHAP secret, because
the domain's XML names them and travels with the guest; the secret's value is in each host's libvirt.

Every host has the credentials of every target in /etc/migrd/chap/lab-GUEST.toml (mode 0600): target,
portal, username, password. migrd's agent reads them before it takes over a disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import quoteattr

from labkit import libvirt_secret, lio, state
from labkit.disk import Disk
from labkit.layout import IQN_PREFIX, STORAGE_HOST, Layout
from labkit.sh import LabError, LabRefusedError
from labkit.state import Lab
from labkit.uml_host import UmlHost
from labkit.uml_image import make_disk

CHAP_DIR = "/etc/migrd/chap"
Initiator = Literal["iscsi", "iscsi-qemu"]
_DEADLINE_S = 90.0


def target_iqn(layout: Layout, guest: str) -> str:
    """Name of the guest's target."""
    return f"{IQN_PREFIX}:{layout.name}.{guest}"


def guest_user(guest: str) -> str:
    """CHAP user of a guest whose QEMU is its own initiator, and its key in the lab's `chap`."""
    return f"guest-{guest}"


def guest_iqn(guest: str) -> str:
    """Initiator name of a guest whose QEMU is its own initiator."""
    return f"{IQN_PREFIX}:{guest_user(guest)}"


def portal(layout: Layout) -> str:
    """Address and port of the target, on the storage network."""
    return f"{layout.host_address(STORAGE_HOST, 'storage')}:3260"


def by_path(layout: Layout, guest: str) -> str:
    """The LUN's device on any host that is logged in (udev's path_id names it so)."""
    return f"/dev/disk/by-path/ip-{portal(layout)}-iscsi-{target_iqn(layout, guest)}-lun-{lio.LUN}"


def backing(layout: Layout, guest: str) -> Path:
    """The LUN's file on this machine."""
    return layout.dir / "disks" / f"{guest}-{STORAGE_HOST}.img"


def kernel_xml(layout: Layout, guest: str) -> str:
    """<disk> element of an `iscsi` guest."""
    return f"""<disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='native'/>
      <source dev={quoteattr(by_path(layout, guest))}/>
      <target dev='vda' bus='virtio'/>
    </disk>"""


def qemu_xml(layout: Layout, guest: str) -> str:
    """<disk> element of an `iscsi-qemu` guest; the same text is right on every host."""
    target = target_iqn(layout, guest)
    return f"""<disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source protocol='iscsi' name={quoteattr(f"{target}/{lio.LUN}")}>
        <host name={quoteattr(layout.host_address(STORAGE_HOST, "storage"))} port='3260'/>
        <initiator>
          <iqn name={quoteattr(guest_iqn(guest))}/>
        </initiator>
        <auth username={quoteattr(guest_user(guest))}>
          <secret type='iscsi' usage={quoteattr(target)}/>
        </auth>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>"""


def credentials(layout: Layout, guest: str, user: str, secret: str) -> str:
    """Content of a host's /etc/migrd/chap/lab-GUEST.toml."""
    rows = {
        "target": target_iqn(layout, guest),
        "portal": portal(layout),
        "username": user,
        "password": secret,
    }
    return "".join(f'{key} = "{value}"\n' for key, value in rows.items())


def create(lab: Lab, guest: str, host: str, peer: str | None, size_mib: int) -> Disk:
    """LUN for the kernel initiator, logged in on `host` only."""
    _check(lab, peer)
    disk = Disk("iscsi", guest, kernel_xml(lab.layout, guest), *_common(lab.layout, guest), size_mib)
    return _made(lab, disk, host)


def create_qemu(lab: Lab, guest: str, host: str, peer: str | None, size_mib: int) -> Disk:
    """LUN for QEMU's own initiator; libvirt's secret is defined on `host` only."""
    _check(lab, peer)
    with state.edit(lab.name) as fresh:
        fresh.chap.setdefault(guest_user(guest), state.new_secret())
    disk = Disk("iscsi-qemu", guest, qemu_xml(lab.layout, guest), *_common(lab.layout, guest), size_mib)
    return _made(lab, disk, host)


def remove(lab: Lab, disk: Disk) -> None:
    """Log out everywhere, forget the credentials, remove target, disk and file. Safe to repeat.

    Raises LabRefusedError while the storage host is off: it would come back with a target over a disk that
    is another guest's by then.
    """
    layout = lab.layout
    storage = UmlHost(layout, STORAGE_HOST)
    if not storage.is_running():
        raise LabRefusedError(f"{STORAGE_HOST} is off: `lab cut {STORAGE_HOST} --restore` first")
    target = target_iqn(layout, disk.guest)
    for name in layout.hosts:
        host = UmlHost(layout, name)
        if host.is_running():
            node = f"iscsiadm -m node -T {target}"
            forget = f"{node} --logout; {node} -o delete; rm -f {_credentials_path(disk.guest)}"
            host.run(["sh", "-c", forget])
            libvirt_secret.undefine(host, target)
    _lio(storage, {"action": "remove", "name": disk.guest, "target": target})
    for file in disk.backing:
        storage.unplug_disk(Path(file))
        Path(file).unlink(missing_ok=True)
    with state.edit(lab.name) as fresh:
        fresh.chap.pop(guest_user(disk.guest), None)


def _common(layout: Layout, guest: str) -> tuple[list[str], list[str]]:
    return [str(backing(layout, guest))], list(layout.hosts)


def _check(lab: Lab, peer: str | None) -> None:
    if peer is not None:
        raise LabRefusedError("an iSCSI disk has no peer: every host reaches it")
    off = [name for name in lab.layout.machines if not UmlHost(lab.layout, name).is_running()]
    if off:
        # A host that is off would come back without the credentials and could not take the guest over.
        raise LabRefusedError(f"{', '.join(off)} is off: every host has to be on when an iSCSI disk is made")


def _made(lab: Lab, disk: Disk, host: str) -> Disk:
    try:
        _make(state.load(lab.name), disk, host)
    except BaseException:
        remove(lab, disk)
        raise
    return disk


def _make(lab: Lab, disk: Disk, host: str) -> None:
    layout = lab.layout
    file = Path(disk.backing[0])
    file.parent.mkdir(exist_ok=True)
    make_disk(file, disk.size_mib)
    storage = UmlHost(layout, STORAGE_HOST)
    users = _users(lab, disk)
    request = {
        "action": "create",
        "name": disk.guest,
        "target": target_iqn(layout, disk.guest),
        "device": storage.plug_disk(file),
        "portal": layout.host_address(STORAGE_HOST, "storage"),
        "initiators": list(users.values()) if disk.kind == "iscsi" else [users[host]],
    }
    _lio(storage, request)
    for name, user in users.items():
        text = credentials(layout, disk.guest, user["user"], user["secret"])
        write = ["sh", "-c", f"umask 077; cat > {_credentials_path(disk.guest)}"]
        UmlHost(layout, name).must(write, input=text.encode())
    first = UmlHost(layout, host)
    if disk.kind == "iscsi":
        _login(first, layout, disk.guest)
    else:
        libvirt_secret.define(first, target_iqn(layout, disk.guest), users[host]["secret"])


def _users(lab: Lab, disk: Disk) -> dict[str, dict[str, str]]:
    """Host -> who opens the disk there: the host, or the guest's QEMU (the same everywhere)."""
    if disk.kind == "iscsi":
        hosts = lab.layout.hosts
        return {name: {"iqn": lab.layout.iqn(name), "user": name, "secret": lab.chap[name]} for name in hosts}
    user = guest_user(disk.guest)
    entry = {"iqn": guest_iqn(disk.guest), "user": user, "secret": lab.chap[user]}
    return dict.fromkeys(lab.layout.hosts, entry)


def _login(host: UmlHost, layout: Layout, guest: str) -> None:
    """Kernel session with the credentials of iscsid.conf; node.startup stays "manual"."""
    node = f"iscsiadm -m node -T {target_iqn(layout, guest)} -p {portal(layout)}"
    device = by_path(layout, guest)
    wait = f"for i in $(seq 60); do [ -b {device} ] && exit 0; sleep 0.3; done; exit 1"
    host.must(["sh", "-c", f"{node} -o new && {node} --login && {{ {wait}; }}"], deadline_s=_DEADLINE_S)


def _lio(storage: UmlHost, request: Mapping[str, object]) -> None:
    program = Path(lio.__file__).resolve()
    done = storage.run(
        ["/usr/bin/python3", "-B", str(program)], input=json.dumps(request).encode(), deadline_s=_DEADLINE_S
    )
    if not done.ok:
        raise LabError(
            f"{STORAGE_HOST}: LIO refuses to {request['action']} {request['name']}: {done.stderr.strip()}"
        )


def _credentials_path(guest: str) -> str:
    return f"{CHAP_DIR}/lab-{guest}.toml"
