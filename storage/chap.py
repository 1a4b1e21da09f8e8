"""CHAP credentials, kept in files on each host and never sent anywhere (I17).

One file per login, `/etc/migrd/chap/NAME.toml`, mode 0600, owned by root:

    target = "iqn.2026-11.org.example:*"   # shell pattern over the target's IQN
    portal = "10.0.0.5:3260"               # shell pattern, may be left out: every portal
    username = "h1"
    password = "..."

Files are read in the order of their names; the first that fits wins.
"""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from storage.calls import Lane, NoSlot, TimedOut
from storage.errors import Refused, Retryable

CHAP_DIR = Path("/etc/migrd/chap")
MAX_FILE_BYTES = 256 * 1024
READ_DEADLINE_S = 10.0
_KEYS = {"target", "portal", "username", "password"}


@dataclass(frozen=True, slots=True)
class Credential:
    """One CHAP login. The password stays out of repr, and so out of logs and tracebacks."""

    target: str
    portal: str
    username: str
    password: str = field(repr=False)

    def fits(self, *, iqn: str, portal: str) -> bool:
        """Is it meant for this target at this portal?"""
        return fnmatchcase(iqn, self.target) and fnmatchcase(portal, self.portal)


def parse(text: str, where: str) -> Credential:
    """Read one file's text. Raises Refused with every error and its place; no message quotes a value."""
    try:
        row = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # Only the position: the line itself could hold the password.
        message = str(error)
        at = message[message.rindex("(") :] if "(" in message else ""
        raise Refused(f"{where}: not valid TOML {at}") from None
    errors = [f"{where}: {key}: unknown key" for key in row if key not in _KEYS]
    errors += [f"{where}: {key}: missing" for key in sorted(_KEYS - {"portal"} - row.keys())]
    for key in sorted(_KEYS & row.keys()):
        value = row[key]
        if not isinstance(value, str) or not value:
            errors.append(f"{where}: {key}: must be a string that is not empty")
        elif not value.isprintable():
            # It will stand on a line of its own in iscsiadm's record file.
            errors.append(f"{where}: {key}: must not hold control characters or line breaks")
    if errors:
        raise Refused(*errors)
    return Credential(row["target"], row.get("portal", "*"), row["username"], row["password"])


def _load(directory: Path) -> tuple[Credential, ...]:
    try:
        names = sorted(path for path in directory.iterdir() if path.suffix == ".toml")
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise Refused(f"{directory} cannot be read: {error.strerror}") from error
    found: list[Credential] = []
    errors: list[str] = []
    for path in names:
        try:
            found.append(parse(_read_private(path), str(path)))
        except Refused as error:
            errors += error.reasons
    if errors:
        raise Refused(*errors)
    return tuple(found)


def _read_private(path: Path) -> str:
    try:
        # The checks are on the open file: no one can swap it between check and read.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise Refused(f"{path} is no regular file")
            if info.st_mode & 0o077 or info.st_uid not in (0, os.geteuid()):
                raise Refused(f"{path} must belong to root and be closed to others: chown root, chmod 600")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise Refused(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(f"{path} is not UTF-8") from None


async def find(directory: Path, *, iqn: str, portal: str, lane: Lane) -> Credential | None:
    """The first credential for this target; None when none is configured. The files are read in `lane`.

    Raises Refused when any file is malformed or open to others: a half-read set could pick a wrong login.
    Raises Retryable when the disk does not answer.
    """
    try:
        found = await lane.call(lambda: _load(directory), deadline_s=READ_DEADLINE_S)
    except (NoSlot, TimedOut):
        raise Retryable(f"{directory} could not be read within {READ_DEADLINE_S:g} s") from None
    for credential in found:
        if credential.fits(iqn=iqn, portal=portal):
            return credential
    return None
