"""What each collective of a graph holds on two ranks of gloo, beside what a price says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map

from planner.graphs.costs.communication import collective_cost
from planner.graphs.costs.operator_call import OperatorCall
from planner.graphs.hardware.cluster import cluster
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.graphs.torch_api.patient_collectives import patient_waits

OPS = torch.ops._c10d_functional
TRIES = 40
SIZES = (1 << 10, 1 << 20)


def calls(n: int, group: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return each kind of collective with arguments of ``n`` elements on each of two ranks."""
    x, two = torch.zeros(n), [torch.zeros(n), torch.zeros(n // 2)]
    half = [n // 2, n // 2]
    return {
        "all_reduce": (OPS.all_reduce.default, (x, "sum", group)),
        "all_gather": (OPS.all_gather_into_tensor.default, (x, 2, group)),
        "reduce_scatter": (OPS.reduce_scatter_tensor.default, (x, "sum", 2, group)),
        "all_to_all": (OPS.all_to_all_single.default, (x, half, half, group)),
        "broadcast": (OPS.broadcast.default, (x, 0, group)),
        "all_reduce of two": (OPS.all_reduce_coalesced.default, (two, "sum", group)),
        "all_gather of two": (OPS.all_gather_into_tensor_coalesced.default, (two, 2, group)),
        "reduce_scatter of two": (
            OPS.reduce_scatter_tensor_coalesced.default,
            (two, "sum", 2, group),
        ),
    }


def waited(made: Any) -> Any:
    return tree_map(OPS.wait_tensor.default, made)


def steady_peak(step: Callable[[], Any]) -> int:
    """Return the peak of a step that leaves nothing, as far as the records of one are complete.

    Gloo's threads sometimes let go of a buffer last, which leaves no record: ranks wait a moment
    for each collective, and try until all have a record that is complete.
    """
    found: list[int] = []
    for _ in range(TRIES):
        with patient_waits():
            record = measure_peak(step, collect=False)
        found += [record.peak_bytes] if record.left_bytes == 0 else []
        complete = torch.tensor(len(found))
        dist.all_reduce(complete, dist.ReduceOp.MIN)
        if complete:
            break
    return min(found)


def measured() -> dict[str, tuple[int, int]]:
    """Return for each kind and size the bytes that were held, and those that it is priced at."""
    group = dist.group.WORLD
    assert group is not None
    where, found = cluster("cpu", 2), {}
    for n in SIZES:
        for kind, (op, args) in calls(n, group.group_name).items():
            made = waited(op(*args))
            outputs = [made] if isinstance(made, Tensor) else made
            size = sum(t.untyped_storage().nbytes() for t in outputs)
            cost = collective_cost(OperatorCall(op, args, {}), made, where, (0, 1), gloo=True)

            def step(op: Any = op, args: Any = args) -> None:
                waited(op(*args))

            found[f"{kind}, {n} elements"] = (steady_peak(step), size + cost.workspace_bytes)
    return found
