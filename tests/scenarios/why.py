"""From reasons, written for people, to the few words that a scenario can rest on. Pure.

A sentence may be reworded without a scenario noticing, as long as it still says the same kind of thing.
What no row of the table knows is told in full, so that it is seen and gets a row.
"""

from __future__ import annotations

import re

_RULES = (
    ("its move is parked", r"is parked:"),
    ("cancelled", r"^cancelled by"),
    ("ALARM", r"ALARM"),
    (
        "busy",
        r"is being worked on|is held by|being drained already|\bop-\d+[.\d]* (works on|moves)"
        r"|a libvirt job runs",
    ),
    ("too late", r"too late to cancel"),
    ("has ended", r"has ended"),
    ("not parked", r"is not parked"),
    ("not drained", r"is not drained"),
    ("superseded", r"obeys another, newer|another migrd is master"),
    ("journal read-only", r"no new work is taken|journal cannot be written"),
    ("journal writable again", r"journal can be written again"),
    ("last host", r"is the last"),
    ("unknown name", r"no such guest"),
    ("not heard", r"host is (unreachable|suspect|unknown|degraded)|is (unreachable|suspect|degraded):"),
    ("not in use", r"host is (draining|drained|off)|is (draining|drained|off) by now"),
    ("no power", r"has no power|is off\b(?! \()"),
    ("two copies of the guest", r"a domain with its uuid|has a domain of this uuid|runs on \S+ and \S+:"),
    (
        "guest not running",
        r"the guest (is (paused|shut|crashed|absent)|does not run|is no longer|was shut down)",
    ),
    ("guest busy elsewhere", r"the guest is paused-incoming"),
    ("guests on it", r"guest \S+ is running"),
    ("already there", r"is on \S+ already"),
    ("memory", r"memory:"),
    ("other copy elsewhere", r"its other copy is on"),
    ("window open", r"two primaries are already allowed|dual-primary window|still allow"),
    (
        "replication",
        r"not connected to its peer|is (syncing|degraded|unreachable)|Inconsistent|not Established",
    ),
    ("only copy", r"current copy"),
    ("wrong disk", r"not the same disk"),
    ("login", r"login failed|could not open"),
    ("took too long", r"took longer than"),
    (
        "stream broke",
        r"domain is not running|migration stream|End of file|Connection timed out|migration connection",
    ),
    ("libvirt gone", r"connection to libvirt broke|libvirt on \S+ does not answer"),
    ("agent restarted", r"agent restarted while"),
    ("ledger", r"ledger cannot be used"),
    ("aborted", r"canceled by client"),
    ("target's copy misses writes", r"may miss writes"),
    ("it runs on", r"on this host the guest is running"),
    (
        "agent silent",
        r"no answer|Connect call failed|Connection reset|(?<!disk has )not answer|was not heard",
    ),
)


def why(*reasons: str) -> str:
    """Each kind of reason once, in the order of the table; a sentence can be of several kinds."""
    found, strange = set(), []
    for reason in reasons:
        kinds = {word for word, pattern in _RULES if re.search(pattern, reason)}
        found |= kinds
        if not kinds:
            strange.append(f'"{reason}"')
    return ", ".join([*(word for word, _ in _RULES if word in found), *sorted(strange)]) or "no reason"
