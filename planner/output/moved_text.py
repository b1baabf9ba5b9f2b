"""What a plan says of values that move to the host: what, how much, and how busy the link is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from planner.byte_sizes import format_both, format_bytes, format_percent, format_seconds
from planner.graphs import Action, Clock
from planner.graphs.host_memory import host_layout
from planner.output.layout import table
from planner.plan.step_plan import StepPlan


def moved_text(plan: StepPlan, rows: int) -> str:
    """Tell what moves, alike values of alike places folded; "" if nothing does.

    Args:
        plan: of one device.
        rows: how many at most.
    """
    states = _states_text(plan)
    if not plan.schedule.moves:
        return states
    found = _moves(plan)
    count: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for value in found:
        key = _place(plan, value)
        count[key] += 1
        sizes[key] += plan.graph.values[value].size_bytes
    ranked = sorted(count, key=lambda key: (-sizes[key], key))
    cells = [(*key, f"x{count[key]}", format_bytes(sizes[key])) for key in ranked[:rows]]
    if tail := ranked[rows:]:
        left = sum(sizes[key] for key in tail)
        more = sum(count[key] for key in tail)
        cells.append((f"{len(tail)} more rows", "", f"x{more}", format_bytes(left)))
    header = ("module", "made by", "values", "bytes")
    return "\n".join([*_head(plan, found), table("llrr", header, cells), *filter(None, [states])])


def _states_text(plan: StepPlan) -> str:
    """Tell which of the optimizer's states wait on the host; "" if none do."""
    if (states := plan.states) is None:
        return ""
    step = plan.graph.ops[-1]
    return (
        f"States on the host: {format_both(states.moved_bytes)} of {plan.optimizer}, of "
        f"{states.moved_parts} of the {len(states.parts)} parts of its step\n"
        f"  which takes {format_seconds(step.seconds)}, copies included, and holds "
        f"{format_bytes(step.workspace_bytes)} of them and its temporaries at once"
    )


def _head(plan: StepPlan, found: list[int]) -> list[str]:
    trace = plan.trace
    out, back = (
        format_percent(trace.busy_seconds.get(clock, 0.0) / trace.seconds)
        for clock in (Clock.TO_HOST, Clock.FROM_HOST)
    )
    ran = sum(plan.graph.ops[i].seconds for i in plan.schedule.order)
    moved = sum(plan.graph.values[v].size_bytes for v in found)
    room = host_layout(plan.graph, plan.schedule).size_bytes
    return [
        f"Moved to the host: {len(found):,} values, {format_bytes(moved)} there and back; it needs "
        f"{format_both(room)}",
        f"  its link is busy {out} of the step on the way there, {back} back; the device waits "
        f"{format_seconds(max(0.0, trace.seconds - ran))}",
    ]


def _moves(plan: StepPlan) -> list[int]:
    return [s.index for s in plan.schedule.steps if s.action is Action.OFFLOAD]


def _place(plan: StepPlan, value: int) -> tuple[str, str]:
    """Return the module that made a value, layers folded, and the operator."""
    maker = plan.graph.producer[value]
    assert maker is not None, "what moves was made"
    op = plan.graph.ops[maker]
    parts = ("*" if part.isdecimal() else part for part in op.module.split("."))
    return ".".join(parts) or "(no module)", op.target


def moved_summary(plan: StepPlan) -> dict[str, Any]:
    """Return the same as plain JSON types; nothing if nothing may move."""
    if plan.host is None:
        return {}
    trace, states = plan.trace, plan.states
    of_states = {} if states is None else {"states_bytes": states.moved_bytes}
    return {
        "host": {
            **of_states,
            "moved_values": len(_moves(plan)),
            "moved_bytes": sum(plan.graph.values[v].size_bytes for v in _moves(plan)),
            "host_bytes": host_layout(plan.graph, plan.schedule).size_bytes,
            "limit_bytes": plan.host.limit_bytes,
            "to_host_seconds": trace.busy_seconds.get(Clock.TO_HOST, 0.0),
            "from_host_seconds": trace.busy_seconds.get(Clock.FROM_HOST, 0.0),
        }
    }


def host_note(plan: StepPlan) -> Iterator[str]:
    """Say what the times of copies rest on, if something moves."""
    if plan.host is None or not (plan.schedule.moves or plan.states):
        return
    out, back = (f"{format_bytes(int(r))}/s" for r in (plan.host.to_host, plan.host.from_host))
    if plan.host.directory is not None:
        where = f"to a file in {plan.host.directory}, which nobody sees,"
    else:
        where = "to pinned memory of the host"
    limit = plan.host.limit_bytes
    known = "how much the host has is not known" if limit is None else f"{format_both(limit)} there"
    if not plan.schedule.moves:
        yield f"states of the optimizer move {where} at {out} there and {back} back, of {known}"
        return
    what = "values" if plan.states is None else "values and states of the optimizer"
    yield (
        f"{what} move {where} at {out} there and {back} back, of {known}, for each step under way; "
        "the device waits for a copy where the plan relies on its end: the peak holds at any rate"
    )
