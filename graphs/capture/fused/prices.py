"""What the kernels of a compiled step cost: a fused one its traffic, others their operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import Tensor, fx

from planner.graphs.capture.fused.kernel_graph import KernelPrice, Price
from planner.graphs.costs import Priced
from planner.graphs.costs.cache import default_cache
from planner.graphs.costs.measured import measure_memory
from planner.graphs.costs.operator_call import OperatorCall
from planner.graphs.costs.registry import cost_model
from planner.graphs.costs.roofline import OpCost, op_cost, roofline_seconds
from planner.graphs.costs.workspace import estimate_workspace
from planner.graphs.hardware.devices import Device
from planner.graphs.torch_api.inductor.inductor_kernels import FusedKernel, Layouts
from planner.graphs.torch_api.operators import OpOverload

Workspace = Callable[[Sequence[fx.Node], FusedKernel], int]
"""Tells the bytes that a kernel which computes some nodes takes beside what it makes."""


def prices(device: Device, *, here: bool, costs: str) -> Price:
    """Return what prices kernels.

    Args:
        device: that they run on.
        here: whether it is at hand and kernels may be run.
        costs: a name of ``graphs.costs.COSTS``, for kernels that are not fused.
    """
    beside = workspaces(device, here=here)

    @cache
    def of_call(node: fx.Node, layouts: Layouts) -> tuple[float, OpCost]:
        call = _as_laid_out(node, layouts)
        work = op_cost(call.target, call.args, call.kwargs, node.meta.get("val"))
        (seconds,) = cost_model(costs)(Priced([call], [work], device, here))
        return seconds, work

    def price(nodes: Sequence[fx.Node], kernel: FusedKernel, moved_bytes: int) -> KernelPrice:
        if not kernel.external:
            work = OpCost(0, moved_bytes, "float32")
            return KernelPrice(roofline_seconds(work, device), 0, moved_bytes, 0)
        calls = [of_call(n, kernel.layouts) for n in nodes if _runs(n)]
        return KernelPrice(
            sum(seconds for seconds, _ in calls),
            sum(work.flops for _, work in calls),
            sum(work.moved_bytes for _, work in calls),
            beside(nodes, kernel),
        )

    return price


def workspaces(device: Device, *, here: bool) -> Workspace:
    """Return what tells the workspace of kernels that are not fused, for inputs as these lie.

    Args:
        device: that they run on.
        here: whether it is at hand and kernels may be run.
    """

    @cache
    def of_call(node: fx.Node, layouts: Layouts) -> int:
        call = _as_laid_out(node, layouts)
        if here:
            (memory,) = measure_memory([call], cache=default_cache(), fallback=estimate_workspace)
            return memory.workspace_bytes
        return estimate_workspace(call) if device.name == "cpu" else 0

    def workspace(nodes: Sequence[fx.Node], kernel: FusedKernel) -> int:
        return max((of_call(n, kernel.layouts) for n in nodes if _runs(n)), default=0)

    return workspace


def _as_laid_out(node: fx.Node, layouts: Layouts) -> OperatorCall:
    """Return the call of a node with its tensors as a kernel is handed them: in eager mode they lie
    otherwise, such as the images of a convolution.
    """
    assert isinstance(node.target, OpOverload)
    left = list(layouts)

    def laid_out(argument: fx.Node) -> Any:
        value = argument.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        given = next((each for each in left if each[0] == tuple(value.shape)), None)
        if given is None:
            return value
        left.remove(given)
        return value if value.stride() == given[1] else value.new_empty_strided(*given)

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), laid_out)
    return OperatorCall(node.target, tuple(args), dict(kwargs))


def _runs(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, OpOverload) and not target.is_view and target.namespace == "aten"
