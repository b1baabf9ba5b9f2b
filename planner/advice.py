"""What to try when a budget is out of reach, in the order practitioners try it.

A smaller micro-batch first (activations shrink with it, the result does not change), then
precision, then sharding, then the model. Knows sizes by kind; knows nothing of solvers.
"""

from __future__ import annotations

import math

from graphs import Graph, Kind, Phase, Trace
from planner.binding import Binding
from planner.units import format_both, format_bytes

_STATE = (Kind.PARAMETER, Kind.GRADIENT, Kind.OPTIMIZER, Kind.BUFFER, Kind.GATHERED, Kind.RESERVE)


def explain(graph: Graph, budget_bytes: int, trace: Trace, binding: Binding, reason: str) -> str:
    """Say in one paragraph what was asked, what would work, what binds and what to try next."""
    asked, needed = format_both(budget_bytes), format_both(trace.peak_bytes)
    why = f" ({reason})" if reason else ""
    if trace.peak_bytes <= budget_bytes:
        return (
            f"No schedule was found within {asked}{why}, but one exists: a peak of {needed} is "
            "known to work. Use method='auto', or raise the time limit."
        )
    held = dict(zip(trace.kinds, map(int, trace.by_kind[binding.step]), strict=True))
    return (
        f"No schedule was found within {asked}{why}. The least budget known to work is {needed}, "
        f"that is {trace.peak_bytes} bytes. What binds there is {binding}; "
        f"{format_bytes(binding.category_bytes)} of it is {binding.category.value}. "
        f"{advice(graph, budget_bytes, held, binding.phase)}"
    )


def advice(graph: Graph, budget_bytes: int, held: dict[Kind, int], phase: Phase) -> str:
    """Name the next thing to try, given the bytes of each kind held at the tightest moment."""
    state = sum(held.get(kind, 0) for kind in _STATE)
    fixed = sum(graph.values[v].size_bytes for v in graph.resident if _is_state(graph, v))
    rest = sum(held.values()) - state
    if fixed >= budget_bytes:
        return (
            f"The model states alone hold {format_bytes(fixed)}, so neither recomputation nor a "
            "smaller batch can help. Next: lower precision for parameters and optimizer state, or "
            "an optimizer with less state; then shard over more devices; then a smaller model."
        )
    if phase is Phase.OPTIMIZER:
        return (
            f"That is the optimizer step, which no recomputation and no smaller batch makes "
            f"smaller: its temporaries hold {format_bytes(rest)}. Next: an optimizer with fewer "
            "temporaries (fused=True or foreach=False) or less state; then lower precision; then "
            "shard over more devices; then a smaller model."
        )
    if state < budget_bytes:
        parts = math.ceil(rest / (budget_bytes - state))
        return (
            f"Recomputation is used up. Next: a micro-batch {parts} times smaller with gradient "
            f"accumulation ({format_bytes(rest)} there scales with the batch); then lower "
            "precision; then shard over more devices; then a smaller model."
        )
    return (
        f"Recomputation is used up, and {format_bytes(state)} there is model states, which no "
        "smaller batch lowers. Next: lower precision or an optimizer with less state and fewer "
        "temporaries; then shard over more devices; then a smaller model."
    )


def _is_state(graph: Graph, value: int) -> bool:
    return graph.values[value].kind in _STATE
