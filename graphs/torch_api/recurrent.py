"""The LSTM that eager mode runs on a CPU, layer by layer, where torch's own cannot be traced.

Torch falls apart in C++ there and asks for the number of elements, which no symbol answers. What is
written here is compared with the captured graph by whoever uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planner.graphs.torch_api.patches import Patches

_LSTM = 2  # ideep::rnn_kind
_PER_LAYER = 4  # two weights, two biases


def lstm_of_any_size(patches: Patches) -> None:
    """Let the LSTM on a CPU be traced with sizes as symbols."""
    own: Any = torch._VF.lstm

    def called(x: Tensor, *rest: Any) -> Any:
        if not patches.mine() or x.device.type != "cpu" or not _is_plain(*rest):
            return own(x, *rest)
        return _lstm(x, *rest)

    patches.attribute(torch._VF, "lstm", called)


def _is_plain(state: Any, weights: Any, *rest: Any) -> bool:
    """Tell a call of a padded batch, with biases and without projections."""
    batch = isinstance(state, tuple | list)
    return batch and bool(rest[0]) and state[0].shape[-1] == state[1].shape[-1]


def _lstm(  # noqa: PLR0917, the operator's own signature
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,  # noqa: FBT001
    layers: int,
    dropout: float,
    train: bool,  # noqa: FBT001
    bidirectional: bool,  # noqa: FBT001
    batch_first: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, ways = state[0].shape[-1], 1 + bidirectional
    x = (x.transpose(0, 1) if batch_first else x).contiguous()
    last: list[tuple[Tensor, Tensor]] = []
    for layer in range(layers):
        made = []
        for way in range(ways):
            index = layer * ways + way
            own = weights[_PER_LAYER * index : _PER_LAYER * (index + 1)]
            y, h, c, _ = torch.ops.aten.mkldnn_rnn_layer.default(
                x, *own, state[0].select(0, index), state[1].select(0, index), way == 1, [], _LSTM,
                hidden, layers, has_biases, bidirectional, batch_first, train,
            )  # fmt: skip
            made.append(y)
            last.append((h, c))
        x = made[0] if ways == 1 else torch.cat(made, -1)
        if dropout and train and layer < layers - 1:
            x = torch.dropout(x, dropout, train)
    out = x.transpose(0, 1) if batch_first else x
    return out, torch.stack([h for h, _ in last]), torch.stack([c for _, c in last])
