"""From exceptions to outcomes, and from the outcomes of several volumes to one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agents.protocol import AttemptResult, Outcome
from storage.errors import Failed, OutcomeError, Refused, Retryable, Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended. A result may come with any outcome: what was opened must be known to be closed."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()
    result: AttemptResult = field(default_factory=AttemptResult)


def outcome_of(error: BaseException) -> tuple[Outcome, tuple[str, ...]]:
    """The outcome an exception means; anything unforeseen is UNKNOWN, with the kind of error only (I17)."""
    match error:
        case Refused():
            return Outcome.REFUSED, tuple(error.reasons)
        case Retryable():
            return Outcome.RETRYABLE, tuple(error.reasons)
        case Failed():
            return Outcome.FAILED, tuple(error.reasons)
        case Unknown() | OutcomeError():
            return Outcome.UNKNOWN, tuple(error.reasons)
        case _:
            kind = type(error).__name__
            return Outcome.UNKNOWN, (f"internal error in the agent ({kind}); its log has the traceback",)


def merge(errors: Sequence[BaseException | None]) -> tuple[Outcome, tuple[str, ...]]:
    """One outcome for several volumes; None stands for one that succeeded.

    UNKNOWN wins over all, because somebody has to look. A refusal beside a success is FAILED, since
    REFUSED would promise that nothing was touched. RETRYABLE stays: the call is safe to repeat on all.
    """
    found = [outcome_of(error) for error in errors if error is not None]
    if not found:
        return Outcome.DONE, ()
    outcomes = {outcome for outcome, _ in found}
    reasons = tuple(reason for _, each in found for reason in each)
    for worst in (Outcome.UNKNOWN, Outcome.FAILED):
        if worst in outcomes:
            return worst, reasons
    if Outcome.REFUSED in outcomes:
        touched = len(found) < len(errors)
        return (Outcome.FAILED if touched else Outcome.REFUSED), reasons
    return Outcome.RETRYABLE, reasons
