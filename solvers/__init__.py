"""Pure mathematics over a Graph: which schedule fits a budget at the least time. No torch here."""

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

__all__ = [
    "SOLVERS",
    "Answer",
    "Limits",
    "Solution",
    "Status",
    "binding_op",
    "floor_bytes",
    "register",
    "solve",
]
