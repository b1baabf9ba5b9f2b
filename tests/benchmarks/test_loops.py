"""Training loops as people write them: planned they equal the plain ones, or are refused."""

from __future__ import annotations

import pytest
import torch

from benchmarks.loop_kinds import LOOPS
from benchmarks.loops import row_of


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.filterwarnings("ignore:the planned step was traced")
def test_a_loop_is_never_silently_another(name: str) -> None:
    torch.set_num_threads(1)
    row = row_of(LOOPS[name])
    assert row.verdict == row.expected, row.said
