"""Decides which guest goes where, or says every reason why not. Pure: no clock, no IO, no await."""

from migrd.planner.drain import choose_target, plan_drain, plan_migrate
from migrd.planner.policy import Policy
from migrd.planner.questions import questions, questions_for

__all__ = ["Policy", "choose_target", "plan_drain", "plan_migrate", "questions", "questions_for"]
