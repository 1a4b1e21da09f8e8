"""Who is QEMU and who has a device open, from a /proc."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from storage.errors import Unknown
from storage.run import run
from storage.users import SCAN_SLOTS, DeviceUsers, QemuProcesses, User, domain_uuid, is_dying_qemu

UUID = "11111111-2222-3333-4444-555555555555"
QEMU = f"/usr/bin/qemu-system-x86_64\0-name\0guest=g1\0-uuid\0{UUID}\0-m\0256\0".encode()


def process(proc: Path, pid: int, cmdline: bytes, stat: str = "") -> Path:
    entry = proc / str(pid)
    (entry / "fd").mkdir(parents=True)
    (entry / "cmdline").write_bytes(cmdline)
    (entry / "stat").write_text(stat)
    return entry


def stat_line(name: str, state: str, threads: int) -> str:
    return f"77 ({name}) {state} 1 77 77 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 {threads} 0 1 0 0\n"


def test_only_a_qemu_with_that_uuid_counts():
    assert domain_uuid(QEMU) == UUID
    assert domain_uuid(QEMU.replace(b"qemu-system-x86_64", b"kvm")) == UUID
    assert domain_uuid(f"bash\0-c\0qemu -uuid {UUID}\0".encode()) is None
    assert domain_uuid(f"grep\0-uuid\0{UUID}\0".encode()) is None
    assert domain_uuid(b"/usr/bin/qemu-system-x86_64\0-uuid") is None
    assert domain_uuid(b"") is None


async def test_in_use(tmp_path):
    process(tmp_path, 1, b"/sbin/init\0")
    assert await QemuProcesses(proc=tmp_path)(UUID) is False
    process(tmp_path, 2, QEMU)
    assert await QemuProcesses(proc=tmp_path)(UUID.upper()) is True
    assert await QemuProcesses(proc=tmp_path)("99999999-2222-3333-4444-555555555555") is False


async def test_unreadable_proc_is_unknown(tmp_path):
    with pytest.raises(Unknown):
        await QemuProcesses(proc=tmp_path / "none")(UUID)


async def test_a_qemu_that_is_still_dying_is_not_gone(tmp_path):
    """exit(2) drops the memory, and with it the command line, before it closes the disks."""
    process(tmp_path, 77, b"", stat_line("qemu-system-x86", "D", 1))
    with pytest.raises(Unknown, match="exiting"):
        await QemuProcesses(proc=tmp_path, dying_s=0.05)(UUID)


async def test_a_qemu_that_has_just_died_costs_milliseconds(tmp_path):
    """Every migration ends with one: with a fixed pause of 0.25 s, so much was added to the move."""
    entry = process(tmp_path, 77, b"", stat_line("qemu-system-x86", "D", 1))
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    loop.call_later(0.01, lambda: (entry / "stat").write_text(stat_line("qemu-system-x86", "Z", 1)))
    assert await QemuProcesses(proc=tmp_path)(UUID) is False
    assert loop.time() - began_s < 0.15


def test_what_dying_means():
    assert is_dying_qemu(stat_line("qemu-system-x86", "R", 1))
    assert is_dying_qemu(stat_line("qemu-system-x86", "Z", 3))  # leader gone, threads still at work
    assert not is_dying_qemu(stat_line("qemu-system-x86", "Z", 1))
    assert not is_dying_qemu(stat_line("kworker/0:1", "I", 1))
    assert not is_dying_qemu(stat_line("kvm-pit/12", "S", 1))
    assert not is_dying_qemu("")


async def test_openers_are_named_and_files_are_not_touched(tmp_path):
    """This process's own descriptors are real; the device is looked for by number."""
    entry = process(tmp_path, 5, QEMU)
    (entry / "fd" / "3").symlink_to("/dev/null")  # a character device: never a match
    (entry / "fd" / "4").symlink_to(tmp_path / "some-file")
    assert await DeviceUsers(proc=tmp_path)(os.stat("/dev/null").st_rdev) == ()


def test_user_in_words():
    assert str(User(5, "qemu", UUID)) == f"process 5 (qemu) of domain {UUID}"
    assert str(User(5, "dd", None)) == "process 5 (dd)"


async def test_i20_reads_of_proc_that_hang_keep_neither_other_reads_nor_the_process(tmp_path):
    """A fifo without a writer blocks its reader for ever, as /proc/PID/cmdline does behind a stuck lock."""
    process(tmp_path, 1, b"/sbin/init\0")
    stuck = process(tmp_path, 7, b"")
    (stuck / "cmdline").unlink()
    os.mkfifo(stuck / "cmdline")
    program = f"""
import asyncio
from pathlib import Path
from storage import users
from storage.errors import Unknown

async def main():
    hung = users.QemuProcesses(proc=Path({str(tmp_path)!r}), deadline_s=0.2)
    for _ in range(3 * users.SCAN_SLOTS):
        try:
            await hung("{UUID}")
        except Unknown as error:
            print(error)
    print(await users.DeviceUsers(proc=Path({str(tmp_path)!r}))(1))
    print(await asyncio.to_thread(lambda: "the default pool is free"))

asyncio.run(main())
"""
    done = await run([sys.executable, "-c", program], deadline_s=60)
    lines = done.stdout.splitlines()
    assert lines.count("/proc did not answer within 0.2 s") == SCAN_SLOTS
    assert lines.count(f"{SCAN_SLOTS} earlier reads of /proc still hang: see dmesg") == 2 * SCAN_SLOTS
    assert lines[-2:] == ["()", "the default pool is free"]
    assert done.rc == 0  # it ended: no thread was waited for
