"""The verbs `guest`, `image` and `audit` of the lab's command line."""

from __future__ import annotations

import argparse
from typing import Any

from labkit import audit, guest_image, guest_xml, guests, state
from labkit import cli_words as words
from labkit.audit_outage import INTERVAL_NS
from labkit.cli_words import say
from labkit.disk import DISK_KINDS

MAX_MEMORY_MIB = 4096
MIN_DISK_MIB, MAX_DISK_MIB = 8, 16384  # DRBD's metadata of 1 MiB is enough for 16 GiB
MAX_RECORDS_PER_S = 1000
MAX_PROBE_MS = 200  # an outage is known to within that time


def register(verbs: Any) -> None:
    """Add the verbs to the lab's parser; each sets `answer`, as every verb of the lab does."""
    words.verb(verbs, "image", _image, "build the guests' kernel and initramfs (cached)")
    actions = verbs.add_parser(
        "guest", help="guests with a workload that can prove what it wrote"
    ).add_subparsers(required=True, metavar="ACTION")
    verb = words.verb(
        actions, "add", _guest_add, "make a guest, start it, wait for its first acknowledged record"
    )
    verb.add_argument("name")
    verb.add_argument("--host", required=True, metavar="H")
    verb.add_argument("--disk", required=True, choices=DISK_KINDS)
    verb.add_argument("--peer", metavar="H2", help="second replica's host (drbd only)")
    memory = words.whole(guest_xml.MIN_MEMORY_MIB, MAX_MEMORY_MIB, "MiB")
    verb.add_argument("--memory", type=memory, default=guest_xml.DEFAULT_MEMORY_MIB, metavar="MiB")
    dirty = words.whole(0, guest_xml.MAX_DIRTY_MIB_PER_S, "MiB/s")
    verb.add_argument("--dirty", type=dirty, default=0, metavar="MiB/s", help="memory rewritten per second")
    rate = words.whole(1, MAX_RECORDS_PER_S, "records per second")
    verb.add_argument(
        "--rate", type=rate, default=guest_xml.DEFAULT_RECORDS_PER_S, metavar="N", help="records per second"
    )
    size = words.whole(MIN_DISK_MIB, MAX_DISK_MIB, "MiB")
    verb.add_argument("--disk-size", type=size, default=guests.DEFAULT_DISK_MIB, metavar="MiB")
    verb = words.verb(actions, "rm", _guest_rm, "stop and remove a guest and its disk")
    verb.add_argument("name")
    verb = words.verb(
        actions, "admit", _guest_admit, "give a host the CHAP secret of a guest's disk, as migrd's agent does"
    )
    verb.add_argument("name")
    verb.add_argument("--host", required=True, metavar="H")
    words.verb(actions, "list", _guest_list, "guests, and where libvirt says they run")
    actions = verbs.add_parser("audit", help="an observer that trusts nobody").add_subparsers(
        required=True, metavar="ACTION"
    )
    verb = words.verb(
        actions, "start", _audit_start, "probe every guest, count instances and acknowledgements"
    )
    every = words.whole(1, MAX_PROBE_MS, "ms")
    verb.add_argument(
        "--every", type=every, default=INTERVAL_NS // 10**6, metavar="MS", help="between probes"
    )
    words.verb(actions, "report", _audit_report, "figures up to now, with what the disks hold")
    words.verb(actions, "stop", _audit_stop, "end the observer and forget its figures")


def _image(args: argparse.Namespace) -> int:
    image = guest_image.build()
    document = {"kernel": str(image.kernel), "initramfs": str(image.initramfs)}
    return say(args, document, f"{image.kernel}\n{image.initramfs}")


def _guest_add(args: argparse.Namespace) -> int:
    made = guests.add(
        args.lab,
        args.name,
        args.host,
        args.disk,
        peer=args.peer,
        memory_mib=args.memory,
        dirty_mib_per_s=args.dirty,
        records_per_s=args.rate,
        disk_mib=args.disk_size,
        report=words.note,
    )
    return say(args, made, f"guest {args.name} runs on {args.host} at {made['address']}")


def _guest_rm(args: argparse.Namespace) -> int:
    guests.check_known(state.load(args.lab), args.name)
    removed = guests.remove(args.lab, args.name)
    text = ", ".join(removed) if removed else "nothing to remove"
    return say(args, {"guest": args.name, "removed": removed}, f"guest {args.name}: {text}")


def _guest_admit(args: argparse.Namespace) -> int:
    guests.admit(state.load(args.lab), args.name, args.host)
    return say(args, {"guest": args.name, "host": args.host}, f"{args.host} can open the disk of {args.name}")


def _guest_list(args: argparse.Namespace) -> int:
    lab = state.load(args.lab)
    rows = [
        {**guests.describe(lab, name), "states": guests.where(lab, name)}
        for name in sorted(guests.guests(lab))
    ]
    return say(args, rows, guest_table(rows))


def guest_table(rows: list[dict[str, Any]]) -> str:
    """The guests for people; more than one host with a running guest is for the audit to judge."""
    if not rows:
        return "no guests"
    lines = [f"{'guest':15} {'address':15} {'disk':11} {'MiB':>5}  state, as libvirt says"]
    for row in rows:
        kind = row["disk"]["kind"] if row["disk"] else "-"
        states = ", ".join(f"{word} on {host}" for host, word in row["states"].items())
        where = states or "not known to any host that is on"
        lines.append(f"{row['name']:15} {row['address']:15} {kind:11} {row['memory_mib']:5}  {where}")
    return "\n".join(lines)


def _audit_start(args: argparse.Namespace) -> int:
    audit.start(state.load(args.lab), args.every)
    return say(args, {"audit": "running"}, "the audit is running")


def _audit_stop(args: argparse.Namespace) -> int:
    stopped = audit.stop(state.load(args.lab))
    return say(
        args, {"stopped": stopped}, "the audit has stopped" if stopped else "the audit was not running"
    )


def _audit_report(args: argparse.Namespace) -> int:
    found = audit.report(state.load(args.lab))
    return say(args, found, audit_table(found))


def audit_table(found: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"{found['seconds']:.0f} s observed; the observer was at most {found['probe_late_max_ms']} ms late",
        f"{'guest':12} {'on':4} {'instances':>9} {'outage ms':>10} {'total ms':>9} {'acked':>7} "
        f"{'missing':>7} {'reordered':>9} {'corrupt':>7}",
    ]
    for name, row in sorted(found["guests"].items()):
        lines.append(
            f"{name:12} {row['host_port'] or '-':4} {row['instances_max']:9} {row['outage_max_ms']:10} "
            f"{row['outage_total_ms']:9} {row['acked']:7} {row.get('missing', '-'):>7} "
            f"{row.get('reordered', '-'):>9} {row.get('corrupt', '-'):>7}"
        )
    return "\n".join(lines)
