"""Names of iSCSI devices and exit codes of iscsiadm: text in, meaning out."""

from __future__ import annotations

import re
from enum import StrEnum

BY_PATH = "/dev/disk/by-path"
# systemd's udev builtin path_id: ip-ADDRESS:PORT-iscsi-IQN-lun-LUN, with -partN for partitions.
_BY_PATH = re.compile(
    r"ip-(?P<portal>.+:\d{1,5})-iscsi-(?P<iqn>.+)-lun-(?P<lun>\d{1,5})(?P<part>-part\d+)?\Z"
)
_WWID = re.compile(r"(?:naa|eui|t10)\.[\x20-\x7e]+\Z")


def by_path(device: str) -> tuple[str, str, int] | None:
    """(portal, iqn, lun) of a whole LUN named by its path; None for a partition or another name."""
    if not device.startswith(f"{BY_PATH}/"):
        return None
    found = _BY_PATH.match(device.removeprefix(f"{BY_PATH}/"))
    if not found or found["part"]:
        return None
    return found["portal"], found["iqn"], int(found["lun"])


def device_of(portal: str, iqn: str, lun: int) -> str:
    """Inverse of `by_path`."""
    return f"{BY_PATH}/ip-{portal}-iscsi-{iqn}-lun-{lun}"


def wwid(text: str) -> str | None:
    """The kernel's `wwid` attribute, made from VPD page 0x83; None for anything that is no designator."""
    word = " ".join(text.split())
    return word if _WWID.match(word) else None


class Verdict(StrEnum):
    """What an exit code of iscsiadm means for what we asked."""

    DONE = "done"
    RETRY = "retry"
    FINAL = "final"


# iscsi_err.h / iscsiadm(8), section EXIT STATUS
_OK = 0
_SESSION_EXISTS = 15
_NO_OBJECTS_FOUND = 21
_RETRY = frozenset(
    {
        4,  # ISCSI_ERR_TRANS
        8,  # ISCSI_ERR_TRANS_TIMEOUT
        11,  # ISCSI_ERR_PDU_TIMEOUT
        18,  # ISCSI_ERR_ISCSID_COMM_ERR
        20,  # ISCSI_ERR_ISCSID_NOTCONN
        28,  # ISCSI_ERR_BUSY
        29,  # ISCSI_ERR_AGAIN
    }
)


def login_verdict(rc: int) -> Verdict:
    """15 "session exists" is what we wanted; 24 "authorization failure" will not change by itself."""
    if rc in (_OK, _SESSION_EXISTS):
        return Verdict.DONE
    return Verdict.RETRY if rc in _RETRY else Verdict.FINAL


def logout_verdict(rc: int) -> Verdict:
    """21 "no objects found": there is no such session, which is what we wanted."""
    if rc in (_OK, _NO_OBJECTS_FOUND):
        return Verdict.DONE
    return Verdict.RETRY if rc in _RETRY else Verdict.FINAL
