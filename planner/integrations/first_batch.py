"""A model that is planned when it first trains, in place, for the call that then comes.

A trainer wraps the model it is given and decides how it is called: in which autocast, with which
further arguments. So the plan waits for the first call that trains. Knows no trainer.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from planner.byte_sizes import format_bytes, parse_budget
from planner.errors import BadRequest, InfeasibleBudget
from planner.fit import fit
from planner.graphs.capture.call_arguments import Arguments, arguments
from planner.graphs.capture.sizes import Dynamic, free_dimensions
from planner.graphs.hardware.devices import DeviceSpec
from planner.host_option import Offload, checked_offload, moves_states
from planner.integrations.largest import UNSAID, Largest, enlarged, shown
from planner.loss_chunks import KEEP, check_chunks
from planner.plans import Plan
from planner.progress import Told
from planner.request import OP_BY_OP, checked_method
from planner.request_defaults import find_device
from planner.running.engines import engine_of
from planner.running.planned_module import derived, reclassed, unplanned
from planner.running.states_on_host import bring_states_back, expect_states
from planner.solvers import Limits
from planner.step_options import check_said
from planner.step_variants import AS_CAPTURED, refuse_for_engine

Forward = Callable[..., Any]


class TrainerOptions(TypedDict, total=False):
    """What may be said of a step whose inputs and loss come from a trainer."""

    optimizer: Any
    device: DeviceSpec
    costs: str
    engine: str
    method: str
    limits: Limits
    progress: Told
    accumulate: bool
    checks: str
    dynamic: str | Mapping[str, int | Sequence[int]]
    reserve: str | float | None
    loss_chunks: int | str
    mlp_chunks: int
    logits: str
    offload: Offload


@dataclass
class FirstBatch:
    """What is known before the first call that trains, and what came of it.

    ``said`` is for ``fit``. Where ``largest`` says nothing, ``usual`` is what a trainer expects.
    ``beside_bytes`` of the budget are held by what is trained outside the model.
    """

    budget: str | float
    largest: Largest = UNSAID
    said: Mapping[str, Any] = field(default_factory=dict)
    usual: Largest = UNSAID
    beside_bytes: int = 0
    plan: Plan | None = None
    run: Forward | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_said(self.said, TrainerOptions)
        moves = checked_offload(self.said.get("offload")) is not None
        chunks = self.said.get("loss_chunks", 1)
        in_mlps = self.said.get("mlp_chunks", 1)
        check_chunks(chunks, self.said.get("logits", KEEP), (AS_CAPTURED,), in_mlps)
        engine = self.said.get("engine", OP_BY_OP)
        refuse_for_engine(engine, moves=moves, chunks=in_mlps != 1)
        parse_budget(self.budget, lambda: 1)
        checked_method(self.said.get("method", "auto"))

    def forward(self, model: nn.Module, base: type[nn.Module], *args: Any, **kwargs: Any) -> Any:
        """Run a call: the plan, made now if this is the first that trains.

        Args:
            model: in the class that plans.
            base: the class that it had.
            args, kwargs: of the call.
        """
        trains = model.training and torch.is_grad_enabled()
        with _class_forward(model):
            if trains and getattr(getattr(model, "config", None), "use_cache", None) is True:
                kwargs.setdefault("use_cache", False)  # of transformers: it is for generating
            if self.run is None:
                if not trains:
                    return base.forward(model, *args, **kwargs)
                plain = reclassed(model, base)
                self.plan = self._planned(plain, arguments(args, kwargs))
                self._let_states_wait(self.plan, plain)
                self.run = type(self.plan.apply(plain, on_mismatch="replan")).forward
            return self.run(model, *args, **kwargs)

    def meet_optimizer(self) -> None:
        """Take the optimizer out of accelerate's, and tell it if its states may come to wait.

        Then its very first step, in which a plan may be made, is taken in parts, too.

        Raises:
            BadRequest: there is none to be told, or one that cannot take its step in parts.
        """
        optimizer = self.said.get("optimizer")
        bare = getattr(optimizer, "optimizer", optimizer)
        if bare is not optimizer:
            self.said = {**self.said, "optimizer": bare}
        if not moves_states(self.said.get("offload")):
            return
        if not isinstance(bare, Optimizer):
            raise BadRequest(
                "offload's states are those of an optimizer that has to be told where they wait: "
                f"pass the one that is used as optimizer=, which is {bare!r}, or leave them out"
            )
        if getattr(optimizer, "scaler", None) is not None:
            raise BadRequest(
                "offload's states do not go with an Accelerator that scales gradients, which keeps "
                'the optimizer\'s step as it was: use mixed_precision="bf16", or leave them out'
            )
        expect_states(bare)

    def _let_states_wait(self, plan: Plan, model: nn.Module) -> None:
        if plan.states is not None:
            optimizer = self.said["optimizer"]
            bring_states_back(optimizer)  # an earlier plan may have sent them away
            plan.offload_states(optimizer, model)

    def _free(self, model: nn.Module, call: Arguments) -> Dynamic:
        """Return what one plan serves smaller sizes of, if the engine can."""
        sized = engine_of(self.said.get("engine", OP_BY_OP)).any_size is not None
        return free_dimensions(model, call) if sized else "off"

    def _planned(self, model: nn.Module, call: Arguments) -> Plan:
        larger = enlarged(call, self.largest, self.usual)
        where = find_device(self.said.get("device", "auto"), model)
        budget = parse_budget(self.budget, lambda: where.memory_bytes) - self.beside_bytes
        said: dict[str, Any] = {"dynamic": self._free(model, larger), **self.said}
        try:
            plan: Plan = fit(model, budget, inputs=larger, **said)
        except InfeasibleBudget as error:
            if larger is not call:
                error.add_note(
                    f"It was planned for the largest batch, {shown(larger)}; the first one is "
                    f"{shown(call)}. If none is as large, say so: largest_batch=, largest_length="
                )
            raise
        if not self.beside_bytes:
            return plan
        left = f"{format_bytes(self.beside_bytes)} of the budget are left for what is trained"
        return Plan.of(plan.with_remark(f"{left} outside the planned module, by an Adam"))


def plan_at_first_batch(
    model: nn.Module,
    budget: str | float,
    *,
    largest_batch: int | None = None,
    largest_length: int | None = None,
    **said: Unpack[TrainerOptions],
) -> nn.Module:
    """Let a model be planned at its first call in training mode, with gradients, and return it.

    The model itself changes: from that call on its ``forward`` runs the plan, under whatever
    autocast and with whatever arguments it is called. Smaller sizes are served by the same plan, a
    larger one is planned when it comes, within the same budget. Before or after
    ``accelerator.prepare``; ``plan_of`` has the plan once it is made, ``without_plan`` undoes this.

    Args:
        model: any ``nn.Module``, or one in ``DistributedDataParallel``.
        budget: as for ``fit``: of each process, if there are several.
        largest_batch: the most samples that a call will have (dimension 0 of the inputs); by
            default what the first call has.
        largest_length: the most tokens that a sample will have (dimension 1 of the first input of
            integers, and whatever is as long); by default what the first call has.
        said: ``optimizer``, ``accumulate``, ``checks``, ``dynamic``, ``device``, ``reserve``,
            ``costs``, ``engine``, ``method``, ``limits``, ``progress``, ``loss_chunks``,
            ``logits``, ``offload``, as for ``fit``. With offload's states ``optimizer`` is the very
            one that is used: it is told where they wait.

    Raises:
        BadBudget, BadRequest, UnknownMethod: something is not what it should be.

    >>> from torch import nn, optim, zeros
    >>> model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU())
    >>> model = plan_at_first_batch(model, "17MB")
    >>> model(zeros(4096, 64)).square().mean().backward()
    >>> plan_of(model).peak_bytes <= 17_000_000 < plan_of(model).plain_peak_bytes
    True
    """
    install(model, FirstBatch(budget, Largest(largest_batch, largest_length), said))
    return model


def plan_of(model: nn.Module) -> Plan | None:
    """Return the plan that a model runs since its first batch; ``None`` before.

    >>> print(plan_of(plan_at_first_batch(nn.Linear(2, 2), "1GB")))
    None
    """
    state = getattr(type(inner(model)), "_first_batch", None)
    return None if state is None else state.plan


def without_plan(model: nn.Module) -> nn.Module:
    """Give a model back the class and the ``forward`` it had, and return it.

    >>> without_plan(plan_at_first_batch(nn.Linear(2, 2), "1GB")).__class__ is nn.Linear
    True
    """
    found = inner(model)
    restore = getattr(type(found), "_as_it_was", None)
    if restore is not None:
        restore(found)
    return model


def install(
    model: nn.Module, state: FirstBatch, around: Callable[[Forward], Forward] | None = None
) -> None:
    """Put a model in a class that plans its first batch.

    A ``forward`` that somebody set on the instance (a mixed-precision wrapper, another head) is
    what a plan has to run, so it moves below the plan, into the class.

    Args:
        model: which changes.
        state: what to plan with.
        around: makes of the model's ``forward`` the one that is planned.

    Raises:
        BadRequest: the model is not one that a plan for one device can run.
    """
    without_plan(model)
    model = inner(model)
    state.meet_optimizer()
    before, own = type(unplanned(model)), vars(model).pop("forward", None)
    base = before if own is None else _with_forward(before, _unbound(own, model))
    base = base if around is None else _with_forward(base, around(base.forward))

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return state.forward(self, base, *args, **kwargs)

    def as_it_was(self: nn.Module) -> None:
        self.__class__ = before
        if own is not None:
            vars(self)["forward"] = own

    cls = derived(base, forward)
    cls._first_batch, cls._as_it_was = state, staticmethod(as_it_was)  # type: ignore[attr-defined]
    model.__class__ = cls


def beside(whole: nn.Module, planned: nn.Module) -> int:
    """Return the bytes of parameters outside the planned module, their gradients and Adam's states.

    Args:
        whole: all that is trained.
        planned: a module of it.

    >>> net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1, bias=False))
    >>> beside(net, net[0])
    128
    """
    own = {id(p) for p in planned.parameters()}
    others = (p for p in whole.parameters() if id(p) not in own)
    return sum(p.nbytes * (4 if p.requires_grad else 1) for p in others)


def inner(model: nn.Module) -> nn.Module:
    """Return the model inside its data-parallel wrapper.

    Raises:
        BadRequest: it is in a wrapper that runs something else than the model.
    """
    if isinstance(model, DistributedDataParallel):
        return inner(model.module)
    sharded = sys.modules.get("torch.distributed.fsdp")  # slow to import: then none is sharded
    fsdp = () if sharded is None else (sharded.FullyShardedDataParallel, sharded.FSDPModule)
    if isinstance(model, (DataParallel, *fsdp)) or hasattr(model, "_orig_mod"):
        raise BadRequest(
            f"the model is a {type(model).__name__}, which a plan for one device cannot run in: "
            "leave that out; for several devices see planner.fit(..., world_size=)"
        )
    return model


def _unbound(own: Forward, model: nn.Module) -> Forward:
    """Return what was set as a model's ``forward`` as a function that takes the model, too."""
    if getattr(own, "__self__", None) is model:
        return own.__func__  # type: ignore[attr-defined,no-any-return] # a bound method

    @functools.wraps(own)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    return forward


def _with_forward(base: type[nn.Module], forward: Forward) -> type[nn.Module]:
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), {"forward": forward, **names})


@contextmanager
def _class_forward(model: nn.Module) -> Iterator[None]:
    """Within a call: what was since set on the instance led here, and must not be called again."""
    own = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if own is not None:
            vars(model)["forward"] = own
