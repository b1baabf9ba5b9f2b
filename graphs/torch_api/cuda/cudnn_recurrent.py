"""Recurrent layers as cuDNN runs them: all layers, directions and steps in one kernel.

By ``use_cudnn`` and ``_cudnn_impl`` (aten/src/ATen/native/RNN.cpp, native/cudnn/RNN.cpp). torch's
own composition asks cuDNN for the layout of the weights and reads their addresses, which fake
tensors do not have; here the kernel is called with the weights one by one, which it gathers in a
buffer of its own. Dropout between layers has a state inside cuDNN, which no plan can set aside:
then every layer is a kernel, and what lies between is dropped as anywhere else.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.graphs.torch_api.autocast_cache import may_be_cast
from planner.graphs.torch_api.cuda.card import Card
from planner.graphs.torch_api.dispatch import composed, use_composition, without_autocast
from planner.graphs.torch_api.fake_kernels import use_fakes
from planner.graphs.torch_api.patches import Patches

aten = torch.ops.aten
_KINDS = {aten.rnn_relu.input: 0, aten.rnn_tanh.input: 1, aten.lstm.input: 2, aten.gru.input: 3}
"""The numbers of ``cudnnRNNMode_t``."""
WARNS_ONCE: dict[Any, Any] = {aten._cudnn_rnn.default: torch._cudnn_rnn}
"""Operators that warn in C++, and the functions by which that goes through Python's ``warnings``:
called by its name, the kernel would write to stderr in every call that its weights lie apart."""
KEPT_OF_A_STEP = {0: 1, 1: 1, 2: 6, 3: 6}
"""How many numbers a unit keeps of each step for backward: its gates, and the states they act on.

