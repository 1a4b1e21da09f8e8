"""The steps of a cold move as people see them. Pure."""

from __future__ import annotations

from migrd.operations import StepView, StepWord
from migrd.sagas.cold_moves import needed
from migrd.sagas.cold_state import BACK, FORWARD, ColdStage, ColdState

_PATH = (ColdStage.PRECHECK, *FORWARD)
_BACK_PATH = (*BACK, ColdStage.VERIFY_BACK)


def cold_steps(state: ColdState) -> tuple[StepView, ...]:
    """Forward first; the way back is shown once the move has turned round."""
    here = state.parked_in if state.stage is ColdStage.PARKED else state.stage
    if here is ColdStage.RECONCILE and state.back_to is not None:
        here = state.back_to
    steps = [_forward(state, stage, here) for stage in _PATH]
    if state.going_back:
        steps += [_back(state, stage, here) for stage in _BACK_PATH]
    return tuple(steps)


def _forward(state: ColdState, stage: ColdStage, here: ColdStage | None) -> StepView:
    attempt = state.attempts.get(stage, 0)
    word: StepWord
    if here is stage and not state.stage.ended:
        word = "failed" if state.stage is ColdStage.PARKED else "running"
    elif stage is ColdStage.PRECHECK:
        began = here is not ColdStage.PENDING
        refused = here is ColdStage.UNDONE and not state.attempts
        word = "failed" if refused else "done" if began else "waiting"
    elif attempt:
        # A shutdown is not undone: the guest has to boot again.
        undone = state.going_back and stage is not ColdStage.SHUTDOWN
        word = "undone" if undone else "done"
    else:
        over = state.stage.ended or state.going_back or not _may_come(state, stage, here)
        word = "skipped" if over else "waiting"
    reasons = state.trouble if word in ("running", "failed") else ()
    return StepView(name=stage.value, state=word, attempt=attempt, reasons=reasons)


def _may_come(state: ColdState, stage: ColdStage, here: ColdStage | None) -> bool:
    """Before the guest was looked at, any step may; then those that it needs."""
    return here in (ColdStage.PENDING, ColdStage.PRECHECK) or needed(state, stage)


def _back(state: ColdState, stage: ColdStage, here: ColdStage | None) -> StepView:
    attempt = state.attempts.get(stage, 0)
    word: StepWord
    if here is stage:
        word = "failed" if state.stage is ColdStage.PARKED else "running"
    elif state.stage is ColdStage.UNDONE:
        word = "done" if attempt or stage is ColdStage.VERIFY_BACK else "skipped"
    else:
        word = "done" if attempt else "waiting"
    return StepView(name=stage.value, state=word, attempt=attempt)
