"""What the kernels of a compiled step cost: a fused one its traffic, others their operator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from torch import fx

from planner.graphs.capture.fused.kernel_graph import KernelPrice, Price
from planner.graphs.costs import Priced
from planner.graphs.costs.cache import default_cache
from planner.graphs.costs.measured import measure_memory
from planner.graphs.costs.operator_call import OperatorCall
from planner.graphs.costs.registry import cost_model
from planner.graphs.costs.roofline import OpCost, op_cost, roofline_seconds
from planner.graphs.costs.workspace import estimate_workspace
from planner.graphs.hardware.devices import Device
from planner.graphs.torch_api.operators import OpOverload


def prices(device: Device, *, here: bool, costs: str) -> Price:
    """Return what prices kernels.

    Args:
        device: that they run on.
        here: whether it is at hand and kernels may be run.
        costs: a name of ``graphs.costs.COSTS``, for kernels that are not fused.
    """

    @cache
    def of_call(node: fx.Node) -> KernelPrice:
        value = lambda n: n.meta.get("val")  # noqa: E731
        assert isinstance(node.target, OpOverload)
        args, kwargs = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
        call = OperatorCall(node.target, tuple(args), dict(kwargs))
        work = op_cost(call.target, call.args, call.kwargs, node.meta.get("val"))
        (seconds,) = cost_model(costs)(Priced([call], [work], device, here))
        workspace = 0
        if here:
            (memory,) = measure_memory([call], cache=default_cache(), fallback=estimate_workspace)
            workspace = memory.workspace_bytes
        elif device.name == "cpu":
            workspace = estimate_workspace(call)
        return KernelPrice(seconds, work.flops, work.moved_bytes, workspace)

    def price(nodes: Sequence[fx.Node], external: bool, moved_bytes: int) -> KernelPrice:  # noqa: FBT001
        if not external:
            work = OpCost(0, moved_bytes, "float32")
            return KernelPrice(roofline_seconds(work, device), 0, moved_bytes, 0)
        calls = [of_call(n) for n in nodes if _runs(n)]
        return KernelPrice(
            sum(c.seconds for c in calls),
            sum(c.flops for c in calls),
            sum(c.moved_bytes for c in calls),
            max((c.workspace_bytes for c in calls), default=0),
        )

    return price


def _runs(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, OpOverload) and not target.is_view and target.namespace == "aten"
