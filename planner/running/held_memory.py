"""What a training loop holds beside the planned step, noticed when the step is called.

Each kind is told once. Knows the autograd node of the call before. Knows nothing of programs.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from planner.byte_sizes import format_bytes
from planner.graphs.capture.placed import local_of
from planner.progress import PlannerWarning


@dataclass
class HeldMemory:
    """Watches the calls of a planned model; with ``accumulate`` gradients are planned for."""

    accumulate: bool
    before: Any = None
    told: set[str] = field(default_factory=set)

    def look(self, parameters: Iterable[nn.Parameter]) -> None:
        """Warn of what is held when a planned call begins.

        Args:
            parameters: of the model, with the gradients they have now.
        """
        step = getattr(None if self.before is None else self.before(), "step", None)
        saved = [] if step is None else [x for x in step.saved or () if isinstance(x, Tensor)]
        if saved:
            self._tell(
                "a planned step is called again before the backward pass of the call before, "
                f"which holds {format_bytes(_bytes(saved))} still; the plan counts one call",
                "call backward after each call, or leave that much room: reserve it in the budget",
            )
        kept = [p.grad for p in parameters if p.grad is not None]
        if kept and not self.accumulate:
            self._tell(
                f"{format_bytes(_bytes(kept))} of gradients are kept from an earlier backward "
                "pass, which the plan does not count",
                "plan with accumulate=True, or call zero_grad(set_to_none=True) before each step",
            )

    def note(self, outputs: Iterable[Tensor]) -> None:
        """Remember the call just made.

        Args:
            outputs: of the step.
        """
        node = next((x.grad_fn for x in outputs if x.grad_fn is not None), None)
        self.before = None if node is None else weakref.ref(node)

    def _tell(self, found: str, advice: str) -> None:
        if advice not in self.told:
            self.told.add(advice)
            warnings.warn(f"{found}; {advice}", PlannerWarning, stacklevel=6)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({t.data_ptr(): t.nbytes for t in map(local_of, tensors)}.values())
