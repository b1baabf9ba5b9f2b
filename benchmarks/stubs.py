"""Inductor without a C++ compiler: what it allocates is real, what its kernels compute is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch


@contextmanager
def stubs() -> Iterator[None]:
    """Let fused kernels do nothing: allocations, and kernels of ATen, are real."""
    from torch._functorch import config as functorch_config
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    def nothing(*args: object, **kwargs: object) -> Callable[..., None]:
        return lambda *_: None

    guards: Any = torch._C._dynamo.guards  # where Inductor's code takes memory from
    made = guards._empty_strided_cpu

    def zero_indices(size: object, stride: object, dtype: torch.dtype) -> torch.Tensor:
        """Make memory as Inductor's code does; what is not there must be no index of ATen's."""
        tensor: torch.Tensor = made(size, stride, dtype)
        return tensor if dtype.is_floating_point else tensor.zero_()

    with (
        mock.patch.object(AsyncCompile, "cpp_pybinding", nothing),
        mock.patch.object(guards, "_empty_strided_cpu", zero_indices),
        functorch_config.patch(enable_autograd_cache=False),
        config.patch(fx_graph_cache=False, compile_threads=1),
    ):
        yield
