"""The seam of every cost model: how long each call of an operator takes on a device.

A cost model is a file that enters itself, and a line in the folder's ``__init__``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.graphs.costs.operator_call import OperatorCall
from planner.graphs.costs.roofline import OpCost
from planner.graphs.hardware.devices import Device


@dataclass(frozen=True, slots=True)
class Priced:
    """What is to be timed: calls, what each does by formula, on which device.

    ``here`` says that the device is at hand and the model has data, so that kernels may be run.
    """

    calls: Sequence[OperatorCall]
    work: Sequence[OpCost]
    device: Device
    here: bool


CostModel = Callable[[Priced], list[float]]
"""Returns the seconds of each call."""

COSTS: dict[str, CostModel] = {}


def register_cost_model(name: str) -> Callable[[CostModel], CostModel]:
    """Enter a cost model under a name; a name taken twice raises ``ValueError``."""

    def enter(model: CostModel) -> CostModel:
        if name in COSTS:
            raise ValueError(f"a cost model named {name!r} is already registered")
        COSTS[name] = model
        return model

    return enter


def cost_model(name: str) -> CostModel:
    """Return the cost model of a name.

    Raises:
        ValueError: none has it; the message lists those there are.
    """
    if name not in COSTS:
        raise ValueError(f"unknown costs {name!r}; expected one of {', '.join(COSTS)}")
    return COSTS[name]
