"""What sizes that Dynamo takes for symbols are at most, as a backend is told of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.exc import BackendCompilerFailed

from planner.graphs.torch_api.inductor.handed_graphs import traced


class Positions(nn.Module):
    """Learned positions: code that Dynamo guards to be of no more rows than there are."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.ones(4096, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.rows[: x.shape[0]]


def largest(
    calls: Iterable[Tensor], model: nn.Module | None = None, *, evaluated: tuple[int, ...] = ()
) -> list[tuple[int, ...]]:
    """Call a model, and return the largest sizes that each compilation is told of."""
    torch._dynamo.reset()
    seen, found = dict[str, int](), []

    def backend(module: fx.GraphModule, inputs: list[Tensor]) -> Any:
        found.append(tuple(traced(module, inputs, seen).largest.numbers.values()))
        return aot_eager(module, inputs)

    compiled = torch.compile(model or Positions(), backend=backend)
    for place, x in enumerate(calls):
        with torch.set_grad_enabled(place not in evaluated):
            compiled(x)
    return found


def test_the_most_is_the_largest_size_so_far_not_what_the_code_could_take() -> None:
    assert largest(torch.ones(n, 8) for n in (512, 256, 600)) == [(), (512,), (600,)]


class InPairs(nn.Module):
    """Reads rows in pairs, the last one with another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % 2:
            x = torch.cat([x, x[:1]])
        made: Tensor = self.layer(x.view(x.shape[0] // 2, 2, 8))
        return made


def test_the_most_is_a_size_that_the_code_was_traced_for() -> None:
    calls = [torch.ones(n, 8) for n in (513, 256, 300, 255)]
    assert largest(calls, InPairs()) == [(), (512,), (513,)]


def test_the_most_is_what_was_said() -> None:
    x = torch.ones(64, 8)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=512)
    assert largest([x, torch.ones(512, 8)]) == [(512,)]


def test_sizes_of_calls_that_do_not_train_are_not_planned_for() -> None:
    sizes = (512, 2048, 256, 3000)
    told = largest((torch.ones(n, 8) for n in sizes), evaluated=(1, 3))
    assert told == [(), (), (512,)]


def test_a_size_of_which_nothing_is_known_is_refused() -> None:
    x = torch.ones(64, 8)
    torch._dynamo.decorators.mark_unbacked(x, 0)
    with pytest.raises(BackendCompilerFailed, match=r"of L.*size\(\)\[0\] nothing is known"):
        largest([x], nn.Linear(8, 8))
