"""The plans that people hold: the values, and what one does with them.

A solver and the search make plain values (``planner.plan``), which import nothing above them. Here
they get their verbs: ``apply``, ``save``, ``export``, ``report``, ``compare``, ``explain`` and
``str``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner import comparison
from planner.compared import Comparison
from planner.errors import InvalidPlan
from planner.output import saved_plans
from planner.output.exporters import export
from planner.output.page import render_notebook, report, step_of
from planner.output.text import explanation_of, text_of
from planner.plan.sharded_step_plan import ShardedStepPlan
from planner.plan.step_plan import StepPlan
from planner.planning_again import plan_again
from planner.request import DEFAULT_LIMITS
from planner.sharding import strategies  # noqa: F401 (plans name them)
from planner.solvers import Limits

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer


class _Told:
    """What is said and written of a plan, whatever it is for."""

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; ``planner.load`` reads it back."""
        saved_plans.save(self, path)  # type: ignore[arg-type] # it is one of the two below

    def export(self, path: str | Path, format: str | None = None) -> tuple[str, ...]:
        """Write the plan for another program; return what that one cannot do, a sentence each.

        Args:
            path: where to.
            format: "json", "html", "svg" or "txt"; for several devices also "fsdp2" (a script),
                "deepspeed" or "accelerate"; by default the path's suffix.

        Raises:
            BadSpec: an unknown format; the message lists the valid ones.
        """
        return export(self, path, format)  # type: ignore[arg-type]

    def report(self, path: str | Path) -> None:
        """Write a self-contained HTML page: memory over time, and everything ``str`` says."""
        report(self, path)  # type: ignore[arg-type]

    def explain(self) -> str:
        """Say why: what binds and what runs again in full, or every alternative and its reason."""
        return explanation_of(self)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """Answer first, explain after."""
        return text_of(self)  # type: ignore[arg-type]

    def _repr_html_(self) -> str:
        """Show the picture and the text in a notebook."""
        return render_notebook(step_of(self), text_of(self))  # type: ignore[arg-type]


