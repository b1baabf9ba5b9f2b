"""Where a module keeps its tensors and hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as every_module

TENSOR_STORES = frozenset(("_parameters", "_buffers", "_modules"))
"""The attributes of a module under which its tensors lie, its children's among them."""
STORED = frozenset((*vars(nn.Module()), "_flat_weights"))
"""What torch itself keeps in every module: tensors, hooks, the mode."""
BOOKKEEPING = STORED | frozenset(vars(nn.Module))
"""That, and the names of its methods, under which a model may keep something of its own."""
STAND_IN = "_is_param"
"""What torch looks for on a tensor that is to be taken for a parameter though it is none."""
_OF_BUFFERS = frozenset(vars(nn.Buffer()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def tensor_stores(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the dicts that hold a module's own parameters and buffers, ``None`` among them.

    >>> parameters, buffers = tensor_stores(nn.Linear(2, 2, bias=False))
    >>> list(parameters), list(buffers)
    (['weight', 'bias'], [])
    """
    return module._parameters, module._buffers


def named_parameters_of(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters below a module by the attributes that lead to them, each once.

    Some modules give others: torch's ``checkpoint_wrapper`` leaves its own attribute out.

    >>> [name for name, _ in named_parameters_of(nn.Sequential(nn.Linear(2, 2)))]
    ['0.weight', '0.bias']
    """
    return nn.Module.named_parameters(module)


def own_tensors(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield a module's own parameters and buffers: the attribute they lie under, name, tensor."""
    for store in ("_parameters", "_buffers"):
        for name, tensor in vars(module)[store].items():
            if tensor is not None:
                yield store, name, tensor


def attributes_of_tensor(tensor: Tensor) -> dict[str, Any]:
    """Return what somebody hung on a parameter or a buffer; nothing of tensors with own classes.

    What torch itself hangs on an ``nn.Buffer`` is left out.

    >>> weight = nn.Linear(2, 2).weight
    >>> weight.scale = 2.0
    >>> attributes_of_tensor(weight)
    {'scale': 2.0}
    """
    if type(tensor) not in (Tensor, nn.Parameter):
        return {}
    return {k: v for k, v in vars(tensor).items() if k not in _OF_BUFFERS}


def has_hooks(tensor: Tensor) -> bool:
    """Tell whether a hook runs when the gradient of a tensor is computed.

    >>> has_hooks(nn.Linear(2, 2).weight)
    False
    """
    return bool(tensor._backward_hooks)


def own_children(module: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield a module's own children: the attribute they lie under, name, module."""
    for name, child in module._modules.items():
        if child is not None:
            yield "_modules", name, child


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's own children by name, ``None`` among them."""
    return dict(module._modules)


def set_children(module: nn.Module, children: dict[str, nn.Module | None]) -> None:
    """Give a module these children, in this order, and no others."""
    module._modules.clear()
    module._modules.update(children)


def hooks_of(module: nn.Module) -> tuple[tuple[int, ...], ...]:
    """Return the keys of a module's own hooks, kind by kind."""
    inside = vars(module)
    return tuple(tuple(inside.get(kind, ())) for kind in _HOOKS)


def hooks_of_every_module() -> tuple[tuple[int, ...], ...]:
    """Return the keys of the hooks that run around the forward of every module, kind by kind.

    >>> hooks_of_every_module() == hooks_of_every_module()
    True
    """
    return tuple(tuple(getattr(every_module, f"_global{kind}")) for kind in _HOOKS)


def hooks_inside(modules: Sequence[nn.Module]) -> Iterator[tuple[tuple[int, str], Any]]:
    """Yield the hooks of modules: which module's, of which kind, and the hook."""
    for i, module in enumerate(modules):
        for kind in _HOOKS:
            for hook in vars(module).get(kind, {}).values():
                yield (i, kind), hook


def hook_sources(module: nn.Module) -> set[str]:
    """Return the names of the Python modules that a module's own hooks come from.

    >>> hook_sources(nn.Linear(2, 2))
    set()
    """
    hooks = (hook for kind in _HOOKS for hook in vars(module).get(kind, {}).values())
    return {str(getattr(hook, "__module__", type(hook).__module__)) for hook in hooks}


def is_child(owner: Any, name: str) -> bool:
    """Tell whether a module has a parameter, a buffer or a submodule of that name.

    >>> is_child(nn.Linear(2, 2), "weight"), is_child(nn.Linear(2, 2), "scale")
    (True, False)
    """
    return any(name in vars(owner).get(store, ()) for store in TENSOR_STORES)


def written_by_torch(module: nn.Module) -> set[str]:
    """Return the attributes that torch's own code renews in every forward: a normed weight.

    Or a pruned one.

    >>> written_by_torch(nn.utils.spectral_norm(nn.Linear(2, 2))) >= {"weight"}
    True
    """
    hooks = vars(module).get("_forward_pre_hooks", {}).values()
    own = [vars(h) for h in hooks if type(h).__module__.startswith("torch.nn.utils.")]
    made = {str(h[key]) for h in own for key in ("name", "_tensor_name") if key in h}
    return {"_flat_weights", "_flat_weight_refs", *made}


def flat_weights(model: nn.Module) -> dict[nn.RNNBase, list[Tensor | None]]:
    """Return the lists in which recurrent layers keep their weights a second time."""
    return {m: m._flat_weights for m in model.modules() if isinstance(m, nn.RNNBase)}


def renew_flat_weights(model: nn.Module) -> None:
    """Fill those lists from the parameters there are now."""
    for module in flat_weights(model):
        module._flat_weights = [getattr(module, n) for n in module._flat_weights_names]


def restore_flat_weights(kept: dict[nn.RNNBase, list[Tensor | None]]) -> None:
    """Put back what ``flat_weights`` returned."""
    for module, weights in kept.items():
        module._flat_weights = weights
