"""The words of a lab story: guests on hosts, drains, faults, and what must be true afterwards."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from typing import Any

from tests.lab.labctl import Done, LabCtl, until

HOSTS = ("h1", "h2", "h3")
OUTAGE_LIMIT_MS = 5000  # lost or doubled is never excused; the 2 s are the demo's, on a machine of its own


@dataclass
class Cluster:
    ctl: LabCtl
    guests: list[str] = field(default_factory=list)

    # -- set up and tidy ------------------------------------------------------------------------

    def guest(self, name: str, host: str, disk: str, *, peer: str | None = None, dirty: int = 0) -> str:
        """A running guest: first record acknowledged, noticed by migrd, freshly audited."""
        args = ["guest", "add", name, "--host", host, "--disk", disk, "--dirty", str(dirty), "--rate", "5"]
        self.ctl.try_lab("audit", "stop")  # probes would slow the start down
        self.ctl.lab(*args, *(["--peer", peer] if peer else []), deadline_s=240)
        self.ctl.lab("audit", "start")
        self.guests.append(name)
        until(f"migrd sees {name}", lambda: self.ctl.migrctl("vm", "show", name).rc == 0, deadline_s=30)
        return name

    def tidy(self) -> None:
        for host in HOSTS:
            self.ctl.try_lab("net", host, "--heal")
            if self.ctl.lab("power", host, "status")["power"] != "on":
                self.ctl.lab("power", host, "on")
        self.settle()
        for operation in self.ctl.migrctl("ops").json["operations"]:
            if operation["state"] == "parked":
                self.ctl.migrctl("op", "cancel", operation["id"])
        for host in HOSTS:
            if self.host(host)["state"] in ("drained", "draining", "off"):
                self.ctl.migrctl("undrain", host)
        for name in self.guests:
            self.ctl.try_lab("guest", "rm", name, deadline_s=120)
        self.ctl.try_lab("audit", "stop")

    def settle(self, deadline_s: float = 150) -> None:
        """Every agent is heard and libvirt answers on every host."""
        until(
            "every host is heard of",
            lambda: all(
                self.host(h)["state"] not in ("unknown", "suspect", "unreachable", "degraded") for h in HOSTS
            ),
            deadline_s=deadline_s,
        )

    # -- look -----------------------------------------------------------------------------------

    def host(self, name: str) -> dict[str, Any]:
        done = self.ctl.migrctl("host", "show", name)
        assert done.rc == 0, done.err
        found: dict[str, Any] = done.json["host"]
        return found

    def operations(self, **wanted: str) -> list[dict[str, Any]]:
        """Newest first; those whose fields equal `wanted`."""
        rows = self.ctl.migrctl("ops").json["operations"]
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]

    def copying(self, guest: str) -> dict[str, Any]:
        """Wait until memory of the guest is really on the wire; returns its migrate operation."""

        def probe() -> dict[str, Any] | None:
            for row in self.operations(kind="migrate", subject=guest, state="running"):
                if row["progress"] and row["progress"]["memory_processed_bytes"] > 0:
                    return row
            return None

        found: dict[str, Any] = until(f"{guest} is being copied", probe, deadline_s=90, every_s=0.2)
        return found

    def ended(self, operation_id: str, deadline_s: float = 180) -> dict[str, Any]:
        def probe() -> dict[str, Any] | None:
            row = self.ctl.operation(operation_id)
            return row if row["state"] in ("done", "undone", "failed", "parked") else None

        found: dict[str, Any] = until(f"{operation_id} ends", probe, deadline_s=deadline_s)
        return found

    def migrctl(self, *args: str, deadline_s: float = 300) -> Done:
        return self.ctl.migrctl(*args, deadline_s=deadline_s)

    def in_background(self, *args: str) -> subprocess.Popen[str]:
        return self.ctl.spawn_migrctl(*args)

    # -- what must be true ----------------------------------------------------------------------

    def assert_runs_only_on(self, guest: str, host: str) -> None:
        assert self.ctl.running_on(guest) == [host]

    def assert_no_window_open(self) -> None:
        """I6, asked of the hosts' own DRBD: no flag left on, nothing primary on both sides."""
        for host in HOSTS:
            shown = self.ctl.sh(host, "drbdsetup", "show")
            if shown.rc != 0:
                continue  # powered off by the story
            assert "allow-two-primaries" not in shown.out or "allow-two-primaries yes" not in shown.out, host
            assert "ro:Primary/Primary" not in self.ctl.sh(host, "cat", "/proc/drbd").out, host

    def assert_nothing_left(self, guest: str, host: str) -> None:
        """No definition and no process of the guest on a host where it does not live."""
        listed = self.ctl.sh(host, "virsh", "-c", "qemu:///system", "list", "--all", "--name")
        assert listed.rc == 0, listed.err
        assert guest not in listed.out.split()

    def assert_nobody_noticed(self, *, outage_limit_ms: float = OUTAGE_LIMIT_MS) -> dict[str, Any]:
        """The observer's verdict: one instance, nothing lost, nothing out of reach for long."""
        rows: dict[str, Any] = self.ctl.lab("audit", "report")["guests"]
        for guest in self.guests:
            row = rows[guest]
            assert row["instances_max"] == 1, row
            assert row["boots"] == 1, row
            assert row["acked"] > 0, row
            assert (row["missing"], row["reordered"], row["corrupt"]) == (0, 0, 0), row
            assert row["outage_max_ms"] <= outage_limit_ms, row
        return rows
