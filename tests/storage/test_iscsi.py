"""LUNs of the kernel initiator: exit codes and sysfs as captured, sessions that are shared."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import chap
from storage.calls import Lane
from storage.errors import Failed, Refused, Retryable, Unknown
from storage.iscsi import decide, parse, record, sysfs
from storage.iscsi.driver import SLOTS, IscsiDriver
from storage.run import Completed
from storage.users import User
from storage.words import Handover, Health, IscsiVolume, Role, Side
from tests.storage.samples import DATA

IQN, PORTAL = "iqn.2026-11.org.lab:t1", "10.99.0.1:3260"
WWIDS = ("naa.6001405752b73101c2a448cb4c51a51d", "naa.600140558c76fd7109545d5852cca1bb")
UUID = "11111111-2222-3333-4444-555555555555"
SOURCE = Handover(operation="o", domain_uuid=UUID, side=Side.SOURCE, peer_node="u2")
TARGET = Handover(operation="o", domain_uuid=UUID, side=Side.TARGET, peer_node="u1")


def volume(lun: int = 0) -> IscsiVolume:
    return IscsiVolume(portal=PORTAL, iqn=IQN, lun=lun, device=parse.device_of(PORTAL, IQN, lun))


class Host:
    """A host's sysfs and /dev, in the layout captured from Linux 6.1; iscsiadm adds and removes a session."""

    def __init__(self, root: Path, luns: tuple[int, ...] = (0, 1)) -> None:
        self.root, self.luns = root, luns
        self.sys, self.dev, self.nodes, self.chap = (root / name for name in ("sys", "dev", "nodes", "chap"))
        self.calls: list[tuple[str, ...]] = []
        self.rc = 0
        self.said = ""
        self.qemu = False
        self.open_by: dict[int, User] = {}
        for directory in (self.sys, self.dev, self.nodes, self.chap):
            directory.mkdir()

    def login(self) -> None:
        session = self.sys / "devices/platform/host0/session3"
        klass = self._dir(self.sys / "class/iscsi_session/session3")
        self._write(klass, targetname=IQN, state="LOGGED_IN")
        connection = self._dir(session / "connection3:0/iscsi_connection/connection3:0")
        self._write(connection, persistent_address="10.99.0.1", persistent_port="3260")
        (klass / "device").symlink_to(session)
        for lun in self.luns:
            self.add_lun(lun)

    def add_lun(self, lun: int) -> None:
        name = f"sd{'ab'[lun]}"
        scsi = self._dir(self.sys / f"devices/platform/host0/session3/target0:0:0/0:0:0:{lun}")
        self._write(scsi, state="running", wwid=WWIDS[lun])
        disk = self._dir(scsi / "block" / name)
        self._dir(disk / "holders")
        (disk / "device").symlink_to(scsi)
        self._write(disk, size="65536", dev=f"8:{16 * lun}")
        self._dir(self.sys / "block")
        (self.sys / "block" / name).symlink_to(disk)
        (self.dev / name).write_text("")
        link = self.dev / volume(lun).device.removeprefix("/dev/")
        self._dir(link.parent)
        link.symlink_to(self.dev / name)

    def remove(self, path: Path) -> None:
        for entry in sorted(path.rglob("*"), reverse=True):
            entry.unlink() if entry.is_symlink() or not entry.is_dir() else entry.rmdir()

    @staticmethod
    def _dir(path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        return path

    @staticmethod
    def _write(directory: Path, **attributes: str) -> None:
        for name, text in attributes.items():
            (directory / name).write_text(f"{text}\n")

    async def __call__(self, argv, *, deadline_s, input=None, env=None) -> Completed:
        words = tuple(argv)
        self.calls.append(words)
        if words[-1] == "new" and self.rc in (0, 24):
            self._dir(self.nodes / IQN)
            (self.nodes / IQN / "10.99.0.1,3260").write_text(RECORD)
        if words[-1] == "--login" and self.rc == 0:
            self.login()
        if words[-1] == "--logout" and self.rc == 0:
            self.remove(self.sys)
        return Completed(words, self.rc if words[-1] != "new" else 0, "", self.said)

    def driver(self, **changes) -> IscsiDriver:
        async def in_use(domain_uuid):
            return self.qemu

        async def openers(rdev):
            return (self.open_by[rdev],) if rdev in self.open_by else ()

        async def answers(portal):
            return None

        return IscsiDriver(
            **{
                "in_use": in_use,
                "openers": openers,
                "run": self,
                "chap_dir": self.chap,
                "nodes_dir": self.nodes,
                "sys": self.sys,
                "dev": self.dev,
                "check_portal": answers,
                "device_deadline_s": 0.1,
                **changes,
            }
        )


RECORD = "# BEGIN RECORD 2.1.8\nnode.name = x\nnode.session.auth.authmethod = None\n# END RECORD\n"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def captured(name: str) -> tuple[int, str]:
    text = (DATA / "iscsi" / f"{name}.txt").read_text()
    rc = next(line for line in text.splitlines() if line.startswith("rc: "))
    return int(rc.removeprefix("rc: ")), text.partition("--- stderr\n")[2]


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("login_ok", parse.Verdict.DONE),
        ("login_again", parse.Verdict.DONE),
        ("login_badpw", parse.Verdict.FINAL),
        ("login_noauth", parse.Verdict.FINAL),
        ("login_norecord", parse.Verdict.FINAL),
    ],
)
def test_exit_codes_as_iscsiadm_gave_them(name, verdict):
    assert parse.login_verdict(captured(name)[0]) is verdict


