"""CUDA's autocast on tensors of a CPU: the lists are torch's own, and what is cast is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.trace import trace
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.cuda import autocast
from planner.graphs.torch_api.cuda.card import card_of


def test_the_lists_are_those_of_this_torch() -> None:
    listed = [
        *autocast.LOWER, *autocast.SINGLE, *autocast.SINGLE_RESULT, *autocast.WIDEST,
        *autocast.NORMS, *autocast.BANNED,
    ]  # fmt: skip
    assert len(listed) == len(set(listed))
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::")]
    registered = {n.removeprefix("aten::") for n in names if has(n, "AutocastCUDA")}
    assert set(listed) == registered


class Applied(nn.Module):
    """A function of an input and a weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.zeros(8, 8)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def made(function: Callable[[Tensor, Tensor], Tensor], *, host: str = "cpu") -> torch.dtype:
    """Return the dtype that a function's result has on a card under autocast."""
    model, call = Applied(function), arguments_of(torch.zeros(8, 8))
    torch.set_autocast_enabled(host, True)
    torch.set_autocast_dtype(host, torch.bfloat16)
    try:
        joint = trace(model, call, card=card_of("sm_80"))
    finally:
        torch.set_autocast_enabled(host, False)
    dtype: torch.dtype = joint.forward_outputs[0].meta["val"].dtype
    return dtype


def _off(x: Tensor, w: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return x @ w


LOW, SINGLE = torch.bfloat16, torch.float32
CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], torch.dtype]] = {
    "product": (lambda x, w: x @ w, LOW),
    "linear": (F.linear, LOW),
    "einsum": (lambda x, w: torch.einsum("ij,jk->ik", x, w), LOW),
    "norm after a product": (lambda x, w: F.layer_norm(x @ w, (8,)), SINGLE),
    "softmax": (lambda x, w: (x @ w).softmax(-1), SINGLE),
    "softmax of a dtype": (lambda x, w: (x @ w).softmax(-1, dtype=LOW), LOW),
    "sum": (lambda x, w: (x @ w).sum(), SINGLE),
    "mean": (lambda x, w: (x @ w).mean(), LOW),
    "loss": (lambda x, w: F.mse_loss(x @ w, x @ w), SINGLE),
    "cross entropy": (lambda x, w: F.cross_entropy(x @ w, torch.zeros(8).long()), SINGLE),
    "relu": (lambda x, w: F.relu(x @ w), LOW),
    "power": (lambda x, w: (x @ w) ** 2, SINGLE),
    "gelu": (lambda x, w: F.gelu(x @ w), LOW),
    "widest": (lambda x, w: torch.addcmul(x, x @ w, x @ w), SINGLE),
    "norm": (lambda x, w: torch.norm(x @ w), SINGLE),
    "upsampling": (lambda x, w: F.interpolate((x @ w)[None], scale_factor=2), SINGLE),
    "switched off": (_off, SINGLE),
}


@pytest.mark.parametrize("name", CASES)
def test_results_have_the_dtypes_that_cuda_gives_them(name: str) -> None:
    function, expected = CASES[name]
    assert made(function) is expected


def test_either_switch_counts_and_both_are_put_back() -> None:
    assert made(lambda x, w: x @ w, host="cuda") is LOW
    assert not torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cuda")


def test_a_context_in_forward_that_names_cuda_counts() -> None:
    def inside(x: Tensor, w: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.float16):
            return x @ w

    model = Applied(inside)
    joint = trace(model, arguments_of(torch.zeros(8, 8)), card=card_of("sm_80"))
    assert joint.forward_outputs[0].meta["val"].dtype is torch.float16


def test_a_weight_is_cast_once() -> None:
    model = Applied(lambda x, w: (x @ w) @ w)
    with torch.autocast("cpu"):
        joint = trace(model, arguments_of(torch.zeros(8, 8)), card=card_of("sm_80"))
    (weight,) = joint.parameters.values()
    assert len(weight.users) == 1


def test_what_cuda_refuses_is_refused() -> None:
    with pytest.raises(CaptureError, match="unsafe under autocast"):
        made(lambda x, w: F.binary_cross_entropy((x @ w).sigmoid(), x))
