"""A few training steps, really run, in a process that does nothing else.

The step is the usual one: ``zero_grad(set_to_none=True)``, forward, loss,
backward, ``optimizer.step()``; the model's output is held until the step ends.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from planner.errors import PlannerError
from planner.graphs.capture.call_arguments import Arguments, Inputs, arguments_of
from planner.graphs.capture.guards.call import device_of
from planner.graphs.capture.optimizer_step import named_optimizer
from planner.graphs.capture.placed import local_of, whole_of
from planner.graphs.torch_api.allocation_records import PeakRecord, measure_peak
from planner.graphs.torch_api.pytree import tree_leaves
from planner.graphs.torch_api.storages import storage_key
from planner.running.engines import engine_of
from planner.running.states_on_host import offload_states, storages_on_host
from planner.verification.process_memory import (
    give_freed_memory_back,
    keep_freed_memory,
    resident_growth,
)

if TYPE_CHECKING:
    from planner.plan.step_plan import StepPlan

Factory = Callable[[], tuple[nn.Module, Any]]
Watch = Callable[[Callable[[], float], Callable[[], None]], PeakRecord[float]]
"""Takes a step, and what drops the gradients of the one before."""
GRADIENTS, STATE = "gradients.pt", "state.pt"


@dataclass(frozen=True)
class Trial:
    """What to run. ``model`` is a model, or a function that returns one and its inputs.

    ``optimizer`` is a name, or makes an optimizer from a list of parameters; ``None`` leaves the
    optimizer out. Without a plan the model runs as it does for those who use the ``engine`` alone.
    """

    model: nn.Module | Factory
    inputs: Inputs | None
    loss: Callable[..., Any] | None
    targets: Any
    optimizer: str | Callable[[list[Tensor]], Optimizer] | None
    plan: StepPlan | None
    steps: int
    seed: int
    threads: int
    engine: str = "op_by_op"


@dataclass(frozen=True)
class Measurement:
    """What a run needed.

    ``static_bytes`` are the storages alive when a steady step begins: parameters, buffers, inputs
    and optimizer state. ``peak_bytes`` adds the most the allocator's records show above that;
    ``high_water_bytes`` adds what the process's resident memory grew by instead (0 where the
    system does not say). ``seconds`` is the median of the timed steps.
    """

    peak_bytes: int
    static_bytes: int
    high_water_bytes: int
    seconds: float
    step_seconds: tuple[float, ...]
    losses: tuple[float, ...]


def run(trial: Trial, folder: Path, watch: Watch | None = None) -> Measurement:
    """Train for a few steps; write the gradients of the first and the last state to a folder.

    Args:
        trial: what to run.
        folder: where to write.
        watch: runs the step, maybe several times, and says what it held; by default once.

    Step 1 makes the optimizer's state and leaves the gradients to compare. Step 2 is watched by the
    system, step 3 by the allocator, step 4 warms up, and the others are timed.
    """
    give_freed_memory_back()
    torch.set_num_threads(trial.threads)
    model, inputs = _build(trial)
    optimizer = make_optimizer(trial.optimizer, model)
    if optimizer is not None and trial.plan is not None:
        offload_states(optimizer, trial.plan, model)
    call = arguments_of(inputs, trial.targets)
    forward = _forward(trial, model, call)

    def step() -> float:
        return train_step(model, forward, optimizer)

    torch.manual_seed(trial.seed)
    losses = [step()]
    torch.save(_gradients(model), folder / GRADIENTS)
    _clear(model)
    static = _static_bytes(model, optimizer, call.tensors)
    loss, growth = resident_growth(step)
    losses.append(loss)
    _clear(model)
    look = watch or (lambda step, _: measure_peak(step, device_of(model)))
    record = look(step, partial(_clear, model))
    losses.append(record.result)
    keep_freed_memory()
    seconds = []
    for _ in range(1 + trial.steps):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    torch.save(_state(model), folder / STATE)
    total = static + record.peak_bytes
    water = static + growth if growth else 0
    return Measurement(total, static, water, median(seconds[1:]), tuple(seconds[1:]), tuple(losses))


def train_step(
    model: nn.Module, forward: Callable[[], tuple[Any, Tensor]], optimizer: Optimizer | None
) -> float:
    """Run one training step as users write it and return the loss.

    Args:
        model: in training mode.
        forward: returns the output and the loss.
        optimizer: none takes no step.
    """
    model.zero_grad(set_to_none=True)
    output, loss = forward()  # the output is held to the end of the step, as in a user's loop
    loss.backward()  # type: ignore[no-untyped-call]
    if optimizer is not None:
        optimizer.step()
    del output
    return loss.item()


def make_optimizer(
    optimizer: str | Callable[[list[Tensor]], Optimizer] | None, model: nn.Module
) -> Optimizer | None:
    """Make an optimizer of the given name, class or function for what a model trains.

    >>> type(make_optimizer("adamw", nn.Linear(2, 2))).__name__
    'AdamW'
    """
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if optimizer is None:
        return None
    if isinstance(optimizer, str):
        maker, keywords = named_optimizer(optimizer)
        return maker(parameters, **keywords)
    return optimizer(parameters)


def _forward(trial: Trial, model: nn.Module, call: Arguments) -> Callable[[], tuple[Any, Tensor]]:
    """Return what computes output and loss; a planned model has the loss callable inside."""
    args, kwargs, targets = call.rebuild(call.tensors)
    loss = trial.loss

    def forward() -> tuple[Any, Tensor]:
        output = model(*args, **kwargs)
        return output, scalar_of(output if loss is None else loss(output, *targets))

    def planned() -> tuple[Any, Tensor]:
        output = model(*args, **kwargs, targets=trial.targets)
        return output, scalar_of(output)

    inside = trial.plan is not None or engine_of(trial.engine).without_plan is not None
    return planned if inside and loss is not None else forward


def scalar_of(output: Any) -> Tensor:
    """Return what to call ``backward`` on: the loss, or the sum of all that requires grad.

    >>> x = torch.ones(2, requires_grad=True)
    >>> scalar_of({"loss": x.sum(), "logits": x}).item(), scalar_of((x, 3)).item()
    (2.0, 2.0)
    """
    if isinstance(output, Mapping) and isinstance(output.get("loss"), Tensor):
        return output["loss"]  # type: ignore[no-any-return]
    tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
    if tensors and tensors[0].dim() == 0:
        return tensors[0]
    found = [t.sum() for t in tensors if t.requires_grad]
    if not found:
        raise PlannerError("the model's output holds nothing to differentiate: pass loss=")
    return sum(found[1:], start=found[0])


def _build(trial: Trial) -> tuple[nn.Module, Any]:
    torch.manual_seed(trial.seed)
    model, inputs = trial.model, trial.inputs
    if not isinstance(model, nn.Module):
        model, example = model()
        inputs = example if inputs is None else inputs
    if inputs is None:
        raise PlannerError("it is not known what to run the model on: pass inputs=")
    if trial.plan is not None:
        from planner.running.apply import apply

        model = apply(trial.plan, model, loss=trial.loss)
    elif (alone := engine_of(trial.engine).without_plan) is not None:
        model = alone(model, trial.loss)
    return model, inputs


def _clear(model: nn.Module) -> None:
    model.zero_grad(set_to_none=True)
    gc.collect()


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    trained = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n: whole_of(g) for n, g in trained.items()}  # which may lie otherwise than parameters


def _state(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    return {
        "parameters": {n: local_of(p.detach()) for n, p in model.named_parameters()},
        "buffers": {n: local_of(b.detach()) for n, b in model.named_buffers()},
    }


def _static_bytes(model: nn.Module, optimizer: Optimizer | None, inputs: Iterable[Tensor]) -> int:
    """Add up the distinct storages on the model's device that a steady step starts from."""
    home = device_of(model)
    state = tree_leaves(list(optimizer.state.values())) if optimizer else []
    tensors = [*model.parameters(), *model.buffers(), *inputs]
    tensors += [t for t in state if isinstance(t, Tensor)]
    here = (local_of(t) for t in tensors if t.device == home)
    storages = {storage_key(t): t.untyped_storage().nbytes() for t in here}
    away = storages_on_host(optimizer) if optimizer else set()
    return sum(size for key, size in storages.items() if key not in away)