def test_other_exit_codes():
    assert parse.logout_verdict(21) is parse.Verdict.DONE
    assert {parse.login_verdict(rc) for rc in (4, 8, 20)} == {parse.Verdict.RETRY}
    assert parse.login_verdict(99) is parse.Verdict.FINAL


def test_names_of_devices():
    assert parse.by_path(volume(1).device) == (PORTAL, IQN, 1)
    assert parse.by_path("/dev/disk/by-path/ip-[fe80::1]:3260-iscsi-iqn.a.b:c-lun-0")[0] == "[fe80::1]:3260"
    for other in (
        f"{volume().device}-part1",
        "/dev/sda",
        "/dev/disk/by-path/pci-0000:00:05.0",
        "/dev/disk/by-path/ip-10.0.0.1-iscsi-iqn.a:b-lun-0",
        "/tmp/ip-10.0.0.1:3260-iscsi-iqn.a:b-lun-0",
        "",
    ):
        assert parse.by_path(other) is None


def test_an_iscsi_name_is_never_a_path():
    assert decide.is_name(IQN)
    for bad in ("../../etc", "iqn.a/../b", "iqn.a b", "", "-iqn.a"):
        assert not decide.is_name(bad)


def test_wwid_words():
    assert parse.wwid("naa.6001405\n") == "naa.6001405"
    assert parse.wwid("t10.LIO-ORG  disk   x") == "t10.LIO-ORG disk x"
    for nothing in ("", "\n", "0", "naa.", "scsi 1"):
        assert parse.wwid(nothing) is None


def test_sysfs_of_a_session(host):
    host.login()
    (session,) = sysfs.sessions(host.sys)
    assert (session.sid, session.iqn, session.portal, session.state) == (3, IQN, PORTAL, "LOGGED_IN")
    assert [(lun.lun, lun.name, lun.wwid) for lun in session.luns] == [
        (0, "sda", WWIDS[0]),
        (1, "sdb", WWIDS[1]),
    ]
    assert session.luns[0].size_bytes == 32 * 1024 * 1024
    assert session.luns[1].rdevs == (os.makedev(8, 16),)
    assert sysfs.links(host.dev, (session,))[volume(1).device][1].name == "sdb"
    assert sysfs.sessions(host.root / "nothing") == ()


SESSION = "class/iscsi_session/session3"


def problem_cases() -> list[tuple[Callable[[Host], object], Health, str]]:
    scsi = "devices/platform/host0/session3/target0:0:0/0:0:0:0"
    return [
        (
            lambda h: (h.sys / SESSION / "state").write_text("FAILED\n"),
            Health.UNREACHABLE,
            "FAILED",
        ),
        (lambda h: (h.sys / scsi / "state").write_text("offline\n"), Health.UNREACHABLE, "offline"),
        (lambda h: (h.sys / scsi / "wwid").unlink(), Health.DEGRADED, "no identity"),
    ]


