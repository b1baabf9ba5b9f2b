"""The backward half of a step: gradients and their reductions.

The order of things is torch's, and where it lets go of what; how a gradient is reduced is the
strategy's.
"""

from __future__ import annotations

from dataclasses import replace

from planner.graphs import Phase
from planner.sharding.step_graph.builder import ROOT, Draft
from planner.sharding.step_graph.resident import saved_inputs
from planner.sharding.step_graph.row_wise_lookup import bring_back
from planner.sharding.step_graph.step_rules import StepRules


def backward(draft: Draft, rules: StepRules) -> None:
    """Add the root's backward with every unit's backward and reduction in it."""
    by_torch = rules.copies_gradients and draft.captures.program is None
    copied = {p.gradient for p in draft.root.parameters} if by_torch else set()
    calls = {call.backward: u for u, call in enumerate(draft.root.calls)}
    stubs = {call.forward for call in draft.root.calls}
    start = next(i for i, op in enumerate(draft.root.graph.ops) if op.phase is Phase.BACKWARD)
    late = _without_input_gradients(draft) if rules.late_without_inputs else []
    for index, op in enumerate(draft.root.graph.ops[start:], start):
        if calls.get(index) in draft.row_wise:
            bring_back(draft, calls[index])
        elif index in calls:
            _unit_backward(draft, calls[index])
            if calls[index] not in late:
                _reduce(draft, rules, calls[index])
        elif index not in stubs:
            gone = copied if op.target == "accumulate_grad" else set()  # the op that ends it
            kept = tuple(v for v in op.inputs if v not in gone)
            draft.own(ROOT, replace(op, inputs=kept), again=False)
    for i in (ROOT, *late):
        _reduce(draft, rules, i)
    draft.release()
    if draft.reduced:
        draft.op("reduced", draft.reduced)


def _without_input_gradients(draft: Draft) -> list[int]:
    """Return the units through whose inputs no gradient leaves, such as tables of embeddings."""
    calls = draft.root.calls
    return [
        u
        for u, call in enumerate(calls)
        if u not in draft.row_wise and all(g is None for g in call.gradients)
    ]


def _unit_backward(draft: Draft, u: int) -> None:
    capture, call, mapped = draft.capture(u), draft.root.calls[u], draft.maps[u]
    for v, r in zip(capture.tangents, call.tangents, strict=True):
        if v is not None and r is not None:
            mapped[v] = draft.maps[ROOT][r]
    layout = draft.layouts[u]
    indices: list[int | None] = list(layout.ops)
    for op in capture.graph.ops[layout.forward_ops :]:
        given = op.target == "tangent" and all(v in mapped for v in op.outputs)
        indices.append(None if given else draft.own(u, op, again=True))
    held = [mapped[v] for v in saved_inputs(capture)]  # by autograd, until the node ends
    if draft.captures.program is not None:  # it calls the unit's backward with these
        held += [mapped[v] for v in capture.tangents if v is not None and v in mapped]
    draft.op(f"ended.{draft.name(u)}", held)
    for v, r in zip(capture.input_gradients, call.gradients, strict=True):
        if v is not None and r is not None:
            draft.maps[ROOT][r] = mapped[v]
    draft.layouts[u] = replace(layout, ops=tuple(indices))


def _reduce(draft: Draft, rules: StepRules, i: int) -> None:
    parameters, mapped = draft.capture(i).parameters, draft.maps[i]
    rules.reduce(draft, i, [mapped[p.gradient] for p in parameters if p.gradient is not None])
