"""FSDP2: parameters, gradients and optimizer state are sharded; a unit's weight is gathered.

Where a gathered weight is kept from forward to backward this is stage 2 of ZeRO, where it is
gathered again stage 3. Groups of ranks that shard may be replicated (HSDP). Sources: the folder
``torch/distributed/fsdp/_fully_shard`` of torch 2.13.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from planner.graphs import Kind
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    host_copy_seconds,
    reduce_scatter_seconds,
)
from planner.output.exporters.launch import Launch
from planner.plan.configuration import Configuration, UnitPlan
from planner.plan.strategy import Spread, Strategy, UnitStage, register_strategy
from planner.sharding.step_graph.builder import ROOT, Draft
from planner.sharding.step_graph.parameter_groups import (
    GroupSeconds,
    ParameterGroup,
    shard_dimension,
    shard_shape,
)
from planner.sharding.step_graph.row_wise_lookup import exchange_of
from planner.sharding.step_graph.step_rules import ModelStates, StepRules
from planner.sharding.wrapping import Wrapping, optimizer_of_all

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from planner.sharding.wrapped.boundary import Parameter


def _spreads(world_size: int, devices_per_node: int) -> Iterator[Spread]:
    """Yield groups that are part of a node or whole nodes, the largest first.

    No other group is ever faster or smaller than the next one of these that is as large.
    """
    for ranks in range(world_size, min(2, world_size) - 1, -1):
        aligned = devices_per_node % ranks == 0 or ranks % devices_per_node == 0
        if aligned and world_size % ranks == 0:
            for offload in (False, True):
                yield Spread(ranks, world_size // ranks, offload)


def _mesh(spread: Spread) -> tuple[tuple[str, int], ...]:
    if spread.replicas > 1:
        return (("replicate", spread.replicas), ("shard", spread.shard_ranks))
    return (("shard", spread.shard_ranks),)


def _fullest(parameters: Sequence[Parameter], spread: Spread) -> list[Parameter]:
    """Return the first rank's part, which has the most rows of every parameter."""
    ranks = spread.shard_ranks
    return [replace(p, shape=shard_shape(p.shape, ranks)) for p in parameters]


def _seconds(group: ParameterGroup, spread: Spread, cluster: Cluster) -> GroupSeconds:
    """Return the times of gathering and reducing a group.

    HSDP reduces within a group of ranks, then all-reduces the shard across the groups. Offloaded
    shards travel from the host, their gradients back.
    """
    ranks, replicas, stride = spread.shard_ranks, spread.replicas, spread.stride
    gather = all_gather_seconds(group.flat, ranks, cluster, stride=stride)
    reduce = reduce_scatter_seconds(group.reduced, ranks, cluster, stride=stride)
    if replicas > 1:
        apart = ranks * stride
        reduce += all_reduce_seconds(group.gradient_shard, replicas, cluster, stride=apart)
    if spread.offload:
        gather += host_copy_seconds(group.shard, cluster)
        reduce += host_copy_seconds(group.gradient_shard, cluster)
    return GroupSeconds(gather, reduce)


_PASSES = 4
"""How often the rows that all ranks ask for are read or written in each direction."""


def _row_wise_seconds(draft: Draft, unit: int) -> tuple[float, float] | None:
    """Return what the exchange of ids, rows and gradients of a table takes, where that is less.

    The ids of all ranks are looked up on each, the sums come back by a reduce-scatter; gradients
    go to all. Nothing hides it. Tables in replicated groups, on the host, or of a model whose
    layers are parted are gathered.
    """
    spread, cluster, capture = draft.configuration.spread, draft.cluster, draft.capture(unit)
    alone = spread.replicas == 1 and spread.stride == 1
    if not alone or draft.on_host(unit) or spread.is_whole:
        return None
    ranks, sizes = spread.shard_ranks, exchange_of(capture, spread.shard_ranks)
    there = all_gather_seconds(sizes.asked, ranks, cluster)
    there += reduce_scatter_seconds(sizes.sent, ranks, cluster)
    back = all_gather_seconds(sizes.sent, ranks, cluster)
    passes = _PASSES * (sizes.looked_up + sizes.cast)  # found, masked, added up, sent
    touched = passes / cluster.device.bytes_per_second()
    dense = draft.groups[unit].gradient_shard / cluster.device.bytes_per_second()  # is zeroed
    exchange = there + touched, back + touched + dense
    whole = draft.seconds[unit].gather + draft.seconds[unit].reduce
    own = sum(op.seconds for op in capture.graph.ops)
    return exchange if sum(exchange) < whole + own else None


def _reside(draft: Draft, i: int) -> None:
    if not draft.elsewhere(i):
        shard = draft.value(f"shards.{draft.name(i)}", draft.groups[i].shard, Kind.PARAMETER)
        if i in draft.row_wise:
            draft.weights[i] = shard


