"""What people do today to save memory, applied to models of the zoo.

Knows per-block checkpointing as ``gradient_checkpointing_enable`` does it and PyTorch's own
``activation_memory_budget``. Each function here returns a model and its inputs, so that it can be
run in a process of its own, just like a plan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.models import ZOO, Example, Factory


def comparators(name: str) -> Iterator[tuple[str, Factory]]:
    """Yield every comparator of a model with what it is called."""
    for every in (1, 2, 3, 4):
        yield f"checkpoint 1 block in {every}", functools.partial(checkpointed, name, every)
    for percent in range(0, 100, 20):
        label = f"activation_memory_budget {percent / 100}"
        yield label, functools.partial(budgeted, name, percent / 100)


def checkpointed(name: str, every: int) -> Example:
    """Checkpoint one block in ``every``; 1 is what ``gradient_checkpointing_enable`` does."""
    model, inputs = ZOO[name]()
    for block in blocks(name, model)[::every]:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return model, inputs


def budgeted(name: str, fraction: float) -> Example:
    """Compile with PyTorch's min-cut partitioner at a fraction of its activation memory."""
    import torch._functorch.config as functorch_config

    model, inputs = ZOO[name]()
    functorch_config.activation_memory_budget = fraction
    model.compile(backend="aot_eager_decomp_partition")
    return model, inputs


def blocks(name: str, model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model that people checkpoint, in order."""
    return list(_BLOCKS[name](model))


def _gpt2(model: nn.Module) -> Iterator[nn.Module]:
    yield from model.get_submodule("transformer.h").children()


def _resnet(model: nn.Module) -> Iterator[nn.Module]:
    for stage in model.get_submodule("resnet.encoder.stages").children():
        yield from stage.get_submodule("layers").children()


def _unet(model: nn.Module) -> Iterator[nn.Module]:
    yield model.get_submodule("first")
    yield from model.get_submodule("down").children()
    yield from reversed(list(model.get_submodule("up").children()))


_BLOCKS: dict[str, Callable[[nn.Module], Iterator[nn.Module]]] = {
    "gpt2": _gpt2,
    "gpt2_dropout": _gpt2,
    "gpt2_eager_dropout": _gpt2,
    "resnet50": _resnet,
    "unet": _unet,
}
