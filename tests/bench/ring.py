"""Two hosts between which guests go to and fro, by migrd or by virsh."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tests.bench.api import Api
from tests.bench.measures import RoundSpoilt, note
from tests.lab.labctl import LabCtl, until

VIRSH = "virsh -q -c qemu:///system migrate --live --p2p --persistent --undefinesource"
QUIET_S = 0.5  # between two runs: what the first one left to be done is not held against the second
BRING_TRIES = 3


class Ring:
    """The lab's first two hosts. Every method returns seconds, or raises RoundSpoilt when virsh failed."""

    def __init__(self, lab: LabCtl) -> None:
        self.lab = lab
        self.api = Api(lab.env)
        self._storage = {h["name"]: h["storage"] for h in lab.lab("env")["hosts"]}

    def virsh(self, guests: Sequence[str], source: str, target: str, parallel: int = 1) -> float:
        """The loop an administrator would write; the shell is on the source host.

        Timed by that shell, so that the lab's own start-up is not held against virsh. If a guest does not
        arrive, it is brought over afterwards: the ring goes on, but the figure is worth nothing.
        """
        self.settle(guests, source)
        took_s, error = self._virsh(guests, source, target, parallel)
        if error:
            self.gather(guests, target)
            raise RoundSpoilt(f"virsh: {error}")
        return took_s

    def _virsh(self, guests: Sequence[str], source: str, target: str, parallel: int) -> tuple[float, str]:
        to = self._storage[target]
        command = f"{VIRSH} --migrateuri tcp://{to} {{}} qemu+tcp://{to}/system"
        loop = f"printf '%s\\n' {' '.join(guests)} | xargs -P {parallel} -I{{}} {command} >&2"
        script = f"began=$(date +%s%N); {loop} || exit; echo $(($(date +%s%N) - began))"
        done = self.lab.sh(source, "sh", "-c", script, deadline_s=600)
        if done.rc != 0:
            return 0.0, f"exit {done.rc}: {' '.join(done.err.split())}"
        return int(done.out) / 1e9, ""

    def migrd(self, guest: str, source: str, target: str) -> float:
        """From the request, planning included, to the end that the operation itself states."""
        self.settle([guest], source)
        operation = self.api.work(f"/v1/vms/{guest}/migrate", {"to": target})
        return float(operation["ended_at_s"] - operation["asked_s"])

    def drain(self, guests: Sequence[str], source: str) -> tuple[float, float]:
        """Seconds from the request to the end, and to the first migrate call. Puts the host back into use."""
        self.settle(guests, source)
        operation = self.api.work(f"/v1/hosts/{source}/drain", {})
        self.api.work(f"/v1/hosts/{source}/undrain", {})
        asked_s = operation["asked_s"]
        return operation["ended_at_s"] - asked_s, operation["first_call_at_s"] - asked_s

    def settle(self, guests: Sequence[str], host: str) -> None:
        """The daemon has seen where they are: planning from old news is not what is measured."""
        until(
            f"{', '.join(guests)} on {host}",
            lambda: all(self.where(guest) == host for guest in guests),
            deadline_s=60,
            every_s=0.25,
        )
        time.sleep(QUIET_S)

    def where(self, guest: str) -> str:
        """Its host; empty while it shows on two."""
        seen: dict[str, Any] = {vm["name"]: vm for vm in self.api.ask("GET", "/v1/vms")["vms"]}
        return "" if seen[guest]["also_on"] else str(seen[guest]["host"])

    def gather(self, guests: Sequence[str], host: str) -> None:
        """Bring over, one by one, those that a failed run has left behind."""
        other = next(name for name in self._storage if name.startswith("h") and name != host)
        time.sleep(3.0)  # what failed is cleaned up, and the daemon has seen it
        for guest in guests:
            for _ in range(BRING_TRIES):
                if self.where(guest) == host:
                    break
                note(f"{guest} is brought to {host}")
                self._virsh([guest], other, host, 1)
                time.sleep(3.0)
        self.settle(guests, host)
