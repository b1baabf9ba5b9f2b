"""Steps asked for without a person: what ``fit`` and ``pareto`` do after their capture."""

from __future__ import annotations

from typing import Any

from torch import nn

from planner.analysis import pareto
from planner.analysis.curve import Curve
from planner.graphs.capture.training_step import Captured
from planner.planning import plan_captured
from planner.plans import Plan
from planner.request import Request, request_of
from planner.step_variants import captured_step


def request(model: nn.Module | None = None, **said: Any) -> Request:
    """Make a request that tells nobody, by default of a model that does nothing, on a CPU."""
    anything = {"inputs": (), "device": "cpu", "optimizer": None} if model is None else {}
    return request_of(model or nn.Identity(), {"progress": "off", **anything, **said})


def capture_step(model: nn.Module, **said: Any) -> Captured:
    """Capture a step."""
    return captured_step(request(model, **said))


def plan_graph(captured: Any, budget_bytes: int, **said: Any) -> Plan:
    """Plan a captured step."""
    return Plan.of(plan_captured(captured, request(**said), budget_bytes))


def curve_of(captured: Any, points: int, *, heuristics: bool = False, **said: Any) -> Curve:
    """Find the curve of a captured step."""
    return pareto.curve_of(captured, request(**said), points, heuristics=heuristics)
