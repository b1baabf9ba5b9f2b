"""Pure mathematics over a Graph: which schedule fits a budget at the least time. No torch here.

Importing this package registers every solver.
"""

from solvers import (
    auto,
    blocks,
    chen_greedy,
    chen_sqrt,
    exact,
    lp_rounding,
    milp,
    recompute_all,
    reorder,
    revolve,
    store_all,
)
from solvers.auto import lower_bound
from solvers.base import (
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
from solvers.least import MinimumBudget, minimum_budget

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
    "chen_greedy",
    "chen_sqrt",
    "exact",
    "floor_bytes",
    "lower_bound",
    "lp_rounding",
    "milp",
    "minimum_budget",
    "recompute_all",
    "register",
    "reorder",
    "revolve",
    "solve",
    "store_all",
]
