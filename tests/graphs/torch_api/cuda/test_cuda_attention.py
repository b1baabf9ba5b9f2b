"""Which attention kernel is called for a card: rows of PyTorch's own rules."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.cuda.attention import Attention, Backend, backend_of
from planner.graphs.torch_api.cuda.card import card_of

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@dataclass(frozen=True)
class Case:
    """A call in words."""

    architecture: str
    dtype: torch.dtype
    expected: Backend
    width: int = 64
    mask: bool = False
    dropout: float = 0.0
    causal: bool = False
    keys: int = 32
    heads: int = 4
    gqa: bool = False
    trains: bool = True

    def call(self) -> Attention:
        """Make the call on tensors without data."""

        def operand(length: int, heads: int) -> Tensor:
            shape = (2, heads, length, self.width)
            return torch.empty(shape, dtype=self.dtype, device="meta", requires_grad=self.trains)

        mask = torch.empty(32, self.keys, dtype=torch.bool, device="meta") if self.mask else None
        query, key = operand(32, 4), operand(self.keys, self.heads)
        return Attention(query, key, key, mask, self.dropout, self.causal, None, self.gqa)


CASES = {
    "brain floats on an A100": Case("sm_80", BRAIN, Backend.FLASH),
    "half floats on an A100": Case("sm_80", HALF, Backend.FLASH),
    "single on an A100": Case("sm_80", SINGLE, Backend.EFFICIENT),
    "double": Case("sm_80", DOUBLE, Backend.MATH),
    "a mask": Case("sm_80", BRAIN, Backend.EFFICIENT, mask=True),
    "causal": Case("sm_80", BRAIN, Backend.FLASH, causal=True),
    "causal and longer keys": Case("sm_80", BRAIN, Backend.EFFICIENT, causal=True, keys=48),
    "heads of an odd width are padded": Case("sm_80", BRAIN, Backend.FLASH, width=60),
    "single of an odd width": Case("sm_80", SINGLE, Backend.MATH, width=62),
    "single of a width that is a multiple of 4": Case("sm_80", SINGLE, Backend.EFFICIENT, width=60),
    "wide heads": Case("sm_80", BRAIN, Backend.EFFICIENT, width=264),
    "brain floats on a V100": Case("sm_70", BRAIN, Backend.MATH),
    "half floats on a V100": Case("sm_70", HALF, Backend.EFFICIENT),
    "single on a V100, of any width": Case("sm_70", SINGLE, Backend.EFFICIENT, width=62),
    "Hopper takes cuDNN's": Case("sm_90", BRAIN, Backend.CUDNN),
    "and Blackwell": Case("sm_100", BRAIN, Backend.CUDNN),
    "not the one for workstations": Case("sm_120", BRAIN, Backend.FLASH),
    "cuDNN takes masks": Case("sm_90", BRAIN, Backend.CUDNN, mask=True),
    "cuDNN drops in sixteenths": Case("sm_90", BRAIN, Backend.FLASH, dropout=0.1),
    "an eighth is two of them": Case("sm_90", BRAIN, Backend.CUDNN, dropout=0.125),
    "cuDNN takes heads up to 128": Case("sm_90", BRAIN, Backend.FLASH, width=136),
    "single on Hopper": Case("sm_90", SINGLE, Backend.EFFICIENT),
    "grouped heads": Case("sm_80", BRAIN, Backend.FLASH, heads=2, gqa=True),
    "grouped heads in single precision": Case("sm_80", SINGLE, Backend.MATH, heads=2, gqa=True),
    "grouped heads on a V100": Case("sm_70", HALF, Backend.MATH, heads=2, gqa=True),
    "grouped heads unsaid": Case("sm_80", BRAIN, Backend.MATH, heads=2),
    "little shared memory": Case("sm_86", BRAIN, Backend.EFFICIENT, width=200),
    "is enough without dropout": Case("sm_86", BRAIN, Backend.FLASH, width=256),
    "and for inference": Case("sm_89", BRAIN, Backend.FLASH, width=200, trains=False),
    "AMD": Case("gfx942", BRAIN, Backend.FLASH),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernel_is_the_one_that_cuda_chooses(case: Case) -> None:
    assert backend_of(case.call(), card_of(case.architecture)) is case.expected


def test_what_the_user_switches_off_is_not_chosen() -> None:
    call = CASES["brain floats on an A100"].call()
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        assert backend_of(call, card_of("sm_80")) is Backend.EFFICIENT
    with sdpa_kernel(SDPBackend.MATH):
        assert backend_of(call, card_of("sm_80")) is Backend.MATH


def test_deterministic_algorithms_keep_cudnn_out() -> None:
    call = CASES["Hopper takes cuDNN's"].call()
    torch.use_deterministic_algorithms(True)
    try:
        assert backend_of(call, card_of("sm_90")) is Backend.FLASH
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms_that_only_warn_keep_nothing_out() -> None:
    call = CASES["Hopper takes cuDNN's"].call()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert backend_of(call, card_of("sm_90")) is Backend.CUDNN
    finally:
        torch.use_deterministic_algorithms(False)


MASKS = {
    "learned": (torch.empty(1, 4, 32, 32, device="meta", requires_grad=True), Backend.EFFICIENT),
    "a constant bias": (torch.empty(1, 4, 32, 32, device="meta"), Backend.CUDNN),
    "expanded over rows": (torch.empty(2, 1, 1, 32, device="meta").expand(2, 4, 32, 32),
                           Backend.CUDNN),
    "expanded along the keys": (torch.empty(2, 1, 32, 1, device="meta").expand(2, 4, 32, 32),
                                Backend.MATH),
    "transposed": (torch.empty(32, 32, device="meta").t(), Backend.MATH),
}  # fmt: skip


@pytest.mark.parametrize(("mask", "expected"), MASKS.values(), ids=MASKS)
def test_what_a_mask_is_decides(mask: Tensor, expected: Backend) -> None:
    """cuDNN has no gradient of a bias, and no fused kernel reads what has no stride of 1."""
    call = replace(CASES["Hopper takes cuDNN's"].call(), mask=mask)
    assert backend_of(call, card_of("sm_90")) is expected


def test_where_math_is_switched_off_cudnn_has_a_turn_or_none_is_left() -> None:
    call = CASES["a mask"].call()
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]):
        assert backend_of(call, card_of("sm_80")) is Backend.CUDNN
    with (
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        pytest.raises(CaptureError, match="no kernel of attention that is switched on"),
    ):
        backend_of(call, card_of("sm_80"))
