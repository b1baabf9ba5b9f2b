"""A planned step that runs out of memory says what was planned, what was held, and where they part.

No accelerator is needed: an operator raises what torch raises there, and the allocator is a fake.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planner
from planner.graphs import Kind
from planner.plans import Plan
from planner.running.apply import planned_class
from planner.running.out_of_memory import Account, Held
from planner.running.planned_module import reclassed
from tests.scenes import Apply, mlp

BURSTS = {"forward": False, "backward": False}


def _burst(x: Tensor, where: str) -> Tensor:
    if BURSTS[where]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return x.clone()


@pytest.fixture(scope="module", autouse=True)
def burst() -> Iterator[Any]:
    library = torch.library.Library("planner_tests", "FRAGMENT")
    made = torch.library.custom_op("planner_tests::burst", _burst, mutates_args=())
    made.register_fake(lambda x, where: torch.empty_like(x))
    made.register_autograd(lambda ctx, grad: (made(grad, "backward"), None))
    yield made
    library._destroy()  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    BURSTS.update(forward=False, backward=False)


def _plan(burst: Any, **said: Any) -> tuple[nn.Module, Plan]:
    model = Apply(lambda m, x: m.b(burst(m.a(x), "forward")).square().mean(), a=mlp(), b=mlp())
    return model, planner.fit(model, "2MB", inputs=torch.ones(64, 16), **said)


def _fails(model: nn.Module, plan: Plan, where: str, figures: list[int]) -> str:
    """Run a step whose device is found to hold these bytes when it is asked, one after another."""
    found = iter(figures)
    account = Account(plan, lambda device: Held(next(found), 10**9))
    patched = reclassed(model, planned_class(plan, model, account=account))
    BURSTS[where] = True
    with pytest.raises(torch.OutOfMemoryError) as caught:
        patched(torch.ones(64, 16)).backward()
    return str(caught.value)


def test_what_was_there_before_the_step(burst: Any) -> None:
    model, plan = _plan(burst)
    text = _fails(model, plan, "forward", [10**8, 10**8])
    assert text.startswith("CUDA out of memory. Tried to allocate 2.00 GiB.\nThis was the forward")
    assert "of a budget of 2.00 MB (1.91 MiB); held were 100 MB (95.4 MiB), for which" in text
    assert "They first differ before the step began: 100 MB were held" in text
    assert "reserve= counts it" in text


def test_what_is_done_between_the_halves(burst: Any) -> None:
    model, plan = _plan(burst)
    text = _fails(model, plan, "backward", [1000, 10**8, 10**8])
    assert "This was the backward half" in text
    assert "They first differ between forward and backward: 100 MB were held" in text
    assert "part of the step with loss=" in text


def test_a_kernel_that_takes_more_and_an_allocator_in_pieces(burst: Any) -> None:
    model, plan = _plan(burst)
    text = _fails(model, plan, "backward", [1000, 1000, 10**8])
    assert "They first differ within this half" in text
    text = _fails(model, plan, "backward", [1000, 1000, 1000])
    assert "Tensors held no more than planned: 1.00 GB lie in pieces" in text


def test_what_is_left_to_others_counts_for_no_tensor_of_ours(burst: Any) -> None:
    model, plan = _plan(burst, reserve="1MB")
    assert any(v.kind is Kind.RESERVE for v in plan.graph.values)
    text = _fails(model, plan, "forward", [10**6, 10**6])
    assert "before the step began: 1.00 MB were held" in text


def test_where_no_allocator_counts_the_plan_is_told(burst: Any) -> None:
    model, plan = _plan(burst)
    BURSTS["forward"] = True
    with pytest.raises(torch.OutOfMemoryError, match=r"of a budget of 2\.00 MB \(1\.91 MiB\)\.$"):
        plan.apply(model)(torch.ones(64, 16))
