"""What a node of a joint graph is: a kernel or a view, random or not, and what it returns.

Knows torch.fx nodes, one at a time. Knows nothing of storages' sizes, of costs or of ops.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor, fx

RECURRENT = torch.ops.aten.mkldnn_rnn_layer.default


def tensors(value: object) -> Iterable[Tensor]:
    """Yield the tensors of a node's ``meta["val"]``."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)


def target_name(node: fx.Node) -> str:
    """Return the operator's name, such as ``aten.addmm.default``."""
    target = node.target
    named = isinstance(target, torch._ops.OpOverload)
    return str(target) if named else node._pretty_print_target(target)


def is_view(node: fx.Node) -> bool:
    """Tell a node that only renames storages from a kernel."""
    if node.target is operator.getitem:
        return True
    mine = {t.untyped_storage()._cdata for t in tensors(node.meta.get("val"))}
    theirs = {
        t.untyped_storage()._cdata for n in node.all_input_nodes for t in tensors(n.meta.get("val"))
    }
    return bool(mine) and mine <= theirs


def is_random(node: fx.Node) -> bool:
    """Tell a kernel that draws from the generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def is_functional_batch_norm(node: fx.Node) -> bool:
    """Tell batch norm in train mode, whose output does not depend on the running statistics."""
    return (
        node.target is torch.ops.aten._native_batch_norm_legit_functional.default
        and node.args[5] is True
    )
