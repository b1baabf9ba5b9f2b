"""Example inputs with another number of samples, without looking at their data.

A batch is the first dimension of the first tensor, and of every tensor as long as it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planner.errors import CaptureError
from planner.graphs.torch_api.pytree import tree_leaves, tree_map


def samples_in(inputs: Any) -> int:
    """Return how many samples example inputs hold.

    Raises:
        CaptureError: there is no tensor with a first dimension.

    >>> samples_in({"input_ids": torch.zeros(4, 16)})
    4
    """
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0]:
            return int(leaf.shape[0])
    raise CaptureError(
        "the inputs hold no tensor with a batch dimension, so they cannot be parted into "
        "micro-batches: pass inputs whose first dimension is the batch"
    )


def with_samples(tree: Any, before: int, samples: int) -> Any:
    """Return the tree with every batch cut or repeated to another number of samples.

    Args:
        tree: nested tensors, and what is beside them.
        before: the samples of the tensors that change.
        samples: how many they have then.

    >>> out = with_samples((torch.arange(2), torch.zeros(3), "x"), 2, 5)
    >>> out[0].tolist(), out[1].shape, out[2]
    ([0, 1, 0, 1, 0], torch.Size([3]), 'x')
    """
    if before == samples:
        return tree

    def resized(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != before:
            return leaf
        copies = torch.cat([leaf.detach()] * -(-samples // before))
        return copies[:samples].clone().requires_grad_(leaf.requires_grad)

    return tree_map(resized, tree)