def _hold(draft: Draft) -> None:
    """Add what micro-steps leave to the later ones, and what gloo may let go of late."""
    here = [group for i, group in draft.groups.items() if not draft.elsewhere(i)]
    if draft.configuration.accumulation > 1 and here:
        size = sum(group.gradient_shard for group in here)
        draft.value("accumulated gradients", size, Kind.GRADIENT)
    if draft.cluster.device.name == "cpu":
        apart = {ROOT, *draft.row_wise}
        units = [_flat_bytes(draft, i) for i in draft.groups if i not in apart]
        late = _gloo_reserve_bytes(units, _flat_bytes(draft, ROOT))
        draft.value("late releases of gloo", late, Kind.RESERVE)


def _gloo_reserve_bytes(units: Sequence[int], root: int) -> int:
    """Return what gloo's threads may hold longer than torch does: measured, now and then.

    A step was seen to hold two flat buffers of units more than usual, or one and the root's. When
    is up to the threads, so it is a reserve: within the budget, but not expected.
    """
    flats = sorted([*(max(units),) * 2, root]) if units else [root]
    return sum(flats[-2:])


def _flat_bytes(draft: Draft, i: int) -> int:
    """Return the buffer that a group is gathered in."""
    return _sent_bytes(draft, draft.groups[i].flat)


def _sent_bytes(draft: Draft, buffer: int) -> int:
    """Return what of a buffer a collective of the ranks that shard has: none if one has all of it.

    ``FSDPParamGroup.unshard`` and ``foreach_reduce`` then copy, without a collective.
    """
    return 0 if draft.configuration.spread.is_whole else buffer


def _staged_bytes(draft: Draft, i: int) -> int:
    """Return the copies of a shard in the dtype of compute: all at once, or two one by one.

    Where one rank has all of a group, ``wait_for_unshard`` makes the copy of a parameter before it
    lets go of that of the one before. What comes from the host is copied to the device first, in
    its own dtype: then all of it is counted.
    """
    if not draft.configuration.spread.is_whole or draft.elsewhere(i):
        return draft.groups[i].staged
    sizes = [
        math.prod(p.shape) * p.compute_itemsize * (p.compute_itemsize != p.itemsize)
        for p in draft.capture(i).parameters
    ]
    return min(draft.groups[i].staged, max(map(sum, pairwise([0, *sizes])), default=0))


def _least_states(states: ModelStates, c: Configuration) -> int:
    """Count shards without padding; gradients only where later micro-steps add to them."""
    if c.offload:
        return 0
    kept = states.gradients if c.accumulation > 1 else 0
    return (states.parameters + states.optimizer + kept) // c.shard_ranks


def _gather(draft: Draft, i: int, before: int | None) -> tuple[int, ...]:
    """Add an all-gather into a flat buffer and the copy out of it, which frees the last one."""
    name, module, group = draft.name(i), draft.module(i), draft.groups[i]
    seconds = draft.seconds[i].gather
    again = max(0.0, seconds - _free_in_backward(draft, i))
    sent, staged = _flat_bytes(draft, i), _staged_bytes(draft, i)
    flat = draft.flats[i] = draft.value(f"flat.{name}", sent, Kind.GATHERED)
    weight = draft.weights[i] = draft.value(f"gathered.{name}", group.gathered, Kind.GATHERED)
    first = draft.op(
        f"all_gather.{name}",
        (),
        (flat,),
        seconds=again,
        again=i != ROOT,
        moved_bytes=sent,
        workspace_bytes=staged * bool(sent) + draft.gloo_bytes(sent),
        module=module,
    )
    if before is not None:
        draft.drop(before)
    second = draft.op(
        f"copy_out.{name}",
        (flat,),
        (weight,),
        again=i != ROOT,
        workspace_bytes=group.rearranged + staged * (not sent),
        module=module,
    )
    exposed = max(0.0, seconds - draft.hidden[i] - again)
    draft.op(f"wait.{name}", (), (), seconds=exposed, module=module)
    return first, second


def _free_in_backward(draft: Draft, i: int) -> float:
    """Return what the backward of the unit after this one can hide of a second gather.

    The reduction of the unit after that one is hidden first. The root is gathered once.
    """
    if i == ROOT:
        return math.inf
    behind = draft.backward_seconds(i + 1)
    reduction = draft.seconds[i + 2].reduce if i + 2 < len(draft.compute) else 0.0
    return max(0.0, behind - reduction)


def _waiting_seconds(draft: Draft, i: int) -> float:
    """Return how much longer the copies of one group make its first gather and its reduction.

    Reductions of other groups that take longer, too, hide no more of it.
    """
    there = replace(draft.configuration.spread, offload=True)
    here, moved = draft.seconds[i], _seconds(draft.groups[i], there, draft.cluster)
    hidden, free = draft.hidden[i], _free_in_backward(draft, i)
    before, after = (max(0.0, s - hidden, s - free) for s in (here.gather, moved.gather))
    if not draft.groups[i].reduced:
        return after - before
    behind = _behind(draft, i)
    return after - before + max(0.0, moved.reduce - behind) - max(0.0, here.reduce - behind)


