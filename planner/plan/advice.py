"""Why a budget is out of reach, and what to try next in the order practitioners try it.

A smaller micro-batch first (activations shrink with it, the result does not change), then
precision, then sharding, then the model. What the device keeps for itself is none of these: no
change to the model lowers it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.byte_sizes import format_both, format_bytes
from planner.errors import InfeasibleBudget
from planner.graphs import Graph, Kind, Phase, Schedule, live_at, simulate
from planner.graphs.binding import Binding, binding
from planner.graphs.hardware.host_tier import HostTier

if TYPE_CHECKING:
    from planner.solvers import MinimumBudget

_STATE = (Kind.PARAMETER, Kind.GRADIENT, Kind.OPTIMIZER, Kind.BUFFER, Kind.GATHERED)


def infeasible(
    graph: Graph,
    budget_bytes: int,
    least: MinimumBudget,
    reason: str,
    needed_bytes: int | None = None,
    *,
    host: HostTier | None = None,
) -> InfeasibleBudget:
    """Make the error that says what was asked, what would work, what binds and what to try next.

    Args:
        graph: of the step.
        budget_bytes: what was asked for.
        least: the least budget known to work.
        reason: why no schedule was found, if it is known.
        needed_bytes: what the device needs for that schedule, if more than its tensors' bytes.
        host: where it moves values to, if it does.
    """
    rates = {} if host is None else host.rates
    trace = simulate(graph, least.schedule, link_bytes_per_second=rates)
    found = binding(graph, least.schedule, trace)
    least_bytes = needed_bytes or trace.peak_bytes
    asked, needed = format_both(budget_bytes), format_both(least_bytes)
    text = f"No schedule was found within {asked}" + (f" ({reason}). " if reason else ". ")
    if least_bytes <= budget_bytes:
        text += (
            f"But one exists: a peak of {needed} is known to work. Use method='auto', or raise the "
            "time limit."
        )
    else:
        tight = tightest(graph, least.schedule, found, least_bytes)
        text += (
            f"The least budget known to work is {needed}, that is {least_bytes} bytes"
            f"{cut_short(least)}; {_proved(least_bytes, least.floor_bytes)}. "
            f"What binds there is {found}; "
            f"{format_bytes(found.category_bytes)} of it is {found.category.value}. "
            f"{advice(budget_bytes, tight)}"
        )
    return InfeasibleBudget(budget_bytes, least_bytes, found, text)


def cut_short(least: MinimumBudget) -> str:
    """Say that time ended the search for the least budget, if it did.

    Args:
        least: what was found.
    """
    return " (the limit in seconds ended the search for less)" if least.stopped else ""


def _proved(least_bytes: int, floor_bytes: int) -> str:
    if floor_bytes >= least_bytes:
        return "it is proved that none works below"
    return f"it is proved that none works below {format_bytes(floor_bytes)}"


@dataclass(frozen=True, slots=True)
class Tightest:
    """What is held where a schedule holds most.

    ``fixed_bytes`` are model states held all the time, ``state_bytes`` adds the gradients of
    parameters held there, and ``other_bytes``, the rest, grows with the batch: activations, their
    gradients, inputs, temporaries, and what an allocator needs above tensors. ``reserve_bytes`` is
    the device's own, in none of them.
    """

    fixed_bytes: int
    state_bytes: int
    other_bytes: int
    phase: Phase
    reserve_bytes: int = 0


def tightest(
    graph: Graph, schedule: Schedule, peak: Binding, needed_bytes: int | None = None
) -> Tightest:
    """Split the bytes at the peak of a schedule by what could make them fewer.

    Args:
        graph, schedule: what runs.
        peak: where it holds most.
        needed_bytes: what it needs in all, if that is more than its tensors' bytes.
    """
    held = live_at(graph, schedule, peak.step)
    lasting = {
        graph.values[v] for op in graph.ops if op.phase is Phase.OPTIMIZER for v in op.inputs
    }
    lasting |= {graph.values[v] for v in graph.outputs}
    fixed = sum(x.value.size_bytes for x in held if x.op is None and x.value.kind in _STATE)
    grown = (x.value for x in held if x.op is not None and x.value.kind is Kind.GRADIENT)
    state = fixed + sum(value.size_bytes for value in grown if value in lasting)
    reserve = sum(x.value.size_bytes for x in held if x.value.kind is Kind.RESERVE)
    other = max(peak.peak_bytes, needed_bytes or 0) - state - reserve
    return Tightest(fixed, state, other, peak.phase, reserve)


def advice(budget_bytes: int, tight: Tightest) -> str:
    """Name the next thing to try, given what is held at the tightest moment."""
    room = budget_bytes - tight.reserve_bytes
    kept = f"{format_bytes(tight.reserve_bytes)} that the device keeps for itself"
    beside = f" beside the {kept}" if tight.reserve_bytes else ""
    if room <= 0:
        return (
            f"A budget covers the {kept} (its context, and what its allocator rounds up), and that "
            "is all of this one: no precision, optimizer or batch changes it. Next: a larger "
            "budget; or, if your device keeps less, device= a Device with its reserve_bytes."
        )
    if tight.fixed_bytes >= room:
        return (
            f"The model states alone hold {format_bytes(tight.fixed_bytes)}{beside}, so neither "
            "recomputation nor a smaller batch can help. Next: lower precision for parameters and "
            "optimizer state, or an optimizer with less state; then shard over more devices; then "
            "a smaller model."
        )
    if tight.phase is Phase.OPTIMIZER:
        return (
            "That is the optimizer step, which no recomputation and no smaller batch makes "
            f"smaller: its temporaries hold {format_bytes(tight.other_bytes)}. Next: an optimizer "
            "with fewer temporaries (fused=True or foreach=False) or less state; then lower "
            "precision; then shard over more devices; then a smaller model."
        )
    if tight.state_bytes < room:
        parts = math.ceil(tight.other_bytes / (room - tight.state_bytes))
        return (
            f"Recomputation is used up. Next: a micro-batch {parts} times smaller with gradient "
            f"accumulation ({format_bytes(tight.other_bytes)} there grows with the batch); then "
            "lower precision; then shard over more devices; then a smaller model."
        )
    return (
        f"Recomputation is used up, and {format_bytes(tight.state_bytes)} there is model "
        f"states{beside}, which no smaller batch lowers. Next: lower precision or an optimizer "
        "with less state and fewer temporaries; then shard over more devices; then a smaller model."
    )
