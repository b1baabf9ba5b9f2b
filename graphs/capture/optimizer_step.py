"""What an optimizer's step holds: its state, and the temporaries it makes on the way.

Knows how to run any optimizer class on fake tensors and to watch every storage it makes, so a model
of any size costs nothing. Knows no optimizer's formula.
"""

from __future__ import annotations

import functools
import gc
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from planner.graphs.capture.placed import local_of
from planner.graphs.capture.storage_meter import StorageMeter
from planner.graphs.costs.roofline import tensors_in
from planner.graphs.hardware.devices import Device
from planner.graphs.torch_api.fake_tensors import FakeTensorMode
from planner.graphs.torch_api.optimizer_internals import (
    drop_hooks,
    foreach_by_default,
    foreach_on_fakes,
)
from planner.graphs.torch_api.patches import patching
from planner.graphs.torch_api.quiet import silence_warnings

OptimizerLike = str | type[Optimizer] | Optimizer | Callable[[list[Tensor]], Optimizer]

_KERNELS: Mapping[str, dict[str, Any]] = {
    "": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "loop": {"foreach": False},
}
# What a foreign step may raise when it meets tensors without data.
_STEP_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class OptimizerError(ValueError):
    """An optimizer that is unknown, or whose step cannot be run without data."""


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """What one step takes on the parameters' device, beyond parameters and gradients.

    ``state_bytes`` stay from step to step; ``workspace_bytes`` is the most held besides them, in
    the first step or any other; ``moved_bytes`` is what a later step reads and writes, and
    ``calls`` how many operators it calls. ``second_order`` says that the step differentiates the
    gradients, so that backward must keep its own graph (``create_graph=True``); that graph is not
    counted here.
    """

    name: str
    state_bytes: int
    workspace_bytes: int
    moved_bytes: int
    second_order: bool = False
    calls: int = 0

    def seconds_on(self, device: Device) -> float:
        """Return what a step takes: what it moves, or what the host takes to issue it.

        >>> from planner.graphs.hardware.devices import device
        >>> OptimizerStep("SGD", 0, 0, 0, calls=1).seconds_on(device("L4"))
        8e-06
        """
        issued = self.calls * device.issue_seconds
        return max(self.moved_bytes / device.bytes_per_second(), issued)


def asked_step(
    parameters: Sequence[Tensor], optimizer: OptimizerLike | OptimizerStep | None, kernels: str
) -> OptimizerStep | None:
    """Return the step that a person asked for: found, unless it is known, or left out.

    Args:
        parameters, kernels: as for ``optimizer_step``, which raises the same errors.
        optimizer: what that takes, or a step that it found; ``None`` leaves the step out.
    """
    if optimizer is None or isinstance(optimizer, OptimizerStep):
        return optimizer
    return optimizer_step(parameters, optimizer, kernels=kernels)


def optimizer_step(
    parameters: Sequence[Tensor],
    optimizer: OptimizerLike | None,
    *,
    device: str | torch.device | None = None,
    kernels: str = "cpu",
) -> OptimizerStep:
    """Find what a step of an optimizer holds, by taking two on fake copies of the parameters.

    Args:
        parameters: the trainable ones; real, fake or on meta.
        optimizer: a name ("sgd", "momentum", "adamw", "adamw_foreach", "adamw_fused", ... or any
            class of ``torch.optim``, in any case), a class, a function from parameters to an
            optimizer, or an optimizer already built, whose class and groups are reproduced; it is
            never touched. ``None`` stands for no optimizer.
        device: where the step will run, if not where the parameters are.
        kernels: the type of device whose defaults hold: on "cuda" torch's optimizers take all
            parameters at once (foreach) if they are not told otherwise.

    Raises:
        OptimizerError: unknown, or its step needs real data or a closure.

    >>> weight = torch.empty(1000, 1000, device="meta")
    >>> step = optimizer_step([weight], "adamw", device="cpu")
    >>> step.state_bytes, step.workspace_bytes
    (8000004, 8000000)
    """
    if optimizer is None or not parameters:
        return OptimizerStep("none", 0, 0, 0)
    with patching() as patches, FakeTensorMode(), torch.enable_grad():
        silence_warnings(patches)  # its real step will say the same
        foreach_on_fakes(patches)
        if kernels != "cpu":
            foreach_by_default(patches)
        return _observe(parameters, optimizer, device)


def named_optimizer(name: str) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """Split "adamw_fused" into a class of ``torch.optim`` and the keywords that choose a kernel.

    Raises:
        OptimizerError: an unknown name; the message lists the known ones.

    >>> named_optimizer("AdamW_fused")
    (<class 'torch.optim.adamw.AdamW'>, {'fused': True})
    """
    classes: dict[str, Callable[..., Optimizer]] = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
    }
    classes["momentum"] = functools.partial(torch.optim.SGD, momentum=0.9)
    base, _, kernel = name.lower().partition("_")
    if base not in classes or kernel not in _KERNELS:
        raise OptimizerError(
            f"unknown optimizer {name!r}; names: {', '.join(sorted(classes))}, each also "
            "with _foreach, _fused or _loop; or pass a class or a function of the parameters"
        )
    return classes[base], _KERNELS[kernel]


