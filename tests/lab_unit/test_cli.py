"""What the lab says to people: wrong words are named, tables can be read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from labkit import cli, cli_env, cli_guest, guests, layout, needs, state
from labkit.hosts import HOST_KINDS
from labkit.layout import Layout
from labkit.sh import LabRefusedError
from labkit.state import Lab

NETNS = Layout("t", 0, ("h1", "h2"), kind="netns")
GUEST_ADD = ["guest", "add", "web", "--host", "h1", "--disk", "iscsi"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["up", "--hosts", "0"], "'0' is not a whole number of hosts from 1 to 9"),
        (["up", "--hosts", "three"], "'three' is not a whole number of hosts from 1 to 9"),
        (["up", "--memory", "511"], "'511' is not a whole number of MiB from 512 to 65536"),
        ([*GUEST_ADD, "--disk-size", "-1"], "'-1' is not a whole number of MiB from 8 to 16384"),
        ([*GUEST_ADD, "--memory", "1e9"], "'1e9' is not a whole number of MiB from 96 to 4096"),
        ([*GUEST_ADD, "--rate", "0"], "'0' is not a whole number of records per second from 1 to 1000"),
        (["--lab", "Bad Name", "status"], "lab name 'Bad Name': one lower-case letter"),
        (["power", "h1", "explode"], "invalid choice: 'explode'"),
        (["net", "h1"], "one of the arguments --drop --mute --heal is required"),
        (["net", "h1", "--drop", "wan"], "invalid choice: 'wan'"),
        ([], "required: VERB"),
    ],
)
def test_wrong_words_are_a_usage_error_that_says_what_would_do(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_bounds_themselves_are_good() -> None:
    parser = cli.build_parser()
    assert parser.parse_args(["up", "--hosts", "1"]).hosts == 1
    assert parser.parse_args(["up", "--hosts", "9"]).hosts == 9
    assert parser.parse_args([*GUEST_ADD, "--disk-size", "8"]).disk_size == 8


@pytest.fixture
def cold_lab() -> Iterator[None]:
    """A lab in which nothing has power: its state is there, no process is."""
    try:
        needs.check()
    except LabRefusedError as refused:
        pytest.skip(str(refused))
    (layout.ROOT / "t").mkdir(parents=True)
    state.save(Lab(layout=NETNS, numbers={"web": 0}))
    yield
    shutil.rmtree(layout.ROOT, ignore_errors=True)


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["exec", "h9", "--", "true"], 3, "lab t has no host 'h9': s1, h1, h2"),
        (["exec", "h1"], 3, "no command given"),
        (["exec", "h1", "--", "true"], 255, "h1 is off: `lab power h1 on`"),
        (["exec", "s1", "--", "true"], 255, "s1 is off: `lab cut s1 --restore`"),
        (["power", "s1", "off"], 3, "s1 has no BMC: use `lab cut s1`"),
        (["power", "h9", "on"], 3, "lab t has no host 'h9'"),
        (["net", "h9", "--heal"], 3, "lab t has no host 'h9'"),
        (["net", "h1", "--drop", "storage"], 3, "h1 is off"),
        (["guest", "rm", "db"], 3, "lab t has no guest 'db': web"),
        (["guest", "admit", "db", "--host", "h1"], 3, "lab t has no guest 'db': web"),
        (["audit", "report"], 3, "no audit is running (it was not started): `lab audit start` first"),
        (["--lab", "other", "status"], 3, "lab 'other' is not up: run `lab --lab other up` first"),
        (["--lab", "other", *GUEST_ADD], 3, "lab 'other' is not up: run `lab --lab other up` first"),
        (["up"], 3, "lab 't' is already up, or was not taken down"),
    ],
)
@pytest.mark.usefixtures("cold_lab")
def test_what_cannot_be_done_is_refused_with_the_way_out(
    argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv if argv[0] == "--lab" else ["--lab", "t", *argv]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert not state.lock_path("other").exists(), "a refusal leaves nothing, not even a lock"


def test_taking_down_needs_no_package(monkeypatch: pytest.MonkeyPatch, cold_lab: None) -> None:
    monkeypatch.setattr(needs, "PROGRAMS", {"no-such-program": "some-package"})
    assert cli.main(["--lab", "t", "status"]) == 3
    assert cli.main(["--lab", "t", "down"]) == 0
    assert not (layout.ROOT / "t").exists()


def test_a_command_that_a_signal_ended_is_told_as_a_shell_does() -> None:
    assert [cli.exit_code(code) for code in (0, 7, 255, -9, -15)] == [0, 7, 255, 137, 143]


def test_guest_is_refused_on_machines_without_power() -> None:
    uml = Lab(Layout("t", 0, ("h1", "h2")))
    found = guests.refusals(uml, "g", "h1", "drbd", "h2", 128, off=["h2", "s1"])
    assert found == ["peer h2 is off: `lab power h2 on` first"]
    found = guests.refusals(uml, "g", "h1", "iscsi", None, 128, off=["h2", "s1"])
    assert found == ["s1 is off: `lab cut s1 --restore` first"]


def test_tables_show_what_is_off_and_what_is_not_known() -> None:
    host = {"name": "h1", "kind": "uml", "on": False, "bmc": "on", "management": "10.77.0.11", "networks": []}
    table = cli_env.status_table({"hosts": [host], "disks": []})
    assert table.splitlines()[1].split() == ["h1", "uml", "off", "on", "10.77.0.11", "nothing"]
    disk = {"guest": "web", "kind": "drbd", "size_mib": 64, "hosts": ["h1", "h2"]}
    assert "web             drbd            64  h1, h2" in cli_env.status_table(
        {"hosts": [], "disks": [disk]}
    )
    row = {"name": "web", "address": "10.77.2.150", "memory_mib": 128, "disk": disk}
    assert "running on h2" in cli_guest.guest_table([{**row, "states": {"h2": "running"}}])
    assert "not known to any host that is on" in cli_guest.guest_table([{**row, "states": {}}])
    assert cli_guest.guest_table([]) == "no guests"


def test_every_host_has_a_bmc_whatever_its_kind() -> None:
    for kind in HOST_KINDS:
        made = Lab(Layout("t", 2, ("h1", "h2"), kind=kind))
        assert [host["bmc"] for host in cli_env.document(made)["hosts"]] == ["10.79.0.101", "10.79.0.102"]
