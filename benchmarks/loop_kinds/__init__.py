"""Training loops as people write them, by kind; each module adds its own to ``LOOPS``."""

from benchmarks.loop_kinds import (
    asked_values,
    left_behind,
    plain_loops,
    random_numbers,
    read_state,
    repeated_calls,
    torch_features,
)
from benchmarks.loop_kinds.loop import LOOPS

__all__ = [
    "LOOPS",
    "asked_values",
    "left_behind",
    "plain_loops",
    "random_numbers",
    "read_state",
    "repeated_calls",
    "torch_features",
]
