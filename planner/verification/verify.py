"""Check a plan by running it: plain and planned training, each in a fresh process."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.errors import BadRequest, PlannerError
from planner.graphs import Kind
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.plan.step_plan import StepPlan
from planner.verification.verification import Verification, VerificationFailed, losses_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from planner.verification.training_run import Factory, Measurement, Trial


@dataclass(frozen=True)
class Run:
    """What a trial measured, and its results by kind ("gradients", "parameters", ...) and name."""

    measured: Measurement
    tensors: Mapping[str, Mapping[str, Tensor]]


def verify(
    model: nn.Module | Factory,
    plan: StepPlan | ShardedStepPlan,
    inputs: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    targets: Any = None,
    optimizer: Any = "plan",
    steps: int = 5,
    seed: int = 0,
    tensor_parallel: Any = None,
) -> Verification:
    """Train a model plain and planned, each in a fresh process, and compare.

    Both start from the same parameters and seed; plain training runs the kernels of the plan's
    engine: compiled, if the plan is for ``torch.compile``. The model travels to the processes by
    pickle; one that cannot be pickled is given as an importable function that returns ``(model,
    inputs)``. A script that calls this needs the usual ``if __name__ == "__main__":``.

    Args:
        model: what the plan was made for, or a function that makes it. One that is parallelized
            over ranks is always given as a function, which is called on each of them.
        plan: to be checked. One for several ranks of a CPU runs on as many processes of this
            machine, over gloo, if the model is given as a function and its output is, or has, the
            loss.
        inputs, loss, targets: as for ``fit``.
        optimizer: as for ``fit``; "plan" stands for the one the plan was made for.
        steps: how many steps are timed, after three that warm up and measure memory.
        seed: of parameters and random ops.
        tensor_parallel: for a plan over several ranks, as for ``apply``.

    Raises:
        VerificationFailed: the model does not survive pickling, or a process died.
    """
    if isinstance(plan, ShardedStepPlan):
        if loss is not None or targets is not None or optimizer != "plan":
            raise BadRequest(
                "loss=, targets= and optimizer= are for plans for one device; over several the "
                "model's output is, or has, the loss, and the optimizer is the plan's"
            )
        from planner.verification.verify_sharded import verify_sharded

        return verify_sharded(
            model, plan, inputs, steps=steps, seed=seed, tensor_parallel=tensor_parallel
        )
    if tensor_parallel is not None:
        raise BadRequest("tensor_parallel= is for a plan over several ranks; this is for one")
    if not isinstance(plan, StepPlan):
        raise BadRequest(
            f"the plan is a {type(plan).__name__}; expected verify(model, plan, inputs), the plan "
            "for one device"
        )
    import torch

    from planner.verification.training_run import Trial

    plain = Trial(
        model=model,
        inputs=inputs,
        loss=loss,
        targets=targets,
        optimizer=plan.optimizer if optimizer == "plan" else optimizer,
        plan=None,
        steps=steps,
        seed=seed,
        threads=torch.get_num_threads(),
        engine=plan.engine,
    )
    ranks = math.prod(plan.signature.get("mesh", ()))
    if ranks > 1 and isinstance(model, torch.nn.Module):
        raise BadRequest(
            f"the plan is for a model that is parallelized over {ranks} ranks: give a function, "
            "importable, that parallelizes the model and returns (model, inputs); it is called on "
            "each rank, in a process group over gloo"
        )
    alone = run_alone if ranks == 1 else partial(_run_on_ranks, ranks)
    return conclude(plan, alone(plain), alone(replace(plain, plan=plan)))


def _run_on_ranks(ranks: int, trial: Trial) -> Run:
    """Run a trial of a parallelized model on all of its ranks, on this machine.

    Raises:
        VerificationFailed: a rank failed.
    """
    from planner.verification.mesh_ranks import run_on_ranks

    with tempfile.TemporaryDirectory(prefix="remat-planner-") as name:
        try:
            return Run(*run_on_ranks(trial, ranks, Path(name)))
        except PlannerError as error:
            what = "plain" if trial.plan is None else "planned"
            raise VerificationFailed(f"the {what} training run failed: {error}") from error


def conclude(plan: StepPlan, plain: Run, planned: Run) -> Verification:
    """Compare two runs, and the second with what its plan says.

    Args:
        plan: what the second run followed.
        plain, planned: what each wrote down.
    """
    from planner.verification.difference import compare_tensors

    left, right = plain.tensors, planned.tensors
    kept = sum(v.size_bytes for v in plan.graph.values if v.kind is Kind.RESERVE)
    return Verification(
        plain=plain.measured,
        planned=planned.measured,
        predicted_bytes=plan.peak_bytes - kept,  # no tensor's, so no measurement has it
        budget_bytes=plan.budget_bytes - kept,
        loss=compare_tensors(losses_of(plain.measured), losses_of(planned.measured)),
        gradients=compare_tensors(left["gradients"], right["gradients"]),
        parameters=compare_tensors(left["parameters"], right["parameters"]),
        buffers=compare_tensors(left["buffers"], right["buffers"]),
    )


def run_alone(trial: Trial) -> Run:
    """Run a trial in a fresh process.

    Raises:
        VerificationFailed: the trial does not survive pickling, fails, or the process died.
    """
    import torch

    from planner.verification.training_run import GRADIENTS, STATE

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="remat-planner-") as name:
        folder = Path(name)
        _send(trial, folder / "trial.pt")
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            try:
                measured = pool.submit(_receive, folder).result()
            except BrokenProcessPool as error:
                raise VerificationFailed(
                    "the training process died; most likely the system ran out of memory, or the "
                    'calling script has no `if __name__ == "__main__":`'
                ) from error
            except PlannerError:
                raise
            except Exception as error:  # the user's code may raise anything
                what = "plain" if trial.plan is None else "planned"
                raise VerificationFailed(
                    f"the {what} training run failed with {type(error).__name__}: {error}; check "
                    "that the model, its inputs and its loss train without the planner"
                ) from error
        tensors = {"gradients": torch.load(folder / GRADIENTS)} | torch.load(folder / STATE)
    return Run(measured, tensors)


def _send(trial: Trial, path: Path) -> None:
    import torch

    try:
        torch.save(trial, path)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise VerificationFailed(
            f"the model, its inputs, loss or optimizer cannot be sent to another process: {error}; "
            "define them at the top level of a module, and give the model as an importable "
            "function that returns (model, inputs)"
        ) from error


def _receive(folder: Path) -> Measurement:
    """Run in the new process: unpack the trial and do it."""
    import torch

    from planner.verification.training_run import run

    trial: Trial = torch.load(folder / "trial.pt", weights_only=False)
    (folder / "trial.pt").unlink()  # it may hold a whole model
    return run(trial, folder)
