"""What ranks compute is compared after as many steps, however many of them had to be watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from planner.graphs.torch_api.allocation_records import PeakRecord
from planner.verification import mesh_ranks
from planner.verification.complete_records import MOST_STEPS, Watched


@pytest.mark.parametrize("watched", [3, 5, MOST_STEPS])
def test_as_many_steps_are_taken_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, watched: int
) -> None:
    taken, cleared = list[float](), list[int]()

    def step() -> float:
        taken.append(float(len(taken)))
        return taken[-1]

    def watch(step: Callable[[], float], clear: Callable[[], None]) -> Watched:
        results = [step() for _ in range(watched)]
        return Watched(PeakRecord(results[-1], 7, 0), True, watched)

    monkeypatch.setattr(mesh_ranks, "watch_steps", watch)
    found: PeakRecord[Any] = mesh_ranks._watch(step, lambda: cleared.append(len(taken)))
    assert (found.result, found.peak_bytes, len(taken)) == (MOST_STEPS - 1, 7, MOST_STEPS)
    assert len(cleared) == MOST_STEPS - watched
