"""Decides which guest goes where, or says every reason why not. Pure: no clock, no IO, no await."""

from migrd.planner.drain import choose_target, plan_drain, plan_migrate
from migrd.planner.policy import Policy
from migrd.planner.questions import questions_for
from migrd.planner.shortlist import shortlist

__all__ = ["Policy", "choose_target", "plan_drain", "plan_migrate", "questions_for", "shortlist"]
