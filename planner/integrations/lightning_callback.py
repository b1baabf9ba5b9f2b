"""A callback with which a Lightning Trainer trains within a budget.

Knows which module of a LightningModule is planned, and when. Knows nothing of planning.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn

from planner.errors import BadRequest
from planner.integrations.first_batch import (
    FirstBatch,
    TrainerOptions,
    beside,
    install,
    without_plan,
)
from planner.integrations.largest import Largest

if find_spec("lightning") is not None:
    from lightning.pytorch import Callback
else:
    from pytorch_lightning import Callback

if TYPE_CHECKING:
    from planner.plans import Plan


class LightningPlannerCallback(Callback):  # type: ignore[misc] # it may not be installed
    """Train within a budget: ``Trainer(callbacks=[LightningPlannerCallback("40GB")])``.

    The plan is made at the first batch, with the first optimizer, the precision and the gradient
    accumulation of the Trainer. When training ends the module is as it was.

    Args:
        budget: as for ``planner.fit``: of each process, if there are several.
        module: what is planned, by its path in the LightningModule (``"net"``): a module that
            ``training_step`` calls. By default the child that holds every parameter, if there is
            one, else the LightningModule, whose ``forward`` runs where ``training_step`` calls
            ``self(batch)``. What else ``training_step`` computes is not planned; parameters
            elsewhere are counted.
        largest_batch: the most samples that a call will have; by default what the first has.
        largest_length: the most tokens that a sample will have; by default what the first has.
        said: ``device``, ``costs``, ``engine``, ``method``, ``limits``, ``progress``, ``offload``,
            as for ``planner.fit``; ``optimizer`` and ``accumulate`` are the Trainer's. With
            ``offload={"states": True}`` its first optimizer is told where its states wait.

    Raises:
        BadBudget, BadRequest, UnknownMethod: something is not what it should be.

    Attributes:
        plan: the plan, once it is made.
    """

    def __init__(
        self,
        budget: str | float,
        *,
        module: str | None = None,
        largest_batch: int | None = None,
        largest_length: int | None = None,
        **said: Unpack[TrainerOptions],
    ) -> None:
        self._asked = FirstBatch(budget, Largest(largest_batch, largest_length), said)
        self._state, self._module = self._asked, module
        self._planned: nn.Module | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan, ``None`` before the first batch."""
        return self._state.plan

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Let the module be planned, now that it is as it will be trained.

        Args:
            trainer: whose optimizer and accumulation are counted.
            pl_module: the LightningModule.

        Raises:
            BadRequest: there is no such module, or the strategy is not one that a plan for one
                device can serve.
        """
        strategy = type(trainer.strategy).__name__
        if strategy not in ("SingleDeviceStrategy", "DDPStrategy"):
            raise BadRequest(
                f"the strategy is {strategy}, which a plan for one device cannot run in: train on "
                "one device or with ddp; for shards see planner.fit(..., world_size=)"
            )
        said = {
            "optimizer": trainer.optimizers[0] if trainer.optimizers else None,
            "accumulate": trainer.accumulate_grad_batches > 1,
            **self._asked.said,
        }
        self._planned = _module_to_plan(pl_module, self._module)
        held = beside(pl_module, self._planned)
        self._state = replace(self._asked, said=said, beside_bytes=held)
        install(self._planned, self._state)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *others: Any) -> None:
        """See that the first batch went through the plan.

        Args:
            trainer, others: of the hook; not used.
            pl_module: the LightningModule.

        Raises:
            BadRequest: ``training_step`` does not call the module that was to be planned.
        """
        if self._planned is not None and self.plan is None:
            named = {m: n for n, m in pl_module.named_modules()}[self._planned]
            what = f"its module {named!r}" if named else "the LightningModule itself, self(batch)"
            children = ", ".join(name for name, _ in pl_module.named_children())
            raise BadRequest(
                f"training_step of {type(pl_module).__name__} does not call {what}, so nothing was "
                f"planned: pass module= the one that it calls (it has {children})"
            )

    def on_fit_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Give the module back as it was.

        Args:
            trainer, pl_module: of the hook; not used.
        """
        if self._planned is not None:
            without_plan(self._planned)


def _module_to_plan(whole: nn.Module, name: str | None) -> nn.Module:
    if name is not None:
        try:
            return whole.get_submodule(name)
        except AttributeError as error:
            raise BadRequest(f"module={name!r}: {error}") from error
    everything = {id(p) for p in whole.parameters()}
    for child in whole.children():
        holds_all = {id(p) for p in child.parameters()} == everything
        if holds_all and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            return child
    return whole
