"""The forward half of a step: gathers, one unit ahead of its use, and what runs between them.

The order of things is torch's; the ops around a unit are the strategy's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.graphs import Phase
from planner.sharding.step_graph.builder import ROOT, Draft
from planner.sharding.step_graph.row_wise_lookup import look_up
from planner.sharding.step_graph.sharded_step import Layout
from planner.sharding.step_graph.step_rules import StepRules

if TYPE_CHECKING:
    from planner.sharding.wrapped.boundary import UnitCapture


def forward(draft: Draft, rules: StepRules) -> None:
    """Add the root's forward with every unit's gather and forward in it."""
    draft.hidden[ROOT] = 0.0
    rules.gather(draft, ROOT, None)
    _weigh(draft, ROOT)
    calls = {call.forward: u for u, call in enumerate(draft.root.calls)}
    others = {call.backward for call in draft.root.calls}
    hidden, last = 0.0, ROOT
    locals_: list[int] = []  # what the frame of the root's forward still names
    for index, op in enumerate(draft.root.graph.ops):
        if op.phase is Phase.BACKWARD or index in others:
            break
        if index not in calls:
            draft.own(ROOT, op, again=False)
            hidden += op.seconds
            named = last == ROOT and draft.captures.program is None  # a program names nothing
            locals_ += draft.ops[-1].outputs if named else ()
            continue
        unit = calls[index]
        if unit in draft.row_wise:
            _weigh(draft, unit)
            look_up(draft, unit)
            hidden += draft.compute[unit][0]
            continue
        draft.hidden[unit] = hidden
        gather = rules.gather(draft, unit, last)
        _weigh(draft, unit)
        _unit_forward(draft, unit, gather)
        hidden, last = draft.compute[unit][0], unit
    draft.drop(last)
    draft.op("return.root", locals_)
    draft.turn = len(draft.ops)


def _weigh(draft: Draft, i: int) -> None:
    """Let a group's parameters be its weight."""
    weight = draft.weights[i]
    draft.maps.setdefault(i, {}).update((p.value, weight) for p in draft.capture(i).parameters)


def _unit_forward(draft: Draft, u: int, gather: tuple[int, ...]) -> None:
    capture, call, mapped = draft.capture(u), draft.root.calls[u], draft.maps[u]
    for v, r in zip(capture.inputs, call.inputs, strict=True):
        mapped[v] = draft.maps[ROOT][r]
    indices: list[int | None] = []
    for index, op in enumerate(capture.graph.ops):
        if op.target == "tangent":
            break
        indices.append(draft.own(u, op, again=not _is_for_others(capture, index)))
    for v, r in zip(capture.outputs, call.outputs, strict=True):
        draft.maps[ROOT][r] = mapped[v]
    if gather:
        draft.op(f"used.{draft.name(u)}", (draft.weights[u],))
    draft.layouts.append(Layout(tuple(indices), len(indices), gather))


def _is_for_others(capture: UnitCapture, index: int) -> bool:
    """Tell an op whose results only others read, which the unit never has to make again.

    Others read what the unit returned once: no second run of its ops is there for them.
    """
    graph = capture.graph
    made, border = graph.ops[index].outputs, {*capture.outputs}
    return bool(made) and all(v in border and not graph.consumers[v] for v in made)
