"""Calls of a compiled step whose backward pass is still to come, counted as they run.

Each holds what it saved. Knows when a call begins to wait and when it ends: its backward pass has
run, or nobody can run it any more.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from planner.progress import PlannerWarning

MORE = (
    "{} calls of one compiled step wait for their backward passes at once, and the plan counts {}: "
    "what the others hold comes on top of the budget. Where a block is compiled by itself and the "
    "model has several, say how many: planner.backend(budget, calls=12); where a call without "
    "backward is meant to keep nothing, run it under torch.no_grad()"
)


@dataclass
class LiveCalls:
    """Counts the calls that wait, and warns once if they are more than a plan counts.

    Args:
        counted: how many it does.
    """

    counted: int
    warned: bool = False
    waiting: set[int] = field(default_factory=set)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def watched(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """Return a compiled graph whose calls are counted.

        Args:
            compiled: takes and returns what Dynamo's graph does.
        """

        def run(*args: Any) -> Any:
            outputs = compiled(*args)
            for node in _called(args, outputs):
                self._begin(node)
            return outputs

        return run

    def _begin(self, node: Any) -> None:
        number = next(self._numbers)
        self.waiting.add(number)
        node.register_hook(lambda *_: self.waiting.discard(number))
        weakref.finalize(node, self.waiting.discard, number)
        if len(self.waiting) > self.counted and not self.warned:
            self.warned = True
            said = MORE.format(len(self.waiting), self.counted)
            warnings.warn(said, PlannerWarning, stacklevel=3)


def _called(inputs: Iterable[Any], outputs: Iterable[Any]) -> set[Any]:
    """Return the node of autograd that a call is: it keeps what is saved. Views have none to keep.

    Args:
        inputs, outputs: of the call; what is a view of an input, or of another output, too.
    """
    given = {None, *(x.grad_fn for x in inputs if isinstance(x, Tensor))}

    def behind(node: Any) -> Any:
        while node not in given and not isinstance(node, BackwardCFunction):
            node = next((n for n, _ in node.next_functions), None)  # what it is a view of
        return node

    return {behind(x.grad_fn) for x in outputs if isinstance(x, Tensor)} - given
