"""Outputs that are computed when something reads them, from a value of the step.

Knows how such a tensor is made, and when it would no longer be what the step would have returned.
Knows nothing of which outputs these are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from planner.graphs.torch_api.dispatch import without_autocast
from planner.graphs.torch_api.late_tensors import LateTensor
from planner.graphs.torch_api.storages import write_count


@dataclass(frozen=True)
class LateOutput:
    """How an output is made of what the step returns in its place.

    ``index`` is its place among the traced tensors, ``operands`` are indices of the step's
    arguments: parameters, buffers, inputs. ``compute`` takes what is returned, then these; ``like``
    has the shape, strides and dtype of what it makes.
    """

    index: int
    name: str
    operands: tuple[int, ...]
    compute: Callable[..., Tensor]
    like: Tensor

    def of(
        self, returned: Tensor, arguments: Sequence[Any], error: Callable[[str], Exception]
    ) -> LateTensor:
        """Return a tensor that is computed when it is read.

        Args:
            returned: what the step returned in its place.
            arguments: of the step.
            error: makes what is raised if it is read after these were changed.
        """
        given = [arguments[i].detach() for i in self.operands]
        counts = [write_count(x) for x in given]

        def compute() -> Tensor:
            if counts != [write_count(x) for x in given]:
                raise error(
                    f"{self.name!r} of a planned step whose loss is computed in chunks is read "
                    "after the weights it is computed from have changed; read it before the "
                    "optimizer's step, or plan with logits='keep'"
                )
            # sharded again by now
            if any(x.numel() and not x.untyped_storage().nbytes() for x in given):
                raise error(
                    f"{self.name!r} of a planned step whose loss is computed in chunks is read "
                    "when the weights it is computed from are let go of: read it before the "
                    "backward pass"
                )
            with without_autocast():
                return self.compute(returned, *given)

        return LateTensor.of(self.like, returned.device, compute)
