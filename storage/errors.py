"""What went wrong, in four kinds that tell the caller what to do next.

The same four travel from a driver through the agent's RPC to the daemon's saga, so no layer
has to guess from a message whether a retry is safe.
"""

from __future__ import annotations

from collections.abc import Sequence


class OutcomeError(Exception):
    """Base: an action did not (certainly) happen. Carries every reason, not just the first."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons: Sequence[str] = reasons


class Refused(OutcomeError):  # noqa: N818 - a verdict, not a malfunction
    """A precondition does not hold. Nothing was touched. Retrying unchanged is useless."""


class Retryable(OutcomeError):  # noqa: N818
    """It did not happen, and the same call may well succeed later (bounded back-off)."""


class Failed(OutcomeError):  # noqa: N818
    """It did not happen and will not: undo what came before."""


class Unknown(OutcomeError):  # noqa: N818
    """Whether it happened is not known (timeout, killed tool, lost reply): probe, never assume."""
