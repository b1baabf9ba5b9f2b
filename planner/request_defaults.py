"""What a request takes where nothing was said: the model's device, its example; and names.

Knows models. Knows nothing of requests.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planner.errors import CaptureError, UnknownDevice
from planner.graphs.hardware.devices import Device, DeviceSpec, device

if TYPE_CHECKING:
    from torch import nn

_HERE = re.compile(r"(cpu|cuda|mps|xpu)(?::(\d+))?")


def find_device(spec: DeviceSpec, model: nn.Module) -> Device:
    """Look a device up; "auto" is the one the model lives on (meta stands for this machine's cpu).

    What torch calls a device ("cuda:1", or a ``torch.device``) is the one of this machine.

    Raises:
        UnknownDevice: no device has this name, or it is not here.
    """
    try:
        if here := _HERE.fullmatch(str(spec)):
            return _here(here[1], int(here[2] or 0))
        return _home(model) if spec == "auto" else device(spec)
    except ValueError as error:
        raise UnknownDevice(str(error)) from error


def _here(kind: str, index: int) -> Device:
    from planner.graphs.hardware.detect import device_at

    try:
        return device_at(kind, index)
    except ValueError as error:
        raise UnknownDevice(f"{error}; name the card to plan for, as device='H100 SXM'") from error


def _home(model: nn.Module) -> Device:
    from planner.graphs.capture.guards.call import device_of
    from planner.graphs.hardware.detect import device_at

    where = device_of(model)
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


def without_labels(model: nn.Module) -> str | None:
    """Say what is missing where a model's own example has no labels and ``forward`` takes some.

    >>> class Model:
    ...     dummy_inputs = {"input_ids": [[1, 2]]}
    ...     def forward(self, input_ids, labels=None): ...
    >>> without_labels(Model()).partition(":")[0]
    "planned for Model's dummy_inputs, which have no labels"
    """
    found = example_inputs(model)
    takes = inspect.signature(model.forward).parameters
    if not isinstance(found, Mapping) or "labels" in found or "labels" not in takes:
        return None
    return (
        f"planned for {type(model).__name__}'s dummy_inputs, which have no labels: its loss, if it "
        "has one, is not in the step; pass inputs= with labels"
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
