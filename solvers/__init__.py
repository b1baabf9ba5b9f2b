"""Pure mathematics over a Graph: which schedule fits a budget at the least time. No torch here.

Importing this package registers every solver.
"""

from planner.solvers import auto, reorder
from planner.solvers.api import (
    SOLVERS,
    Answer,
    Limits,
    Solution,
    Status,
    binding_op,
    floor_bytes,
    register,
    solve,
)
from planner.solvers.baselines import (
    blocks,
    checkpoint,
    chen_greedy,
    chen_sqrt,
    lp_rounding,
    plain,
    recompute_all,
    revolve,
)
from planner.solvers.exact import milp, state_search
from planner.solvers.given_order import lower_bound
from planner.solvers.minimum_budget import MinimumBudget, minimum_budget

__all__ = [
    "SOLVERS",
    "Answer",
    "Limits",
    "MinimumBudget",
    "Solution",
    "Status",
    "auto",
    "binding_op",
    "blocks",
    "checkpoint",
    "chen_greedy",
    "chen_sqrt",
    "floor_bytes",
    "lower_bound",
    "lp_rounding",
    "milp",
    "minimum_budget",
    "plain",
    "recompute_all",
    "register",
    "reorder",
    "revolve",
    "solve",
    "state_search",
]

if __name__ == "solvers":  # in a checkout: be the package that is inside planner
    from planner.graphs.checkout import become

    become("solvers")
