"""The precision that a model is captured in, which is not always the one it is stored in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from planner.graphs.capture.placed import local_of, placed_as
from planner.graphs.capture.step_function import swapped, unique_tensors
from planner.graphs.torch_api.fake_tensors import FakeTensor, FakeTensorMode

PRECISIONS = ("float32", "bfloat16", "autocast")
"""As the model is; parameters and inputs cast (what FSDP does); autocast (what DDP users do)."""


@contextmanager
def in_precision(model: nn.Module, precision: str, device: str) -> Iterator[None]:
    """Let a model be captured as it will compute: parameters cast, or under autocast.

    Args:
        model: is as it was afterwards.
        precision: one of ``PRECISIONS``.
        device: where autocast is on, such as "cuda".
    """
    with ExitStack() as stack:
        if precision == "autocast":
            stack.enter_context(torch.autocast(device, dtype=torch.bfloat16))
        elif precision == "bfloat16":
            stack.enter_context(swapped(model, _cast(model)))
        yield


def _cast(model: nn.Module) -> dict[str, Tensor]:
    """Return fake parameters in bfloat16, and the buffers as they are."""
    parameters, buffers = unique_tensors(model)
    locals_ = map(local_of, parameters.values())
    mode = next((t.fake_mode for t in locals_ if isinstance(t, FakeTensor)), None)
    made: dict[str, Tensor] = dict(buffers)
    with mode or FakeTensorMode(allow_non_fake_inputs=True):
        for name, p in parameters.items():
            part, placed = local_of(p), placed_as(p)
            device = "cpu" if part.is_meta else part.device
            dtype = torch.bfloat16 if p.is_floating_point() else p.dtype
            fresh = torch.empty_strided(part.shape, part.stride(), dtype=dtype, device=device)
            whole = placed.around(fresh) if placed else fresh
            made[name] = nn.Parameter(whole, requires_grad=p.requires_grad)
    return made
