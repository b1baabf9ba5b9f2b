"""What an optimizer keeps for itself."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import _foreach_supported_types

from planner.graphs.torch_api.fake_tensors import FakeTensor
from planner.graphs.torch_api.patches import Patches


def foreach_on_fakes(patches: Patches) -> None:
    """Let torch choose foreach kernels as it would for the real parameters of that device."""
    patches.member(_foreach_supported_types, FakeTensor)


def foreach_by_default(patches: Patches) -> None:
    """Let torch choose foreach kernels for parameters that are on a CPU for the time being."""
    name = "_get_foreach_kernels_supported_devices"
    own = getattr(torch_optimizer, name)

    def called() -> list[str]:
        return [*own(), "cpu"] if patches.mine() else own()

    patches.attribute(torch_optimizer, name, called)


def drop_hooks(optimizer: Optimizer) -> None:
    """Let an optimizer forget the hooks around its step and its state."""
    hooks = [name for name in vars(optimizer) if name.startswith("_optimizer_")]
    vars(optimizer).update({name: OrderedDict() for name in hooks})


@contextmanager
def without_step_hooks(optimizer: Optimizer) -> Iterator[None]:
    """Let nothing that an optimizer calls, such as the step of the class above, run its own hooks.

    Args:
        optimizer: whose hooks around its step wait meanwhile.
    """
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    whole = {name: vars(optimizer)[name] for name in names if name in vars(optimizer)}
    vars(optimizer).update({name: OrderedDict() for name in whole})
    try:
        yield
    finally:
        vars(optimizer).update(whole)


def is_scheduled(optimizer: Optimizer) -> bool:
    """Tell whether all that wraps an optimizer's step is the mark of a learning rate's scheduler.

    Args:
        optimizer: any.
    """
    own = vars(optimizer).get("step")
    inside = getattr(own, "__wrapped__", None)
    return hasattr(own, "_wrapped_by_lr_sched") and inside is type(optimizer).step


def known_to_schedulers(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that schedulers take for one that they have wrapped, made before or after.

    Args:
        step: a function of the optimizer and of what its ``step`` is given.
    """

    @functools.wraps(step)
    def marked(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        optimizer._opt_called = True
        return step(optimizer, *args, **kwargs)

    marked._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    return marked
