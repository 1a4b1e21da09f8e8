"""A real BMC for tests: OpenIPMI's ipmi_sim on a loopback UDP port, its power button is a file."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER = "operator"
PASSWORD = "s3cret-of-bmc"

_LAN = """name "test"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_callback none md5
    allowed_auths_user none md5
    allowed_auths_operator none md5
    allowed_auths_admin none md5
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{button}"
  user 2 true "{user}" "{password}" admin 10 none md5
"""

_EMULATION = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
mc_enable 0x20
"""

# ipmi_sim calls it as "BUTTON get power" and "BUTTON set power 0|1".
_BUTTON = """#!/bin/sh
state="$(dirname "$0")/power"
case "$1 $2" in
  "get power") echo "power:$(cat "$state")" ;;
  "set power") echo "$3" > "$state" ;;
esac
"""


@dataclass(frozen=True)
class BmcSim:
    port: int
    dir: Path

    @property
    def password_file(self) -> Path:
        return self.dir / "password"

    @property
    def powered(self) -> bool:
        """What the "machine" behind the BMC really is, whatever the BMC says."""
        return (self.dir / "power").read_text().strip() == "1"


@contextmanager
def bmc_sim(directory: Path) -> Iterator[BmcSim]:
    """Runs until the block ends. Fails, and does not skip, when openipmi is not installed."""
    assert shutil.which("ipmi_sim"), "needs the package openipmi"
    directory.mkdir(parents=True, exist_ok=True)
    port = _free_udp_port()
    button = directory / "button"
    button.write_text(_BUTTON)
    button.chmod(0o700)
    (directory / "power").write_text("1\n")
    (directory / "password").write_text(PASSWORD + "\n")
    (directory / "password").chmod(0o600)
    text = _LAN.format(port=port, button=button, user=USER, password=PASSWORD)
    (directory / "lan.conf").write_text(text)
    (directory / "emu").write_text(_EMULATION)
    argv = ["ipmi_sim", "-n", "-c", f"{directory}/lan.conf", "-f", f"{directory}/emu", "-s", f"{directory}"]
    with (directory / "log").open("wb") as log:
        sim = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait_for_port(port, sim)
        yield BmcSim(port, directory)
    finally:
        sim.terminate()
        sim.wait(10)


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int, sim: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + 10
    bound = f":{port:04X} "
    while bound not in Path("/proc/net/udp").read_text():
        assert sim.poll() is None, "ipmi_sim ended at once"
        assert time.monotonic() < end_s, "ipmi_sim does not listen"
        time.sleep(0.05)
