"""Guests of the lab: made, started, waited for, and removed with all they own."""

from __future__ import annotations

import importlib
import re
import sys
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from labkit import disks_tgt, guest_image, guest_xml, state, switch
from labkit.disk import DISK_KINDS, Disk, DiskKind
from labkit.guest_xml import Guest
from labkit.layout import MAX_GUESTS, STORAGE_HOST
from labkit.machines import machine
from labkit.sh import LabError, LabRefusedError, run
from labkit.state import Lab

DEFAULT_DISK_MIB = 64
FIRST_RECORD_DEADLINE_S = 150.0  # 8 s on an idle machine, 45 s were seen at a load of 20
EXTRA_KEY = "guests"  # in Lab.extra: guest -> what is known about it

_RC_HELD = 9
# One connection per host, and one virsh where the guest is not: starting programs is what costs a UML host.
_END = f"""virsh -q domstate {{name}} >/dev/null 2>&1 || exit 0
virsh -q destroy {{name}} >/dev/null 2>&1 && echo running domain
virsh -q undefine {{name}} >/dev/null 2>&1 && echo domain
virsh -q domstate {{name}} >/dev/null 2>&1 && exit {_RC_HELD}
exit 0"""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,14}\Z")
_RESERVED = re.compile(r"[hs][0-9]+\Z")


def check_name(name: str) -> str:
    """Return the name, or raise LabRefusedError: it goes into an IQN, a file name and a DRBD resource."""
    if not _NAME.match(name) or _RESERVED.match(name):
        raise LabRefusedError(
            f"guest name {name!r}: a lower-case letter, then at most 14 letters, digits, '-'; not h1, s1"
        )
    return name


def check_known(lab: Lab, name: str) -> None:
    """Raise LabRefusedError, with the names that would do, for a guest of which the lab has nothing."""
    known = sorted({*lab.disks, *lab.numbers, *guests(lab)})
    if name not in known:
        raise LabRefusedError(f"lab {lab.name} has no guest {name!r}: {', '.join(known) or 'it has none'}")


def refusals(
    lab: Lab,
    name: str,
    host: str,
    kind: DiskKind,
    peer: str | None,
    memory_mib: int,
    off: Collection[str] = (),
) -> list[str]:
    """Every reason why the guest cannot be added; empty if it can. Pure. `off`: machines without power."""
    found = []
    if name in lab.disks or name in guests(lab):
        found.append(f"guest {name} is there already: `lab guest rm {name}` first")
    for label, value in (("host", host), ("peer", peer)):
        if value is not None and value not in lab.layout.hosts:
            found.append(f"{label} {value!r} is not one of {', '.join(lab.layout.hosts)}")
        elif value in off:
            found.append(f"{label} {value} is off: `lab power {value} on` first")
    if STORAGE_HOST in off and kind != "drbd":
        found.append(f"{STORAGE_HOST} is off: `lab cut {STORAGE_HOST} --restore` first")
    if kind == "drbd" and (peer is None or peer == host):
        found.append("a DRBD disk needs --peer, another host than --host")
    if kind != "drbd" and peer is not None:
        found.append(f"--peer is for drbd, an {kind} disk has no peer: every host reaches it")
    if lab.layout.kind == "netns" and kind != "iscsi-qemu":
        found.append(f"netns hosts share this machine's kernel, which has no {kind}: use --disk iscsi-qemu")
    if memory_mib < guest_xml.MIN_MEMORY_MIB:
        found.append(f"--memory {memory_mib}: the guest needs at least {guest_xml.MIN_MEMORY_MIB} MiB")
    if len(lab.numbers) >= MAX_GUESTS:
        found.append(f"the lab has {MAX_GUESTS} guests, and addresses for no more")
    return found


def free_number(taken: set[int]) -> int:
    """Smallest number from 0 that is not taken."""
    return next(number for number in range(MAX_GUESTS) if number not in taken)


def _off(lab: Lab) -> list[str]:
    return [name for name in lab.layout.machines if not machine(lab, name).is_running()]


def guests(lab: Lab) -> dict[str, dict[str, Any]]:
    """Guest -> {number, uuid, address, mac, memory_mib, ...} as it stands in the state file."""
    found: dict[str, dict[str, Any]] = lab.extra.get(EXTRA_KEY, {})
    return found


