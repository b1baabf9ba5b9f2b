"""Nested tuples, lists and dicts as flat lists and back, as torch itself sees them."""

from typing import Any

import torch
from torch.utils._pytree import (
    TreeSpec,
    tree_flatten,
    tree_iter,
    tree_leaves,
    tree_map,
    tree_map_only,
    tree_unflatten,
    treespec_dumps,
    treespec_loads,
)

__all__ = [
    "TreeSpec",
    "flatten_made",
    "tree_flatten",
    "tree_iter",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_unflatten",
    "treespec_dumps",
    "treespec_loads",
]


def flatten_made(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Flatten what a model made; a ``torch.Size`` stays whole: torch would return it as a tuple.

    >>> flatten_made({"shape": torch.Size([2, 3]), "rows": 2})[0]
    [torch.Size([2, 3]), 2]
    """
    return tree_flatten(tree, is_leaf=lambda x: isinstance(x, torch.Size))
