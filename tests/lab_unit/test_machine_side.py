"""The lab's dealings with this machine: processes, switches, BMCs, the control socket, what is missing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from labkit import bmc, instance, layout, mconsole, mounts, needs, process, sh, state, switch
from labkit.layout import Layout
from labkit.state import Lab

LAYOUT = Layout(name="lab", slot=0, hosts=("h1", "h2"))


@pytest.fixture
def own_root() -> Iterator[Path]:
    """The directory of instances (conftest.py put it apart), empty before and after."""
    layout.ROOT.mkdir(exist_ok=True)
    yield layout.ROOT
    shutil.rmtree(layout.ROOT, ignore_errors=True)  # the last lock that is given back removes it


def test_stat_line_is_read_behind_a_name_with_blanks_and_brackets() -> None:
    rest = " ".join(["S", "1", "70", "42", *["0"] * 15, "987654", "0", "0"])
    assert process.parse_session(f"70 (a) b) {rest}") == 42
    zombie = "70 (x) Z " + rest[2:]
    assert process.parse_session(zombie) is None
    assert process.parse_start(zombie) is None
    own = Path("/proc/self/stat").read_text()
    assert process.parse_session(own) == os.getsid(0)


def test_shared_ssh_connection_is_found_by_the_title_it_gives_itself() -> None:
    title = f"ssh: {layout.ROOT}/a/ssh/10.77.0.11.sock [mux]"
    assert process.parse_ssh_title(title, "a") == "ssh-10.77.0.11"
    assert process.parse_ssh_title(title, "b") is None
    assert process.parse_ssh_title(f"tail -f {layout.ROOT}/a/ssh/10.77.0.11.sock", "a") is None


def test_started_process_is_found_and_its_whole_session_dies(own_root: Path) -> None:
    (own_root / "t").mkdir()
    script = "import os,time; os.fork(); time.sleep(60)"
    pid = process.spawn([sys.executable, "-c", script], lab="t", role="h1", log=own_root / "log")
    assert process.find("t", "h1") == pid
    assert process.find("t", "h2") is None
    process.kill_session(pid)
    assert process.find("t", "h1") is None
    assert process.owned("t") == []


def test_process_without_a_record_is_found_by_its_mark(own_root: Path) -> None:
    (own_root / "t").mkdir()
    pid = process.spawn(["sleep", "60"], lab="t", role="h1", log=own_root / "log")
    (own_root / "t" / "pids" / "h1").unlink()
    try:
        assert process.find("t", "h1") is None
        until = threading.Event()
        for _ in range(100):  # the mark shows once the exec is through
            if process.owned("t"):
                break
            until.wait(0.02)
        assert process.owned("t") == [process.Owned(pid, "h1")]
        assert process.owned("other") == []
    finally:
        process.kill_session(pid)


def test_record_of_a_pid_that_belongs_to_another_process_now_is_not_believed(own_root: Path) -> None:
    record = own_root / "t" / "pids" / "h1"
    record.parent.mkdir(parents=True)
    record.write_text(f"{os.getpid()} {(process.start_time(os.getpid()) or 0) + 1}\n")
    assert process.find("t", "h1") is None


def test_program_past_its_deadline_is_killed_and_says_so() -> None:
    done = sh.run(["sh", "-c", "echo begun; exec sleep 60"], deadline_s=0.3)
    assert done.rc == sh.RC_DEADLINE
    assert done.stdout == "begun\n"
    assert "killed after 0.3 s" in done.stderr
    assert sh.run(["/no/such/program"]).rc == sh.RC_NOT_FOUND


def test_only_ports_in_the_bridge_of_their_own_network_count_as_plugged() -> None:
    text = (
        "5: h1-management: <BROADCAST,UP> mtu 1500 qdisc fq master management state UP \\  link\n"
        "6: h1-storage: <BROADCAST,UP> mtu 1500 qdisc fq state UP mode DEFAULT \\  link\n"
        "7: s1-storage@if3: <BROADCAST,UP> mtu 1500 qdisc fq master storage state UP \\  link\n"
        "8: h2-guests: <BROADCAST,UP> mtu 1500 qdisc fq master storage state UP \\  link\n"
        "9: machine@if2: <BROADCAST,UP> mtu 1500 master management state UP \\  link\n"
    )
    assert switch.parse_plugged(text) == {"h1": ["management"], "s1": ["storage"]}


def test_control_datagrams_have_the_kernels_shape() -> None:
    sent = mconsole.encode("config ubd1=/x")
    assert len(sent) == 3 * 4 + 512
    assert sent[12:27] == b"config ubd1=/x\0"
    with pytest.raises(ValueError, match="mconsole command"):
        mconsole.encode("x" * 512)
    assert mconsole.decode(b"\0" * 8 + b"\3\0\0\0" + b"OK\0") == (True, False, "OK")
    assert mconsole.decode(b"\1\0\0\0" + b"\1\0\0\0" + b"\2\0\0\0" + b"no") == (False, True, "no")
    with pytest.raises(ValueError, match="mconsole reply"):
        mconsole.decode(b"\0" * 11)


@pytest.mark.parametrize(
    ("text", "power"),
    [
        ("Chassis Power is on\n", "on"),
        ("Chassis Power is off\n", "off"),
        ("Chassis Power is offline?\n", None),
        ("", None),
        ("Error: Unable to establish IPMI v2 / RMCP+ session", None),
    ],
)
def test_bmc_answer_that_is_not_plain_is_no_answer(text: str, power: str | None) -> None:
    assert bmc.parse_status(text) == power


def test_bmc_listens_on_its_own_address_only() -> None:
    text = bmc.config(LAYOUT, "h2", "pass", "/x/hook")
    assert "addr 10.77.0.102 623" in text
    assert 'chassis_control "/x/hook"' in text


def test_everything_that_is_missing_is_said_at_once() -> None:
    found = needs.reasons("linux", False, 1000, True, {"linux.uml", "virsh"}, {"/lib/systemd/systemd"})
    assert len(found) == 3
    assert "Debian" in found[0]
    assert "root" in found[1]
    assert "apt-get install --no-install-recommends libvirt-clients systemd user-mode-linux" in found[2]
    assert needs.reasons("linux", True, 0, True, set(), set()) == []
    assert needs.reasons("linux", True, 0, False, set(), set()) == [
        "it needs /dev/net/tun (modprobe tun): the hosts' network cards are taps"
    ]


def test_memory_that_does_not_fit_is_refused_with_a_way_out() -> None:
    assert needs.memory_reason(5120, 5120) is None
    reason = needs.memory_reason(LAYOUT.total_memory_mib, 3583)
    assert reason is not None
    assert "3584 MiB of memory and 3583 MiB are available" in reason
    assert "fewer --hosts" in reason


def test_available_memory_is_what_the_kernel_says_and_nothing_is_none() -> None:
    meminfo = "MemTotal:        8388608 kB\nMemFree:   1024 kB\nMemAvailable:    5243904 kB\n"
    assert needs.parse_available_mib(meminfo) == 5121
    assert needs.parse_available_mib("MemFree: 1024 kB\n") == 0
    assert needs.available_memory_mib() > 0


def test_memory_of_the_default_lab_fits_into_the_machine_that_the_readme_asks_for() -> None:
    assert Layout("lab", 0, ("h1", "h2", "h3")).total_memory_mib <= 8192 - 2048, "2 GiB for everything else"


def test_state_survives_a_round_trip_and_is_private(own_root: Path) -> None:
    (own_root / "lab").mkdir()
    lab = Lab(layout=LAYOUT, chap={"h1": "x"}, ubd={"h1": {"1": "/f"}}, numbers={"g1": 0}, extra={"k": [1]})
    state.save(lab)
    assert state.load("lab") == lab
    assert state.state_path("lab").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ZeroDivisionError):
        _edit_and_fail("lab")
    assert state.load("lab") == lab


def _edit_and_fail(name: str) -> None:
    with state.edit(name) as changed:
        changed.numbers["g2"] = 1
        raise ZeroDivisionError


def test_slots_are_given_out_lowest_first_and_refused_when_taken(own_root: Path) -> None:
    for slot in (0, 2):
        (own_root / f"l{slot}").mkdir()
        state.save(Lab(layout=Layout(name=f"l{slot}", slot=slot, hosts=("h1",))))
    (own_root / "gone").mkdir()
    (own_root / "gone" / state.STATE_FILE).symlink_to("removed-after-it-was-listed")
    assert state.free_slot() == 1
    for slot in range(layout.MAX_SLOTS):
        (own_root / f"l{slot}").mkdir(exist_ok=True)
        state.save(Lab(layout=Layout(name=f"l{slot}", slot=slot, hosts=("h1",))))
    with pytest.raises(sh.LabRefusedError, match="slots are taken"):
        state.free_slot()


def test_who_waited_for_a_lock_that_its_holder_deletes_takes_the_new_one(own_root: Path) -> None:
    seen: list[bool] = []
    with state.locked("lab"):
        waiter = threading.Thread(target=_enter, args=(seen,))
        waiter.start()
        waiter.join(0.2)  # it is waiting for the file that goes away now
        assert seen == []
    waiter.join(5)
    assert seen == [True], "the second holder has to hold a file that others can see"


def _enter(seen: list[bool]) -> None:
    with state.locked("lab"):
        seen.append(state.lock_path("lab").exists())


def test_a_lock_without_an_instance_leaves_nothing(own_root: Path) -> None:
    with state.locked("lab"):
        assert state.lock_path("lab").exists()
    assert not own_root.exists()
    with pytest.raises(sh.LabRefusedError, match="is not up"), state.edit("lab"):
        pass
    assert not own_root.exists()


def test_many_at_once_hold_a_lock_one_by_one(own_root: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            with state.locked("lab"):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert len(most) == 200
    assert max(most) == 1
    assert not own_root.exists()


def test_what_a_killed_verb_left_running_is_found_and_ended(own_root: Path) -> None:
    (own_root / "t").mkdir()
    marked = {**os.environ, process.MARK: process.mark("t", process.HELPER_ROLE)}
    helper = subprocess.Popen(["sleep", "60"], env=marked)
    other = subprocess.Popen(
        ["sleep", "60"], env={**marked, process.MARK: process.mark("u", process.HELPER_ROLE)}
    )
    try:
        for _ in range(100):  # the mark shows once the exec is through
            if process.kill_helpers("t") == [helper.pid]:
                break
            time.sleep(0.02)
        assert helper.wait(5) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_mounts_of_an_instance_are_named_deepest_first_and_no_others(
    own_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        f"30 1 0:5 / {own_root}/{name} rw - tmpfs x rw" for name in ("t/memory", "t/memory/x", "tt/memory")
    ]
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self: "\n".join(lines) if self.name == "mountinfo" else real(self)
    )
    assert mounts.below(own_root / "t") == [f"{own_root}/t/memory/x", f"{own_root}/t/memory"]
    assert f"mount {own_root}/t/memory" in instance.leftovers("t")


def test_netns_directory_is_given_back_only_by_whom_it_was_mounted(
    own_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    netns_dir = tmp_path / "netns"
    netns_dir.mkdir()
    monkeypatch.setattr(switch, "NETNS_DIR", netns_dir)
    monkeypatch.setattr(mounts, "mount_points", lambda: ["/", str(netns_dir)])
    monkeypatch.setattr(switch, "run", lambda argv: (asked.append(argv), sh.Completed(0, "", ""))[1])
    mark = own_root / ".netns-dir-is-ours"
    switch.forget_netns_dir()
    assert asked == [], "mounted by somebody else"
    mark.touch()
    (netns_dir / "theirs").touch()
    switch.forget_netns_dir()
    assert asked == [], "somebody else uses it now"
    assert not mark.exists()
    mark.touch()
    (netns_dir / "theirs").unlink()
    switch.forget_netns_dir()
    assert asked == [["umount", str(netns_dir)]]
    assert not mark.exists()


def test_interrupted_lab_does_not_take_its_hosts_along(own_root: Path) -> None:
    (own_root / "t").mkdir()
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path; "
        "from labkit import process; log = Path(sys.argv[2]) / 'log'; "
        "print(process.spawn(['sleep', '60'], lab='t', role='h1', log=log), flush=True); time.sleep(60)"
    )
    kit = str(Path(process.__file__).resolve().parents[1])
    starter = subprocess.Popen(  # it has the conftest's MIGRD_LAB_ROOT in its environment
        [sys.executable, "-c", program, kit, str(own_root)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    os.killpg(starter.pid, signal.SIGINT)
    starter.wait(10)
    try:
        assert process.find("t", "h1") == pid
    finally:
        process.kill_session(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts something: root is needed")
def test_a_directory_that_is_mounted_onto_itself_is_seen(tmp_path: Path) -> None:
    """As `ip netns add` does it with /run/netns; os.path.ismount says no."""
    kit = str(Path(mounts.__file__).parents[1])
    look = f"import sys; sys.path.insert(0, {kit!r}); from labkit.mounts import *; print(mount_points()[-1])"
    script = 'mount --bind "$1" "$1" && exec "$2" -c "$3"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, look]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == f"{tmp_path}\n"
