"""Train one step, plain and planned, and compare everything a user could look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from planner.graphs import plain_schedule, simulate
from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.step_function import unique_tensors
from planner.graphs.capture.training_step import Captured, capture
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.graphs.torch_api.pytree import tree_leaves, tree_map
from planner.graphs.torch_api.storages import storage_key
from planner.plans import Plan
from planner.solvers import minimum_budget
from tests.asked import plan_graph

AMPLE = 10**12


@dataclass(frozen=True)
class Scene:
    """How to make a model, and how it is called; both are made afresh for every run."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    loss: Callable[..., Any] | None = None
    targets: Any = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def call(self) -> Any:
        torch.manual_seed(1)
        return self.inputs()

    def capture(self, model: nn.Module, **options: Any) -> Captured:
        with self.around():
            return capture(
                model,
                self.call(),
                loss=self.loss,
                targets=self.targets,
                **{"optimizer": None} | options,
            )

    def plan(
        self, model: nn.Module, method: str = "least", *, share: float | None = None, **options: Any
    ) -> Plan:
        """Plan with a solver's method and a share of the plain peak, or the least that works."""
        captured = self.capture(model, **options)
        if method != "least":
            plain = simulate(captured.graph, plain_schedule(captured.graph)).peak_bytes
            budget = AMPLE if share is None else int(share * plain)
            return replace(plan_graph(captured, budget, method=method), loss=self.loss)
        least = minimum_budget(captured.graph, thorough=False)
        budget = least.least_bytes
        plan = plan_graph(captured, AMPLE, method="plain")
        return replace(plan, schedule=least.schedule, budget_bytes=budget, loss=self.loss)


def planned(scene: Scene, method: str = "recompute_all", **options: Any) -> nn.Module:
    """Return a fresh model of a scene that runs a plan of it."""
    model = scene.model()
    return scene.plan(model, method).apply(model, **options)


def forward(scene: Scene, model: nn.Module, call: Any) -> Any:
    """Call a plain or planned model; the loss of a planned one is inside."""
    args, kwargs, _ = arguments_of(call).rebuild(arguments_of(call).tensors)
    with scene.around():
        if scene.loss is None:
            return model(*args, **kwargs)
        if is_planned(model):
            return model(*args, **kwargs, targets=scene.targets)
        targets = scene.targets if isinstance(scene.targets, tuple) else (scene.targets,)
        return scene.loss(model(*args, **kwargs), *(t for t in targets if t is not None))


def is_planned(model: nn.Module) -> bool:
    return type(model) is not type(model).__mro__[1] and "__reduce_ex__" in vars(type(model))


def backward(output: Any) -> None:
    """Differentiate the loss, or every output with a gradient that is not all ones."""
    if isinstance(output, Mapping) and output.get("loss") is not None:
        output["loss"].backward()
        return
    wanted = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    if isinstance(output, tuple) and wanted[0].dim() == 0:
        wanted = wanted[:1]
    generator = torch.Generator().manual_seed(2)
    draw = lambda t: torch.randn(t.shape, generator=generator).to(t.dtype)  # noqa: E731
    torch.autograd.backward(wanted, [draw(t) for t in wanted])


def train(scene: Scene, model: nn.Module, steps: int = 1) -> dict[str, Any]:
    """Run steps without an optimizer; return all that is left of them by name."""
    torch.manual_seed(3)
    found: dict[str, Any] = {}
    for step in range(steps):
        call = scene.call()
        output = forward(scene, model, call)
        found |= {f"{step} output {i}": leaf for i, leaf in enumerate(tree_leaves(output))}
        backward(output)
        inputs = arguments_of(call).tensors
        found |= {f"{step} input grad {i}": x.grad for i, x in enumerate(inputs)}
        found[f"{step} rng"] = torch.get_rng_state()
    parameters, buffers = unique_tensors(model)
    found |= {f"grad {name}": p.grad for name, p in parameters.items()}
    found |= {f"buffer {name}": b for name, b in buffers.items()}
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, found)


def assert_same(plain: Mapping[str, Any], planned: Mapping[str, Any]) -> None:
    """Compare two results bit by bit."""
    assert plain.keys() == planned.keys()
    for name, a in plain.items():
        b = planned[name]
        if isinstance(a, Tensor):
            assert isinstance(b, Tensor), f"{name} is {b!r}, expected a tensor"
            assert (a.dtype, a.stride(), a.layout) == (b.dtype, b.stride(), b.layout), name
            assert torch.equal(a, b), f"{name} is off by {(a.double() - b.double()).abs().max()}"
        else:
            assert a == b, name


def resident_bytes(model: nn.Module, call: Any, targets: Any = None) -> int:
    """Add up the storages of parameters, buffers, inputs and targets."""
    members = [*model.parameters(), *model.buffers(), *arguments_of(call, targets).tensors]
    storages = {storage_key(t): t.untyped_storage().nbytes() for t in members}
    return sum(storages.values())


def measured_peak(scene: Scene, model: nn.Module) -> int:
    """Return what a step holds at most: the resident bytes and the allocator's records."""

    def step() -> None:
        forward(scene, model, call).backward()

    call = scene.call()
    model.zero_grad(set_to_none=True)
    step()
    model.zero_grad(set_to_none=True)
    return resident_bytes(model, call, scene.targets) + measure_peak(step).peak_bytes


def recomputed_targets(plan: Plan) -> set[str]:
    """Name the operators that a plan runs more than once."""
    return {plan.graph.ops[r.index].target for r in plan.recomputed}
