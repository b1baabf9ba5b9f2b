"""A random op that runs again draws what it drew; where it could not, it does not run."""

from __future__ import annotations

import pytest
import torch

from planner.errors import PlanMismatch
from planner.running.rng import rng_state, run_with_rng_state


def test_an_op_run_again_draws_the_same_and_leaves_the_generator() -> None:
    device, x = torch.device("cpu"), torch.ones(64)
    state = rng_state(device)
    first = torch.nn.functional.dropout(x, 0.5)
    after = torch.get_rng_state()
    again = run_with_rng_state(state, device, torch.nn.functional.dropout, x, 0.5)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_cuda_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a card: what a capture looks like to the program."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for call in (rng_state, lambda device: run_with_rng_state(torch.ones(1), device, torch.rand)):
        with pytest.raises(PlanMismatch, match="which a CUDA graph cannot"):
            call(torch.device("cuda", 0))
