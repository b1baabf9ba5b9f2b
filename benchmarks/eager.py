"""What eager mode holds, predicted and measured: ``python -m benchmarks.eager [NAME...]``.

A model of the zoo takes a step by torch alone, plain and with blocks under
``torch.utils.checkpoint``, every one and every second; its peak by the allocator's records stands
beside the one that the captured step predicts. Exit code 1 if one is off by more than 2%.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.models import ZOO
from benchmarks.record import record, show
from planner.graphs import Graph, schedule_from_order, simulate
from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.training_step import capture
from planner.graphs.torch_api.allocation_records import measure_peak
from planner.solvers.baselines.blocks import Block, find_blocks
from planner.solvers.baselines.checkpoint import order_of

TOLERANCE = 0.02
BLOCKS: dict[str, tuple[str, ...]] = {
    "bert": ("bert.encoder.layer",),
    "convnext": ("convnext.encoder.stages",),
    "distilbert": ("distilbert.transformer.layer",),
    "gpt2": ("transformer.h",),
    "gpt2_dropout": ("transformer.h",),
    "gpt2_eager_dropout": ("transformer.h",),
    "llama": ("model.layers",),
    "mixtral": ("model.layers",),
    "resnet50": ("resnet.encoder.stages",),
    "t5": ("encoder.block", "decoder.block"),
    "vit": ("vit.layers",),
}
"""Where the blocks are that people checkpoint; the other models have none that is repeated."""


@dataclass(frozen=True)
class Row:
    """Bytes above parameters, buffers and inputs; an error above 0 is too high a prediction."""

    model: str
    how: str
    measured_bytes: int
    predicted_bytes: int
    error_fraction: float


def measured(model: nn.Module, inputs: Any) -> int:
    """Return the most that a plain step holds; its output is held to the end, as in a loop."""
    call = arguments_of(inputs)
    args, kwargs, _ = call.rebuild(call.tensors)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        output = model(*args, **kwargs)
        loss = output if isinstance(output, Tensor) else output["loss"]
        loss.backward()

    step()
    model.zero_grad(set_to_none=True)
    return measure_peak(step).peak_bytes


def predicted(graph: Graph, checkpointed: list[Block]) -> int:
    """Return the most that torch holds with some blocks checkpointed."""
    schedule = schedule_from_order(graph, order_of(graph, checkpointed))
    return simulate(graph, schedule).peak_bytes - graph.resident_bytes


def rows(name: str) -> Iterator[Row]:
    """Measure and predict one model."""
    model, inputs = ZOO[name]()
    graph = capture(model.train(), inputs, optimizer=None).eager
    assert graph is not None
    yield _row(name, "plain", measured(model, inputs), predicted(graph, []))
    children = [c for path in BLOCKS.get(name, ()) for c in model.get_submodule(path).children()]
    blocks = find_blocks(graph)
    for every in (1, 2) if children else ():
        undo = [_checkpoint(child) for child in children[::every]]
        peak = measured(model, inputs)
        for put_back in undo:
            put_back()
        yield _row(name, f"1 block in {every}", peak, predicted(graph, blocks[::every]))


def _checkpoint(block: nn.Module) -> Callable[[], None]:
    plain = block.forward
    block.forward = functools.partial(checkpoint, plain, use_reentrant=False)
    return functools.partial(setattr, block, "forward", plain)


def _row(name: str, how: str, peak: int, found: int) -> Row:
    return Row(name, how, peak, found, found / peak - 1)


def main() -> None:
    """Print and record what was found; exit with 1 if a prediction is off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="NAME", default=list(ZOO))
    torch.set_num_threads(1)
    found: list[Row] = []
    for name in parser.parse_args().models:
        for row in rows(name):
            found.append(row)
            print(f"{row.model}, {row.how}: {row.error_fraction:+.2%}", file=sys.stderr)
    show("What eager mode holds", found)
    print(record("eager", found))
    off = [row for row in found if abs(row.error_fraction) > TOLERANCE]
    print(f"{len(found)} steps, {len(off)} off by more than {TOLERANCE:.0%}")
    sys.exit(1 if off else 0)


if __name__ == "__main__":
    main()
