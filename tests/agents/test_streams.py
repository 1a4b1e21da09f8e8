"""What ss(8) says of TCP connections, and a real one that is broken off."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agents.streams import ss
from agents.streams.sockets import Sockets, host_in
from agents.streams.words import Stream, asked_in_vain
from storage.errors import Failed, Unknown
from storage.run import Completed, run

# Captured with ss 6.1 on a host whose guest was paused for its switch-over when the target lost its power.
DEAD = (
    "ESTAB 0      1910160    10.77.1.11:47630   10.77.1.12:49152 "
    'users:(("qemu-system-x86",pid=2117,fd=20)) timer:(on,3.440ms,9) ts sack cubic wscale:7,7 rto:53760 '
    "backoff:8 rtt:6.947/12.227 ato:40 mss:1448 pmtu:1500 rcvmss:536 advmss:1448 cwnd:1 ssthresh:410 "
    "bytes_sent:97243062 bytes_retrans:17949 bytes_acked:97123354 bytes_received:8 segs_out:68328 "
    "segs_in:2133 data_segs_out:68325 data_segs_in:1 send 1667482bps lastsnd:50310 lastrcv:205750 "
    "lastack:164280 pacing_rate 1172510304bps delivery_rate 55604448bps delivered:68244 busy:165830ms "
    "rwnd_limited:165280ms(99.7%) unacked:72 retrans:1/16 lost:72 dsack_dups:6 rcv_space:14480"
)
IDLE = (
    "ESTAB 0      0      10.77.0.11:7443  10.77.0.5:48074 "
    'users:(("migrd-agent",pid=847,fd=19)) timer:(keepalive,107min,0) ts sack cubic wscale:6,7 lastack:24990'
)
WINDOW_SHUT = (
    "ESTAB 0 2905080 [::ffff:10.0.1.11]:47630 [::ffff:10.0.1.12]:49153 "
    'users:(("qemu-system-x86",pid=9,fd=31),("helper \\"x\\"",pid=10,fd=4)) '
    "timer:(persist,1.2sec,0) ts lastsnd:12"
)


def test_a_connection_nobody_answers_on() -> None:
    (stream,) = ss.parse(DEAD)
    assert stream == Stream(
        pid=2117,
        fd=20,
        local="10.77.1.11:47630",
        remote="10.77.1.12:49152",
        waiting_bytes=1910160,
        unanswered=9,
        unheard_s=164.28,
    )
    assert asked_in_vain({}, [stream], 5.0) == {stream.ends: 5.0}


def test_keepalives_are_no_questions_and_a_shut_window_is_an_answer() -> None:
    idle, *shut = ss.parse(f"{IDLE}\n{WINDOW_SHUT}\n")
    assert (idle.waiting_bytes, idle.unanswered, idle.unheard_s) == (0, 0, 24.99)
    assert [(each.pid, each.fd) for each in shut] == [(9, 31), (10, 4)]
    assert [each.unheard_s for each in shut] == [0.0, 0.0]
    assert asked_in_vain({}, (idle, *shut), 5.0) == {}


@pytest.mark.parametrize("cut", [0, 1, 20, 40, 60, 75])
def test_a_line_that_was_cut_short_is_no_dead_connection(cut: int) -> None:
    assert asked_in_vain({}, ss.parse(DEAD[:cut]), 5.0) == {}


@pytest.mark.parametrize("text", ["", "garbage", "SYN-SENT 0 1 10.0.0.1:1 10.0.0.2:2", "ESTAB 0 x a:1 b:2 "])
def test_what_is_not_understood_is_left_out(text: str) -> None:
    assert ss.parse(text) == ()


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("10.0.1.12:49152", "10.0.1.12"),
        ("[::ffff:10.0.1.12]:49152", "10.0.1.12"),
        ("[fe80::1%eth0]:49152", "fe80::1"),
        ("[fd00::2]:49152", "fd00::2"),
    ],
)
def test_the_host_of_an_endpoint(endpoint: str, host: str) -> None:
    assert ss.host_of(endpoint) == host


def test_the_host_of_a_migration_address() -> None:
    assert host_in("tcp://10.0.1.12:49152") == "10.0.1.12"
    assert host_in("tcp://[fd00::2]") == "fd00::2"
    assert host_in("rdma:nonsense") == ""


UUID = "00000001-0000-4000-8000-000000000000"


def processes(proc: Path, **names: int) -> Path:
    """A /proc with QEMUs: guest's uuid by pid."""
    for uuid, pid in names.items():
        (proc / str(pid)).mkdir()
        words = ["qemu-system-x86_64", "-uuid", uuid.replace("_", "-")]
        (proc / str(pid) / "cmdline").write_bytes("\0".join(words).encode())
    return proc


