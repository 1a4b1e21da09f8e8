"""What `down` leaves of a lab, however it came to its end: nothing. Runs first, while no other lab is up."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.labctl import LAB, LabCtl

pytestmark = pytest.mark.lab
NAME = "alone"
ROOT = Path("/var/lib/migrd-lab")


def machine() -> dict[str, list[str]]:
    """Everything of this machine that a lab makes or changes."""
    return {
        "processes": marked(),
        "namespaces": names("/run/netns"),
        "mounts": sorted(Path("/proc/mounts").read_text().splitlines()),
        "links": names("/sys/class/net"),
        "shared memory": names("/dev/shm"),
        "files": names(str(ROOT)),
    }


def names(directory: str) -> list[str]:
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def marked() -> list[str]:
    """Processes that carry the instance's mark, or name its directory."""
    found = []
    sign = f"{ROOT}/{NAME}/".encode()  # the mark holds it, too
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes()
            text = title + (entry / "environ").read_bytes()
        except OSError:
            continue  # no process, or one that has just ended
        if sign in text:
            found.append(f"{entry.name} {title!r}")
    return found


@pytest.fixture
def lab() -> Iterator[LabCtl]:
    """No instance, and a machine that has to look as before once the story is over."""
    ctl = LabCtl(NAME)
    ctl.lab("down")
    before = machine()
    try:
        yield ctl
    finally:
        ctl.lab("down")
        again = ctl.lab("down")
    assert again == {"removed": []}
    assert machine() == before


def start_up(kind: str) -> subprocess.Popen[bytes]:
    up = ["up", "--host-kind", kind, "--hosts", "1"]
    argv = ["env", "--default-signal=INT", str(LAB), "--lab", NAME, *up]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(("kind", "after_s"), [("netns", 0.4), ("netns", 1.0), ("netns", 1.8), ("uml", 4.0)])
def test_up_that_was_killed(lab: LabCtl, kind: str, after_s: float) -> None:
    up = start_up(kind)
    time.sleep(after_s)
    up.kill()
    up.wait()


@pytest.mark.parametrize(("kind", "after_s"), [("netns", 1.0), ("uml", 4.0)])
def test_up_that_was_interrupted(lab: LabCtl, kind: str, after_s: float) -> None:
    up = start_up(kind)
    time.sleep(after_s)
    up.send_signal(signal.SIGINT)
    assert up.wait(30) in (130, 0), "0: it was faster"


def test_a_lab_with_a_guest(lab: LabCtl) -> None:
    lab.lab("up", "--host-kind", "netns", "--hosts", "2")
    lab.lab("guest", "add", "g", "--host", "h1", "--disk", "iscsi-qemu")
    lab.lab("audit", "start")


def test_verbs_without_a_lab(lab: LabCtl) -> None:
    before = machine()
    for words in (("status",), ("guest", "add", "g", "--host", "h1", "--disk", "iscsi"), ("audit", "start")):
        assert lab.try_lab(*words).rc == 3
    assert machine() == before


def test_memory_is_a_tmpfs_of_the_instances_own(lab: LabCtl) -> None:
    """So that the size of /dev/shm, half the machine's memory by default, does not matter."""
    lab.lab("up", "--hosts", "1", "--memory", "768")
    place = f"{ROOT}/{NAME}/memory"
    assert os.path.ismount(place)
    sizes = os.statvfs(place)
    assert sizes.f_blocks * sizes.f_frsize == (768 + 512 + 64) << 20
    taken = (sizes.f_blocks - sizes.f_bfree) * sizes.f_frsize
    assert taken > 100 << 20, "both machines have touched some of it"
