"""A second object around the same attributes, tensors and submodules with another ``forward``.

Knows how such a model is copied, and how to get back to the one it stands for. Knows nothing of
what its ``forward`` does.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from planner.errors import PlanMismatch

_MARK = "_runs_a_plan"


def derived(base: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    """Derive a planned class with a forward of its own; everything else is the model's.

    Where somebody compiles the planned model, its forward is left as it is; where the model was
    compiled before (``model.compile()``), its compiled call would run without the plan, and is not
    taken.
    """

    def copied(self: nn.Module) -> nn.Module:
        fresh = type(self).__new__(type(self))
        fresh.__dict__.update(vars(self))
        return fresh

    def deep_copied(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        fresh = type(self).__new__(type(self))
        memo[id(self)] = fresh
        fresh.__dict__.update({k: copy.deepcopy(v, memo) for k, v in vars(self).items()})
        return fresh

    def refused(self: nn.Module, protocol: Any) -> Any:
        raise pickle.PicklingError(
            "a planned model is not pickled whole; save its state_dict() and the plan, and apply "
            "the plan after loading"
        )

    members = {
        _MARK: True,
        "_compiled_call_impl": property(lambda self: None, lambda self, compiled: None),
        "forward": torch.compiler.disable(functools.wraps(base.forward)(forward)),  # type: ignore[no-untyped-call]
        "__copy__": copied,
        "__deepcopy__": deep_copied,
        "__reduce_ex__": refused,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (base,), members)


def unplanned(model: nn.Module) -> nn.Module:
    """Return the model without its plan, around the same tensors and submodules.

    A class that somebody derived of the planned one, as ``fully_shard`` does, goes as well.

    Raises:
        PlanMismatch: a submodule runs a plan of its own.
    """
    for path, module in model.named_modules():
        if path and _is_planned(module):
            raise PlanMismatch(
                f"submodule {path!r} already runs a plan of its own; plan the model with the "
                "submodule as it was before plan.apply"
            )
    planned = next((cls for cls in type(model).__mro__ if _MARK in vars(cls)), None)
    if planned is None:
        return model
    base = planned.__bases__[0]
    if "forward" not in vars(model):
        return reclassed(model, base)
    fresh: nn.Module = object.__new__(
        base
    )  # what was put over the plan's forward would lead back to the plan
    fresh.__dict__.update({k: v for k, v in vars(model).items() if k != "forward"})
    return fresh


def _is_planned(module: nn.Module) -> bool:
    return _MARK in vars(type(module))


def reclassed(model: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Return the same module in another class: whatever is set on one of the two is on both."""
    fresh = cls.__new__(cls)
    object.__setattr__(fresh, "__dict__", vars(model))
    return fresh
