"""Experts in one tensor a layer, of each of which every rank has some features: a style of torch.

Every rank sees all tokens and sends them through its features of their experts; one sum over the
ranks, whose size the router does not change, makes the output. Knows the words that models of
transformers have for the parameters. Knows nothing of experts that are whole on some rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from planner.errors import CaptureError
from planner.graphs.torch_api.module_internals import tensor_stores
from planner.graphs.torch_api.placed_tensors import shard_of_each
from planner.graphs.torch_api.pytree import tree_map

PARTS = {"packed_colwise": (-2, 2), "colwise": (-2, 1), "rowwise": (-1, 1)}
"""Along which dimension a word parts a parameter, and how many products lie in it side by side."""


class ExpertsInParts(ParallelStyle):
    """Part the parameters of a module of experts by features, and sum what the ranks make of them.

    Args:
        parts: a word of ``PARTS`` for each parameter of the module.
    """

    def __init__(self, parts: Mapping[str, str]) -> None:
        self.parts = dict(parts)
        self._whole: dict[nn.Module, dict[str, Any]] = {}

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, p in list(module.named_parameters()):
            placement = _placement(type(module).__name__, name, p, self.parts, device_mesh.size())
            part = distribute_tensor(
                p.detach(), device_mesh, [placement], src_data_rank=self.src_data_rank
            )
            own, _ = tensor_stores(module)
            own[name] = nn.Parameter(part, requires_grad=p.requires_grad)
        enter, leave = (partial(hook, device_mesh, self._whole) for hook in (_enter, _leave))
        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, always_call=True)
        return module

    def __repr__(self) -> str:
        """Say what it does."""
        return f"ExpertsInParts({self.parts})"


def _placement(owner: str, name: str, p: Tensor, parts: Mapping[str, str], ranks: int) -> Any:
    word = parts.get(name, "no style")
    if word not in PARTS:
        raise CaptureError(
            f"parameter {name!r} of {owner} has {word!r}; to part experts each of their parameters "
            f"needs one of {', '.join(PARTS)}"
        )
    dim, products = PARTS[word]
    if p.dim() < 2 or p.shape[dim] % (products * ranks):
        raise CaptureError(
            f"{name!r} of {owner} has shape {list(p.shape)}, whose features {ranks} ranks do not "
            "divide: choose a degree that does"
        )
    return shard_of_each(p.dim() + dim, products)


def _enter(
    mesh: DeviceMesh,
    whole: dict[nn.Module, dict[str, Any]],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let the module see its own parts, and sum the gradients of what it is called with."""
    own, _ = tensor_stores(module)
    whole[module] = dict(own)
    own.update({n: p.to_local() for n, p in whole[module].items()})
    args, kwargs = tree_map(partial(_seen_by_all, mesh), (args, kwargs))
    return args, kwargs


def _seen_by_all(mesh: DeviceMesh, leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.requires_grad:
        return leaf
    same = DTensor.from_local(leaf, mesh, [Replicate()], run_check=False)
    return same.to_local(grad_placements=[Partial()])


def _leave(
    mesh: DeviceMesh,
    whole: dict[nn.Module, dict[str, Any]],
    module: nn.Module,
    args: Any,
    output: Any,
) -> Any:
    tensor_stores(module)[0].update(whole.pop(module, {}))
    if not isinstance(output, Tensor):
        return output  # it failed
    terms = DTensor.from_local(output, mesh, [Partial()], run_check=False)
    return terms.redistribute(placements=[Replicate()]).to_local()
