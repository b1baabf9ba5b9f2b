"""Layers captured on a CPU for a card: the kernels that CUDA has for them, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.trace import trace
from planner.graphs.torch_api.cuda import kernels as cuda_kernels
from planner.graphs.torch_api.cuda.card import card_of


class Attending(nn.Module):
    """Self-attention."""

    def __init__(self, *, masked: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.qkv, self.masked, self.dropout = nn.Linear(32, 96), masked, dropout

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, 2, 16).permute(2, 0, 3, 1, 4)
        mask = torch.ones(length, length, dtype=torch.bool).tril() if self.masked else None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout)


def kernels(model: nn.Module, x: Tensor, architecture: str = "sm_80") -> list[str]:
    """Return the names of the kernels of a step on a card."""
    joint = trace(model, arguments_of(x), card=card_of(architecture))
    names = [str(node.target) for node in joint.graph.nodes if node.op == "call_function"]
    return [name.removeprefix("aten.").removesuffix(".default") for name in names]


SDPA = "_scaled_dot_product_"
CASES: dict[str, tuple[nn.Module, torch.dtype, list[str], list[str]]] = {
    "flash attention": (
        Attending(), torch.bfloat16,
        [f"{SDPA}flash_attention", f"{SDPA}flash_attention_backward"], ["_softmax"],
    ),
    "single precision": (
        Attending(dropout=0.1), torch.float32,
        [f"{SDPA}efficient_attention", f"{SDPA}efficient_attention_backward"], ["_softmax"],
    ),
    "a mask": (
        Attending(masked=True), torch.bfloat16,
        ["where.self", "expand", f"{SDPA}efficient_attention"], ["_softmax"],
    ),
    "math": (Attending(), torch.float64, ["_safe_softmax"], [f"{SDPA}efficient_attention"]),
    "dropout": (
        nn.Dropout(0.15), torch.bfloat16, ["native_dropout"], ["bernoulli_.float"],
    ),
    "RMS norm": (
        nn.RMSNorm(32), torch.bfloat16,
        ["_fused_rms_norm", "_fused_rms_norm_backward"], ["rsqrt"],
    ),
    "layer norm": (nn.LayerNorm(32), torch.bfloat16, ["native_layer_norm"], []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_layer_has_the_kernels_of_cuda(name: str) -> None:
    model, dtype, expected, absent = CASES[name]
    x = torch.zeros(2, 24, 32, dtype=dtype, requires_grad=True)
    found = kernels(model.to(dtype), x)
    assert not set(expected) - set(found)
    assert not set(absent) & set(found)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
def test_cells_are_fused(cell: type[nn.Module]) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            made = self.cell(x)
            return made[0] if isinstance(made, tuple) else made

    found = kernels(First(), torch.zeros(2, 8))
    kind = cell.__name__.removesuffix("Cell").lower()
    assert f"_thnn_fused_{kind}_cell" in found
    assert "sigmoid" not in found


def test_mixed_dtypes_take_rms_norm_apart() -> None:
    found = kernels(nn.RMSNorm(32), torch.zeros(2, 32, dtype=torch.bfloat16))
    assert "rsqrt" in found


def test_evaluation_drops_nothing() -> None:
    assert "native_dropout" not in kernels(
        nn.Dropout(0.5).eval(), torch.zeros(4, requires_grad=True)
    )


def test_without_a_card_nothing_changes() -> None:
    joint = trace(Attending(), arguments_of(torch.zeros(2, 24, 32)))
    assert f"aten.{SDPA}flash_attention_for_cpu.default" in {
        str(n.target) for n in joint.graph.nodes
    }


@pytest.mark.parametrize("dims", [2, 3])
def test_grids_are_sampled_by_torch(dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's kernel has no fake: were it left to torch, a capture on a card would end there."""
    own, seen = cuda_kernels._grid_sampler, list[int]()

    def watched(x: Tensor, *rest: Any) -> Tensor:
        seen.append(x.dim())
        return own(x, *rest)

    class Sampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid = nn.Parameter(torch.zeros(1, *[4] * dims, dims))

        def forward(self, x: Tensor) -> Tensor:
            return F.grid_sample(x, self.grid, align_corners=True)

    monkeypatch.setattr(cuda_kernels, "_grid_sampler", watched)
    assert f"grid_sampler_{dims}d" in kernels(Sampling(), torch.zeros(1, 2, *[6] * dims))
    assert set(seen) == {dims + 2}
