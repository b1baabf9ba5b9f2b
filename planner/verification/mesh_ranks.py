"""Training of a model that is parallelized over ranks, really run: one process a rank, over gloo.

Knows how what the ranks found becomes one run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.multiprocessing.spawn import ProcessException, spawn

from planner.errors import PlannerError
from planner.graphs.torch_api.allocation_records import PeakRecord
from planner.verification.complete_records import MOST_STEPS, watch_steps
from planner.verification.meeting import meeting
from planner.verification.training_run import GRADIENTS, STATE, Measurement, Trial, run

if TYPE_CHECKING:
    from torch import Tensor


def run_on_ranks(
    trial: Trial, ranks: int, folder: Path
) -> tuple[Measurement, dict[str, dict[str, Tensor]]]:
    """Train on every rank; return what the one needed that held most, and the tensors of all.

    Args:
        trial: whose model is a function that parallelizes it; the process group is there.
        ranks: how many there are.
        folder: an empty one, to exchange files.

    Raises:
        PlannerError: a rank failed; the message has its traceback.
    """
    torch.save(trial, folder / "trial.pt")
    try:
        spawn(_rank, args=(ranks, str(folder)), nprocs=ranks)  # type: ignore[no-untyped-call]
    except ProcessException as error:
        raise PlannerError(str(error).strip()) from error
    found: list[Measurement] = []
    tensors: dict[str, dict[str, Tensor]] = {"gradients": {}, "parameters": {}, "buffers": {}}
    for rank in range(ranks):
        own = folder / str(rank)
        found.append(torch.load(own / "measured.pt", weights_only=False))
        parts = {"gradients": torch.load(own / GRADIENTS)} | torch.load(own / STATE)
        for kind, named in parts.items():
            tensors[kind] |= {f"{name} of rank {rank}": t for name, t in named.items()}
    most = max(found, key=lambda measured: measured.peak_bytes)
    return replace(most, losses=found[0].losses), tensors


def _rank(rank: int, ranks: int, folder: str) -> None:
    """Run the trial on a rank, in a process of its own."""
    with meeting(rank, ranks, folder):
        own = Path(folder) / str(rank)
        own.mkdir()
        trial: Trial = torch.load(Path(folder) / "trial.pt", weights_only=False)
        torch.save(run(trial, own, watch=_watch), own / "measured.pt")


def _watch(step: Callable[[], float], clear: Callable[[], None]) -> PeakRecord[float]:
    """Watch steps, and take as many in all however busy the machine is: results are compared."""
    watched = watch_steps(step, clear)
    result = watched.record.result
    for _ in range(watched.steps, MOST_STEPS):
        clear()
        result = step()
    return replace(watched.record, result=result)
