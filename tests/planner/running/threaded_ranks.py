"""Four ranks as threads of this process, each a process to ``torch.distributed``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg as threaded

RANKS = 4


@contextmanager
def as_processes() -> Iterator[None]:
    """Let each thread that a block starts be a process of its own."""
    isolated: Any = torch._C._distributed_c10d._set_thread_isolation_mode  # type: ignore[attr-defined]
    isolated(True)
    threaded._install_threaded_pg()
    try:
        yield
    finally:
        threaded._uninstall_threaded_pg()
        isolated(False)
        threaded.ProcessLocalGroup.reset()


def on_four(block: Callable[[int], object]) -> dict[int, Exception | None]:
    """Run a block on each of four ranks, in one group of all; return what each raised."""
    found: dict[int, Exception | None] = {}
    store = dist.HashStore()

    def run(rank: int) -> None:
        dist.init_process_group("threaded", rank=rank, world_size=RANKS, store=store)
        try:
            block(rank)
            found[rank] = None
        except Exception as error:  # noqa: BLE001
            found[rank] = error
        dist.destroy_process_group()

    with as_processes():
        ranks = [threading.Thread(target=run, args=(r,), daemon=True) for r in range(RANKS)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(60)
    assert len(found) == RANKS, "a rank waits for others"
    return found
