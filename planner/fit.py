"""The door: a request in, a plan out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Unpack, overload

from planner.errors import BadRequest
from planner.planning import plan_step
from planner.plans import Plan, ShardedPlan, with_verbs
from planner.request import Request, requested, takes
from planner.request_defaults import without_labels
from planner.step_options import AnyOptions, FitOptions, ShardedOptions

if TYPE_CHECKING:
    from torch import nn


@overload
def fit(
    model: nn.Module | Request,
    budget: str | float,
    *,
    world_size: Literal[1] = 1,
    **said: Unpack[FitOptions],
) -> Plan: ...


@overload
def fit(
    model: nn.Module | Request,
    budget: str | float,
    *,
    world_size: int,
    **said: Unpack[ShardedOptions],
) -> Plan | ShardedPlan: ...


@takes(AnyOptions)
def fit(
    model: nn.Module | Request, budget: str | float, **said: Unpack[AnyOptions]
) -> Plan | ShardedPlan:
    """Plan one training step of a model within a budget of device memory.

    The budget covers everything: parameters, gradients, optimizer state, activations, temporaries
    and the reserve of the device.

    Args:
        model: any ``nn.Module``, on a real, meta or fake device; it is not changed. Or a
            ``Request``.
        budget: "40GB", "40GiB", "80%" of the device, or an int of bytes.
        said: what else is to be said of the step: ``inputs``, ``loss``, ``targets``, ``dynamic``,
            ``optimizer``, ``device``, ``reserve``, ``costs``, ``engine``, ``method``, ``limits``,
            ``progress``, ``accumulate``, ``checks``, ``loss_chunks``, ``logits``,
            ``mlp_chunks``, ``offload``; and with a ``world_size`` above 1
            ``devices_per_node``, ``link``, ``global_batch``, ``precisions``.
            ``planner.Request`` says what each means.

    Raises:
        BadBudget, BadCluster, BadRequest, UnknownMethod, UnknownEngine, UnknownDevice: something is
            not what it should be, or would have no effect.
        CaptureError: the step cannot be captured, or no inputs are known.
        InfeasibleBudget: no schedule found fits; the error has the least budget that works.

    >>> from torch import nn, zeros
    >>> model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU())
    >>> plan = fit(model, "14.5MB", inputs=zeros(4096, 64), loss=lambda out: out.square().mean())
    >>> plan.peak_bytes <= 14_500_000 < plan.plain_peak_bytes
    True
    """
    with requested(model, said) as request:
        budget_bytes = request.budget_bytes(budget)
        if request.world_size == 1:
            plan = plan_step(request, budget_bytes)
            given = model.inputs if isinstance(model, Request) else said.get("inputs")
            own = given is None and request.loss is None
            missing = without_labels(request.model) if own else None
            return Plan.of(plan if missing is None else plan.with_remark(missing))
        from planner.running.engines import engine_of
        from planner.sharding.fit_sharded import fit_sharded

        if not engine_of(request.engine).sharded:
            raise BadRequest(f"engine={request.engine!r} is for one device so far")

        return with_verbs(fit_sharded(request, budget_bytes))
