"""The BMC of a netns host: what its power button does is done to a real host, and seen from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.labctl import LabCtl, run, until

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab() -> Iterator[LabCtl]:
    ctl = LabCtl("bmc")
    ctl.lab("down")  # what an interrupted run may have left
    try:
        ctl.lab("up", "--hosts", "1", "--host-kind", "netns")
        yield ctl
    finally:
        ctl.lab("down")


def h1(lab: LabCtl) -> dict[str, Any]:
    return next(host for host in lab.lab("status")["hosts"] if host["name"] == "h1")


def boot_id(lab: LabCtl) -> str:
    done = lab.sh("h1", "cat", "/proc/sys/kernel/random/boot_id")
    assert done.rc == 0, done.err
    return done.out


def fence_agent(lab: LabCtl, action: str) -> int:
    """Debian's own fence agent, as migrd would call it; status answers 0 for on, 2 for off."""
    env = lab.lab("env")
    words = ["--ip", env["hosts"][0]["bmc"], "--username", env["bmc_user"], "--lanplus", "--cipher", "3"]
    password = Path(env["bmc_password_file"]).read_text()
    argv = ["fence_ipmilan", "--action", action, *words, "--password", password]
    return run(argv, deadline_s=60).rc


def test_power_through_the_bmc_starts_and_kills_the_host(lab: LabCtl) -> None:
    assert lab.lab("power", "h1", "status")["power"] == "on"
    first = boot_id(lab)
    lab.lab("power", "h1", "off")
    assert (h1(lab)["on"], h1(lab)["bmc"], h1(lab)["networks"]) == (False, "on", [])
    assert lab.sh("h1", "true").rc == 255
    assert fence_agent(lab, "status") == 2
    lab.lab("power", "h1", "on")
    until("libvirtd answers", lambda: lab.sh("h1", "virsh", "uri").rc == 0, deadline_s=60)
    assert fence_agent(lab, "status") == 0
    second = boot_id(lab)
    lab.lab("power", "h1", "cycle")
    assert len({first, second, boot_id(lab)}) == 3, "every power-on is a boot of its own"


def test_a_bmc_without_mains_is_silent_and_its_host_stays_off_when_mains_return(lab: LabCtl) -> None:
    lab.lab("cut", "h1", "--with-bmc")
    silent = lab.try_lab("power", "h1", "status")
    assert (silent.rc, silent.out) == (1, "")
    assert "does not answer" in silent.err
    lab.lab("cut", "h1", "--restore")
    assert lab.lab("power", "h1", "status")["power"] == "off"
    lab.lab("power", "h1", "on")
    assert h1(lab)["on"] is True