def _observe(
    parameters: Sequence[Tensor],
    optimizer: OptimizerLike,
    device: str | torch.device | None,
    *,
    second_order: bool = False,
) -> OptimizerStep:
    """Run the step; if it asks for data (``item``), try either answer and take the most."""
    runs: list[OptimizerStep] = []
    failures: list[Exception] = []
    for answer in (False, True):
        groups = _groups(parameters, optimizer, device)
        meter = StorageMeter(groups[0]["params"][0].device.type, answer=answer)
        try:
            runs.append(_two_steps(optimizer, groups, meter, second_order=second_order))
        except _STEP_ERRORS as error:
            failures.append(error)
        if not meter.asked:
            break
    if not runs:
        if "grad_fn" in str(failures[0]) and not second_order:
            return _observe(parameters, optimizer, device, second_order=True)
        raise OptimizerError(
            f"the step of {_name(optimizer)} cannot be run without data: {failures[0]}. Pass "
            "another optimizer whose state is as large, or None to leave it out"
        ) from failures[0]
    fields = ("state_bytes", "workspace_bytes", "moved_bytes", "calls")
    return replace(runs[0], **{f: max(getattr(run, f) for run in runs) for f in fields})


def _two_steps(
    optimizer: OptimizerLike,
    groups: list[dict[str, Any]],
    meter: StorageMeter,
    *,
    second_order: bool,
) -> OptimizerStep:
    """Take two steps: the first makes the state, the second is like all that follow."""
    fakes = [p for group in groups for p in group["params"]]
    _give_gradients(fakes, meter, second_order=second_order)
    given = meter.level_bytes
    with meter:
        built = _build(optimizer, groups)
        built.step()
    first_peak = meter.peak_bytes
    if second_order:
        _give_gradients(fakes, meter, second_order=True)
    meter.restart()
    with meter:
        built.step()
    if meter.level_bytes > _reachable_bytes(fakes, built, meter):
        gc.collect()  # a cycle is not state, and looking for cycles takes long
    state, peak = meter.level_bytes - given, max(first_peak, meter.peak_bytes)
    name = type(built).__name__
    return OptimizerStep(
        name, state, peak - given - state, meter.moved_bytes, second_order, meter.calls
    )


def _reachable_bytes(fakes: Sequence[Tensor], built: Optimizer, meter: StorageMeter) -> int:
    """Return the bytes of parameters, gradients and state; what else is counted may be garbage."""
    gradients = [p.grad for p in fakes if p.grad is not None]
    return meter.bytes_of(tensors_in([*fakes, *gradients, *built.state.values()]))


def _groups(
    parameters: Sequence[Tensor], optimizer: OptimizerLike, device: str | torch.device | None
) -> list[dict[str, Any]]:
    """Return parameter groups of fakes: those of a built optimizer, else one of all parameters."""
    groups = [{"params": list(parameters)}]
    if isinstance(optimizer, Optimizer):
        groups = optimizer.param_groups
    fakes: dict[int, Tensor] = {}

    def fake(p: Tensor) -> Tensor:
        where = torch.device(device) if device is not None else p.device
        if id(p) not in fakes:
            part = local_of(p)  # what the optimizer of each rank works on
            data = torch.empty_strided(part.shape, part.stride(), dtype=p.dtype, device=where)
            trainable = p.requires_grad or not isinstance(optimizer, Optimizer)
            fakes[id(p)] = torch.nn.Parameter(data, requires_grad=trainable)
        return fakes[id(p)]

    return [{**group, "params": [fake(p) for p in group["params"]]} for group in groups]


def _give_gradients(fakes: Sequence[Tensor], meter: StorageMeter, *, second_order: bool) -> None:
    """Set fresh gradients; those that will be differentiated come from the simplest of losses."""
    trainable = [p for p in fakes if p.requires_grad]
    for p in trainable:
        p.grad = None if second_order else torch.empty_like(p)
    if second_order:
        gc.collect()  # the graph of the old gradients is a cycle
        torch.autograd.backward([(p * p).sum() for p in trainable], create_graph=True)
    meter.watch(fakes)
    meter.watch(p.grad for p in trainable if p.grad is not None)


def _build(optimizer: OptimizerLike, groups: list[dict[str, Any]]) -> Optimizer:
    fakes = groups[0]["params"]
    if isinstance(optimizer, Optimizer):
        return twin_of(optimizer, groups)
    if isinstance(optimizer, str):
        named, keywords = named_optimizer(optimizer)
        return named(fakes, **keywords)
    maker: Callable[[list[Tensor]], Any] = optimizer
    built = maker(fakes)
    if not isinstance(built, Optimizer):
        raise OptimizerError(
            f"{_name(optimizer)} returned {type(built).__name__}, not a torch.optim.Optimizer"
        )
    return built


def twin_of(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """Copy an optimizer with everything it was told, but fake parameters and no state.

    Its hooks and what a scheduler wrapped around its step stay behind: they are not to be called.

    Args:
        optimizer: which is left as it is.
        groups: of parameters, for the copy.
    """
    twin = object.__new__(type(optimizer))
    vars(twin).update({k: v for k, v in vars(optimizer).items() if k != "step"})
    drop_hooks(twin)
    twin.param_groups, twin.state = groups, defaultdict(dict)
    return twin


def _name(optimizer: OptimizerLike) -> str:
    if isinstance(optimizer, Optimizer):
        return type(optimizer).__name__
    return optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", "a function")
