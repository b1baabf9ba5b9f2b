"""A training step as it is traced: run under an observer of what its code asks and calls.

Knows what is noted while a step runs. Knows nothing of how it is exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from planner.graphs.capture.first_call import Called, SetsUp
from planner.graphs.capture.guards.paths import Path
from planner.graphs.capture.guards.tape import Decisions
from planner.graphs.capture.guards.values import Observer
from planner.graphs.capture.step_function import StepFunction
from planner.graphs.torch_api.autocast_cache import Casts


class WatchedStep(nn.Module):
    """A step run under an ``Observer``; AOTAutograd runs it several times, the last one counts."""

    def __init__(
        self,
        step: StepFunction,
        data: Sequence[Tensor | None],
        answers: Sequence[Any] | None,
        lifted: Sequence[Path],
    ) -> None:
        super().__init__()
        self.step, self._data, self._answers = step, data, answers
        self._lifted = tuple(lifted)
        self.decisions = Decisions()
        self.checks = True
        self.casts: Casts | None = None
        self.called: Called = ()

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        count = len(tensors) - len(self._lifted)
        tensors, numbers = tensors[:count], [t.item() for t in tensors[count:]]
        self.step.numbers = tuple(zip(self._lifted, numbers, strict=True))
        known = [*tensors, *self.step.buffers_now]
        with Observer(known, self._data, self._answers) as observer, self._casting(tensors):
            observer.number([*self.step.parameters()])
            try:
                kept: list[Tensor] = self.step(*tensors)
            except SetsUp as error:
                error.called = tuple(observer.called)
                raise
        self.called = tuple(observer.called)
        self.step.add_checks(kept, observer.checks if self.checks else ())
        self.decisions = Decisions(tuple(observer.found), tuple(observer.by_size))
        return kept

    @contextmanager
    def _casting(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Keep autocast's casts of parameters and inputs while the step runs."""
        assert self.casts is not None, "set up around a capture"
        self.casts.begin((*self.step.parameters(), *tensors))
        try:
            yield
        finally:
            self.casts.end()
