"""Guest disks of a netns lab: one tgtd target per guest, opened by QEMU's own initiator with CHAP.

The backing file is on this machine, where tgtd and the audit see the same bytes. Each target admits
the storage addresses of the lab's hosts and nobody else. CHAP user and secret belong to the guest, not
to a host: the domain's XML names the user, and the XML travels with the guest.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import quoteattr

from labkit import libvirt_secret, netns_host, state
from labkit.disk import Disk
from labkit.layout import IQN_PREFIX, STORAGE_HOST, Layout
from labkit.netns_host import NetnsHost
from labkit.sh import LabError, LabRefusedError
from labkit.state import Lab

LUN = 1  # tgtd keeps LUN 0 of every target for its controller
CHAP_DIR = "/etc/migrd/chap"


def target_iqn(layout: Layout, guest: str) -> str:
    """Name of the guest's target."""
    return f"{IQN_PREFIX}:{layout.name}.{guest}"


def chap_user(guest: str) -> str:
    """CHAP user of the guest's disk, and its key in the lab's `chap`."""
    return f"guest-{guest}"


def secret_usage(layout: Layout, guest: str) -> str:
    """How the domain's XML names its libvirt secret: the same on every host."""
    return target_iqn(layout, guest)


def disk_xml(layout: Layout, guest: str) -> str:
    """The <disk> element. No <initiator>: tgtd's ACL is by address, so QEMU's default name will do."""
    name = quoteattr(f"{target_iqn(layout, guest)}/{LUN}")
    return f"""<disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source protocol='iscsi' name={name}>
        <host name='{layout.host_address(STORAGE_HOST, "storage")}' port='3260'/>
        <auth username={quoteattr(chap_user(guest))}>
          <secret type='iscsi' usage={quoteattr(secret_usage(layout, guest))}/>
        </auth>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>"""


def create(lab: Lab, guest: str, host: str, peer: str | None, size_mib: int) -> Disk:
    """Make the backing file and the target, and define the secret on `host`.

    Raises LabRefusedError for a peer (an iSCSI disk has none), LabError if tgtd refuses.
    """
    if peer is not None:
        raise LabRefusedError("an iSCSI disk has no peer: every host reaches it")
    layout = lab.layout
    with state.edit(lab.name) as fresh:
        secret = fresh.chap.setdefault(chap_user(guest), state.new_secret())
        number = fresh.numbers[guest]
    backing = netns_host.disks_dir(layout) / f"{guest}.raw"
    with backing.open("wb") as out:
        out.truncate(size_mib << 20)
    storage = NetnsHost(layout, STORAGE_HOST)
    target = _Target(storage, number + 1)  # tgtd counts targets from 1
    target.make(target_iqn(layout, guest), backing)
    target.admit(chap_user(guest), secret, [layout.host_address(name, "storage") for name in layout.hosts])
    libvirt_secret.define(NetnsHost(layout, host), secret_usage(layout, guest), secret)
    for name in layout.hosts:
        _write_credentials(NetnsHost(layout, name), layout, guest, secret)
    return Disk("iscsi-qemu", guest, disk_xml(layout, guest), [str(backing)], list(layout.hosts), size_mib)


def remove(lab: Lab, disk: Disk) -> None:
    """Remove target, account, secrets and backing file; fine if some of them are gone."""
    layout = lab.layout
    storage = NetnsHost(layout, STORAGE_HOST)
    _Target(storage, lab.numbers[disk.guest] + 1).remove(chap_user(disk.guest))
    for name in layout.hosts:
        host = NetnsHost(layout, name)
        if host.is_running():
            host.run(["rm", "-f", f"/{_credentials_name(disk.guest)}"])
        else:
            (host.upper / _credentials_name(disk.guest)).unlink(missing_ok=True)
        libvirt_secret.undefine(host, secret_usage(layout, disk.guest))
    for path in disk.backing:
        Path(path).unlink(missing_ok=True)
    with state.edit(lab.name) as fresh:
        fresh.chap.pop(chap_user(disk.guest), None)


def define_secret(lab: Lab, guest: str, host: str) -> None:
    """Give the host's libvirt the guest's CHAP secret: what has to happen there before a migration."""
    usage = secret_usage(lab.layout, guest)
    libvirt_secret.define(NetnsHost(lab.layout, host), usage, state.load(lab.name).chap[chap_user(guest)])


class _Target:
    """tgtadm's words for one target."""

    def __init__(self, storage: NetnsHost, tid: int) -> None:
        self.storage = storage
        self.tid = str(tid)

    def make(self, iqn: str, backing: Path) -> None:
        self._do("target", "new", "--tid", self.tid, "--targetname", iqn)
        lun = ["--tid", self.tid, "--lun", str(LUN)]
        self._do("logicalunit", "new", *lun, "--backing-store", str(backing), "--bstype", "rdwr")

    def admit(self, user: str, secret: str, addresses: list[str]) -> None:
        # tgtadm takes the secret in its argv and in no other way; it is this lab's own throw-away secret,
        # visible for a moment in the PID namespace of the lab's storage host and on this machine.
        self._do("account", "new", "--user", user, "--password", secret)
        self._do("account", "bind", "--tid", self.tid, "--user", user)
        for address in addresses:
            self._do("target", "bind", "--tid", self.tid, "--initiator-address", address)

    def remove(self, user: str) -> None:
        self._try("target", "delete", "--force", "--tid", self.tid)
        self._try("account", "delete", "--user", user)

    def _try(self, mode: str, operation: str, *words: str) -> str:
        done = self.storage.run(["tgtadm", "--lld", "iscsi", "--mode", mode, "--op", operation, *words])
        return "" if done.ok else done.stderr.strip() or f"exit {done.rc}"

    def _do(self, mode: str, operation: str, *words: str) -> None:
        problem = self._try(mode, operation, *words)
        if problem:
            raise LabError(f"tgtd: {mode} {operation} of target {self.tid}: {problem}")


def _credentials_name(guest: str) -> str:
    return f"{CHAP_DIR[1:]}/lab-{guest}.toml"


def _write_credentials(host: NetnsHost, layout: Layout, guest: str, secret: str) -> None:
    """The file from which migrd's agent takes the secret; written from inside, so a running host sees it."""
    text = (
        f'target = "{target_iqn(layout, guest)}"\n'
        f'portal = "{layout.host_address(STORAGE_HOST, "storage")}:3260"\n'
        f'username = "{chap_user(guest)}"\npassword = "{secret}"\n'
    )
    path = f"/{_credentials_name(guest)}"
    if host.is_running():
        host.must(["sh", "-c", 'umask 077; cat > "$0"', path], input=text.encode())
