"""Inductor without a C++ compiler: what it allocates is real, what its kernels compute is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def stubs() -> Iterator[None]:
    """Let fused kernels do nothing: allocations, and kernels of ATen, are real."""
    from torch._functorch import config as functorch_config
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    def nothing(*args: object, **kwargs: object) -> Callable[..., None]:
        return lambda *_: None

    with (
        mock.patch.object(AsyncCompile, "cpp_pybinding", nothing),
        functorch_config.patch(enable_autograd_cache=False),
        config.patch(fx_graph_cache=False, compile_threads=1),
    ):
        yield
