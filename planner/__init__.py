"""Plan a training step so that it fits the memory there is, at the least extra time.

>>> import planner
>>> planner.parse_budget("40GB")
40000000000

``fit`` makes a ``Plan``; ``Plan.apply`` makes a model that follows it.
"""

from planner.analysis.curve import Curve, CurvePoint
from planner.analysis.curve_picture import render_curve_svg
from planner.analysis.max_batch import MaxBatch, max_batch
from planner.analysis.pareto import pareto
from planner.byte_sizes import parse_budget
from planner.compared import Comparison
from planner.comparison import compare
from planner.compile_backend import backend
from planner.errors import (
    BadBudget,
    BadCluster,
    BadEstimate,
    BadRequest,
    BadSpec,
    CapacityExceeded,
    CaptureError,
    CheckFailed,
    HostMemoryError,
    InfeasibleBudget,
    InvalidPlan,
    PlanMismatch,
    PlannerError,
    UnknownDevice,
    UnknownEngine,
    UnknownMethod,
)
from planner.fit import fit
from planner.output.timeline import render_timeline_svg
from planner.plan.stage import Stage
from planner.plans import Plan, ShardedPlan, load
from planner.progress import PlannerWarning
from planner.request import Request
from planner.solvers import Limits, Status
from planner.tensor_parallel import TensorParallel
from planner.textbook.estimate import Estimate, estimate
from planner.verification.verification import Verification
from planner.verification.verify import verify

__all__ = [
    "BadBudget",
    "BadCluster",
    "BadEstimate",
    "BadRequest",
    "BadSpec",
    "CapacityExceeded",
    "CaptureError",
    "CheckFailed",
    "Comparison",
    "Curve",
    "CurvePoint",
    "Estimate",
    "HostMemoryError",
    "InfeasibleBudget",
    "InvalidPlan",
    "Limits",
    "MaxBatch",
    "Plan",
    "PlanMismatch",
    "PlannerError",
    "PlannerWarning",
    "Request",
    "ShardedPlan",
    "Stage",
    "Status",
    "TensorParallel",
    "UnknownDevice",
    "UnknownEngine",
    "UnknownMethod",
    "Verification",
    "backend",
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
