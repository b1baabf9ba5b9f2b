"""Check a plan for several ranks by running it: plain and planned, one process a rank over gloo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.multiprocessing.spawn import ProcessException

from planner.errors import BadRequest, CaptureError
from planner.sharding.samples import samples_in, with_samples
from planner.verification.difference import Difference, compare_tensors
from planner.verification.ranks import RankMeasurement, ShardedTrial, run_ranks
from planner.verification.training_run import Measurement
from planner.verification.verification import Verification, VerificationFailed, losses_of

if TYPE_CHECKING:
    from torch import Tensor

    from planner.plan.configuration import Configuration
    from planner.plan.sharded_step_plan import ShardedStepPlan


@dataclass(frozen=True)
class _OfRank:
    """Makes the model on a rank, and takes its part of the samples of a whole step."""

    make: Callable[[], tuple[nn.Module, Any]]
    inputs: Any
    configuration: Configuration

    def __call__(self, rank: int) -> tuple[nn.Module, Any]:
        model, example = self.make()
        inputs = example if self.inputs is None else self.inputs
        c, whole = self.configuration, self.configuration.global_batch
        inputs = with_samples(inputs, samples_in(inputs), whole)
        each, part = whole // c.data_ranks, rank // c.tensor_ranks
        return model, _rows(inputs, whole, part * each, each)


def _rows(tree: Any, whole: int, start: int, count: int) -> Any:
    """Return so many samples from one on, of every tensor that has all of them."""
    from torch import Tensor

    from planner.graphs.torch_api.pytree import tree_map

    def part(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == whole
        return leaf[start : start + count].clone() if batched else leaf

    return tree_map(part, tree)


def verify_sharded(
    model: Any,
    plan: ShardedStepPlan,
    inputs: Any = None,
    *,
    steps: int = 5,
    seed: int = 0,
    tensor_parallel: Any = None,
) -> Verification:
    """Train a model on all ranks of a plan, plain and planned, on this machine, and compare.

    Plain is what torch does with the plan's strategy and styles alone. Each rank that has samples
    of its own takes its part of the inputs, which are repeated to fill the global batch.

    Args:
        model: an importable function that returns ``(model, inputs)``, called on each rank.
        plan: for ranks of a CPU.
        inputs: what the function returns if not given.
        steps: how many steps are timed.
        seed: of the model's parameters and random ops.
        tensor_parallel: as for ``apply``: styles that are not the model's own.

    Raises:
        BadRequest: a model instead of a function, or a plan for accelerators.
        VerificationFailed: a rank failed; the message has its traceback.
    """
    if isinstance(model, nn.Module):
        raise BadRequest(
            f"the plan is for {plan.configuration.world_size} ranks: give a function, importable, "
            "that returns (model, inputs); it is called on each rank, in a process group over gloo"
        )
    if plan.cluster.device.name != "cpu":
        raise BadRequest(
            f"the plan is for {plan.cluster}, and ranks are run over gloo on this machine's CPU: "
            "plan with device='cpu' to check it here"
        )
    if (plan.step.optimizer or "").lower() != "adamw":
        raise BadRequest(
            f"the plan is for the optimizer {plan.step.optimizer}, ranks are trained with AdamW: "
            "plan with optimizer='adamw' to check it here"
        )
    from planner.sharding.parted.same_plan import styles_of

    try:
        made, _ = model()
        styles = styles_of(plan, made, tensor_parallel) or None
    except CaptureError as error:
        raise VerificationFailed(str(error)) from error
    factory = _OfRank(model, inputs, plan.configuration)
    plain = ShardedTrial(
        factory, plan.configuration, plan.units, steps=steps, seed=seed, styles=styles
    )
    planned = replace(plain, plan=plan, styles=tensor_parallel)
    try:
        left, right = run_ranks([plain, planned])
    except ProcessException as error:
        raise VerificationFailed(str(error).strip()) from error
    return _conclude(plan, left, right)


def _conclude(
    plan: ShardedStepPlan, left: list[RankMeasurement], right: list[RankMeasurement]
) -> Verification:
    kept = plan.reserve_bytes  # no tensor's, so no measurement has it
    plain, planned = _most(left), _most(right)
    return Verification(
        plain=plain,
        planned=planned,
        predicted_bytes=plan.peak_bytes - kept,
        budget_bytes=plan.budget_bytes - kept,
        loss=compare_tensors(losses_of(plain), losses_of(planned)),
        gradients=_compared(left, right, lambda rank: rank.gradients),
        parameters=_compared(left, right, lambda rank: rank.parameters),
        buffers=_compared(left, right, lambda rank: rank.buffers),
    )


def _compared(
    left: list[RankMeasurement],
    right: list[RankMeasurement],
    of: Callable[[RankMeasurement], dict[str, Tensor]],
) -> Difference:
    """Compare tensors of every rank: what lies whole on several may differ on one of them."""
    sides = (
        {f"{name} of rank {r}": t for r, rank in enumerate(side) for name, t in of(rank).items()}
        for side in (left, right)
    )
    return compare_tensors(*sides)


def _most(ranks: list[RankMeasurement]) -> Measurement:
    """Return what the fullest rank held, with the losses of all."""
    most = max(ranks, key=lambda rank: rank.peak_bytes)
    losses = tuple(loss for rank in ranks for loss in rank.losses)
    seconds = max(rank.seconds for rank in ranks)
    return Measurement(most.peak_bytes, most.static_bytes, 0, seconds, (seconds,), losses)
