"""`iscsi-inq` and `iscsi-readcapacity16` (Debian libiscsi-bin): ask a LUN who it is, as QEMU would."""

from __future__ import annotations

import re

from storage.chap import Credential
from storage.words import IscsiQemuVolume

PACKAGE = "libiscsi-bin"
QEMU_IQN = "iqn.2008-11.org.linux-kvm"

_DESIGNATOR = re.compile(
    r"^Association:\((?P<association>\d+)\)[^\n]*\n"
    r"^Designator Type:\((?P<type>\d+)\)[^\n]*\n"
    r"^Designator:\[(?P<value>.*?)\]\n(?=DEVICE DESIGNATOR|\Z)",
    re.MULTILINE | re.DOTALL,
)
_LOGICAL_UNIT = "0"
_T10, _EUI, _NAA = "1", "2", "3"  # SPC-4, 7.8.6: the designators that name a logical unit
_T10_VENDOR_CHARS = 8  # the vendor's own name, which names no unit
_NAA_BYTES = {0x6: 16}  # by the first four bits; every other NAA has 8
_EUI_BYTES = 16  # there are 8 and 12 as well, which cannot be told from a longer one that was cut
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_SERIAL = re.compile(r"^Unit Serial Number:\[(?P<value>.*)\]\n", re.MULTILINE)


def url(volume: IscsiQemuVolume) -> str:
    """The libiscsi URL of the LUN, without credentials: those go through the environment (I17)."""
    return f"iscsi://{volume.portal}/{volume.iqn}/{volume.lun}"


def initiator(volume: IscsiQemuVolume) -> str:
    """The initiator name: the domain's, or QEMU's default when it names none."""
    return volume.initiator_iqn or QEMU_IQN


def designators(volume: IscsiQemuVolume) -> tuple[str, ...]:
    """VPD page 0x83."""
    return ("iscsi-inq", "-i", initiator(volume), "-e", "1", "-c", "131", url(volume))


def serial_number(volume: IscsiQemuVolume) -> tuple[str, ...]:
    """VPD page 0x80, for a LUN whose page 0x83 proves nothing."""
    return ("iscsi-inq", "-i", initiator(volume), "-e", "1", "-c", "128", url(volume))


def capacity(volume: IscsiQemuVolume) -> tuple[str, ...]:
    """Size in bytes, and nothing else, on stdout."""
    return ("iscsi-readcapacity16", "-i", initiator(volume), "-s", url(volume))


def environment(credential: Credential | None) -> dict[str, str]:
    """Where libiscsi looks for CHAP credentials when the URL has none."""
    if credential is None:
        return {}
    return {
        "LIBISCSI_CHAP_USERNAME": credential.username,
        "LIBISCSI_CHAP_PASSWORD": credential.password,
    }


def identity(volume: IscsiQemuVolume, text: str) -> str | None:
    """Identity from page 0x83, with target and LUN; None without a whole designator of the logical unit.

    iscsi-inq prints designators as C strings, so a binary one ends at its first zero byte, and two LUNs that
    differ behind it look alike. A binary designator therefore counts only at its full length, a T10 one only
    as text that says more than the vendor's name.
    """
    words = (
        _word(match["type"], match["value"])
        for match in _DESIGNATOR.finditer(text)
        if match["association"] == _LOGICAL_UNIT
    )
    found = {word for word in words if word is not None}
    return f"iscsi-qemu:{volume.iqn}/{volume.lun}:{','.join(sorted(found))}" if found else None


def identity_by_serial(volume: IscsiQemuVolume, text: str) -> str | None:
    """Identity from page 0x80, with target and LUN; None unless the serial number is text."""
    match = _SERIAL.search(text)
    serial = " ".join(match["value"].split()) if match else ""
    if not serial or not serial.isprintable():
        return None
    return f"iscsi-qemu:{volume.iqn}/{volume.lun}:serial.{serial}"


def _word(kind: str, value: str) -> str | None:
    """One designator in words; None when it is of another kind, may have been cut, or names no unit."""
    if kind == _T10:
        is_text = value.isprintable() and len(value.rstrip()) > _T10_VENDOR_CHARS
        return f"t10.{' '.join(value.split())}" if is_text else None
    data = _bytes(value)
    if kind == _NAA and data and len(data) == _NAA_BYTES.get(data[0] >> 4, 8):
        return f"naa.{data.hex()}"
    if kind == _EUI and len(data) == _EUI_BYTES:
        return f"eui.{data.hex()}"
    return None


def _bytes(value: str) -> bytes:
    """What the tool printed, from text in which bytes that are no UTF-8 stand as \\xNN (storage.run).

    A designator that holds such a text literally comes out shorter than it is, and then does not count.
    """
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), value.encode("utf-8"))


def size_bytes(text: str) -> int | None:
    """The answer of `iscsi-readcapacity16 -s`; None unless it is one whole line with one number."""
    word = text.removesuffix("\n")
    return int(word) if text.endswith("\n") and word.isascii() and word.isdecimal() else None
