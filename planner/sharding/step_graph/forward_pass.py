"""The forward half of a step: gathers, one unit ahead of its use, and what runs between them.

Knows torch's order of things in forward. Knows nothing of sizes and times.
"""

from __future__ import annotations

from planner.graphs import Kind, Phase
from planner.sharding.step_graph.builder import ROOT, Draft
from planner.sharding.step_graph.sharded_step import Layout


def forward(draft: Draft) -> None:
    """Add the root's forward with every unit's gather and forward in it."""
    _gather(draft, ROOT, seconds=0.0, exposed=draft.seconds[ROOT].gather)
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
            locals_ += draft.ops[-1].outputs if last == ROOT else ()
            continue
        unit = calls[index]
        _unit_forward(draft, unit, last, hidden)
        hidden, last = draft.compute[unit][0], unit
    _drop(draft, last)
    draft.op("return.root", locals_)
    draft.turn = len(draft.ops)


def _unit_forward(draft: Draft, u: int, before: int, hidden: float) -> None:
    region, call = draft.regions.kind(u), draft.root.calls[u]
    again = _exposed_in_backward(draft, u)
    exposed = max(0.0, draft.seconds[u].gather - hidden - again)
    gather = _gather(draft, u, seconds=again, exposed=exposed, before=before)
    mapped = draft.maps[u]
    mapped.update((v, draft.maps[ROOT][r]) for v, r in zip(region.inputs, call.inputs, strict=True))
    indices: list[int | None] = []
    for op in region.graph.ops:
        if op.target == "tangent":
            break
        indices.append(draft.own(u, op, again=True))
    for v, r in zip(region.outputs, call.outputs, strict=True):
        draft.maps[ROOT][r] = mapped[v]
    if draft.sharded:
        draft.op(f"used.{draft.name(u)}", (draft.weights[u],))
    draft.layouts.append(Layout(tuple(indices), len(indices), gather))


def _gather(
    draft: Draft, i: int, *, seconds: float, exposed: float, before: int | None = None
) -> tuple[int, ...]:
    """Add an all-gather into a flat buffer and the copy out of it, which frees the last one."""
    if draft.sharded:
        name, group = draft.name(i), draft.groups[i]
        flat = draft.flats[i] = draft.value(f"flat.{name}", group.flat, Kind.GATHERED)
        weight = draft.value(f"gathered.{name}", group.gathered, Kind.GATHERED)
        draft.weights[i] = weight
        again = i != ROOT
        module = "" if i == ROOT else name
        first = draft.op(
            f"all_gather.{name}",
            (),
            (flat,),
            seconds=seconds,
            again=again,
            moved=group.flat,
            workspace=group.staged + draft.workspace(group.flat),
            module=module,
        )
        if before is not None:
            _drop(draft, before)
        second = draft.op(f"copy_out.{name}", (flat,), (weight,), again=again, module=module)
        draft.op(f"wait.{name}", (), (), seconds=exposed, module=module)
        gathered: tuple[int, ...] = (first, second)
    else:
        gathered = ()
    region = draft.root if i == ROOT else draft.regions.kind(i)
    draft.maps.setdefault(i, {}).update((p.value, draft.weights[i]) for p in region.parameters)
    return gathered


def _drop(draft: Draft, i: int) -> None:
    if draft.sharded:
        draft.op(f"drop.{draft.name(i)}", (draft.flats[i],))


def _exposed_in_backward(draft: Draft, u: int) -> float:
    """Return what the backward of the unit after this one cannot hide of a second gather.

    The reduction of the unit after that one is hidden first.
    """
    behind = draft.backward_seconds(u + 1)
    reduction = draft.seconds[u + 2].reduce if u + 2 < len(draft.compute) else 0.0
    free = max(0.0, behind - reduction)
    return max(0.0, draft.seconds[u].gather - free)
