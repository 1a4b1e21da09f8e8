"""Exit codes of migrctl, the same for every command."""

from __future__ import annotations

from enum import IntEnum
from typing import assert_never

from migrd.model import Plan
from migrd.operations import Operation, OperationState


class Exit(IntEnum):
    DONE = 0
    FAILED = 1  # it ended otherwise than asked, or nobody waited for its end (Ctrl-C)
    USAGE = 2
    REFUSED = 3  # reasons printed, nothing touched
    UNREACHABLE = 4  # no daemon answered
    PARKED = 5  # needs an operator: reason and next command printed


def of_operation(operation: Operation) -> Exit:
    """Of an operation at its end, or accepted and not waited for."""
    match operation.state:
        case OperationState.DONE:
            return Exit.DONE
        case OperationState.UNDONE | OperationState.FAILED:
            return Exit.FAILED
        case OperationState.PARKED:
            return Exit.PARKED
        case OperationState.PENDING | OperationState.RUNNING | OperationState.CANCELLING:
            return Exit.DONE
        case _:
            assert_never(operation.state)


def of_cancelled(operation: Operation) -> Exit:
    """After `op cancel`: going back is what was asked for; DONE means it came too late."""
    match operation.state:
        case OperationState.UNDONE:
            return Exit.DONE
        case OperationState.DONE:
            return Exit.FAILED
        case _:
            return of_operation(operation)


def of_plan(plan: Plan) -> Exit:
    """Of a dry run: would it be refused?"""
    return Exit.REFUSED if plan.blockers or plan.refusals else Exit.DONE
