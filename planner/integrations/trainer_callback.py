"""A callback with which transformers' Trainer, and TRL's, train within a budget.

Knows what a Trainer sets up before it trains, and when. Knows nothing of planning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sized
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn
from transformers import TrainerCallback

from planner.errors import BadRequest
from planner.integrations.first_batch import (
    FirstBatch,
    TrainerOptions,
    beside,
    inner,
    install,
    without_plan,
)
from planner.integrations.largest import Largest

if TYPE_CHECKING:
    from planner.plans import Plan


class PlannerCallback(TrainerCallback):  # type: ignore[misc] # transformers has no types here
    """Train within a budget: ``Trainer(..., callbacks=[PlannerCallback("40GB")])``.

    The plan is made at the first batch, with the Trainer's optimizer, precision and gradient
    accumulation. When training ends the model is as it was. Gradient checkpointing is switched
    off: what is recomputed is the plan's to decide. Where TRL's head scores only the tokens that
    have labels (devices with Triton), what is below the head is planned.

    Args:
        budget: as for ``planner.fit``: of each process, if there are several.
        largest_batch: the most samples that a call will have; by default the Trainer's
            ``per_device_train_batch_size``, or what the first batch has if that is one row.
        largest_length: the most tokens that a sample will have; by default the ``max_length`` of
            TRL's configuration, unless samples are packed, else what the first batch has.
        said: ``device``, ``costs``, ``engine``, ``method``, ``limits``, ``progress``, ``offload``,
            as for ``planner.fit``; ``optimizer`` and ``accumulate`` are the Trainer's. With
            ``offload={"states": True}`` its optimizer is told where its states wait.

    Raises:
        BadBudget, BadRequest, UnknownMethod: something is not what it should be.

    Attributes:
        plan: the plan, once it is made.
    """

    def __init__(
        self,
        budget: str | float,
        *,
        largest_batch: int | None = None,
        largest_length: int | None = None,
        **said: Unpack[TrainerOptions],
    ) -> None:
        self._asked = FirstBatch(budget, Largest(largest_batch, largest_length), said)
        self._state = self._asked
        self._model: nn.Module | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan, ``None`` before the first batch."""
        return self._state.plan

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, **others: Any
    ) -> None:
        """Let the model be planned, now that it is as it will be trained.

        Args:
            args: of the Trainer.
            state, control: of the Trainer; not used.
            model: without its data-parallel wrapper.
            others: what else the Trainer has: its optimizer and data loader.

        Raises:
            BadRequest: the Trainer trains by other means than a plan for one device can serve.
        """
        _refuse(args)
        whole = inner(model)
        _switch_checkpointing_off(whole)
        known = _with_what_is_known(self._asked, args, whole, **others)
        trl = _is_from_trl(args)
        self._model = _backbone(whole) if trl and _scores_some_tokens(whole) else whole
        self._state = replace(known, beside_bytes=beside(whole, self._model))
        around = _losses_made_outside if trl and self._model is whole else None
        install(self._model, self._state, around)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Give the model back as it was.

        Args:
            args, state, control, others: of the Trainer; not used.
        """
        if self._model is not None:
            without_plan(self._model)


def _refuse(args: Any) -> None:
    used = {
        "fsdp": bool(getattr(args, "fsdp", None)),
        "deepspeed": bool(getattr(args, "deepspeed", None)),
        "torch_compile": bool(getattr(args, "torch_compile", False)),
        "several GPUs in one process": getattr(args, "n_gpu", 1) > 1,
    }
    for name in (name for name, on in used.items() if on):
        raise BadRequest(
            f"the Trainer uses {name}, which a plan for one device cannot run in: leave it out; "
            "for several devices launch one process each (torchrun), or see "
            "planner.fit(..., world_size=)"
        )


def _switch_checkpointing_off(model: Any) -> None:
    if getattr(model, "is_activation_checkpointing", False):
        model.activation_checkpointing_disable()


def _with_what_is_known(
    asked: FirstBatch, args: Any, model: Any, *, optimizer: Any, train_dataloader: Any, **_: Any
) -> FirstBatch:
    """Add what the Trainer knows of its steps to what the user said."""
    said = {
        "optimizer": optimizer,
        "accumulate": args.gradient_accumulation_steps > 1,
        **asked.said,
    }
    several = not isinstance(train_dataloader, Sized) or len(train_dataloader) > 1
    packed = getattr(args, "packing", False) or getattr(args, "padding_free", False)
    length = None if packed else getattr(args, "max_length", None)
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    usual = Largest(
        args.per_device_train_batch_size if several and not packed else None,
        min(length, positions or length) if length else None,
    )
    return replace(asked, said=said, usual=usual)


def _is_from_trl(args: Any) -> bool:
    return any(cls.__module__.partition(".")[0] == "trl" for cls in type(args).__mro__)


def _scores_some_tokens(model: nn.Module) -> bool:
    """Whether TRL's head, as on devices with Triton, runs on as many tokens as there are labels."""
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    return not on_cpu and find_spec("triton") is not None


def _backbone(model: Any) -> nn.Module:
    """Return what is below the head, whose size no batch changes."""
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone: nn.Module = own.base_model
    return backbone


def _losses_made_outside(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let TRL's fused head give what losses are made of; its own ``loss`` is not trained on."""

    @functools.wraps(forward)
    def shown(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if kwargs.get("fused_lm_head"):
            output["loss"] = output["loss"].detach()
        return output

    return shown
