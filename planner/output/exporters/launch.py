"""What a strategy is called by launchers, and what a training script must do for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Launch:
    """What launchers and scripts are told of a strategy.

    ``distributed_type`` is accelerate's name for it, on accelerators. In the script ``model`` is
    what the plan is applied to, ``every_micro_step`` what stands before each of several.
    """

    distributed_type: str
    model: str
    every_micro_step: str = ""
