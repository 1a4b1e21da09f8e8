"""One BMC per host: OpenIPMI's ipmi_sim answers IPMI 2.0, its chassis control is the host's real power."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

from labkit import process, switch
from labkit.layout import BMC_USER, Layout
from labkit.sh import Completed, LabError, run

CIPHER_SUITE = "3"  # told, because ipmitool otherwise loses 10 s to a probe on every call
_DEADLINE_S = 30.0
_POLL_S = 0.2
_POWER_WORDS = {"on": "on", "off": "off", "cycle": "cycle", "status": "status"}


def password_file(layout: Layout) -> Path:
    """The BMC user's password (mode 0600, no newline, as ipmitool -f and fence agents want it)."""
    return layout.dir / "bmc.password"


def role(host: str) -> str:
    """The BMC's name among the lab's processes."""
    return f"bmc-{host}"


def config(layout: Layout, host: str, password: str, hook: str) -> str:
    """ipmi_lan(5) configuration of one BMC; `hook` is the program that works the power."""
    admin = f'"{BMC_USER}" "{password}" admin 10'
    return f"""name "{layout.name}{host}"
set_working_mc 0x20
  startlan 1
    addr {layout.bmc_address(host)} 623
    priv_limit admin
    allowed_auths_callback none md5
    allowed_auths_user none md5
    allowed_auths_operator none md5
    allowed_auths_admin none md5
    guid {hashlib.sha256(f"{layout.name}/{host}".encode()).hexdigest()[:32]}
  endlan
  chassis_control "{hook}"
  user 2 true {admin} none md5
"""


EMULATION = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
mc_enable 0x20
"""


def start(layout: Layout, host: str) -> None:
    """Give the BMC power; nothing if it has it. `wait_answers` tells when it can be used."""
    if process.find(layout.name, role(host)) is not None:
        return
    directory = layout.host_dir(host)
    (directory / "bmc").mkdir(exist_ok=True)
    hook = directory / "bmc-hook"
    program = Path(sys.argv[0]).resolve()
    # ipmi_sim appends its own words ("get power", "set power 0"); it takes a program, not a command line.
    _write(hook, f'#!/bin/sh\nexec "{program}" --lab {layout.name} bmc-hook {host} "$@"\n', 0o700)
    text = config(layout, host, password_file(layout).read_text(), str(hook))
    _write(directory / "bmc.conf", text, 0o600)
    _write(directory / "bmc.emu", EMULATION, 0o600)
    switch.add_bmc_address(layout, host)
    argv = ["ipmi_sim", "-n", "-c", f"{directory}/bmc.conf", "-f", f"{directory}/bmc.emu"]
    process.spawn(
        [*switch.inside(layout), *argv, "-s", f"{directory}/bmc"],
        lab=layout.name,
        role=role(host),
        log=directory / "bmc.log",
    )


def wait_answers(layout: Layout, host: str) -> None:
    """Block until the BMC answers; raises LabError with its last words after 30 s."""
    end = time.monotonic() + _DEADLINE_S
    while True:
        try:
            _status(layout, host)
            return
        except LabError:
            if time.monotonic() > end:
                raise
        time.sleep(_POLL_S)


def stop(layout: Layout, host: str) -> None:
    """Take the BMC's power away: it stops answering, its address too."""
    leader = process.find(layout.name, role(host))
    if leader is not None:
        process.kill_session(leader)
    switch.remove_bmc_address(layout, host)


def ipmitool(layout: Layout, host: str, *words: str) -> Completed:
    """Run ipmitool against the host's BMC, from this machine, over the management network."""
    connection = ["-I", "lanplus", "-C", CIPHER_SUITE, "-H", layout.bmc_address(host), "-U", BMC_USER]
    argv = ["ipmitool", *connection, "-f", str(password_file(layout)), "-N", "2", "-R", "2", *words]
    return run(argv, deadline_s=_DEADLINE_S)


def power(layout: Layout, host: str, action: str) -> str:
    """Work the power through the BMC; returns "on" or "off" as the BMC says afterwards.

    Raises LabError if the BMC does not answer, or does not report the wanted state within 30 s.
    """
    if action not in _POWER_WORDS:
        raise ValueError(f"power {action!r}")
    if action == "cycle":
        power(layout, host, "off")
        return power(layout, host, "on")
    if action == "status":
        return _status(layout, host)
    done = ipmitool(layout, host, "chassis", "power", action)
    if not done.ok:
        raise LabError(
            f"the BMC of {host} refused power {action}: {done.stderr.strip() or done.stdout.strip()}"
        )
    end = time.monotonic() + _DEADLINE_S
    while time.monotonic() < end:
        if _status(layout, host) == action:
            return action
        time.sleep(_POLL_S)
    raise LabError(f"the BMC of {host} took power {action} but does not report it after {_DEADLINE_S:.0f} s")


def parse_status(text: str) -> str | None:
    """ "on" or "off" from `ipmitool chassis power status`; None for anything else (never a guess)."""
    words = {"Chassis Power is on": "on", "Chassis Power is off": "off"}
    return words.get(text.strip())


def _status(layout: Layout, host: str) -> str:
    done = ipmitool(layout, host, "chassis", "power", "status")
    found = parse_status(done.stdout) if done.ok else None
    if found is None:
        raise LabError(f"the BMC of {host} does not answer: {done.stderr.strip() or done.stdout.strip()}")
    return found


def _write(path: Path, text: str, mode: int) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
