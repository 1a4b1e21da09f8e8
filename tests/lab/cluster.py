"""The words of a lab story: guests on hosts, drains, faults, and what must be true afterwards."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from demo_verdict import audit_faults

from tests.lab import reading
from tests.lab.labctl import RC_UNREACHABLE, Done, LabCtl, until

HOSTS = ("h1", "h2", "h3")
OUTAGE_LIMIT_MS = 5000.0  # lost or doubled is never excused; the 2 s are the demo's, on a machine of its own
# A peer that falls silent: DRBD waits 6 s before it goes on alone. Had QEMU sent all when its target died,
# the guest is paused until libvirt's keepalive gives the target up: 2 * (5 + 1) s as the lab sets it.
SILENT_PEER_MS = 15_000.0
UNHEARD = ("unknown", "suspect", "unreachable", "degraded")
OPEN = ("pending", "running", "cancelling", "parked")
RECORDS_PER_S = 5
MOVER = "mover"
FULL_SPEED_MIB_S = (2**63 - 1) // 2**20  # libvirt's own default: no limit
# On an idle machine a copy can be through before its progress has been seen and a power cut: a fault that has
# to hit the copy goes with this. Nothing that dirties its memory converges at it.
CRAWL_MIB_S = 3
MOVER_DIRTY_MIB_S = 4  # keeps a copy busy long enough to be hit, and converges on a slow machine
RESUMES = 3  # what parks is resumed by its remedy this often before a story calls it stuck


@dataclass
class Cluster:
    ctl: LabCtl
    guests: list[str] = field(default_factory=list)

    # -- set up and tidy ------------------------------------------------------------------------

    def guest(
        self,
        name: str,
        host: str,
        disk: str,
        *,
        peer: str | None = None,
        dirty: int = 0,
        memory_mib: int = 128,
    ) -> str:
        """A running guest: first record acknowledged, noticed by migrd, freshly audited."""
        args = ["guest", "add", name, "--host", host, "--disk", disk, "--dirty", str(dirty)]
        args += ["--memory", str(memory_mib)]
        self.guests.append(name)  # before it is there: half of one is to be removed too
        self.ctl.try_lab("audit", "stop")  # probes would slow the start down
        self.ctl.lab(*args, "--rate", str(RECORDS_PER_S), *(["--peer", peer] if peer else []))
        self.ctl.lab("audit", "start")
        until(f"migrd sees {name}", lambda: self.ctl.migrctl("vm", "show", name).rc == 0, deadline_s=60)
        return name

    def tidy(self) -> None:
        """As at the beginning of the session. Guests go in any case; what cannot be mended is a failure."""
        try:
            self.calm()
        finally:
            removed = [self.ctl.try_lab("guest", "rm", name) for name in self.guests]
            self.ctl.try_lab("audit", "stop")
        # 3: it was never made
        assert all(done.rc in (0, 3) for done in removed), [done.err for done in removed]

    def calm(self) -> None:
        """As if nothing had been asked of migrd: no fault, no open operation, no drained host."""
        self.mend()
        self.end_operations()
        for host in HOSTS:
            if self.host(host)["state"] in ("drained", "draining", "off"):
                self.ctl.migrctl("undrain", host)

    def ready_to_move(self, guest: str) -> tuple[str, str]:
        """Where a guest with replicas on h1 and h2 is, and where it can go: all is calm and audited anew."""
        self.calm()
        until(f"both replicas of {guest} are good", lambda: self.in_sync(guest), deadline_s=120)
        source = self.home(guest)
        self.copy_at(guest, source, FULL_SPEED_MIB_S)
        self.ctl.try_lab("audit", "stop")
        self.ctl.lab("audit", "start")
        return source, "h2" if source == "h1" else "h1"

    def copy_at(self, guest: str, host: str, mib_s: int) -> None:
        """The speed of migrations of this guest from this host, from now on."""
        done = self.ctl.sh(host, "virsh", "-c", "qemu:///system", "migrate-setspeed", guest, str(mib_s))
        assert done.rc == 0, done.err

    def in_sync(self, guest: str) -> bool:
        """As its own DRBD says; a move of a guest with a stale copy is refused."""
        shown = self.ctl.sh("h1", "drbdsetup", "status", guest).out
        return " disk:UpToDate" in shown and "peer-disk:UpToDate" in shown

    def mend(self) -> None:
        """Every cable in, every host on, heard of and at peace."""
        for host in HOSTS:
            self.ctl.try_lab("net", host, "--heal")
            if self.ctl.lab("power", host, "status")["power"] != "on":
                self.ctl.lab("power", host, "on")
        self.settle()

    def end_operations(self) -> None:
        """Cancel whatever is open, parents first, until nothing is."""

        def all_ended() -> bool:
            rows = [row for row in self.operations() if row["state"] in OPEN]
            for row in sorted(rows, key=lambda row: row["kind"] == "migrate"):
                self.ctl.migrctl("op", "cancel", row["id"], deadline_s=120)
            return not rows

        until("no operation is open", all_ended, deadline_s=180)

    def settle(self, deadline_s: float = 150) -> None:
        """migrd answers, every agent is heard and libvirt answers on every host."""

        def heard() -> bool:
            done = self.ctl.migrctl("hosts")
            return done.rc == 0 and all(row["state"] not in UNHEARD for row in done.json["hosts"])

        until("every host is heard of", heard, deadline_s=deadline_s)

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

    def ended(self, operation_id: str, deadline_s: float = 240) -> dict[str, Any]:
        """Its last state, parked included."""

        def probe() -> dict[str, Any] | None:
            row = self.ctl.operation(operation_id)
            return row if row["state"] in ("done", "undone", "failed", "parked") else None

        found: dict[str, Any] = until(f"{operation_id} ends", probe, deadline_s=deadline_s)
        return found

    def finished(self, operation_id: str) -> dict[str, Any]:
        """Ended for good: what is parked names its reason and its remedy, and the remedy works (I15)."""
        for _ in range(RESUMES):
            row = self.ended(operation_id)
            if row["state"] != "parked":
                return row
            assert row["reason"], row
            assert row["remedy"], row
            self.ctl.migrctl("op", "resume", operation_id)
        raise AssertionError(f"parked again and again: {self.ctl.operation(operation_id)}")

    def migrctl(self, *args: str, deadline_s: float = 300) -> Done:
        return self.ctl.migrctl(*args, deadline_s=deadline_s)

    def in_background(self, *args: str) -> subprocess.Popen[str]:
        return self.ctl.spawn_migrctl(*args)

    def kill(self, host: str, unit: str) -> None:
        """kill -9 of a unit's main process, once there is one; systemd starts it again."""
        words = ("systemctl", "kill", "--kill-whom=main", "-s", "KILL", unit)
        until(f"{unit} on {host} to kill", lambda: self.ctl.sh(host, *words).rc == 0, deadline_s=60)

    # -- what must be true ----------------------------------------------------------------------

    def assert_runs_only_on(self, guest: str, host: str) -> None:
        assert self.ctl.running_on(guest) == [host]

    def home(self, guest: str) -> str:
        """The one host that runs it."""
        where = self.ctl.running_on(guest)
        assert len(where) == 1, where
        return where[0]

    def open_windows(self, *hosts: str) -> list[str]:
        """Of these hosts (or all) those whose DRBD has the flag of I6 on; only an off one may be mute."""
        found = []
        for host in hosts or HOSTS:
            shown = self.ctl.sh(host, "sh", "-c", "drbdsetup show && cat /proc/drbd")
            if shown.rc == RC_UNREACHABLE:
                on = {row["name"]: row["on"] for row in self.ctl.lab("status")["hosts"]}
                assert not on[host], shown.err
                continue
            assert shown.rc == 0, f"{host}: {shown.err}"
            if reading.window_open(shown.out) or reading.both_primary(shown.out):
                found.append(host)
        return found

    def assert_no_window_open(self) -> None:
        """I6, asked of the hosts' own DRBD: no flag left on, nothing primary on both sides."""
        assert self.open_windows() == []

    def assert_nothing_left(self, guest: str, *hosts: str) -> None:
        """No definition, process, session or primary of the guest on hosts where it does not live."""
        for host in hosts:
            looked = self.ctl.sh(host, "sh", "-c", reading.LOOK)
            assert reading.left_of(guest, looked.out) == [], f"{host}: {looked.out}{looked.err}"

    def assert_clean(self, guest: str) -> str:
        """It runs once, and everywhere else nothing of it is left; returns where it runs."""
        home = self.home(guest)
        self.assert_nothing_left(guest, *(host for host in HOSTS if host != home))
        self.assert_no_window_open()
        return home

    def assert_nobody_noticed(self, *, outage_limit_ms: float = OUTAGE_LIMIT_MS) -> None:
        """The observer's verdict: one instance, nothing lost, never out of reach for long, still at work."""
        early = self.ctl.lab("audit", "report")
        time.sleep(10 / RECORDS_PER_S)
        late = self.ctl.lab("audit", "report")
        faults = audit_faults(self.guests, early, late, outage_limit_ms)
        assert faults == [], {name: late["guests"].get(name) for name in self.guests}
