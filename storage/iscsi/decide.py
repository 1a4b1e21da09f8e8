"""Decisions about a LUN of the kernel initiator, pure. A reason names the LUN and what to do."""

from __future__ import annotations

import re

from storage.iscsi.sysfs import Lun, Session
from storage.words import Health, IscsiVolume

# RFC 3720, 3.2.6: names are iqn., eui. or naa. and a few characters. Also keeps a name from being a path.
_NAME = re.compile(r"(iqn|eui|naa)\.[A-Za-z0-9.:_-]{1,219}\Z")


def is_name(iqn: str) -> bool:
    """Is it a well-formed iSCSI name?"""
    return bool(_NAME.match(iqn))


def session_of(sessions: tuple[Session, ...], volume: IscsiVolume) -> Session | None:
    """The session of the volume's target through the volume's portal."""
    return next((s for s in sessions if (s.iqn, s.portal) == (volume.iqn, volume.portal)), None)


def problems(volume: IscsiVolume, session: Session | None, opens: str | None) -> tuple[str, ...]:
    """Why the LUN cannot be used here. `opens`: the kernel name of the block device behind volume.device."""
    if session is None:
        return (f"{volume.name}: this host is not logged in to {volume.iqn} at {volume.portal}",)
    reasons: list[str] = []
    if session.state != "LOGGED_IN":
        reasons.append(f"{volume.name}: the iSCSI session is {session.state}: check portal {volume.portal}")
    lun = session.find(volume.lun)
    if lun is None:
        return (*reasons, f"{volume.name}: the session has no LUN {volume.lun}: check the target's ACL")
    if lun.state != "running":
        reasons.append(f"{volume.name}: the SCSI device {lun.name} is {lun.state}")
    if lun.wwid is None:
        reasons.append(f"{volume.name}: the LUN gives no identity (VPD page 0x83)")
    if lun.size_bytes is None or lun.size_bytes == 0:
        reasons.append(f"{volume.name}: the size of {lun.name} is not known")
    if opens != lun.name:
        where = f"opens {opens}" if opens else "is not there"
        reasons.append(f"{volume.name}: {volume.device} {where}, but the LUN is {lun.name}")
    return tuple(reasons)


def health(volume: IscsiVolume, session: Session | None, opens: str | None) -> Health:
    """OK, or how far away from it."""
    if not problems(volume, session, opens):
        return Health.OK
    if session is None or session.state != "LOGGED_IN":
        return Health.UNREACHABLE
    lun = session.find(volume.lun)
    return Health.UNREACHABLE if lun is None or lun.state != "running" else Health.DEGRADED


def identity(volume: IscsiVolume, session: Session | None) -> str | None:
    """Page 0x83 with the target's name and the LUN number.

    Some targets number their designators from one (tgtd: "IET 00010001"), so that two targets give out the
    same; the name tells those apart. Both hosts have the same volume, so it never makes equals differ.
    """
    lun = session.find(volume.lun) if session else None
    return f"iscsi:{volume.iqn}/{volume.lun}:{lun.wwid}" if lun and lun.wwid else None


def ends_session(session: Session, lun: Lun) -> bool:
    """Log out, or drop only this LUN? A session is shared by all LUNs of its target.

    Another LUN that nobody has open at this instant may be one that was just prepared for an incoming guest,
    so any other LUN keeps the session.
    """
    return all(other.lun == lun.lun for other in session.luns)
