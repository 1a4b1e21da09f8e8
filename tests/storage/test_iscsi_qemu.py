"""LUNs of QEMU's own initiator: secret first, credential never in argv, the LUN's own word (I9, I17)."""

import asyncio
from dataclasses import replace

import pytest

from storage.errors import Refused, Retryable, Unknown
from storage.iscsi_qemu import inq
from storage.iscsi_qemu.driver import IscsiQemuDriver
from storage.run import Completed
from storage.words import Handover, Health, IscsiQemuVolume, Role, Side
from tests.storage.samples import DATA

PAGE = (DATA / "iscsi" / "inq_83.txt").read_bytes().decode("utf-8", "backslashreplace")
HANDOVER = Handover(operation="o", domain_uuid="u", side=Side.TARGET, peer_node="h1")
VOLUME = IscsiQemuVolume(
    portal="10.99.0.1:3260",
    iqn="iqn.2026-11.org.lab:t1",
    lun=0,
    secret_usage="lab",
    chap_user="chapuser",
    initiator_iqn="iqn.2026-11.org.lab:guest",
)


class Store:
    """libvirt's secrets of one host."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}

    async def has(self, *, uuid, usage):
        return (uuid or usage) in self.found

    async def define(self, *, uuid, usage, value):
        self.found[uuid or usage] = value


class Tools:
    """iscsi-inq and iscsi-readcapacity16 against one LUN with CHAP."""

    def __init__(self, page: str = PAGE) -> None:
        self.page, self.calls, self.missing, self.hang = page, [], False, False
        self.serial = "Unit Serial Number:[]\n"

    async def __call__(self, argv, *, deadline_s, input=None, env=None) -> Completed:
        self.calls.append(tuple(argv))
        if self.missing:
            raise Refused(f"{argv[0]} is not installed on this host")
        if self.hang:
            raise Unknown("did not end")
        if (env or {}).get("LIBISCSI_CHAP_PASSWORD") != "hush-hush-hush":
            return Completed(tuple(argv), 10, "", "Login Failed. Status: Authentication failure(513)")
        text = self.page if argv[0] == "iscsi-inq" else "33554432\n"
        if "128" in argv:
            text = self.serial
        return Completed(tuple(argv), 0, text, "")


@pytest.fixture
def host(tmp_path):
    (tmp_path / "a.toml").touch(mode=0o600)
    (tmp_path / "a.toml").write_text(
        'target = "iqn.2026-11.org.lab:*"\nusername = "chapuser"\npassword = "hush-hush-hush"\n'
    )

    async def unused(domain_uuid):
        raise AssertionError("release takes nothing away")

    async def answers(portal):
        return None

    tools, store = Tools(), Store()
    driver = IscsiQemuDriver(in_use=unused, secrets=store, run=tools, chap_dir=tmp_path, check_portal=answers)
    return driver, tools, store, tmp_path


async def test_prepare_makes_the_missing_secret_from_the_credential_file(host):
    driver, tools, store, _ = host
    assert (await driver.inspect(VOLUME)).role is Role.DETACHED
    await driver.prepare(VOLUME, HANDOVER)
    assert store.found == {"lab": b"hush-hush-hush"}
    report = await driver.inspect(VOLUME)
    assert (report.role, report.health, report.size_bytes) == (Role.ATTACHED, Health.OK, 33554432)
    assert not any("hush" in word for words in tools.calls for word in words)
    await driver.acquire(VOLUME, HANDOVER)
    await driver.release(VOLUME, HANDOVER)
    assert store.found  # other guests may share it


async def test_on_the_target_a_wrong_secret_gets_the_proved_value(host):
    """Also one without any value: libvirt tells nothing of a private secret."""
    driver, _, store, _ = host
    store.found["lab"] = b"of last year"
    await driver.prepare(VOLUME, HANDOVER)
    assert store.found["lab"] == b"hush-hush-hush"


async def test_no_secret_is_touched_by_a_credential_that_does_not_log_in(host):
    driver, _, store, directory = host
    store.found["lab"] = b"set by the operator"
    (directory / "a.toml").write_text('target = "*"\nusername = "chapuser"\npassword = "wrong"\n')
    with pytest.raises(Retryable):
        await driver.prepare(VOLUME, HANDOVER)
    assert store.found["lab"] == b"set by the operator"


async def test_on_the_source_an_existing_secret_is_left_alone(host):
    driver, _, store, _ = host
    store.found["lab"] = b"set by the operator"
    await driver.prepare(VOLUME, replace(HANDOVER, side=Side.SOURCE))
    assert store.found["lab"] == b"set by the operator"
    store.found.clear()
    await driver.prepare(VOLUME, replace(HANDOVER, side=Side.SOURCE))
    assert store.found["lab"] == b"hush-hush-hush"


async def test_i6_a_lun_has_no_window_that_could_be_left_open(host):
    driver, tools, store, _ = host
    assert await driver.open_window(VOLUME, HANDOVER) is None
    await driver.close_window(VOLUME, HANDOVER, None)
    assert (tools.calls, store.found) == ([], {})
    assert not (await driver.inspect(VOLUME)).dual_primary_allowed


async def test_no_credential_means_refused_and_nothing_touched(host):
    driver, tools, store, directory = host
    (directory / "a.toml").unlink()
    with pytest.raises(Refused, match="no CHAP credential"):
        await driver.prepare(VOLUME, HANDOVER)
    assert await driver.reach(VOLUME)
    assert (tools.calls, store.found) == ([], {})
    with pytest.raises(Refused, match="has no secret"):
        await driver.acquire(VOLUME, HANDOVER)


async def test_credential_of_another_user_is_refused(host):
    driver, _, _, directory = host
    (directory / "a.toml").write_text('target = "*"\nusername = "h9"\npassword = "p"\n')
    with pytest.raises(Refused, match="logs in as chapuser"):
        await driver.prepare(VOLUME, HANDOVER)


async def test_missing_tool_names_its_package(host):
    driver, tools, _, _ = host
    tools.missing = True
    report = await driver.inspect(VOLUME)
    assert report.identity is None
    assert any("libiscsi-bin" in problem for problem in report.problems)


async def test_wrong_password_is_told(host):
    driver, _, _, directory = host
    (directory / "a.toml").write_text('target = "*"\nusername = "chapuser"\npassword = "wrong"\n')
    with pytest.raises(Retryable, match="Authentication failure"):
        await driver.prepare(VOLUME, HANDOVER)


async def test_prepare_never_trusts_an_old_answer(host):
    driver, tools, _, _ = host
    await driver.prepare(VOLUME, HANDOVER)
    asked = len(tools.calls)
    await driver.inspect(VOLUME)
    assert len(tools.calls) == asked  # a report may be a little old
    await driver.prepare(VOLUME, HANDOVER)
    assert len(tools.calls) == 2 * asked  # a proof may not
    tools.hang = True
    with pytest.raises(Unknown):
        await driver.prepare(VOLUME, HANDOVER)


async def test_both_questions_are_asked_at_once(host):
    driver, tools, _, _ = host
    asked = asyncio.Barrier(2)

    async def together(argv, *, deadline_s, input=None, env=None) -> Completed:
        await asyncio.wait_for(asked.wait(), 5)
        return await Tools.__call__(tools, argv, deadline_s=deadline_s, input=input, env=env)

    driver = IscsiQemuDriver(
        in_use=None, secrets=Store(), run=together, chap_dir=host[3], check_portal=lambda portal: None
    )
    await driver.prepare(VOLUME, HANDOVER)
    assert {words[0] for words in tools.calls} == {"iscsi-inq", "iscsi-readcapacity16"}


def test_identity_of_a_real_lun():
    identity = inq.identity(VOLUME, PAGE)
    assert identity is not None
    assert identity.startswith("iscsi-qemu:iqn.2026-11.org.lab:t1/0:naa.")
    assert "t10.LIO-ORG FILEIO:752b7310-1c2a-448c-b4c5-1a51d2338b67" in identity
    assert identity != inq.identity(VOLUME, PAGE.replace("752b7310", "752b7311"))


def designator(kind: int, data: bytes) -> str:
    """One designator of the logical unit as iscsi-inq prints it (a C string) and storage.run decodes it."""
    raw = b"Association:(0) LOGICAL_UNIT\nDesignator Type:(%d) X\nDesignator:[%s]\n" % (
        kind,
        data.split(b"\0")[0],
    )
    return "DEVICE DESIGNATOR #0\n" + raw.decode("utf-8", "backslashreplace")


NAA6 = bytes.fromhex("6001405752b73101c2a448cb4c51a51d")


def test_i9_a_binary_designator_counts_only_whole():
    """Two LUNs that differ behind a zero byte print alike."""
    assert inq.identity(VOLUME, designator(3, NAA6)) == f"iscsi-qemu:{VOLUME.iqn}/0:naa.{NAA6.hex()}"
    for zero in range(1, 16):
        one, two = NAA6[:zero] + b"\0\1" + bytes(20), NAA6[:zero] + b"\0\2" + bytes(20)
        assert inq.identity(VOLUME, designator(3, one[:16])) is None
        assert inq.identity(VOLUME, designator(3, two[:16])) is None
    naa5 = bytes.fromhex("5001405752b73101")
    assert inq.identity(VOLUME, designator(3, naa5)) is not None
    assert inq.identity(VOLUME, designator(3, naa5[:7])) is None
    assert inq.identity(VOLUME, designator(2, NAA6)) is not None
    assert inq.identity(VOLUME, designator(2, NAA6[:8])) is None  # or a longer one that was cut
    assert inq.identity(VOLUME, designator(1, b"LIO-ORG ")) is None  # the vendor, no unit
    assert inq.identity(VOLUME, designator(1, b"LIO-ORG \1\2\3\4")) is None


async def test_i9_without_a_whole_designator_the_serial_number_counts(host):
    driver, tools, _, _ = host
    tools.page = designator(3, NAA6[:5])
    with pytest.raises(Refused, match="gives no identity"):
        await driver.prepare(VOLUME, HANDOVER)
    tools.serial = "Unit Serial Number:[752b7310-1c2a]\n"
    await driver.prepare(VOLUME, HANDOVER)
    report = await driver.inspect(VOLUME)
    assert report.identity == f"iscsi-qemu:{VOLUME.iqn}/0:serial.752b7310-1c2a"


@pytest.mark.parametrize(
    "text", ["", "Unit Serial Number:[]\n", "Unit Serial Number:[abc]", "Unit Serial Number:[\1]\n"]
)
def test_i9_a_serial_number_that_is_cut_or_no_text_is_none(text):
    assert inq.identity_by_serial(VOLUME, text) is None


def test_a_cut_page_never_proves_what_the_whole_one_proves():
    whole = inq.identity(VOLUME, PAGE)
    for end in range(len(PAGE) - 1):
        assert inq.identity(VOLUME, PAGE[:end]) != whole
    only_target = "\n".join(PAGE.splitlines()[:9]) + "\n"  # names of the target, none of the logical unit
    assert inq.identity(VOLUME, only_target) is None


@pytest.mark.parametrize("text", ["", "33554432", "3.3\n", "-1\n", "12\n34\n", "abc\n"])
def test_size_is_one_whole_line(text):
    assert inq.size_bytes(text) is None
    assert inq.size_bytes("33554432\n") == 33554432