class Scripted:
    """ss that says what it is told to."""

    def __init__(self, *answers: str, rc: int = 0) -> None:
        self.answers = list(answers)
        self.rc = rc
        self.asked: list[Sequence[str]] = []

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        self.asked.append(argv)
        return Completed(tuple(argv), self.rc, self.answers.pop(0), "no netlink", 0)


async def test_only_this_guests_connections_to_that_host_are_its_streams(tmp_path: Path) -> None:
    other = DEAD.replace("pid=2117", "pid=2118")
    portal = DEAD.replace("12:49152", "12:3260")
    elsewhere = DEAD.replace("1.12:49152", "1.13:49152")
    tool = Scripted("\n".join((DEAD, other, portal, elsewhere, IDLE)))
    proc = processes(tmp_path, **{UUID: 2117, UUID.replace("1-", "2-"): 2118})
    found = await Sockets(tool, proc=proc).to(UUID.upper(), {"10.77.1.12"}, {"10.77.1.12:3260"})
    assert [(each.pid, each.remote) for each in found] == [(2117, "10.77.1.12:49152")]


async def test_without_an_answer_nothing_is_known() -> None:
    with pytest.raises(Unknown, match="no netlink"):
        await Sockets(Scripted("", rc=1)).to(UUID, {"10.77.1.12"}, ())
    for nobody in ("", "host.invalid"):
        with pytest.raises(Unknown):
            await Sockets(Scripted("")).addresses(nobody)


async def test_the_addresses_of_a_host() -> None:
    assert await Sockets(Scripted("")).addresses("10.77.1.12") == {"10.77.1.12"}
    assert "127.0.0.1" in await Sockets(Scripted("")).addresses("localhost")


async def test_i20_a_proc_that_hangs_holds_up_nobody_else(tmp_path: Path) -> None:
    """A fifo without a writer blocks its reader for ever, as /proc/PID/cmdline does behind a stuck lock."""
    (tmp_path / "2117").mkdir()
    os.mkfifo(tmp_path / "2117" / "cmdline")
    with pytest.raises(Unknown, match="did not return"):
        await Sockets(Scripted(DEAD), proc=tmp_path).to(UUID, {"10.77.1.12"}, ())
    os.close(os.open(tmp_path / "2117" / "cmdline", os.O_WRONLY | os.O_NONBLOCK))  # let the thread go


async def test_a_kernel_that_destroys_sockets_needs_no_more() -> None:
    (stream,) = ss.parse(DEAD)
    tool = Scripted(DEAD, "")
    assert await Sockets(tool).cut(stream)
    assert tool.asked[0] == ["ss", "-tKH", "src", "10.77.1.11:47630", "dst", "10.77.1.12:49152"]


async def test_a_process_that_is_gone_is_no_error_and_one_that_may_not_be_touched_is() -> None:
    (stream,) = ss.parse(DEAD.replace("pid=2117", f"pid={2**22 - 1}"))
    gone = Scripted("", DEAD.replace("pid=2117", f"pid={2**22 - 1}"))
    assert not await Sockets(gone).cut(stream)
    own = DEAD.replace("pid=2117", f"pid={os.getpid()}").replace("fd=20", "fd=99999")
    with pytest.raises(Failed, match="could not be cut"):
        await Sockets(Scripted("", own)).cut(ss.parse(own)[0])


@asynccontextmanager
async def waiting_writer() -> AsyncIterator[tuple[asyncio.subprocess.Process, socket.socket]]:
    """A process that is blocked in a write to us, as QEMU is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = (
            "import socket, sys\n"
            "c = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
            "try:\n"
            "    while True: c.sendall(bytes(1 << 20))\n"
            "except OSError as error: print(error, flush=True)\n"
        )
        writer = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            str(listener.getsockname()[1]),
            stdout=asyncio.subprocess.PIPE,
        )
        listener.settimeout(20)
        reader, _ = await asyncio.to_thread(listener.accept)
        try:
            yield writer, reader
        finally:
            reader.close()
            await writer.wait()


async def one(pid: int) -> Stream:
    for _ in range(100):
        done = await run(["ss", "-tnHOpio"], deadline_s=10)
        found = [each for each in ss.parse(done.stdout) if each.pid == pid and each.waiting_bytes]
        if found:
            return found[0]
        await asyncio.sleep(0.05)
    raise AssertionError("ss does not show it")


async def test_a_blocked_writer_wakes_up() -> None:
    async with waiting_writer() as (writer, _):
        assert await Sockets(run).cut(await one(writer.pid))
        assert writer.stdout is not None
        said = await asyncio.wait_for(writer.stdout.readline(), 20)
        assert b"Errno" in said


async def test_a_blocked_writer_wakes_up_where_the_kernel_destroys_no_sockets() -> None:
    """As on the lab's User Mode Linux hosts: `ss -K` does nothing there."""
    async with waiting_writer() as (writer, _):
        stream = await one(writer.pid)

        async def without_destroy(argv: Sequence[str], **more: object) -> Completed:
            if "-tKH" in argv:
                return Completed(tuple(argv), 0, "", "", 0)
            return await run(argv, deadline_s=10)

        await Sockets(without_destroy).cut(stream)  # type: ignore[arg-type]
        assert writer.stdout is not None
        said = await asyncio.wait_for(writer.stdout.readline(), 20)
        assert b"Broken pipe" in said


