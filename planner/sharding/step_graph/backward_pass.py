"""The backward half of a step: gradients, their reductions, and the optimizer.

Knows torch's order of things in backward, and where it lets go of what. Knows nothing of sizes and
times.
"""

from __future__ import annotations

from dataclasses import replace

from planner.graphs import Kind, Op, Phase
from planner.graphs.capture.optimizer_step import OptimizerLike, OptimizerStep
from planner.sharding.step_graph.builder import ROOT, Draft
from planner.sharding.step_graph.resident import saved_inputs
from planner.sharding.step_graph.rules import optimizer_of, optimizer_seconds


def backward(draft: Draft) -> None:
    """Add the root's backward with every unit's backward and reduction in it."""
    calls = {call.backward: u for u, call in enumerate(draft.root.calls)}
    stubs = {call.forward for call in draft.root.calls}
    start = next(i for i, op in enumerate(draft.root.graph.ops) if op.phase is Phase.BACKWARD)
    for index, op in enumerate(draft.root.graph.ops[start:], start):
        if index in calls:
            _unit_backward(draft, calls[index])
        elif index not in stubs:
            draft.own(ROOT, _handed_over(draft, op), again=False)
    _reduce(draft, ROOT)
    _release(draft)
    if draft.reduced:
        draft.op("reduced", draft.reduced)


def _handed_over(draft: Draft, op: Op) -> Op:
    """Let the op that ends a backward keep no gradient that is in its bucket by then."""
    if draft.sharded or op.target != "accumulate_grad":
        return op
    copied = {p.gradient for p in draft.root.parameters}
    return replace(op, inputs=tuple(v for v in op.inputs if v not in copied))


def _unit_backward(draft: Draft, u: int) -> None:
    region, call, mapped = draft.regions.kind(u), draft.root.calls[u], draft.maps[u]
    for v, r in zip(region.tangents, call.tangents, strict=True):
        if v is not None and r is not None:
            mapped[v] = draft.maps[ROOT][r]
    layout = draft.layouts[u]
    indices: list[int | None] = list(layout.ops)
    for op in region.graph.ops[layout.forward_ops :]:
        given = op.target == "tangent" and all(v in mapped for v in op.outputs)
        indices.append(None if given else draft.own(u, op, again=True))
    saved = [mapped[v] for v in saved_inputs(region)]  # by autograd, until the node ends
    draft.op(f"ended.{draft.name(u)}", saved)
    for v, r in zip(region.input_gradients, call.gradients, strict=True):
        if v is not None and r is not None:
            draft.maps[ROOT][r] = mapped[v]
    draft.layouts[u] = replace(layout, ops=tuple(indices))
    _reduce(draft, u)


def _reduce(draft: Draft, i: int) -> None:
    """Add the reduction of a group's gradients, which first frees the buffer of the last."""
    region = draft.root if i == ROOT else draft.regions.kind(i)
    name, group, module = draft.name(i), draft.groups[i], "" if i == ROOT else draft.name(i)
    mapped = draft.maps[i]
    gradients = [mapped[p.gradient] for p in region.parameters if p.gradient is not None]
    behind = draft.backward_seconds(i - 1) if i != ROOT else 0.0
    exposed = max(0.0, draft.seconds[i].reduce - behind)
    if not draft.sharded:
        exposed /= draft.configuration.accumulation  # only the last micro-step reduces
        # the root's go into the buckets one by one, a unit's when its node ends
        together = gradients if i != ROOT else ()
        draft.op(f"all_reduce.{name}", together, seconds=exposed, module=module)
        return
    draft.op(f"reshard.{name}", (draft.weights[i],))
    _release(draft)
    if not gradients:
        return
    buffer = draft.value(f"reduce_input.{name}", group.reduced, Kind.GRADIENT)
    shard = draft.value(f"gradient_shard.{name}", group.gradient_shard, Kind.GRADIENT)
    copies = group.padded if draft.cluster.device.name == "cpu" else 0
    draft.op(f"copy_in.{name}", gradients, (buffer,), workspace=copies, module=module)
    draft.op(
        f"reduce_scatter.{name}",
        (buffer,),
        (shard,),
        seconds=exposed,
        moved=group.reduced,
        workspace=draft.workspace(group.reduced),
        module=module,
    )
    draft.reducing = buffer
    if draft.configuration.replicas > 1:
        draft.reduced.append(shard)  # ``_all_reduce_state``, until all groups are done
    if not draft.elsewhere and draft.configuration.accumulation == 1:
        draft.shards.append(shard)


def _release(draft: Draft) -> None:
    if draft.reducing is not None:
        draft.op(f"release.{draft.values[draft.reducing].name}", (draft.reducing,))
        draft.reducing = None


def add_optimizer(draft: Draft, optimizer: OptimizerLike | None) -> OptimizerStep:
    """Add the optimizer's step on this rank's part and the state it keeps."""
    parameters = [p for _, region in draft.regions_by_index() for p in region.parameters]
    step = optimizer_of(
        parameters,
        draft.configuration,
        optimizer,
        accelerated=draft.cluster.device.name != "cpu",
    )
    if optimizer is None:
        return step
    total = sum(group.shard for group in draft.groups.values())
    if step.state_bytes and not draft.elsewhere:
        draft.value(f"{step.name} state", step.state_bytes, Kind.OPTIMIZER)
    draft.ops.append(
        Op(
            "optimizer.step",
            step.name,
            tuple(draft.shards),
            (),
            optimizer_seconds(step, total, draft.configuration, draft.cluster),
            moved_bytes=step.moved_bytes,
            workspace_bytes=0 if draft.elsewhere else step.workspace_bytes,
            phase=Phase.OPTIMIZER,
            recomputable=False,
        )
    )
    return step
