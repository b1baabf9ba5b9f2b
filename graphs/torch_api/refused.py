"""What of torch cannot be traced into a joint graph, refused where it is called."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch.utils import checkpoint

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.patches import Patches


def refuse_what_cannot_be_traced(patches: Patches) -> None:
    """Let reentrant checkpoints and control flow operators say what to do instead."""
    patches.attribute(checkpoint, "CheckpointFunction", _Reentrant)
    for name in ("cond", "while_loop"):
        if hasattr(torch, name):
            patches.attribute(torch, name, _refusing(name))


class _Reentrant:
    """Stands in for the function behind ``checkpoint(..., use_reentrant=True)``."""

    @staticmethod
    def apply(*_: Any) -> NoReturn:
        raise CaptureError(
            "a reentrant checkpoint hides its backward pass: pass use_reentrant=False, or leave it "
            "out (model.gradient_checkpointing_disable()): the plan decides what is recomputed"
        )


def _refusing(name: str) -> Any:
    def refused(*_: Any, **__: Any) -> NoReturn:
        raise CaptureError(
            f"torch.{name} is no operator that a plan can run: branch in Python on an integer "
            "input or a buffer, or compute both branches and choose with torch.where"
        )

    return refused
