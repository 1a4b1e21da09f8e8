"""The audit as its users see it: start and stop the observer, report its figures and the disks' verdict."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from labkit import audit_records, audit_state, guests, process, switch
from labkit.audit_records import DiskCheck, Replica
from labkit.disk import Disk
from labkit.layout import Layout
from labkit.sh import LabError, LabRefusedError
from labkit.state import Lab, state_path

ROLE = "audit"
_START_DEADLINE_S = 10.0
_STOP_DEADLINE_S = 5.0
_ANSWER_DEADLINE_S = 20.0
_TORN_READS = 3


def socket_path(layout: Layout) -> Path:
    """Where the observer answers."""
    return layout.dir / "audit.sock"


def start(lab: Lab, interval_ms: int) -> None:
    """Start the observer, which probes every `interval_ms`; returns once it answers.

    Raises LabRefusedError if it runs already.
    """
    layout = lab.layout
    if process.find(lab.name, ROLE) is not None:
        raise LabRefusedError("the audit is running: `lab audit stop` first")
    guests.pin_observer_mac(lab)
    socket_path(layout).unlink(missing_ok=True)
    package_root = str(Path(__file__).resolve().parents[1])
    observer = [
        sys.executable,
        "-m",
        "labkit.audit_observer",
        str(state_path(lab.name)),
        str(socket_path(layout)),
        str(interval_ms),
    ]
    log = layout.dir / "audit.log"
    process.spawn(
        [*switch.inside(layout), "env", "-C", package_root, *observer], lab=lab.name, role=ROLE, log=log
    )
    end = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < end:
        with contextlib.suppress(LabError):
            ask(layout, "report")
            return
        time.sleep(0.05)
    tail = log.read_text(errors="replace").splitlines()[-3:]
    raise LabError("the observer does not answer: " + " / ".join(tail))


def stop(lab: Lab) -> bool:
    """Stop the observer; False if there was none. Its figures are gone afterwards."""
    leader = process.find(lab.name, ROLE)
    if leader is None:
        return False
    os.kill(leader, signal.SIGTERM)
    end = time.monotonic() + _STOP_DEADLINE_S
    while process.find(lab.name, ROLE) is not None and time.monotonic() < end:
        time.sleep(0.02)
    process.kill_session(leader)
    socket_path(lab.layout).unlink(missing_ok=True)
    return True


def ask(layout: Layout, request: str) -> dict[str, Any]:
    """One request to the observer. Raises LabError if it does not answer."""
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_ANSWER_DEADLINE_S)
            line.connect(str(socket_path(layout)))
            line.sendall(request.encode())
            pieces = []
            while piece := line.recv(1 << 16):
                pieces.append(piece)
    except OSError as error:
        raise LabError(f"the audit does not answer ({error})") from error
    answer: dict[str, Any] = json.loads(b"".join(pieces))
    if "error" in answer:
        raise LabError(f"audit: {answer['error']}")
    return answer


def report(lab: Lab) -> dict[str, Any]:
    """The observer's figures with, per guest, what its disk holds against what it acknowledged.

    Raises LabRefusedError without an observer, LabError if it does not answer.
    """
    if process.find(lab.name, ROLE) is None:
        log = lab.layout.dir / "audit.log"
        ended = (
            f"it has ended, {log} may say why" if socket_path(lab.layout).exists() else "it was not started"
        )
        raise LabRefusedError(f"no audit is running ({ended}): `lab audit start` first")
    found = ask(lab.layout, "report")
    for name, figures in found["guests"].items():
        disk = lab.disks.get(name)
        if disk is not None:
            # First the acknowledgements, then the disk: whatever is acknowledged by now must be there.
            boots, acks = audit_state.unpack_ledger(ask(lab.layout, f"ledger {name}"))
            known = guests.guests(lab)[name]
            figures["records_per_s"] = known["records_per_s"]
            figures.update(disk_verdict(disk, figures["host_port"], acks, boots, known["record_size"]))
    return found


def disk_verdict(
    disk: Disk, runs_on: str | None, acks: Any, boots: list[str], record_size: int
) -> dict[str, Any]:
    """Judge every replica, read from this machine; `missing` and so on are those of the one that counts."""
    owners: list[str | None] = list(disk.hosts) if disk.kind == "drbd" else [None] * len(disk.backing)
    replicas = [
        Replica(path, host, _check(Path(path), disk, acks, boots, record_size))
        for path, host in zip(disk.backing, owners, strict=True)
    ]
    chosen = audit_records.choose_replica(replicas, runs_on)
    rows = {one.path: {"host": one.host, "counts": one is chosen, **one.check.to_json()} for one in replicas}
    return {
        "missing": chosen.check.missing,
        "reordered": chosen.check.reordered,
        "corrupt": chosen.check.corrupt,
        "on_disk": chosen.check.records,
        "replicas": rows,
    }


def _check(path: Path, disk: Disk, acks: Any, boots: list[str], record_size: int) -> DiskCheck:
    """Read and judge one replica; read again while its last record is half written."""
    for attempt in range(_TORN_READS):
        with path.open("rb") as replica:
            # No further than the guest's data: DRBD keeps its own at the end of the file.
            data = replica.read(disk.size_mib << 20)
        found = audit_records.check_disk(data, disk.guest, acks, boots, record_size)
        if not found.torn_tail:
            break
        time.sleep(0.05 * (attempt + 1))
    return found