def _behind(draft: Draft, i: int) -> float:
    """Return the compute behind which a group's gradients are reduced."""
    return draft.backward_seconds(i - 1) if i != ROOT else 0.0


def _reduce(draft: Draft, i: int, gradients: Sequence[int]) -> None:
    """Add the reduction of a group's gradients, which first frees the buffer of the last."""
    name, module, group = draft.name(i), draft.module(i), draft.groups[i]
    draft.op(f"reshard.{name}", (draft.weights[i],))
    draft.release()
    if not gradients:
        return
    buffer = draft.value(f"reduce_input.{name}", group.reduced, Kind.GRADIENT)
    shard = draft.value(f"gradient_shard.{name}", group.gradient_shard, Kind.GRADIENT)
    copies = group.padded if draft.cluster.device.name == "cpu" else 0
    copies += group.rearranged
    sent = _sent_bytes(draft, group.reduced)
    draft.op(f"copy_in.{name}", gradients, (buffer,), workspace_bytes=copies, module=module)
    draft.op(
        f"reduce_scatter.{name}",
        (buffer, *_held_while_reduced(draft, i)),
        (shard,),
        seconds=max(0.0, draft.seconds[i].reduce - _behind(draft, i)),
        moved_bytes=sent,
        workspace_bytes=draft.gloo_bytes(sent),
        module=module,
    )
    draft.reducing = buffer
    if draft.configuration.replicas > 1:
        draft.reduced.append(shard)  # ``_all_reduce_state``, until all groups are done
    if not draft.elsewhere(i) and draft.configuration.accumulation == 1:
        draft.shards.append(shard)


def _held_while_reduced(draft: Draft, i: int) -> list[int]:
    """Return the gradients that ``foreach_reduce`` frees late, when it returns.

    Its loop over them leaves its variables bound: ``unsharded_grad`` to the last gradient,
    ``chunks`` to parts of the last that is cut along another dimension than its first.
    """
    spread, mapped = draft.configuration.spread, draft.maps[i]
    if spread.is_whole:
        return []
    made = [(p, mapped[p.gradient]) for p in draft.capture(i).parameters if p.gradient is not None]
    cut = [v for p, v in made if shard_dimension(p.shape, spread.shard_ranks)]
    return sorted({made[-1][1], *cut[-1:]})


def _wrap(
    model: nn.Module, configuration: Configuration, units: Sequence[UnitPlan], mesh: DeviceMesh
) -> nn.Module:
    """Call ``fully_shard`` on every unit, then on the root, whose weight stays gathered."""
    import torch
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )
    from torch.distributed.tensor import Shard

    from planner.graphs.capture.placed import local_of
    from planner.sharding.row_wise import keep_rows

    policy = MixedPrecisionPolicy()
    if configuration.precision == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    ranks = configuration.spread.shard_ranks

    def placed(parameter: nn.Parameter) -> Shard:
        return Shard(shard_dimension(local_of(parameter).shape, ranks))

    def shared(path: str) -> dict[str, Any]:
        there = configuration.on_host(path)
        to_host = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
        return {
            "mesh": mesh,
            "mp_policy": policy,
            "offload_policy": to_host if there else OffloadPolicy(),
            "shard_placement_fn": placed,
        }

    tables: set[nn.Parameter] = set()
    for unit in units:
        module = model.get_submodule(unit.path)
        if unit.row_wise:
            tables.add(keep_rows(module, mesh, policy.param_dtype))
        else:
            fully_shard(module, reshard_after_forward=not unit.keep_gathered, **shared(unit.path))
    fully_shard(model, reshard_after_forward=False, ignored_params=tables, **shared(""))
    return model


FSDP2 = register_strategy(
    Strategy(
        name="fsdp",
        label="FSDP",
        title="FSDP2",
        stages=(
            UnitStage(2, "ZeRO-2", "kept to backward"),
            UnitStage(3, "ZeRO-3", "gathered again"),
        ),
        half="bfloat16",
        spreads=_spreads,
        check=lambda spread: None,
        mesh=_mesh,
        takes_tensor_parallel=True,
        parts=(
            StepRules(
                parameter_ranks=lambda spread: spread.shard_ranks,
                group_seconds=_seconds,
                optimizer_part=_fullest,
                after_update_seconds=lambda parameter_bytes, spread, cluster: 0.0,
                reside=_reside,
                hold=_hold,
                gather=_gather,
                reduce=_reduce,
                least_states=_least_states,
                row_wise_seconds=_row_wise_seconds,
                waiting_seconds=_waiting_seconds,
                # FSDPState._root_post_backward_final_callback
                late_without_inputs=True,
            ),
            # gradients are reduced after every micro-step
            Wrapping(_wrap, optimizer_of_all, lambda model: nullcontext()),
            Launch(distributed_type="FSDP", model="model.train()"),
        ),
    )
)
