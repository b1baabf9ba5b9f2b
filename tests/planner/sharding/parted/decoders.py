"""A decoder with styles for its layers, and what it is planned with."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
)

from planner.tensor_parallel import TensorParallel
from tests.planner.running.parallel import COLUMNS, ROWS, WORDS, Decoder

SAMPLES, TOKENS = 4, 16


def styles() -> dict[str, ParallelStyle]:
    """Part the products of each block; new objects each time, as in another process."""
    found: dict[str, ParallelStyle] = {f"blocks.*.{n}": ColwiseParallel() for n in COLUMNS}
    return found | {f"blocks.*.{n}": RowwiseParallel() for n in ROWS}


def along_sequence() -> dict[str, ParallelStyle]:
    """Part what is between the products along the sequence, too."""
    along = Shard(1)
    found: dict[str, ParallelStyle] = {
        f"blocks.*.{n}": ColwiseParallel(input_layouts=along) for n in COLUMNS
    }
    found |= {f"blocks.*.{n}": RowwiseParallel(output_layouts=along) for n in ROWS}
    found |= {f"blocks.*.{n}": SequenceParallel() for n in ("first", "second")}
    return found | {
        "words": RowwiseParallel(input_layouts=Replicate(), output_layouts=along),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=along, output_layouts=Replicate()),
    }


def both(*degrees: int, only_if_needed: bool = False) -> TensorParallel:
    """Allow degrees, with and without sequence parallelism."""
    return TensorParallel(styles(), along_sequence(), degrees, only_if_needed)


def decoder(layers: int = 2) -> Decoder:
    torch.manual_seed(0)
    return Decoder(layers)


def batch(seed: int = 0, samples: int = SAMPLES) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, WORDS, (samples, TOKENS), generator=torch.Generator().manual_seed(seed))
    return {"ids": ids, "labels": ids}


def step(**said: Any) -> dict[str, Any]:
    """Return what ``fit`` is told beside the model and the budget."""
    return {"inputs": batch(), "world_size": 4, "offload": False, "progress": "off"} | said
