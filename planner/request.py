"""A training step as a person describes it, handed to ``graphs.capture.training_step``.

Knows which inputs a model carries along, which device "auto" is and how an optimizer is called.
Knows nothing of budgets or of what is planned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from planner.errors import CaptureError, UnknownDevice
from planner.progress import Progress, silent

if TYPE_CHECKING:
    from torch import nn

    from planner.graphs.capture.training_step import Captured
    from planner.graphs.hardware.devices import Device, DeviceSpec


def capture_step(
    model: nn.Module,
    *,
    inputs: Any = None,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
    optimizer: Any = "adamw",
    device: DeviceSpec = "auto",
    costs: str = "roofline",
    accumulate: bool = False,
    progress: Progress | None = None,
) -> Captured:
    """Capture one training step; the arguments are those of ``fit``.

    Raises:
        CaptureError: the step cannot be captured, or no inputs are known.
    """
    from planner.graphs.capture.training_step import capture
    from planner.running.planned_module import unplanned

    model = unplanned(model)
    (progress or silent)(f"capturing {type(model).__name__}")
    try:
        return capture(
            model,
            example_inputs(model) if inputs is None else inputs,
            loss=loss,
            targets=targets,
            optimizer=optimizer,
            device=device,
            costs=costs,
            accumulate=accumulate,
            progress=progress,
        )
    except ValueError as error:  # a CaptureError of graphs, or an argument it does not know
        raise CaptureError(str(error)) from error


def find_device(name: DeviceSpec, model: nn.Module) -> Device:
    """Look a device up; "auto" is the one the model lives on (meta stands for this machine's cpu).

    Raises:
        UnknownDevice: no device has this name.
    """
    from planner.graphs.hardware.devices import device

    try:
        return _home(model) if name == "auto" else device(name)
    except ValueError as error:
        raise UnknownDevice(str(error)) from error


def _home(model: nn.Module) -> Device:
    import torch

    from planner.graphs.hardware.detect import device_at

    members = (*model.parameters(), *model.buffers())
    where = next((t.device for t in members if not t.is_meta), torch.device("cpu"))
    try:
        return device_at(where.type, where.index or 0)
    except ValueError as error:
        raise UnknownDevice(
            f"the model lives on {where.type!r}, but {error}: say which device to plan for, for "
            "example device='H100 SXM'"
        ) from error


def example_inputs(model: nn.Module) -> Any:
    """Return the inputs a model carries along.

    Raises:
        CaptureError: it carries none; the message says what to pass.
    """
    for attribute in ("example_input_array", "dummy_inputs"):
        found = getattr(model, attribute, None)
        if found is not None:
            return found
    raise CaptureError(
        f"{type(model).__name__} has neither example_input_array nor dummy_inputs, so it is not "
        "known what to run it on: pass inputs= a tensor, a tuple (positional) or a dict (keywords)"
    )


def optimizer_name(optimizer: Any) -> str | None:
    """Name an optimizer given as text, class, factory or instance.

    >>> optimizer_name("adamw"), optimizer_name(dict), optimizer_name(None)
    ('adamw', 'dict', None)
    """
    if optimizer is None or isinstance(optimizer, str):
        return optimizer
    named = optimizer if hasattr(optimizer, "__name__") else type(optimizer)
    return str(named.__name__)
