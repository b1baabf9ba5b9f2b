"""Train within a budget in the trainers that people use: nothing but the budget is said.

``PlannerCallback`` is for transformers' Trainer and TRL's, ``LightningPlannerCallback`` for
Lightning, ``plan_at_first_batch`` for accelerate and for loops of one's own. A trainer's library is
imported with its callback.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from planner.integrations.first_batch import plan_at_first_batch, plan_of, without_plan

if TYPE_CHECKING:
    from planner.integrations.lightning_callback import LightningPlannerCallback
    from planner.integrations.trainer_callback import PlannerCallback

__all__ = [
    "LightningPlannerCallback",
    "PlannerCallback",
    "plan_at_first_batch",
    "plan_of",
    "without_plan",
]

_LATE = {
    "LightningPlannerCallback": "planner.integrations.lightning_callback",
    "PlannerCallback": "planner.integrations.trainer_callback",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
