"""Why a budget is out of reach, and what to try next in the order practitioners try it.

A smaller micro-batch first (activations shrink with it, the result does not change), then
precision, then sharding, then the model. Knows sizes by kind; knows nothing of solvers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graphs import Graph, Kind, Phase, simulate
from planner.binding import binding
from planner.errors import InfeasibleBudget
from planner.units import format_both, format_bytes

if TYPE_CHECKING:
    from solvers import MinimumBudget

_STATE = (Kind.PARAMETER, Kind.GRADIENT, Kind.OPTIMIZER, Kind.BUFFER, Kind.GATHERED, Kind.RESERVE)


def infeasible(
    graph: Graph, budget_bytes: int, least: MinimumBudget, reason: str
) -> InfeasibleBudget:
    """Make the error that says what was asked, what would work, what binds and what to try next."""
    trace = simulate(graph, least.schedule)
    found = binding(graph, least.schedule, trace)
    asked, needed = format_both(budget_bytes), format_both(trace.peak_bytes)
    text = f"No schedule was found within {asked}" + (f" ({reason}). " if reason else ". ")
    if trace.peak_bytes <= budget_bytes:
        text += (
            f"But one exists: a peak of {needed} is known to work. Use method='auto', or raise the "
            "time limit."
        )
    else:
        held = dict(zip(trace.kinds, map(int, trace.by_kind[found.step]), strict=True))
        text += (
            f"The least budget known to work is {needed}, that is {trace.peak_bytes} bytes; "
            f"{_proved(trace.peak_bytes, least.floor_bytes)}. What binds there is {found}; "
            f"{format_bytes(found.category_bytes)} of it is {found.category.value}. "
            f"{advice(graph, budget_bytes, held, found.phase)}"
        )
    return InfeasibleBudget(budget_bytes, trace.peak_bytes, found, text)


def _proved(least_bytes: int, floor_bytes: int) -> str:
    if floor_bytes >= least_bytes:
        return "it is proved that none works below"
    return f"it is proved that none works below {format_bytes(floor_bytes)}"


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
