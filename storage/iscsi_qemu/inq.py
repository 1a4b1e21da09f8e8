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
_KINDS = {"1": "t10", "2": "eui", "3": "naa"}  # SPC-4, 7.8.6: the designators that name a logical unit


def url(volume: IscsiQemuVolume) -> str:
    """The libiscsi URL of the LUN, without credentials: those go through the environment (I17)."""
    return f"iscsi://{volume.portal}/{volume.iqn}/{volume.lun}"


def initiator(volume: IscsiQemuVolume) -> str:
    """The initiator name: the domain's, or QEMU's default when it names none."""
    return volume.initiator_iqn or QEMU_IQN


def designators(volume: IscsiQemuVolume) -> tuple[str, ...]:
    """VPD page 0x83."""
    return ("iscsi-inq", "-i", initiator(volume), "-e", "1", "-c", "131", url(volume))


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
    """Identity from page 0x83, with target and LUN; None without a designator of the logical unit itself.

    iscsi-inq prints binary designators raw, up to a zero byte: here as hexadecimal, equal for equal LUNs.
    The T10 designator of LIO and others holds the whole serial number as text, so all that are there count.
    """
    found = {
        f"{_KINDS[match['type']]}.{_word(match['type'], match['value'])}"
        for match in _DESIGNATOR.finditer(text)
        if match["association"] == _LOGICAL_UNIT and match["type"] in _KINDS and match["value"].strip()
    }
    return f"iscsi-qemu:{volume.iqn}/{volume.lun}:{','.join(sorted(found))}" if found else None


def _word(kind: str, value: str) -> str:
    if kind == "1" and value.isprintable():
        return " ".join(value.split())
    return value.encode("utf-8", "backslashreplace").hex()


def size_bytes(text: str) -> int | None:
    """The answer of `iscsi-readcapacity16 -s`; None unless it is one whole line with one number."""
    word = text.removesuffix("\n")
    return int(word) if text.endswith("\n") and word.isascii() and word.isdecimal() else None
