"""What happened, in order: one typed line per change, message and journal row; its hash names the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["world", "net", "journal", "ledger", "process", "fault", "command", "alert", "check"]
TAIL = 60


@dataclass(frozen=True, slots=True)
class Happened:
    """`at_s`: virtual seconds since the run began. `subject`: a host, a guest, an operation."""

    at_s: float
    kind: Kind
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.at_s:9.3f} {self.kind:<8} {self.subject:<12} {self.text}"


class Trace:
    """Grows only. `violations` name the invariant first: "I6: ..."."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._began_s = now()
        self._hash = hashlib.blake2b(digest_size=16)
        self.log: list[Happened] = []
        self.violations: list[str] = []
        self._known: set[str] = set()
        self._closed = False

    @property
    def now_s(self) -> float:
        """Virtual seconds since the run began."""
        return self._now() - self._began_s

    def note(self, kind: Kind, subject: str, text: str) -> None:
        if self._closed:
            return
        happened = Happened(self.now_s, kind, subject, text)
        self.log.append(happened)
        self._hash.update(str(happened).encode())

    def violate(self, invariant: str, text: str, event: str = "") -> None:
        """An invariant does not hold since `event`. Said once: what is broken stays broken for a while."""
        found = f"{invariant}: {text}"
        if found not in self._known:
            self._known.add(found)
            self.violations.append(f"{found} ({event})" if event else found)
            self.note("check", invariant, f"VIOLATED: {text}")

    def close(self) -> None:
        """The run is over: what is unwound now did not happen."""
        self._closed = True

    def digest(self) -> str:
        return self._hash.hexdigest()

    def tail(self, lines: int = TAIL) -> str:
        return "\n".join(map(str, self.log[-lines:]))
