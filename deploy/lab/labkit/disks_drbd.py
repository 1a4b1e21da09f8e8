"""Guest disks on DRBD 8.4: one resource per guest, replicated between two UML hosts.

The backing image of each replica is a file on this machine, plugged into its host as a UML disk.
DRBD's own metadata lies behind the data ("internal"), so byte 0 of the file is byte 0 of the guest.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.sax.saxutils import quoteattr

from labkit import state
from labkit.disk import Disk
from labkit.layout import Layout
from labkit.sh import LabRefusedError
from labkit.state import Lab
from labkit.uml_host import UmlHost
from labkit.uml_image import make_disk

FIRST_MINOR = 10
FIRST_PORT = 7800
METADATA_MIB = 1  # 36 KiB and a bitmap of 32 KiB per GiB: one MiB is plenty up to 16 GiB
_DEADLINE_S = 90.0


def device(guest: str) -> str:
    """The guest's disk as the domain's XML names it: the same path on both replicas."""
    return f"/dev/drbd/by-res/{guest}/0"


def backing(layout: Layout, guest: str, host: str) -> Path:
    """The replica's file on this machine."""
    return layout.dir / "disks" / f"{guest}-{host}.img"


def resource(layout: Layout, guest: str, number: int, devices: dict[str, str]) -> str:
    """drbd.conf(5) resource of a guest; `devices` maps both hosts to their backing device.

    No allow-two-primaries and no automatic repair of a split brain: the former is migrd's to set for
    the length of a migration, the latter is an operator's decision.
    """
    sections = "".join(
        f"  on {host} {{\n"
        f"    device minor {FIRST_MINOR + number};\n"
        f"    disk {disk};\n"
        f"    address {layout.host_address(host, 'storage')}:{FIRST_PORT + number};\n"
        f"    meta-disk internal;\n"
        f"  }}\n"
        for host, disk in devices.items()
    )
    return f"resource {guest} {{\n{sections}}}\n"


def disk_xml(guest: str) -> str:
    """The <disk> element of the guest."""
    return f"""<disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='native'/>
      <source dev={quoteattr(device(guest))}/>
      <target dev='vda' bus='virtio'/>
    </disk>"""


def create(lab: Lab, guest: str, host: str, peer: str | None, size_mib: int) -> Disk:
    """Make both replicas, connected and UpToDate without a sync, Primary on `host`.

    Raises LabRefusedError without a peer or if one of the hosts is off; LabError if DRBD refuses. What was
    made until then is removed by `remove`, given the same names.
    """
    layout = lab.layout
    if peer is None or peer == host:
        raise LabRefusedError("a DRBD disk needs a peer, another host than its first one")
    machines = [UmlHost(layout, host), UmlHost(layout, peer)]
    if off := [machine.name for machine in machines if not machine.is_running()]:
        raise LabRefusedError(
            f"{', '.join(off)} is off: both replicas have to be there when the disk is made"
        )
    disk = Disk("drbd", guest, disk_xml(guest), _files(layout, guest, host, peer), [host, peer], size_mib)
    try:
        _create(lab, disk, machines)
    except BaseException:
        remove(lab, disk)
        raise
    return disk


def remove(lab: Lab, disk: Disk) -> None:
    """Take the resource down on every host with power, unplug and delete both replicas. Safe to repeat."""
    for host, file in zip(disk.hosts, disk.backing, strict=True):
        machine = UmlHost(lab.layout, host)
        if machine.is_running():
            script = f"drbdadm down {disk.guest}; rm -f /etc/drbd.d/{disk.guest}.res; udevadm settle -t 10"
            machine.run(["sh", "-c", script])
        else:
            with state.edit(lab.name) as fresh:
                forget = fresh.gone.setdefault(host, [])
                forget += [] if disk.guest in forget else [disk.guest]
        machine.unplug_disk(Path(file))
        Path(file).unlink(missing_ok=True)


def _files(layout: Layout, guest: str, *hosts: str) -> list[str]:
    return [str(backing(layout, guest, host)) for host in hosts]


def _create(lab: Lab, disk: Disk, machines: list[UmlHost]) -> None:
    with state.edit(lab.name) as fresh:
        number = fresh.numbers[disk.guest]
        for host in disk.hosts:
            fresh.gone[host] = [name for name in fresh.gone.get(host, []) if name != disk.guest]
    devices = {}
    for machine, file in zip(machines, disk.backing, strict=True):
        Path(file).parent.mkdir(exist_ok=True)
        make_disk(Path(file), disk.size_mib + METADATA_MIB)
        devices[machine.name] = machine.plug_disk(Path(file))
    text = resource(lab.layout, disk.guest, number, devices)

    def bring_up(machine: UmlHost) -> None:
        write = f"cat > /etc/drbd.d/{disk.guest}.res && drbdadm create-md --force {disk.guest}"
        machine.must(["sh", "-c", f"{write} </dev/null && drbdadm up {disk.guest}"], input=text.encode())

    with ThreadPoolExecutor(len(machines)) as pool:
        list(pool.map(bring_up, machines))
    first = machines[0]
    first.must(["sh", "-c", _wait(disk.guest, "Connected", "cstate")], deadline_s=_DEADLINE_S)
    # Both replicas are empty sparse files, so they are equal: declaring it saves the initial sync.
    first.must(["drbdadm", "new-current-uuid", "--clear-bitmap", f"{disk.guest}/0"])
    first.must(["sh", "-c", _wait(disk.guest, "UpToDate/UpToDate", "dstate")], deadline_s=_DEADLINE_S)
    first.must(["drbdadm", "primary", disk.guest])
    for machine in machines:
        machine.must(["sh", "-c", f"udevadm settle -t 20; test -b {device(disk.guest)}"])


def _wait(guest: str, wanted: str, what: str) -> str:
    """Shell: wait up to 60 s until `drbdadm WHAT RES` says `wanted`, else show the state and fail."""
    return (
        f"for i in $(seq 120); do [ \"$(drbdadm {what} {guest})\" = '{wanted}' ] && exit 0; sleep 0.5; done; "
        f"cat /proc/drbd >&2; exit 1"
    )