def add(
    lab_name: str,
    name: str,
    host: str,
    kind: DiskKind,
    *,
    peer: str | None = None,
    memory_mib: int = guest_xml.DEFAULT_MEMORY_MIB,
    dirty_mib_per_s: int = 0,
    records_per_s: int = guest_xml.DEFAULT_RECORDS_PER_S,
    disk_mib: int = DEFAULT_DISK_MIB,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Make the guest's disk, define and start it on `host`, and wait for its first acknowledged record.

    Returns what `guest list` shows. Raises LabRefusedError with all reasons before anything is touched,
    LabError if a step fails; what was made until then is removed again.
    """
    check_name(name)
    with state.edit(lab_name) as lab:
        reasons = refusals(lab, name, host, kind, peer, memory_mib, _off(lab))
        if reasons:
            raise LabRefusedError("; ".join(reasons))
        number = free_number(set(lab.numbers.values()))
        lab.numbers[name] = number
    guest = Guest(name, number, str(uuid.uuid4()), memory_mib, dirty_mib_per_s, records_per_s)
    try:
        _make(lab, guest, host, kind, peer, disk_mib, report)
    except BaseException:
        remove(lab_name, name)
        raise
    return describe(state.load(lab_name), name)


def remove(lab_name: str, name: str) -> list[str]:
    """Stop the guest wherever it runs, undefine it, remove its disk and its number; returns what was removed.

    Fine for a guest that is only half there. Raises LabError if a running host refuses to let it go.
    """
    lab = state.load(lab_name)
    removed = []
    for host_name in lab.layout.hosts:
        host = machine(lab, host_name)
        if not host.is_running():
            continue
        done = host.run(["sh", "-c", _END.format(name=name)])
        removed += [f"{what} on {host_name}" for what in done.stdout.splitlines()]
        if done.rc == _RC_HELD:
            raise LabError(f"{host_name} does not let go of guest {name}")
    disk = lab.disks.get(name)
    if disk is not None:
        _disks(lab, disk.kind).remove(lab, disk)
        removed.append(f"{disk.kind} disk")
    with state.edit(lab_name) as fresh:
        fresh.disks.pop(name, None)
        fresh.numbers.pop(name, None)
        guests(fresh).pop(name, None)
    return removed


def describe(lab: Lab, name: str) -> dict[str, Any]:
    """One guest for `-o json`."""
    disk = lab.disks.get(name)
    return {"name": name, **guests(lab).get(name, {}), "disk": None if disk is None else disk.to_json()}


def admit(lab: Lab, name: str, host: str) -> None:
    """Define the CHAP secret of the guest's disk on a host, for migrations by hand (`virsh migrate`).

    Raises LabRefusedError for an unknown guest or host, and for disks that need no secret there.
    """
    machine(lab, host)
    check_known(lab, name)
    if lab.layout.kind != "netns":
        raise LabRefusedError(
            "only guests of netns hosts are admitted by hand: on uml hosts migrd's agent does it"
        )
    disks_tgt.define_secret(lab, name, host)


def where(lab: Lab, name: str) -> dict[str, str]:
    """Host -> libvirt's state word, for every host with power that knows the guest; asked, not remembered."""
    found = {}
    for host_name in lab.layout.hosts:
        host = machine(lab, host_name)
        if host.is_running():
            done = host.run(["virsh", "-q", "domstate", name], deadline_s=15)
            if done.ok:
                found[host_name] = done.stdout.strip()
    return found


def wait_for_ack(lab: Lab, name: str, deadline_s: float) -> None:
    """Block until an acknowledgement of the guest is seen on the guest network; LabError when late."""
    listener = [sys.executable, "-m", "labkit.audit_listen", name, str(deadline_s)]
    package_root = str(Path(__file__).resolve().parents[1])
    argv = [*switch.inside(lab.layout), "env", "-C", package_root, *listener]
    done = run(argv, deadline_s=deadline_s + 10)
    if not done.ok:
        raise LabError(
            f"guest {name}: no record acknowledged within {deadline_s:.0f} s {done.stderr.strip()}"
        )


def _make(
    lab: Lab,
    guest: Guest,
    host_name: str,
    kind: DiskKind,
    peer: str | None,
    disk_mib: int,
    report: Callable[[str], None],
) -> None:
    layout = lab.layout
    image = guest_image.build()
    pin_observer_mac(lab)
    disk: Disk = _disks(lab, kind).create(lab, guest.name, host_name, peer, disk_mib)
    with state.edit(lab.name) as fresh:
        fresh.disks[guest.name] = disk
        fresh.extra.setdefault(EXTRA_KEY, {})[guest.name] = {
            "number": guest.number,
            "uuid": guest.uuid,
            "address": layout.guest_address(guest.number),
            "mac": layout.guest_mac(guest.number),
            "memory_mib": guest.memory_mib,
            "dirty_mib_per_s": guest.dirty_mib_per_s,
            "records_per_s": guest.records_per_s,
            "record_size": guest.record_size,
            "first_host": host_name,
        }
    report(f"{guest.name}: {kind} disk of {disk_mib} MiB made")
    host = machine(lab, host_name)
    xml = guest_xml.domain_xml(layout, guest, disk.xml, str(image.kernel), str(image.initramfs))
    host.must(["virsh", "-q", "define", "/dev/stdin"], input=xml.encode())
    started = time.monotonic()
    host.must(["virsh", "-q", "start", guest.name], deadline_s=120)
    try:
        wait_for_ack(lab, guest.name, FIRST_RECORD_DEADLINE_S)
    except LabError as late:
        console = host.run(["tail", "-n", "8", guest_xml.console_path(guest.name)]).stdout.strip()
        raise LabError(f"{late}; its console ends:\n{console}") from late
    report(f"{guest.name}: first record acknowledged {time.monotonic() - started:.1f} s after its start")


def pin_observer_mac(lab: Lab) -> None:
    """Fix the MAC of the observer's bridge: by itself a bridge takes one of its ports'."""
    mac = guest_xml.observer_mac(lab.layout)
    switch.batch(lab.layout, [f"link set guests address {mac}"])


def _disks(lab: Lab, kind: DiskKind) -> Any:
    """The module that makes this kind of disk on this kind of host."""
    assert kind in DISK_KINDS
    if lab.layout.kind == "netns":
        return importlib.import_module("labkit.disks_tgt")
    return importlib.import_module(f"labkit.disks_{kind.replace('-', '_')}")
