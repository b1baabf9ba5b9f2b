"""What a collective of a captured graph takes: seconds over its group, and bytes beside its result.

The seconds are those of ``graphs.hardware.collectives``. The bytes depend on the library: NCCL
writes where the result will be; gloo, on a CPU, gathers into one more copy of the whole, and
reduces and scatters out of one more (measured: ``tests/planner/running/collectives.py``).
Knows nothing of graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from planner.graphs.capture_error import CaptureError
from planner.graphs.costs.operator_call import OperatorCall
from planner.graphs.costs.roofline import tensors_in
from planner.graphs.hardware.cluster import Cluster
from planner.graphs.hardware.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    all_to_all_seconds,
    broadcast_seconds,
    reduce_scatter_seconds,
)
from planner.graphs.torch_api.collective_ops import collective_name


@dataclass(frozen=True, slots=True)
class CollectiveCost:
    """What one collective does on a rank: time, bytes read and written, bytes held beside those."""

    seconds: float
    moved_bytes: int
    workspace_bytes: int


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a collective is priced from the bytes that it reads and makes.

    ``whole`` of them is what its seconds are for; ``gloo`` and ``nccl`` hold these beside.
    """

    seconds: Callable[..., float]
    whole: Callable[[int, int], int]
    gloo: Callable[[int, int], int]
    nccl: Callable[[int, int], int] = lambda read, made: 0


def _none(read: int, made: int) -> int:
    return 0


def _read(read: int, made: int) -> int:
    return read


def _made(read: int, made: int) -> int:
    return made


def _both(read: int, made: int) -> int:
    return read + made


_RULES = {
    "all_reduce": _Rule(all_reduce_seconds, _made, _none),
    "all_gather_into_tensor": _Rule(all_gather_seconds, _made, _made),
    "reduce_scatter_tensor": _Rule(reduce_scatter_seconds, _read, _read),
    "all_to_all_single": _Rule(all_to_all_seconds, _made, _none),
    "broadcast": _Rule(broadcast_seconds, _made, _none),
    "all_reduce_coalesced": _Rule(all_reduce_seconds, _made, _made),
    "all_gather_into_tensor_coalesced": _Rule(all_gather_seconds, _made, _both),
    "reduce_scatter_tensor_coalesced": _Rule(reduce_scatter_seconds, _read, _read),
    # from one parted dimension to another; laid out anew before and after, as read in torch's
    # csrc/distributed/c10d/Functional.cpp: it runs on accelerators only
    "shard_dim_alltoall": _Rule(all_to_all_seconds, _made, _both, _both),
}


def collective_cost(
    call: OperatorCall, outputs: Any, cluster: Cluster, ranks: Sequence[int], *, gloo: bool
) -> CollectiveCost:
    """Price a collective.

    Args:
        call: the operator and its arguments; of tensors only the shapes are used.
        outputs: what it returns; tensors of the right shapes.
        cluster: where the ranks are.
        ranks: the group, in order; the stride from one to the next says whether nodes are crossed.
        gloo: whether gloo carries it out, on a CPU, and not NCCL.

    Raises:
        CaptureError: an operator without a rule; the message lists those that have one.
    """
    name = collective_name(call.target)
    if name not in _RULES:
        raise CaptureError(
            f"{call.target} sends from rank to rank in a way that a plan cannot run (pipelines and "
            f"context parallelism do); a step may use {', '.join(sorted(_RULES))}"
        )
    rule = _RULES[name]
    read = sum(t.nbytes for t in tensors_in((call.args, call.kwargs)))
    made = sum(t.nbytes for t in tensors_in(outputs))
    count = len(ranks)
    stride = max(1, (ranks[-1] - ranks[0]) // max(1, count - 1))
    return CollectiveCost(
        rule.seconds(rule.whole(read, made), count, cluster, stride=stride),
        read + made,
        (rule.gloo if gloo else rule.nccl)(read, made) if count > 1 else 0,
    )
