"""Layers and models captured for a card call the kernels that a build with CUDA calls."""

from __future__ import annotations

import pytest

from benchmarks.as_on_cuda import compared, written
from benchmarks.cuda_cases import CASES, Case

ON_CUDA = written()
MODELS = ("bert (model), autocast", "resnet50 (model), autocast", "segformer (model)")
SHOWN = [c for c in CASES if c.name in ON_CUDA and ("(model)" not in c.name or c.name in MODELS)]


@pytest.mark.parametrize("case", SHOWN, ids=lambda case: case.name)
def test_a_capture_for_a_card_calls_what_cuda_calls(case: Case) -> None:
    row = compared(case, ON_CUDA[case.name])
    assert row.kernels > 0
    assert row.verdict == "equal", row


def test_another_kernel_is_seen() -> None:
    case = next(c for c in CASES if c.name == "layer norm")
    row = compared(case, {"native_layer_norm -> bfloat16[4, 8]": 1})
    assert row.verdict == "DIFFERENT"
    assert row.on_cuda == "native_layer_norm -> bfloat16[4, 8]"


def test_most_layers_are_known() -> None:
    asking = {case.name for case in CASES} - ON_CUDA.keys()
    assert {name for name in asking if "(model)" not in name} == {
        "CTC", "GRU", "GRU cell", "LSTM", "RNN", "grid sample",
    }  # fmt: skip