An assumption: cuDNN says how many bytes it reserves only on a card, and what for nowhere. For small
layers it is what an H200 reserved, rounded to 512 bytes (``benchmarks.gpu``).
"""


def recurrent_of_cuda(patches: Patches, card: Card | None) -> None:
    """Let recurrent layers be one kernel, as on a card.

    Args:
        patches: what may be undone.
        card: that is planned for; ``None`` if it is the one that the tensors are on.
    """
    for op, kind in _KINDS.items():
        use_composition(patches, op, functools.partial(_layers, op, kind, card))
    use_fakes(patches, RECURRENT_FAKES)
    flatten: Any = nn.RNNBase.flatten_parameters

    def flattened(self: nn.RNNBase) -> None:
        """Leave weights where they lie: they have no addresses while a step is captured."""
        if not patches.mine():
            flatten(self)

    patches.attribute(nn.RNNBase, "flatten_parameters", flattened)


def _takes(x: Tensor, card: Card | None) -> bool:
    """Tell whether cuDNN runs a layer over such a tensor."""
    if card is not None:
        here, narrow = card.is_nvidia, card.low_precisions
    elif x.device.type == "cuda":
        here = torch.version.hip is None
        narrow = Card(torch.cuda.get_device_capability(x.device), prefers_cudnn=True).low_precisions
    else:
        return False
    known = (torch.float32, torch.float64, *narrow)
    return here and torch.backends.cudnn.enabled and x.dtype in known and x.numel() > 0


def _layers(  # noqa: PLR0917, the operator's own signature
    op: Any,
    kind: int,
    card: Card | None,
    x: Tensor,
    state: Any,
    weights: Sequence[Tensor],
    has_biases: bool,  # noqa: FBT001
    layers: int,
    dropout: float,
    train: bool,  # noqa: FBT001
    both: bool,  # noqa: FBT001
    batch_first: bool,  # noqa: FBT001
) -> tuple[Tensor, ...]:
    if not _takes(x, card):
        with torch.backends.mkldnn.flags(enabled=False):  # a CPU's kernel is none of a card's
            rest = has_biases, layers, dropout, train, both, batch_first
            made: tuple[Tensor, ...] = composed(op, x, state, weights, *rest)
            return made
    hx, cx = state if isinstance(state, list | tuple) else (state, None)
    run = functools.partial(_kernel, kind, train=train, both=both, batch_first=batch_first)
    if not (dropout and train and layers > 1):
        y, hy, cy = run(x, weights, hx, cx, layers)
        return (y, hy) if cx is None else (y, hy, cy)
    each, ways = len(weights) // layers, 1 + both
    last: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        own, part = weights[layer * each :][:each], slice(layer * ways, (layer + 1) * ways)
        h, c = hx[part].contiguous(), None if cx is None else cx[part].contiguous()
        x, hy, cy = run(x, own, h, c, 1)
        last.append((hy,) if cx is None else (hy, cy))
        if layer < layers - 1:
            x = torch.dropout(x, dropout, train)
    return x, *(torch.cat(states) for states in zip(*last, strict=True))


def _kernel(  # noqa: PLR0917
    kind: int,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor | None,
    layers: int,
    *,
    train: bool,
    both: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    hidden, out = (hx if cx is None else cx).shape[2], hx.shape[2]
    if torch.is_autocast_enabled("cuda"):  # in float16 whatever it is, anew in every call
        x, hx, cx, *weights = (_half(t) for t in (x, hx, cx, *weights))
    with without_autocast():
        made = aten._cudnn_rnn.default(
            x, weights, len(weights) // (layers * (1 + both)), None, hx, cx, kind, hidden,
            out if out != hidden else 0, layers, batch_first, 0.0, train, both, [], None,
        )  # fmt: skip
    return made[:3]  # type: ignore[no-any-return]


def _half(value: Any) -> Any:
    """Cast as ``aten/src/ATen/cudnn/AutocastRNN.cpp`` does, which a build for CPUs lacks."""
    return value.to(torch.float16) if may_be_cast(value) else value


def _forward_fake(  # noqa: PLR0917, the operator's own signature
    mode: FakeTensorMode,
    func: Any,
    x: Tensor,
    weights: Sequence[Tensor],
    stride: int,
    buffer: Tensor | None,
    hx: Tensor,
    cx: Tensor | None,
    kind: int,
    hidden: int,
    projected: int,
    layers: int,
    batch_first: bool,  # noqa: FBT001
    dropout: float,
    train: bool,  # noqa: FBT001
    both: bool,  # noqa: FBT001
    *rest: Any,
) -> tuple[Tensor, ...]:
    """Return outputs and states, what is kept for backward, and the gathered weights."""
    rows, steps = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    ways, out = layers * (1 + both), projected or hidden
    with mode:
        y = _like_steps(x, steps, rows, (1 + both) * out, batch_first=batch_first)
        kept = steps * rows * ways * (KEPT_OF_A_STEP[kind] * hidden + (projected or 0))
        between = steps * rows * (layers - 1) * (1 + both) * out
        reserve = (kept + between) * x.element_size() if train else 0
        count = sum(w.numel() for w in weights)
        if all(w.dim() > 1 for w in weights):  # there are biases nevertheless, of zeros
            count += 2 * ways * hidden * _GATES[kind]
        return (
            y,
            hx.new_empty(ways, rows, out),
            hx.new_empty(0) if cx is None else cx.new_empty(ways, rows, hidden),
            x.new_empty(reserve, dtype=torch.uint8),
            x.new_empty(count),
        )


_GATES = {0: 1, 1: 1, 2: 4, 3: 3}


def _backward_fake(  # noqa: PLR0917, the operator's own signature
    mode: FakeTensorMode,
    func: Any,
    x: Tensor,
    weights: Sequence[Tensor],
    stride: int,
    buffer: Tensor,
    hx: Tensor,
    cx: Tensor | None,
    *rest: Any,
) -> tuple[Any, ...]:
    """Return the gradients of inputs and states, and those of the weights as parts of one block."""
    batch_first, wanted = rest[8], rest[-1]
    rows, steps = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    with mode:
        flat = buffer.new_empty(buffer.shape) if wanted[3] else None
        first, parts = 0, list[Tensor]()
        for weight in weights if flat is not None else ():
            size = math.prod(weight.shape)
            assert flat is not None
            parts.append(flat[first : first + size].view(weight.shape))
            first += size
        return (
            _like_steps(x, steps, rows, x.shape[2], batch_first=batch_first),
            hx.new_empty(hx.shape),
            None if cx is None else cx.new_empty(cx.shape),
            parts,
        )


def _like_steps(x: Tensor, steps: int, rows: int, width: int, *, batch_first: bool) -> Tensor:
    """Make what lies step by step, whatever its first dimension is."""
    if not batch_first:
        return x.new_empty(steps, rows, width)
    return x.new_empty_strided((rows, steps, width), (width, rows * width, 1))


RECURRENT_FAKES: dict[Any, Any] = {
    aten._cudnn_rnn.default: _forward_fake,
    aten._cudnn_rnn_backward.default: _backward_fake,
}
"""What torch knows of neither: what is kept, and the backward kernel."""
