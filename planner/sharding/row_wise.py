"""Embedding tables of which every rank keeps some rows: rows are looked up where they are.

A step of a recommendation model reads a few thousand rows of a table with millions. FSDP gathers
all of them, and reduces a gradient as large. Here the ids go to every rank, each looks up those it
has, and the sums of what they found come back: what is sent is as large as what was asked for. The
weight is a ``DTensor`` parted along its rows, as FSDP's are, so that checkpoints and optimizers do
not see a difference. Knows nothing of plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from planner.graphs.capture.call_arguments import Arguments


def is_table(module: nn.Module, call: Arguments) -> bool:
    """Tell a table whose rows can be looked up one by one: its call has ids and nothing else.

    Args:
        module: what is called.
        call: its arguments.

    >>> from planner.graphs.capture.call_arguments import arguments_of
    >>> ids = arguments_of(torch.zeros(4, 2, dtype=torch.long))
    >>> is_table(nn.Embedding(8, 2), ids), is_table(nn.Embedding(8, 2, max_norm=1.0), ids)
    (True, False)
    """
    if type(module) not in (nn.Embedding, nn.EmbeddingBag):
        return False
    plain: Any = not module.sparse and module.max_norm is None and module.padding_idx is None
    plain = plain and not module.scale_grad_by_freq and module.weight.requires_grad
    if isinstance(module, nn.EmbeddingBag):
        plain = plain and module.mode == "sum" and not module.include_last_offset
    ids = [x for x in call.leaves if isinstance(x, Tensor)]
    alone = len(ids) == len(call.leaves) == 1 and not ids[0].is_floating_point()
    bags = isinstance(module, nn.EmbeddingBag)
    return bool(plain and alone and (ids[0].dim() == 2 if bags else ids[0].dim() >= 1))


def keep_rows(table: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> nn.Parameter:
    """Let a table keep this rank's rows and look up all others on their ranks; return its weight.

    Every rank calls the table as often and with as many ids. Its gradient is the mean over ranks,
    as FSDP's.

    Args:
        table: is changed in place: its weight is replaced, and its class.
        mesh: of the ranks, in one dimension.
        dtype: what the rows are cast to, by default that of the weight.
    """
    from torch.distributed.tensor import DTensor, Shard

    whole: Any = table.weight
    ranks, rank = mesh.size(), mesh.get_local_rank()
    first = _first_row(whole.shape[0], ranks, rank)
    last = _first_row(whole.shape[0], ranks, rank + 1)
    mine = DTensor.from_local(
        whole.detach()[first:last].clone(), mesh, [Shard(0)],
        run_check=False, shape=whole.shape, stride=whole.stride(),
    )  # fmt: skip
    table.weight = nn.Parameter(mine, requires_grad=whole.requires_grad)
    base, bags = type(table), isinstance(table, nn.EmbeddingBag)
    where = _Where(first, whole.shape[0], mesh.get_group(), bags, dtype or whole.dtype)

    def forward(self: Any, ids: Tensor) -> Tensor:
        found: Tensor = _LookUp.apply(self.weight.to_local(), ids, where)  # type: ignore[no-untyped-call]
        return found

    table.__class__ = type(base.__name__, (base,), {"forward": forward})
    return table.weight


def _first_row(rows: int, ranks: int, rank: int) -> int:
    """Return where a rank's rows begin: as ``DTensor`` parts them, maybe unevenly."""
    return min(rows, rank * -(-rows // ranks))


@dataclass(frozen=True)
class _Where:
    """How a rank takes part: its first row of how many, with whom, of bags or not; the dtype."""

    first: int
    rows: int
    group: Any
    bags: bool
    dtype: torch.dtype


class _LookUp(torch.autograd.Function):
    """Rows by their ids, wherever they are."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ids: Tensor, where: _Where) -> Tensor:
        ranks, group = dist.get_world_size(where.group), where.group
        asked = ids.new_empty((ranks * ids.shape[0], *ids.shape[1:]))
        dist.all_gather_single(asked, ids.contiguous(), group=group)
        exists = (asked >= 0) & (asked < where.rows)  # what does not is left to raise, as always
        asked -= where.first
        elsewhere = exists & ((asked < 0) | (asked >= rows.shape[0]))
        asked.masked_fill_(elsewhere, 0)
        if len(rows):
            found = functional.embedding(asked, rows).to(where.dtype)
            found.masked_fill_(elsewhere.unsqueeze(-1), 0)
        else:
            found = rows.new_zeros((*asked.shape, rows.shape[1]), dtype=where.dtype)
        found = found.sum(1) if where.bags else found
        made = found.new_empty((ids.shape[0], *found.shape[1:]))
        dist.reduce_scatter_single(made, found, group=group)
        ctx.save_for_backward(asked, elsewhere)
        ctx.rows, ctx.dtype, ctx.where = rows.shape, rows.dtype, where
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        asked, elsewhere = ctx.saved_tensors
        group, bags = ctx.where.group, ctx.where.bags
        ranks = dist.get_world_size(group)
        arrived = gradient.new_empty((ranks * gradient.shape[0], *gradient.shape[1:]))
        dist.all_gather_single(arrived, gradient.contiguous(), group=group)
        if not ctx.rows[0]:
            return gradient.new_zeros(ctx.rows, dtype=ctx.dtype), None, None
        each = arrived.unsqueeze(1).expand(*asked.shape, -1) if bags else arrived
        each = each.to(ctx.dtype).masked_fill(elsewhere.unsqueeze(-1), 0).div_(ranks)
        made = torch.ops.aten.embedding_dense_backward(
            each, asked, ctx.rows[0], padding_idx=-1, scale_grad_by_freq=False
        )
        return made, None, None
