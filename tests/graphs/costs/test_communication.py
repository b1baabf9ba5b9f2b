"""Prices of the collectives of a graph: seconds by their rule, bytes by who carries them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from planner.graphs.capture_error import CaptureError
from planner.graphs.costs.communication import CollectiveCost, collective_cost
from planner.graphs.costs.operator_call import OperatorCall
from planner.graphs.hardware.cluster import cluster
from planner.graphs.hardware.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    all_to_all_seconds,
    broadcast_seconds,
    reduce_scatter_seconds,
)

OPS = torch.ops._c10d_functional
HERE = cluster("A100-40GB", 16)
RANKS = (0, 1, 2, 3)
N = 1024


def tensor(count: int = N) -> torch.Tensor:
    return torch.empty(count, device="meta")


def price(op: Any, args: Any, made: Any, *, gloo: bool, ranks: Any = RANKS) -> CollectiveCost:
    return collective_cost(OperatorCall(op.default, args, {}), made, HERE, ranks, gloo=gloo)


KINDS: dict[str, tuple[Any, Any, Any, Callable[..., float], int, int]] = {
    # operator, what it reads and makes; its rule, the bytes that are for; what gloo holds beside
    "all_reduce": (OPS.all_reduce, tensor(), tensor(), all_reduce_seconds, 4 * N, 0),
    "broadcast": (OPS.broadcast, tensor(), tensor(), broadcast_seconds, 4 * N, 0),
    "all_to_all": (OPS.all_to_all_single, tensor(), tensor(), all_to_all_seconds, 4 * N, 0),
    "all_gather": (
        OPS.all_gather_into_tensor,
        tensor(),
        tensor(4 * N),
        all_gather_seconds,
        16 * N,
        16 * N,
    ),
    "reduce_scatter": (
        OPS.reduce_scatter_tensor,
        tensor(),
        tensor(N // 4),
        reduce_scatter_seconds,
        4 * N,
        4 * N,
    ),
    "all_gather of two": (
        OPS.all_gather_into_tensor_coalesced,
        [tensor(), tensor()],
        [tensor(4 * N), tensor(4 * N)],
        all_gather_seconds,
        32 * N,
        40 * N,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_collective_is_priced_by_its_rule(kind: str) -> None:
    op, read, made, seconds, whole, beside = KINDS[kind]
    found = price(op, (read,), made, gloo=True)
    assert found.seconds == seconds(whole, 4, HERE)
    assert found.workspace_bytes == beside
    tensors = [t for part in (read, made) for t in (part if isinstance(part, list) else [part])]
    assert found.moved_bytes == sum(t.nbytes for t in tensors)
    assert price(op, (read,), made, gloo=False).workspace_bytes == 0


def test_the_stride_of_a_group_says_whether_nodes_are_crossed() -> None:
    near, far = (
        price(OPS.all_reduce, (tensor(),), tensor(), gloo=False, ranks=ranks)
        for ranks in ((0, 1), (0, 8))
    )
    assert near.seconds == all_reduce_seconds(4 * N, 2, HERE)
    assert far.seconds == all_reduce_seconds(4 * N, 2, HERE, stride=8) > near.seconds


def test_one_rank_sends_nothing() -> None:
    found = price(OPS.all_gather_into_tensor, (tensor(),), tensor(), gloo=True, ranks=(3,))
    assert (found.seconds, found.workspace_bytes) == (0, 0)


def test_what_is_sent_to_one_rank_is_refused_by_name() -> None:
    with pytest.raises(CaptureError, match=r"_c10d_functional.isend.*pipelines .*all_reduce"):
        price(OPS.isend, (tensor(), 1, 0, "0"), tensor(), gloo=True)
