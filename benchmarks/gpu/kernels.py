"""Are the kernels that a plan is made of those that the card runs?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from benchmarks.cuda_cases import CASES, Case
from benchmarks.gpu.rows import Row, row
from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.passes.inplace import ROW_WISE
from planner.graphs.capture.training_step import capture_joint
from planner.graphs.capture_error import CaptureError
from planner.graphs.hardware.columns import Device
from planner.graphs.hardware.detect import device_at
from planner.graphs.torch_api.operators import out_variant


class Layer(nn.Module):
    """A function of an input that is a layer's output, so that its gradient arrives somewhere."""

    def __init__(self, function: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(64, 64), function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.function(self.first(x)).float().square().mean()


def _of(part: nn.Module, steps: int = 0) -> Layer:
    shape = (steps, -1, 64) if steps else (-1, 64)
    return Layer(lambda x: _first(part(x.view(shape))), part)


def _heads(x: Tensor) -> Tensor:
    return x.view(4, 32, 4, 16).transpose(1, 2)


def _mask(x: Tensor) -> Tensor:
    return torch.ones(32, 32, dtype=torch.bool, device=x.device).tril()


def layers() -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers whose kernels differ between a CPU and CUDA."""
    attention: Any = nn.functional.scaled_dot_product_attention
    yield "attention", Layer(lambda x: attention(*(_heads(x),) * 3))
    yield "attention, causal", Layer(lambda x: attention(*(_heads(x),) * 3, is_causal=True))
    yield "attention, dropout", Layer(lambda x: attention(*(_heads(x),) * 3, dropout_p=0.1))
    yield "attention, mask", Layer(lambda x: attention(*(_heads(x),) * 3, attn_mask=_mask(x)))
    yield "dropout", Layer(lambda x: nn.functional.dropout(x, 0.15))
    norms = nn.RMSNorm(64), nn.LayerNorm(64)
    for part in (*norms, nn.LSTMCell(64, 64), nn.GRUCell(64, 64)):
        yield type(part).__name__, _of(part)
    for layer in (nn.LSTM(64, 64, 2), nn.GRU(64, 64), nn.RNN(64, 64)):
        yield type(layer).__name__, _of(layer, steps=4)


def _first(made: Any) -> Tensor:
    found: Tensor = made[0] if isinstance(made, tuple) else made
    return found


def kernels(kind: str) -> Iterator[Row]:
    """Compare the ops captured on meta for this device with those captured on it."""
    card = device_at(kind)
    for dtype in (torch.float32, torch.bfloat16):
        for name, layer in layers():
            case = f"{name}, {str(dtype).removeprefix('torch.')}"
            x = torch.zeros(4, 32, 64, dtype=dtype)
            there = layer.to("meta", dtype)
            planned = capture_joint(there, arguments_of(x.to("meta")), device=card)
            real = layer.to_empty(device=kind)
            found = capture_joint(real, arguments_of(x.to(kind)), device=card)
            ops = [[op.target for op in t.captured.graph.ops] for t in (found, planned)]
            yield _equal("kernels", case, *ops)


def _equal(check: str, case: str, found: list[str], planned: list[str]) -> Row:
    """Compare two steps op by op; say where they differ first, or how many ops they have."""
    pairs = itertools.zip_longest(found, planned)
    differing = next((pair for pair in pairs if pair[0] != pair[1]), None)
    one, other = differing or (len(found), len(planned))
    return row(check, case, "ops", one, other, "equal", differing is None)


def overwritten(kind: str) -> Iterator[Row]:
    """Compare the kernels that may write into what they read, row by row, with fresh results."""
    for target in sorted(ROW_WISE, key=str):
        variant = out_variant(target)
        assert variant is not None, "each has an overload that writes"
        writing, keyword = variant
        differing = []
        for dtype, width in itertools.product(_DTYPES, _WIDTHS):
            x = torch.randn(37, width, dtype=dtype, device=kind)
            other = torch.softmax(torch.randn_like(x), -1)
            backward = "backward" in str(target)
            args = (x, other, 1, dtype) if backward else (x, 1, False)
            fresh = target(*args)
            for place in range(1 + backward):
                given: list[Any] = [a.clone() if isinstance(a, Tensor) else a for a in args]
                made = writing(*given, **{keyword: given[place]})
                if made is not given[place] or not torch.equal(made, fresh):
                    differing.append(f"{dtype}, {width}")
        told = "; ".join(differing) or "equal"
        yield row("overwritten", str(target), "bits", told, "equal", "equal", not differing)


_DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16
_WIDTHS = 1, 7, 33, 128, 1000, 1024, 1025, 2048, 4099, 8192, 30_522, 50_257, 128_256, 262_144


def cases(kind: str) -> Iterator[Row]:
    """Compare steps, and what every op makes, of all that ``as_on_cuda`` knows forwards of.

    A case that one capture refuses, the other must, too.
    """
    for case in CASES:
        found, planned = _ops(case, kind, "auto"), _ops(case, "cpu", device_at(kind))
        yield _equal("cases", case.name, found, planned)


def _ops(case: Case, kind: str, device: Device | str) -> list[str]:
    """Return the ops of a step in order, each with the bytes of what it makes."""
    torch.manual_seed(0)
    model, given = case.build()
    there = tree_map_only(Tensor, lambda x: _leaf(x, kind), given)
    autocast = torch.autocast(kind, torch.bfloat16) if case.autocast else nullcontext()
    try:
        with autocast:
            found = capture_joint(model.to(kind), arguments_of(there), device=device).captured.graph
    except CaptureError as error:
        return [f"refused: {error}"]
    sizes = [[found.values[v].size_bytes for v in op.outputs] for op in found.ops]
    return [f"{op.target} {made}" for op, made in zip(found.ops, sizes, strict=True)]


def _leaf(x: Tensor, kind: str) -> Tensor:
    return x.detach().to(kind).requires_grad_(x.requires_grad)
