"""What of torch cannot be traced into a joint graph, refused where it is called.

What is raised here is told with the user's line by ``graphs.capture.trace_errors``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._dynamo.exc import UncapturedHigherOrderOpError as NotTracedWhole
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn import functional
from torch.utils import checkpoint

from planner.graphs.torch_api.module_internals import STAND_IN
from planner.graphs.torch_api.patches import Patches
from planner.graphs.torch_api.saved_hooks import refuse_hooks_inside

__all__ = ["NotTracedWhole", "refuse_checkpointed_writes", "refuse_what_cannot_be_traced"]

_REENTRANT = (
    "a reentrant checkpoint hides its backward pass: pass use_reentrant=False, or leave it out "
    "(model.gradient_checkpointing_disable()): the plan decides what is recomputed"
)
_WRITTEN_TWICE = (
    "a checkpoint runs this part twice in a step, and each time it writes a buffer (batch norm its "
    "statistics), which a plan writes once: leave the checkpoint out of this part, as with "
    "memory_efficient=False: the plan decides what is recomputed"
)
_BACKWARD = (
    "backward() inside the step puts gradients where a plan does not see them: use "
    "torch.autograd.grad, or for a checkpoint torch.utils.checkpoint with use_reentrant=False"
)
_SEEDED = (
    "setting the random generator inside the step has no effect on a plan: draw before the call "
    "and pass what was drawn; a checkpoint does without: use_reentrant=False, or leave it out"
)
_OPERATOR = (
    "torch.{} is no operator that a plan can run: branch in Python on an integer input or a "
    "buffer, or compute both branches and choose with torch.where"
)
_ARRIVAL = (
    "a hook on the arrival of a gradient (register_post_accumulate_grad_hook) is set inside the "
    "step, as transformers' parallel style 'replicated_with_grad_allreduce' does: a plan does not "
    "run that code again, and the gradient would stay this rank's part; choose a style that "
    "communicates in forward and backward, or set the hook on the parameter before planning"
)
_ON_A_MESH = (
    "{} draws for a tensor that lies on a mesh, from a generator of the mesh that a plan cannot "
    "put back: draw for the local tensor (use_local_output=True of the parallel style, or "
    "to_local()), or set the rate to 0"
)
_UNEVEN = (
    "a tensor of shape {} lies as {} over {} ranks in parts of different sizes, and one plan is to "
    "serve all ranks: pad that dimension to a multiple of the ranks (a sequence, features), or "
    "leave it whole there"
)
_REDISTRIBUTES = ("_redistribute", "_dispatch", "_api")
"""The files of ``torch.distributed.tensor`` that call ``redistribute_local_tensor``."""
_CONTEXT = (
    "attention runs inside context_parallel(), whose ring of ranks a plan cannot run: leave the "
    "block, or parallelize along the sequence with SequenceParallel"
)
_OURS = ("torch.", "planner.")
_REGISTERS = "torch.nn.modules.module"
_SETTERS = ("manual_seed", "seed", "set_rng_state")


_DATA = (
    "forward puts other data into a tensor (x.data = ...), which autograd does not see and a graph "
    "cannot: between steps it may, outside the model; of a buffer, assign or copy_ instead"
)
_REBOUND = (
    "forward puts another parameter in the place of {!r}, so that the optimizer and each later "
    "call see another model: tie parameters outside of forward, before planning"
)
_GRAD = (
    "forward reads or sets x.grad, which a plan, that runs no Python, does not see: each call "
    "would depend on the backward pass before; keep what is needed in a buffer (register_buffer), "
    "written outside the model, or pass it as an input"
)


def refuse_what_cannot_be_traced(patches: Patches) -> None:
    """Let reentrant checkpoints, inner backward passes, seeds and branches say what to do instead.

    In the thread that captures alone.
    """

    def refuse(owner: Any, name: str, text: str) -> None:
        if hasattr(owner, name):
            patches.attribute(owner, name, _refusing(patches, getattr(owner, name), text))

    refuse(checkpoint.CheckpointFunction, "apply", _REENTRANT)
    refuse(torch.autograd, "backward", _BACKWARD)
    for name in ("cond", "while_loop"):
        refuse(torch, name, _OPERATOR.format(name))
    for name in _SETTERS:
        for owner in (torch, torch.random):
            refuse(owner, name, _SEEDED)
    for name in ("set_rng_state", "manual_seed", "manual_seed_all"):
        refuse(torch.cuda, name, _SEEDED)
    refuse(torch.Tensor, "register_post_accumulate_grad_hook", _ARRIVAL)
    refuse(torch.autograd.graph, "register_multi_grad_hook", _ARRIVAL)
    refuse(torch.nn.Module, "zero_grad", _GRAD)
    own: Any = torch.Tensor.data
    setter = _refusing(patches, own.__set__, _DATA)
    patches.attribute(torch.Tensor, "data", property(own.__get__, setter, own.__delete__))
    _as_leaves(patches)
    refuse_hooks_inside(patches)
    grad: Any = torch.Tensor.grad
    read = _refusing(patches, grad.__get__, _GRAD, users=True)
    write = _refusing(patches, grad.__set__, _GRAD, users=True)
    patches.attribute(torch.Tensor, "grad", property(read, write, grad.__delete__))
    _refuse_on_meshes(patches, sys.modules.get("torch.distributed.tensor"))


def refuse_checkpointed_writes(patches: Patches, buffers: Callable[[], Iterable[Any]]) -> None:
    """Refuse checkpoints of what writes buffers: where it runs again it writes them again.

    Args:
        patches: in force while a step is traced.
        buffers: returns what the model has for buffers now, in the call that is traced.
    """
    own = checkpoint._checkpoint_without_reentrant_generator

    @functools.wraps(own)
    def watching(*args: Any, **kwargs: Any) -> Iterator[None]:
        if not patches.mine():
            yield from own(*args, **kwargs)
            return
        before = [(x, _writes(x)) for x in buffers()]
        yield from own(*args, **kwargs)
        now = list(buffers())
        same = len(now) == len(before) and all(
            x is known and _writes(x) == writes
            for x, (known, writes) in zip(now, before, strict=True)
        )
        if torch.is_grad_enabled() and not same:
            raise NotImplementedError(_WRITTEN_TWICE)

    patches.attribute(checkpoint, own.__name__, watching)


def _writes(tensor: torch.Tensor) -> tuple[int, bool]:
    """Tell how often a traced tensor was written to, as far as torch counts, and whether at all."""
    if not isinstance(tensor, FunctionalTensor):
        return tensor._version, False
    written = torch._functionalize_has_data_mutation(tensor.elem)  # type: ignore[attr-defined]
    return tensor._version, written


def _refuse_on_meshes(patches: Patches, loaded: Any) -> None:
    """Refuse what ``DTensor`` draws or lays unevenly, and context parallelism, if it is loaded."""
    if loaded is None:
        return
    dispatcher = loaded.DTensor._op_dispatcher
    patches.attribute(dispatcher, "_random_ops", _Drawing(dispatcher._random_ops, patches))
    for file in _REDISTRIBUTES:
        caller: Any = sys.modules.get(f"{loaded.__name__}.{file}")
        own = getattr(caller, "redistribute_local_tensor", None)
        if own is not None:
            patches.attribute(caller, own.__name__, _redistributing_evenly(patches, own))
    attention = functional.scaled_dot_product_attention
    if "context_parallel" in str(getattr(attention, "__module__", "")):
        refused = _refusing(patches, attention, _CONTEXT)
        patches.attribute(functional, "scaled_dot_product_attention", refused)


def _redistributing_evenly(patches: Patches, own: Callable[..., Any]) -> Callable[..., Any]:
    def redistributed(local: Any, current: Any, target: Any, **options: Any) -> Any:
        if patches.mine():
            _require_even(current)
            _require_even(target)
        return own(local, current, target, **options)

    return redistributed


def _require_even(spec: Any) -> None:
    """Refuse a layout on a mesh in which ranks have parts of different sizes."""
    parts: dict[int, int] = {}
    for ranks, placement in zip(spec.mesh.shape, spec.placements, strict=True):
        if (dim := getattr(placement, "dim", None)) is not None:
            parts[dim] = parts.get(dim, 1) * ranks
    for dim, ranks in parts.items() if spec.tensor_meta is not None else ():
        if isinstance(size := spec.shape[dim], int) and size % ranks:
            raise NotImplementedError(_UNEVEN.format(list(spec.shape), spec.placements, ranks))


def _as_leaves(patches: Patches) -> None:
    """Let code that is not torch's see the stand-ins of parameters as the leaves that they are."""

    def told(name: str, of_a_leaf: Any) -> property:
        own: Any = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            theirs = caller == _REGISTERS or not f"{caller}.".startswith(_OURS)
            stands_in = theirs and patches.mine() and vars(tensor).get(STAND_IN, False)
            return of_a_leaf if stands_in else own.__get__(tensor)

        return property(read)

    register = torch.nn.Module.register_parameter

    def kept(module: torch.nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        """Keep a stand-in aside, so that it is an attribute that forward sets, as any other."""
        stands_in = tensor is not None and patches.mine() and vars(tensor).get(STAND_IN, False)
        if not stands_in or module._parameters.get(name) is tensor:
            register(module, name, tensor)  # type: ignore[arg-type]
        elif name in module._parameters:
            raise NotImplementedError(_REBOUND.format(name))
        else:
            vars(module)[name] = tensor

    patches.attribute(torch.nn.Module, "register_parameter", kept)
    patches.attribute(torch.Tensor, "is_leaf", told("is_leaf", of_a_leaf=True))
    patches.attribute(torch.Tensor, "grad_fn", told("grad_fn", of_a_leaf=None))


class _Drawing(set[Any]):
    """Random operators; one that is looked for, and is there, is about to run on a mesh."""

    def __init__(self, items: set[Any], patches: Patches) -> None:
        super().__init__(items)
        self._patches = patches

    def __contains__(self, item: object) -> bool:
        found = super().__contains__(item)
        if found and self._patches.mine():
            raise NotImplementedError(_ON_A_MESH.format(item))
        return found


def _refusing(
    patches: Patches, own: Callable[..., Any], text: str, *, users: bool = False
) -> Callable[..., Any]:
    """Return a function that refuses; of ``users``, where neither torch nor this package asks."""
    passed = _OURS if users else ("torch._dynamo",)

    def refused(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if patches.mine() and not f"{caller}.".startswith(passed):  # dynamo puts back what it set
            raise NotImplementedError(text)
        return own(*args, **kwargs)

    return refused
