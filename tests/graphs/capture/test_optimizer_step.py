"""The predicted step of each optimizer against the allocator's records of a real one."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import psutil
import pytest
import torch
import torch_optimizer
from torch import Tensor
from torch.optim import Optimizer
from transformers import Adafactor

from planner.graphs.capture.optimizer_step import OptimizerError, OptimizerStep, optimizer_step
from planner.graphs.hardware.devices import device
from planner.graphs.torch_api.allocation_records import measure_peak

SHAPES = ((300, 200), (200,), (64, 3, 3, 3), (500, 300), (1,))
# Records of a step that fake tensors do not make: scalars wrapped as 0-dimensional tensors.
SCALARS = 64 * len(SHAPES)


def parameters(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]


def give_gradients(weights: list[Tensor], *, second_order: bool) -> None:
    for p in weights:
        p.grad = None if second_order else torch.randn_like(p)
    if second_order:
        torch.autograd.backward([(p * p).sum() for p in weights], create_graph=True)


def really_step(
    make: Callable[[list[Tensor]], Optimizer], *, second_order: bool
) -> tuple[int, int]:
    """Return the state and the workspace that two real steps take from the allocator."""
    # Everything is allocated under the recorder, so that it also sees it freed.
    weights = measure_peak(parameters, collect=False).result
    built: list[Optimizer] = []

    def fresh_gradients() -> None:
        give_gradients(weights, second_order=second_order)

    def first() -> None:
        built.append(make(weights))
        built[0].step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch_optimizer still calls deprecated overloads
        measure_peak(fresh_gradients, collect=second_order)
        one = measure_peak(first, collect=second_order)
        measure_peak(fresh_gradients, collect=second_order)
        two = measure_peak(built[0].step, collect=second_order)
    for p in weights:
        p.grad = None  # breaks the cycle that create_graph makes
    state = one.left_bytes + two.left_bytes
    return state, max(one.peak_bytes, one.left_bytes + two.peak_bytes) - state


NAMED: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda p: torch.optim.SGD(p, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamw_loop": lambda p: torch.optim.AdamW(p, foreach=False),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, fused=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, fused=True),
    "adafactor": torch.optim.Adafactor,
    "adagrad": torch.optim.Adagrad,
    "adamax": torch.optim.Adamax,
    "adadelta": torch.optim.Adadelta,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
}
OTHERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "transformers.Adafactor": Adafactor,
    "lamb": torch_optimizer.Lamb,
    "lookahead": lambda p: torch_optimizer.Lookahead(torch_optimizer.Yogi(p)),
    "adabelief": torch_optimizer.AdaBelief,
    "madgrad": torch_optimizer.MADGRAD,
    "novograd": torch_optimizer.NovoGrad,
    "adahessian": torch_optimizer.Adahessian,
}


def check(step: OptimizerStep, make: Callable[[list[Tensor]], Optimizer]) -> None:
    state, workspace = really_step(make, second_order=step.second_order)
    slack = SCALARS if step.second_order else 0  # the graph of the gradients holds scalars
    assert abs(step.state_bytes - state) <= slack, (step, state)
    assert abs(step.workspace_bytes - workspace) <= SCALARS, (step, workspace)


@pytest.mark.parametrize("name", NAMED)
def test_named_optimizer_is_predicted_to_the_byte(name: str) -> None:
    check(optimizer_step(parameters(), name), NAMED[name])


@pytest.mark.parametrize("name", OTHERS)
def test_foreign_optimizer_is_predicted_to_the_byte(name: str) -> None:
    check(optimizer_step(parameters(), OTHERS[name]), OTHERS[name])


def test_step_that_asks_for_data_is_predicted_for_the_worst_answer() -> None:
    # AdamP projects a gradient only if it is nearly parallel to its weight.
    step = optimizer_step(parameters(), torch_optimizer.AdamP)
    state, workspace = really_step(torch_optimizer.AdamP, second_order=False)
    assert step.state_bytes == state
    assert workspace <= step.workspace_bytes <= workspace * 1.01


@pytest.mark.parametrize(
    ("name", "expected"),
    [("adamw", 1), ("adamw_foreach", 1), ("adamw_fused", 0), ("sgd", 0), ("adamw_loop", 3 / 8)],
)
def test_kernel_on_an_accelerator_is_the_one_torch_would_choose(name: str, expected: float) -> None:
    weights = [torch.empty(1000, 1000, device="meta") for _ in range(8)]
    step = optimizer_step(weights, name, device="cuda")
    assert step.workspace_bytes == 8 * 4_000_000 * expected


def test_built_optimizer_keeps_its_groups_and_is_not_touched() -> None:
    weights = parameters()
    groups = [{"params": weights[:2], "momentum": 0.9}, {"params": weights[2:]}]
    built = torch.optim.SGD(groups, lr=0.1)
    calls: list[int] = []
    built.register_step_post_hook(lambda *_: calls.append(1))
    torch.optim.lr_scheduler.StepLR(built, 1)
    step = optimizer_step(weights, built)
    assert step.name == "SGD"
    assert step.state_bytes == sum(p.numel() * 4 for p in weights[:2])
    assert not built.state
    assert not calls
    assert all(p.grad is None for p in weights)
    assert built.param_groups[0]["params"][0] is weights[0]


def test_frozen_parameters_of_a_built_optimizer_get_no_state() -> None:
    weights = parameters()
    weights[0].requires_grad_(False)
    step = optimizer_step(weights, torch.optim.SGD(weights, momentum=0.9))
    assert step.state_bytes == sum(p.numel() * 4 for p in weights[1:])


def test_no_optimizer_or_no_parameters_cost_nothing() -> None:
    nothing = OptimizerStep("none", 0, 0, 0)
    assert optimizer_step(parameters(), None) == nothing
    assert optimizer_step([], "adamw") == nothing


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("adamm", "unknown optimizer 'adamm'; names: .*adamw"),
        ("adamw_slow", "unknown optimizer 'adamw_slow'"),
        ("lbfgs", "step of lbfgs cannot be run without data: .*closure"),
        ("sparseadam", "SparseAdam does not support dense gradients"),
        ("radam_fused", "step of radam_fused cannot be run without data: .*fused"),
        (len, "len returned int, not a torch.optim.Optimizer"),
    ],
)
def test_what_cannot_be_run_says_why(optimizer: object, message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        optimizer_step(parameters(), optimizer)  # type: ignore[arg-type]


def test_a_model_of_seventy_billion_parameters_takes_seconds_and_no_memory() -> None:
    shapes = [(8192, 8192)] * 2 + [(1024, 8192)] * 2 + [(28672, 8192)] * 3 + [(8192,)] * 2
    weights = [
        torch.empty(shape, device="meta", dtype=torch.bfloat16)
        for _ in range(80)
        for shape in shapes
    ]
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    step = optimizer_step(weights, "adamw_fused", device="cuda")
    assert step.state_bytes == 2 * sum(p.numel() * 2 for p in weights) + 4 * len(weights)
    assert time.perf_counter() - start < 30
    assert psutil.Process().memory_info().rss - before < 200e6


def test_a_step_takes_as_long_as_to_issue_it() -> None:
    card = device("A100-40GB")
    loop = optimizer_step(parameters(), "adamw_loop")
    together = optimizer_step(parameters(), "adamw_foreach")
    assert loop.calls > 2 * together.calls > 0
    assert loop.seconds_on(card) == loop.calls * card.issue_seconds  # a few small tensors
    large = optimizer_step([torch.empty(4096, 4096, device="meta")], "adamw_fused", device="cuda")
    assert large.seconds_on(card) == large.moved_bytes / card.bytes_per_second()


class Cyclic(torch.optim.Adam):
    """An optimizer whose steps leave garbage that only a collection finds."""

    def step(self, closure: object = None) -> None:
        held: list[object] = [torch.empty(1000)]
        held.append(held)
        super().step()


def test_garbage_is_no_state_and_is_looked_for_only_where_there_may_be_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = optimizer_step(parameters(), "adam")
    assert optimizer_step(parameters(), Cyclic).state_bytes == plain.state_bytes

    def refuse() -> None:
        raise AssertionError("it takes longer than the rest")

    monkeypatch.setattr("planner.graphs.capture.optimizer_step.gc.collect", refuse)
    assert optimizer_step(parameters(), "adam") == plain
    with pytest.raises(OptimizerError, match="longer than the rest"):
        optimizer_step(parameters(), Cyclic)