@pytest.mark.parametrize(("sick", "health", "word"), problem_cases())
async def test_a_sick_lun_is_reported(host, sick, health, word):
    host.login()
    sick(host)
    report = await host.driver().inspect(volume())
    assert report.role is Role.ATTACHED
    assert report.health is health
    assert any(word in problem for problem in report.problems)


async def test_plain_file_in_place_of_the_device_is_no_device(host):
    """A program that writes to a missing /dev/disk/... makes a plain file there: not the LUN."""
    host.login()
    report = await host.driver().inspect(volume())
    assert report.health is Health.DEGRADED  # /dev/sda of this test is a plain file
    assert any("is not there" in problem for problem in report.problems)


async def test_login_writes_the_password_to_a_private_record_and_never_to_argv(host):
    (host.chap / "a.toml").write_text(CREDENTIAL)
    (host.chap / "a.toml").chmod(0o600)
    with pytest.raises(Failed, match="is not there"):  # this /dev has no real block device
        await host.driver().prepare(volume(), TARGET)
    assert [words[-1] for words in host.calls] == ["new", "--login"]
    assert not any("hush" in word for words in host.calls for word in words)
    (file,) = record.files(host.nodes, IQN, PORTAL)
    assert file.stat().st_mode & 0o777 == 0o600
    assert "node.session.auth.authmethod = CHAP\n" in file.read_text()
    assert "node.session.auth.password = hush-hush-hush\n" in file.read_text()
    assert "authmethod = None" not in file.read_text()


CREDENTIAL = 'target = "iqn.2026-11.org.lab:*"\nusername = "u"\npassword = "hush-hush-hush"\n'


async def test_wrong_password_is_final(host):
    host.rc, host.said = captured("login_badpw")
    with pytest.raises(Failed, match="authorization failure"):
        await host.driver().prepare(volume(), TARGET)


async def test_logout_only_after_qemu_is_gone(host):
    host.login()
    host.qemu = True
    with pytest.raises(Refused, match="still exists"):
        await host.driver().release(volume(), SOURCE)
    assert host.calls == []


async def test_i6_a_lun_has_no_window_that_could_be_left_open(host):
    """Nothing is set when a move opens its window, so nothing is there to be forgotten by a crash."""
    host.login()
    driver = host.driver()
    for side in (SOURCE, TARGET):
        assert await driver.open_window(volume(), side) is None
        assert not (await driver.inspect(volume())).dual_primary_allowed
        await driver.close_window(volume(), side, None)
    assert host.calls == []


async def test_a_session_with_another_lun_is_not_logged_out(host):
    host.login()
    with pytest.raises(Retryable, match="still there"):  # the fake kernel ignores the write to `delete`
        await host.driver().release(volume(), SOURCE)
    assert host.calls == []
    target = host.sys / "devices/platform/host0/session3/target0:0:0"
    assert (target / "0:0:0:0/delete").read_text() == "1"
    assert not (target / "0:0:0:1/delete").exists()


async def test_the_last_lun_of_a_session_logs_out(tmp_path):
    host = Host(tmp_path, luns=(0,))
    host.login()
    await host.driver().release(volume(), SOURCE)
    assert [words[-1] for words in host.calls] == ["--logout"]
    await host.driver().release(volume(), SOURCE)  # again: nothing to do
    assert len(host.calls) == 1


async def test_a_lun_that_someone_has_open_stays(tmp_path):
    host = Host(tmp_path, luns=(0,))
    host.login()
    host.open_by[os.makedev(8, 0)] = User(77, "dd", None)
    with pytest.raises(Retryable, match=r"open by process 77 \(dd\)"):
        await host.driver().release(volume(), SOURCE)
    holders = host.sys / "block/sda/holders/dm-0"
    host.open_by.clear()
    holders.mkdir()
    with pytest.raises(Retryable, match="used by dm-0"):
        await host.driver().release(volume(), SOURCE)
    assert host.calls == []