class Plan(_Told, StepPlan):
    """A schedule for one training step within a budget; see ``StepPlan`` for what it holds.

    >>> import planner
    >>> from torch import nn, zeros
    >>> model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU())
    >>> step = {"inputs": zeros(4096, 64), "loss": lambda out: out.square().mean()}
    >>> planner.fit(model, "16MB", **step)
    Plan(Sequential: fits, peak 15.1 MB of 16.0 MB, time +0.00%, gap 0.00%)
    """

    @classmethod
    def of(cls, value: StepPlan) -> Plan:
        """Return a value with the verbs."""
        return cls(**{f.name: getattr(value, f.name) for f in fields(value)})

    @property
    def baseline_peak_bytes(self) -> int:
        """The former name of ``plain_peak_bytes``; it goes with version 0.3."""
        _renamed("baseline_peak_bytes", "plain_peak_bytes")
        return self.plain_peak_bytes

    @property
    def baseline_seconds(self) -> float:
        """The former name of ``plain_seconds``; it goes with version 0.3."""
        _renamed("baseline_seconds", "plain_seconds")
        return self.plain_seconds

    def apply(
        self,
        model: nn.Module,
        *,
        on_mismatch: str = "error",
        loss: Callable[..., Any] | None = None,
    ) -> nn.Module:
        """Return a model with the same parameters that runs this schedule.

        The model given stays as it was and shares every tensor with the one returned. With a plan
        made with ``loss=``, the returned model is called with the model's own arguments and
        ``targets=``, and returns the loss.

        Args:
            model: the one the plan was made for, on its device and in its modes.
            on_mismatch: what a call does that is not the planned one nor a smaller one (a larger
                shape, another dtype, mode, autocast, frozen parameter): "error" raises
                ``PlanMismatch``, "replan" makes and runs a plan for it within the same budget,
                "plain" runs the model without a plan, whose memory nothing limits. Calls under
                ``torch.no_grad()`` always run plain.
            loss: the callable the plan was made with, needed if the plan comes from a file.

        Raises:
            PlanMismatch: the model is not the one the plan was made for; the message says why.
            ValueError: an unknown ``on_mismatch``.
        """
        from planner.running.apply import apply

        return apply(self, model, on_mismatch=on_mismatch, loss=loss, replan=plan_again)

    def offload_states(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """Let a torch optimizer keep states on the host as the plan says; return the same one.

        Its step is taken in parts from then on, with the states of each on the device meanwhile.
        Call it where the optimizer is made, before anything but a scheduler wraps its step.

        Args:
            optimizer: of the model's parameters, which treats each of them by itself. A plan that
                moves no states leaves it as it is.
            model: planned or not.

        Raises:
            BadRequest: the optimizer cannot take its step in parts, or its step is wrapped already.
            HostMemoryError: the host has no room for the states.
        """
        from planner.running.states_on_host import offload_states

        return offload_states(optimizer, self, model)

    def compare(
        self, methods: Sequence[str] | None = None, *, limits: Limits = DEFAULT_LIMITS
    ) -> Comparison:
        """Run other methods on the same graph and budget; all that are registered by default."""
        found = comparison.compare_graph(
            self.graph, self.budget_bytes, methods, limits=limits, host=self.host
        )
        return replace(found, rewrite=self.rewrite)


class ShardedPlan(_Told, ShardedStepPlan):
    """A configuration and a schedule for every unit; see ``ShardedStepPlan`` for what it holds."""

    @classmethod
    def of(cls, value: ShardedStepPlan) -> ShardedPlan:
        """Return a value with the verbs."""
        return cls(**{f.name: getattr(value, f.name) for f in fields(value)})

    def apply(
        self,
        model: nn.Module,
        *,
        mesh: DeviceMesh | None = None,
        on_mismatch: str = "error",
        tensor_parallel: Any = None,
        loss: Callable[..., Any] | None = None,
    ) -> nn.Module:
        """Return the model wrapped as the plan says, on this rank; call it on every rank.

        The model is taken over: its units become planned in place, and under FSDP its parameters
        become shards. Make the optimizer after this, under ZeRO-1 by ``make_optimizer``.

        Args:
            model: on its device, or on the CPU of a rank that has an accelerator.
            mesh: the ranks: one dimension, or (replicas, shards) for HSDP, and behind these the
                ranks over which layers are parted, if they are. Made if not given.
            on_mismatch: what a call of a unit does that is not the planned one: "error" or "plain".
            tensor_parallel: the styles that the plan was made with, as for ``fit``, if they were
                not the model's own.
            loss: the callable that the plan computes in chunks, if the plan comes from a file. The
                model is then called with ``targets=``, and returns the loss.

        Raises:
            PlanMismatch: another model, another number of ranks, other styles, other plans on other
                ranks, no process group, or a loss that the plan does not compute.
            ValueError: an unknown ``on_mismatch``.
        """
        from planner.sharding.apply_sharded import apply

        return apply(
            self,
            model,
            mesh=mesh,
            on_mismatch=on_mismatch,
            tensor_parallel=tensor_parallel,
            loss=loss,
        )

    def make_optimizer(
        self, model: nn.Module, optimizer: type[Optimizer] | None = None, **options: Any
    ) -> Optimizer:
        """Make an optimizer for an applied model.

        Args:
            model: what ``apply`` returned.
            optimizer: its class, AdamW unless another is given; under ZeRO-1 every rank keeps its
                part of the state only.
            options: of the class.
        """
        import torch

        from planner.sharding.apply_sharded import make_optimizer

        return make_optimizer(self.configuration, model, optimizer or torch.optim.AdamW, **options)


def with_verbs(value: StepPlan | ShardedStepPlan) -> Plan | ShardedPlan:
    """Return a value with its verbs."""
    return ShardedPlan.of(value) if isinstance(value, ShardedStepPlan) else Plan.of(value)


def load(path: str | Path) -> Plan | ShardedPlan:
    """Read a plan that ``Plan.save`` or ``ShardedPlan.save`` wrote, in this version or before.

    Raises:
        InvalidPlan: the file is damaged, truncated, foreign, or of a newer version.
        OSError: the file cannot be opened.
    """
    return with_verbs(saved_plans.load(path))


def load_plan(path: str | Path) -> Plan:
    """Read a plan for one device that ``Plan.save`` wrote.

    Raises:
        InvalidPlan: the file is damaged, truncated, foreign, for several devices, or of a newer
            version.
        OSError: the file cannot be opened.
    """
    plan = load(path)
    if isinstance(plan, ShardedPlan):
        raise InvalidPlan(
            f"{path}: it is a plan for {plan.configuration.world_size} ranks; read it with "
            "planner.load and apply it under torchrun with plan.apply(model, mesh=...)"
        )
    return plan


def _renamed(before: str, after: str) -> None:
    warnings.warn(
        f"{before} is called {after} now; the former name goes with version 0.3",
        DeprecationWarning,
        stacklevel=3,
    )
