"""The price of every kernel of a joint graph: FLOPs, bytes, seconds and workspace.

Knows which nodes are operator calls. Ops that cannot run here, because the device is another or
memory is short, get formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx

from planner.graphs.capture.exchange.exchange_operator import exchanges
from planner.graphs.capture.exchange.exchange_prices import Means, exchange_prices
from planner.graphs.capture.exchange.on_fakes import Moment
from planner.graphs.capture.joint_graph import Joint, source_of
from planner.graphs.capture.lowered import Price
from planner.graphs.capture.passes.eager_semantics import with_layout_of
from planner.graphs.capture_error import CaptureError
from planner.graphs.costs import Priced
from planner.graphs.costs.cache import default_cache
from planner.graphs.costs.communication import CollectiveCost, collective_cost
from planner.graphs.costs.measured import Memory, measure_memory
from planner.graphs.costs.operator_call import OperatorCall, new_storage_bytes
from planner.graphs.costs.registry import cost_model
from planner.graphs.costs.roofline import op_cost, tensors_in
from planner.graphs.costs.workspace import estimate_workspace, scalar_buffer
from planner.graphs.hardware import devices
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.cluster import cluster as cluster_of
from planner.graphs.torch_api.collective_ops import (
    communicates,
    communicates_unseen,
    ranks_of,
    waits,
)
from planner.graphs.torch_api.operators import OpOverload


def prices(
    joint: Joint,
    device: devices.Device,
    *,
    here: bool,
    costs: str,
    kernels: str = "cpu",
    cluster: Cluster | None = None,
) -> dict[fx.Node, Price]:
    """Price every kernel of a step.

    The formula of workspace speaks of a CPU's kernels, so planning for an accelerator elsewhere
    counts none.

    Args:
        joint: the step.
        device: to plan for.
        here: whether it is at hand and kernels may be run.
        costs: a name of ``graphs.costs.COSTS``.
        kernels: the type of device, which says which library carries out collectives.
        cluster: the devices of all ranks; by default the usual servers of the device, as many as
            the process group has ranks.

    Raises:
        CaptureError: a collective that a plan cannot run.
    """
    called = [n for n in joint.graph.nodes if n.op == "call_function"]
    calls = {n: _call(n) for n in called if _runs(n)}
    work = {n: op_cost(c.target, c.args, c.kwargs, n.meta.get("val")) for n, c in calls.items()}
    known = list(calls.values())
    memory = _memory(known, device, here=here)
    seconds = cost_model(costs)(Priced(known, list(work.values()), device, here))
    memory = [_matched(m, c, n) for m, (n, c) in zip(memory, calls.items(), strict=True)]
    found = {
        n: Price(s, work[n].flops, work[n].moved_bytes, m.workspace_bytes, m.output_bytes)
        for n, s, m in zip(calls, seconds, memory, strict=True)
    }
    found |= _collectives(called, cluster, device, gloo=kernels == "cpu")
    found |= _exchanges(called, cluster, device, here=here, costs=costs, gloo=kernels == "cpu")
    return found | {n: _copy_price(n, device) for n in called if n not in found}


def _memory(calls: Sequence[OperatorCall], device: devices.Device, *, here: bool) -> list[Memory]:
    if here:
        return measure_memory(calls, cache=default_cache(), fallback=estimate_workspace)
    on_cpu = device.name == devices.cpu().name
    return [Memory(estimate_workspace(c) if on_cpu else 0, scalar_buffer(c)) for c in calls]


def _exchanges(
    called: Sequence[fx.Node],
    cluster: Cluster | None,
    device: devices.Device,
    *,
    here: bool,
    costs: str,
    gloo: bool,
) -> dict[fx.Node, Price]:
    """Price layers of experts that tokens are sent to, by the calls that they are made of."""

    def collective(moment: Moment) -> CollectiveCost:
        where = cluster or cluster_of_all_ranks(device)
        return _collective(moment.call, moment.outputs, where, gloo=gloo)

    means = Means(device, here, costs, partial(_memory, device=device, here=here), collective)
    return exchange_prices((node for node in called if exchanges(node.target)), means)


def _collectives(
    called: Sequence[fx.Node], cluster: Cluster | None, device: devices.Device, *, gloo: bool
) -> dict[fx.Node, Price]:
    """Price what communicates: none of it may be run here, where other ranks would have to join."""
    found: dict[fx.Node, Price] = {}
    for node in called:
        if communicates_unseen(node.target):
            raise CaptureError(
                f"{source_of(node) or 'the model'} calls {node.target}, whose communication a plan "
                "cannot see; use a function of torch.distributed without async_op=True"
            )
        if communicates(node.target):
            cluster = cluster or cluster_of_all_ranks(device)
            cost = _collective(_call(node), node.meta.get("val"), cluster, gloo=gloo)
            found[node] = Price(cost.seconds, 0, cost.moved_bytes, cost.workspace_bytes)
    return found


def _collective(
    call: OperatorCall, outputs: Any, cluster: Cluster, *, gloo: bool
) -> CollectiveCost:
    ranks = ranks_of(call.target, call.args, call.kwargs)
    return collective_cost(call, outputs, cluster, ranks, gloo=gloo)


def cluster_of_all_ranks(device: devices.Device) -> Cluster:
    """Return as many devices, in their usual servers, as the process group has ranks.

    Raises:
        CaptureError: they do not divide into servers, or a link is not known.
    """
    import torch.distributed as dist

    try:
        return cluster_of(device, dist.get_world_size())
    except ValueError as error:
        raise CaptureError(str(error)) from error


def as_in_eager_mode(node: fx.Node, price: Price, kernels: str) -> Price:
    """Return what a kernel takes where torch runs the step itself.

    Dropout on a CPU keeps noise in the dtype of its input there, and its gradient is one product,
    where the step of a plan keeps a mask of a byte an element and has to scale what it masks.

    Args:
        node: the kernel.
        price: in the step of a plan.
        kernels: the type of device.
    """
    aten = torch.ops.aten
    if kernels != "cpu":
        return price
    if node.target is aten.native_dropout_backward.default:
        return replace(price, workspace_bytes=0)
    if node.target is aten.native_dropout.default:
        made, _ = node.meta["val"]
        size = made.untyped_storage().nbytes()
        return replace(price, workspace_bytes=0, output_bytes=(size, made.nbytes))
    return price


def _matched(memory: Memory, call: OperatorCall, node: fx.Node) -> Memory:
    """Count as workspace what a kernel returns in more, or other, storages than its fake does."""
    made = new_storage_bytes(call, node.meta.get("val"))
    if len(memory.output_bytes) in (0, len(made)):
        return memory
    return Memory(memory.workspace_bytes + max(0, sum(memory.output_bytes) - sum(made)))


def _runs(node: fx.Node) -> bool:
    """Tell a call that is priced as a kernel of this device: it could be run here."""
    sent = communicates(node.target) or communicates_unseen(node.target) or exchanges(node.target)
    return isinstance(node.target, OpOverload) and not (sent or waits(node.target))


def _call(node: fx.Node) -> OperatorCall:
    value = lambda n: n.meta.get("val")  # noqa: E731
    args = fx.node.map_arg(node.args, value)
    assert isinstance(node.target, OpOverload)
    return OperatorCall(node.target, tuple(args), dict(fx.node.map_arg(node.kwargs, value)))


def _copy_price(node: fx.Node, device: devices.Device) -> Price:
    """Price what is not an operator: a copy into a layout moves its bytes twice, getitem none."""
    moved = 0
    if node.target is with_layout_of:
        moved = 2 * sum(t.untyped_storage().nbytes() for t in tensors_in(node.meta["val"]))
    return Price(moved / device.bytes_per_second(), 0, moved, 0)