async def test_a_number_that_was_used_again_is_not_touched() -> None:
    async with waiting_writer() as (writer, reader):
        stream = await one(writer.pid)
        wrong = Stream(
            pid=stream.pid,
            fd=stream.fd,
            local=stream.local,
            remote="10.9.9.9:1",
            waiting_bytes=1,
            unanswered=9,
            unheard_s=9.0,
        )
        line = DEAD.replace("pid=2117,fd=20", f"pid={wrong.pid},fd={wrong.fd}")
        line = line.replace("10.77.1.11:47630", wrong.local).replace("10.77.1.12:49152", wrong.remote)
        assert not await Sockets(Scripted("", line)).cut(wrong)
        assert await asyncio.to_thread(reader.recv, 1 << 16)
        assert writer.returncode is None


async def test_i11_a_number_that_is_a_file_by_now_is_let_go_of_at_once(tmp_path: Path) -> None:
    """A duplicate of a disk's descriptor would keep the disk in use for as long as the agent lives."""
    with (tmp_path / "disk").open("wb") as disk:
        own = DEAD.replace("pid=2117,fd=20", f"pid={os.getpid()},fd={disk.fileno()}")
        before = set(os.listdir("/proc/self/fd"))
        assert not await Sockets(Scripted("", own)).cut(ss.parse(own)[0])
        assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("zone", ["", "%eth0"])
async def test_a_zone_that_ss_writes_is_no_part_of_the_address(zone: str) -> None:
    async with waiting_writer() as (writer, _):
        stream = await one(writer.pid)
        line = DEAD.replace("pid=2117,fd=20", f"pid={stream.pid},fd={stream.fd}")
        line = line.replace("10.77.1.11:47630", stream.local.replace(":", f"{zone}:"))
        line = line.replace("10.77.1.12:49152", stream.remote)
        assert await Sockets(Scripted("", line)).cut(ss.parse(line)[0])


@asynccontextmanager
async def accepting() -> AsyncIterator[tuple[asyncio.subprocess.Process, socket.socket, int]]:
    """A process that has accepted a connection of ours, as libvirtd does of its peers, and the port."""
    program = (
        "import socket, sys, time\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        "print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept()\n"
        "print('accepted', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(0.3)
        await process.stdout.readline()
        try:
            yield process, peer, port
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_i1_a_held_connection_outlives_its_process_and_ends_when_it_is_let_go() -> None:
    async with accepting() as (process, peer, port):
        (stream,) = [each for each in await Sockets(run).into(port) if each.pid == process.pid]
        held = await Sockets(run).hold(stream)
        assert held is not None
        assert (held.open_there(), held.owner_lives()) == (True, True)
        process.kill()
        await process.wait()
        assert (held.open_there(), held.owner_lives()) == (True, False)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(peer.recv, 1)
        held.let_go()
        assert await asyncio.to_thread(peer.recv, 1) == b""


async def test_without_a_hold_the_peer_hears_of_that_death_at_once() -> None:
    async with accepting() as (process, peer, _):
        process.kill()
        await process.wait()
        assert await asyncio.to_thread(peer.recv, 1) == b""


async def test_a_held_connection_that_the_peer_has_closed_is_told() -> None:
    async with accepting() as (process, peer, port):
        (stream,) = [each for each in await Sockets(run).into(port) if each.pid == process.pid]
        before = set(os.listdir("/proc/self/fd"))
        held = await Sockets(run).hold(stream)
        assert held is not None
        peer.close()
        assert (held.open_there(), held.owner_lives()) == (False, True)
        held.let_go()
        assert set(os.listdir("/proc/self/fd")) <= before


async def test_what_is_gone_by_then_is_not_held() -> None:
    async with accepting() as (process, _, port):
        (stream,) = [each for each in await Sockets(run).into(port) if each.pid == process.pid]
    assert await Sockets(run).hold(stream) is None
    (own,) = ss.parse(DEAD.replace("pid=2117", f"pid={os.getpid()}").replace("fd=20", "fd=99999"))
    assert await Sockets(run).hold(own) is None
