"""What one operator costs: by formula, or measured here and remembered."""

from planner.graphs.costs import models  # noqa: F401 (each enters itself)
from planner.graphs.costs.registry import COSTS, CostModel, Priced, register_cost_model

__all__ = ["COSTS", "CostModel", "Priced", "register_cost_model"]
