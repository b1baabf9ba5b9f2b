"""What an optimizer keeps for itself."""

from __future__ import annotations

from collections import OrderedDict

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
