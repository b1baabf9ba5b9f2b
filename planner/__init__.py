"""Plan a training step so that it fits the memory there is, at the least extra time.

>>> import planner
>>> planner.parse_budget("40GB")
40000000000

``fit`` makes a ``Plan``; ``Plan.apply`` makes a model that follows it.
"""

from planner.batch import MaxBatch, max_batch
from planner.compare import Comparison, compare
from planner.curve import Curve, CurvePoint, pareto
from planner.drawing.curve import render_curve_svg
from planner.drawing.timeline import render_timeline_svg
from planner.errors import (
    BadBudget,
    BadCluster,
    BadEstimate,
    BadSpec,
    CaptureError,
    InfeasibleBudget,
    InvalidPlan,
    PlanMismatch,
    PlannerError,
    UnknownDevice,
    UnknownMethod,
)
from planner.fit import fit
from planner.plan import Plan
from planner.planfile import load
from planner.sharding.plan import ShardedPlan
from planner.textbook.estimate import Estimate, estimate
from planner.trials.verify import Verification, verify
from planner.units import parse_budget
from solvers import Limits, Status

__all__ = [
    "BadBudget",
    "BadCluster",
    "BadEstimate",
    "BadSpec",
    "CaptureError",
    "Comparison",
    "Curve",
    "CurvePoint",
    "Estimate",
    "InfeasibleBudget",
    "InvalidPlan",
    "Limits",
    "MaxBatch",
    "Plan",
    "PlanMismatch",
    "PlannerError",
    "ShardedPlan",
    "Status",
    "UnknownDevice",
    "UnknownMethod",
    "Verification",
    "compare",
    "estimate",
    "fit",
    "load",
    "max_batch",
    "pareto",
    "parse_budget",
    "render_curve_svg",
    "render_timeline_svg",
    "verify",
]
