"""Arguments that a kernel accepts, made of nothing but shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from planner.graphs.costs.operator_call import OperatorCall, materialise
from planner.graphs.torch_api.fake_tensors import FakeTensorMode

aten = torch.ops.aten


@pytest.mark.parametrize("kernel", ["efficient", "cudnn"])
def test_seeds_of_attention_are_on_the_cpu(kernel: str) -> None:
    """The kernel reads them there without a look: on a card the process would be gone."""
    target = getattr(aten, f"_scaled_dot_product_{kernel}_attention_backward").default
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(1, 2, 8, 16, device="cuda")
        seeds = [torch.empty((), dtype=torch.long, device="cuda")] * 2
        args = {
            "efficient": (x, x, x, x, None, x, x, *seeds, 0.1, [True, True, True, False]),
            "cudnn": (x, x, x, x, x, x, *seeds, None, None, None, 8, 8, 0.1, False),
        }[kernel]
        made = materialise(OperatorCall(target, args), _fake)
    kinds = [a.device.type for a in made.args if isinstance(a, Tensor)]
    assert kinds == ["cuda"] * 6 + ["cpu"] * 2


def _fake(size_bytes: int, dtype: torch.dtype, device: torch.device, limit: int) -> Tensor:
    return torch.empty(size_bytes, dtype=dtype, device=device)
