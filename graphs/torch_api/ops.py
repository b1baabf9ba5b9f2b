"""The in-place draw of a dropout mask, as an operator without side effects on tensors.

``x.bernoulli_(p)`` keeps the layout of ``x``; the functional ``aten.bernoulli.p`` that tracing puts
in its place does not, so that what follows would round in another order than eager mode does.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.library import custom_op


@custom_op(
    "remat_planner::bernoulli_like", mutates_args=(), tags=[torch.Tag.nondeterministic_seeded]
)
def bernoulli_like(like: Tensor, p: float) -> Tensor:
    """Return ones with probability ``p``, else zeros, in the layout of another tensor."""
    return torch.empty_like(like).bernoulli_(p)


@bernoulli_like.register_fake
def _(like: Tensor, p: float) -> Tensor:
    return torch.empty_like(like)


def keep_layout_of_noise(graph: fx.Graph) -> None:
    """Let every draw into a tensor that is not contiguous keep that tensor's layout."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.bernoulli.p):
        like, p = node.args[:2]
        assert isinstance(like, fx.Node)
        if not like.meta["val"].is_contiguous():
            node.target = torch.ops.remat_planner.bernoulli_like.default
            node.args = (like, p)