def test_record_keeps_every_other_line():
    credential = chap.Credential("*", "*", "u", "p")
    text = record.with_chap(
        "# BEGIN RECORD\na = 1\nnode.session.auth.username = old\n# END RECORD\n", credential
    )
    assert text.splitlines()[1] == "a = 1"
    assert text.splitlines()[-1] == "# END RECORD"
    assert "old" not in text
    assert record.with_chap(text, credential) == text


def test_records_made_by_discovery_are_found_too(tmp_path):
    found = tmp_path / IQN / "10.99.0.1,3260,1"
    found.mkdir(parents=True)
    (found / "default").write_text(RECORD)
    (tmp_path / IQN / "10.99.0.1,32601").write_text(RECORD)
    assert record.files(tmp_path, IQN, PORTAL) == (found / "default",)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("target = 1\nusername = 'u'\npassword = 'p'", "target: must be a string"),
        ("target = 'a'\nusername = 'u'", "password: missing"),
        ("target = 'a'\nusername = 'u'\npassword = 'p'\ncolour = 'x'", "colour: unknown key"),
        ("target = 'a'\nusername = 'u'\npassword = \"hush\\nx\"", "line breaks"),
        ("password = hush", "not valid TOML"),
    ],
)
def test_malformed_credentials_are_named_and_never_quoted(text, word):
    with pytest.raises(Refused, match=word) as caught:
        chap.parse(text, "a.toml")
    assert "hush" not in str(caught.value)


async def test_credentials_open_to_others_are_refused(tmp_path):
    (tmp_path / "a.toml").write_text(CREDENTIAL)
    (tmp_path / "a.toml").chmod(0o640)
    with pytest.raises(Refused, match="chmod 600"):
        await chap.find(tmp_path, iqn=IQN, portal=PORTAL, lane=Lane("test", 1))
    (tmp_path / "a.toml").chmod(0o600)
    found = await chap.find(tmp_path, iqn=IQN, portal=PORTAL, lane=Lane("test", 1))
    assert found is not None
    assert "hush" not in repr(found)
    assert await chap.find(tmp_path, iqn="iqn.other", portal=PORTAL, lane=Lane("test", 1)) is None
    assert await chap.find(tmp_path / "none", iqn=IQN, portal=PORTAL, lane=Lane("test", 1)) is None


def test_i9_identity_is_target_lun_and_wwid():
    """Two LUNs under one number, by per-initiator mapping, differ in the WWID alone."""

    def seen(wwid: str | None) -> str | None:
        lun = sysfs.Lun(0, "2:0:0:0", "sda", "running", wwid, 512, (), ())
        session = sysfs.Session(1, volume().iqn, volume().portal, "LOGGED_IN", (lun,))
        return decide.identity(volume(), session)

    one, two = seen("naa.6001405752b73101"), seen("naa.6001405752b73102")
    assert one is not None
    assert two is not None
    assert one != two
    assert one == seen("naa.6001405752b73101")
    assert seen(None) is None
    assert decide.identity(volume(), None) is None
    assert volume().iqn in one


async def test_i9_two_hosts_with_other_luns_under_one_number_report_other_identities(host):
    host.login()
    here = (await host.driver().inspect(volume())).identity
    scsi = "devices/platform/host0/session3/target0:0:0/0:0:0:0"
    (host.sys / scsi / "wwid").write_text(f"{WWIDS[1]}\n")
    there = (await host.driver().inspect(volume())).identity
    assert here is not None
    assert there is not None
    assert here != there


async def test_i20_writes_into_a_device_that_hangs_do_not_keep_anyone_from_reading(host):
    """A fifo that nobody reads blocks its writer for ever, as `delete` of a dying SCSI device does."""
    host.login()
    os.mkfifo(host.sys / "block/sda/device/delete")
    driver = host.driver(file_deadline_s=0.2)
    for _ in range(SLOTS):
        with pytest.raises(Unknown, match="sysfs write did not end"):
            await driver.release(volume(), SOURCE)
    with pytest.raises(Retryable, match="still hang"):
        await driver.release(volume(), SOURCE)
    assert (await driver.inspect(volume())).role is Role.ATTACHED
    reader = os.open(host.sys / "block/sda/device/delete", os.O_RDONLY | os.O_NONBLOCK)
    await asyncio.sleep(0.2)  # the threads end
    os.close(reader)
