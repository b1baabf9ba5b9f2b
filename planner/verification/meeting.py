"""How the processes of a run meet, one a rank, on this machine, over gloo."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

TIMEOUT_SECONDS = 300


@contextmanager
def meeting(rank: int, ranks: int, folder: str) -> Iterator[None]:
    """Be one of the ranks, and leave when all are done.

    Args:
        rank: which one this process is.
        ranks: how many there are.
        folder: where they find each other, the same for all.
    """
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=TIMEOUT_SECONDS),
    )
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
