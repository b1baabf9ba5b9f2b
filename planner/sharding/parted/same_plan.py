"""What has to be so before layers are parted: the plan's own styles, and one plan on all ranks.

Ranks that shard or part otherwise wait for each other's collectives for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from planner.errors import CaptureError, PlanMismatch
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.running.one_plan import compare, digest, digest_of
from planner.sharding.parted.declared import declared
from planner.sharding.parted.parallelize import Styles, described
from planner.tensor_parallel import tensor_parallel_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def styles_of(plan: ShardedStepPlan, model: nn.Module, said: Any) -> Styles:
    """Return the styles by which a plan parts a model's layers; none if they stay whole.

    Args:
        plan: that is applied.
        model: whole, which may declare the styles.
        said: what the person says of them, as for ``fit``; none takes the model's own.

    Raises:
        PlanMismatch: they are not those that the plan was made with.
    """
    c, tensor = plan.configuration, plan.tensor
    if c.tensor_ranks == 1:
        return {}
    assert tensor is not None, "a plan that parts layers says how"
    asked = None if said is None else tensor_parallel_of(said)
    given: Styles | None = None
    if asked is not None:
        given = asked.sequence if c.sequence_parallel else asked.styles
    if given is None:
        if not tensor.declared and asked is None:
            raise PlanMismatch(
                "the plan was made with styles of tensor parallelism that are not the model's own: "
                "pass them again, plan.apply(model, tensor_parallel=...)"
            )
        given = _own(model, sequence=c.sequence_parallel)
    found = described(given)
    if found != tensor.styles:
        before, after = dict(tensor.styles), dict(found)
        path = next((p for p in {**before, **after} if before.get(p) != after.get(p)), "the order")
        raise PlanMismatch(
            f"the style of {path!r} is {after.get(path, 'missing')}, planned for "
            f"{before.get(path, 'none')}: pass tensor_parallel= as it was for fit, or plan again"
        )
    return given


def _own(model: nn.Module, *, sequence: bool) -> Styles:
    try:
        own = declared(model)
    except CaptureError as error:
        raise PlanMismatch(f"the plan parts layers as the model declares, but {error}") from error
    styles = own.sequence if sequence else own.styles
    if styles is None:
        raise PlanMismatch(
            "the plan has sequence parallelism for a stack of layers that this model does not have"
        )
    return styles


def require_alike(plan: ShardedStepPlan, mesh: DeviceMesh | None) -> None:
    """Compare the plans of all ranks; each takes part.

    Args:
        plan: of this rank.
        mesh: over the ranks; none is all there are.

    Raises:
        PlanMismatch: ranks have different plans; the message says which.
    """
    import torch.distributed as dist

    dimensions = range(0 if mesh is None else mesh.ndim)
    groups = [mesh.get_group(d) for d in dimensions] if mesh else [dist.group.WORLD]
    own = digest_of([repr(plan.configuration), digest(plan.step)])
    compare(own, [group for group in groups if group is not None])
