"""What an agent's answer, or its absence, means to the daemon. Pure; the same for every transport."""

from __future__ import annotations

from agents import problems
from agents.problems import Problem
from agents.wire import BadDocument, read
from storage.errors import Failed, OutcomeError, Refused, Retryable, Unknown


class StaleEpoch(Failed):
    """The agent has obeyed a newer epoch (I4): this daemon is no longer the master of this host.

    `highest`: that epoch; 0 when an older agent does not say.
    """

    def __init__(self, *reasons: str, highest: int = 0) -> None:
        super().__init__(*reasons)
        self.highest = highest


class AttemptNotSeen(Unknown):
    """The agent has no record of the attempt: never submitted, or long ended and pruned. Observe."""


def lost(text: str, *, changes: bool) -> OutcomeError:
    """The request was sent, and no answer came. `changes`: it was a command, so its fate is not known."""
    return Unknown(f"{text} (the reply was lost)") if changes else Retryable(text)


def refusal(name: str, status: int, body: bytes, *, changes: bool) -> OutcomeError:
    """What a problem document of agent `name` means."""
    try:
        problem = read(Problem, body)
    except BadDocument:
        problem = Problem(type="", title=f"HTTP {status} without a problem document", status=status)
    first = f"{name}: {problem.detail or problem.title}"
    match problem.type:
        case problems.STALE_EPOCH:
            return StaleEpoch(first, highest=problem.epoch)
        case problems.UNKNOWN_ATTEMPT:
            return AttemptNotSeen(first)
        case problems.TOO_MANY | problems.UNAVAILABLE | problems.DOMAIN_BUSY:
            return Retryable(first)
    if 400 <= status < 500:
        return Refused(first, *problem.errors)
    return Unknown(first) if changes else Retryable(first)
