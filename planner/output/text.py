"""A plan as text, whatever it is for."""

from __future__ import annotations

from planner.output import plan_text, sharded_plan_text
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.plan.step_plan import StepPlan


def text_of(plan: StepPlan | ShardedStepPlan) -> str:
    """Write what a person wants to know about a plan, the answer first."""
    if isinstance(plan, ShardedStepPlan):
        return sharded_plan_text.render(plan)
    return plan_text.render(plan)


def explanation_of(plan: StepPlan | ShardedStepPlan) -> str:
    """Write why a plan is what it is: all that binds, runs again or was rejected."""
    if isinstance(plan, ShardedStepPlan):
        return sharded_plan_text.explain(plan)
    return plan_text.explain(plan)
