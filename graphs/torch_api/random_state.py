"""The default random generators while a step is captured: left to the threads that draw."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._functorch import aot_autograd

from planner.graphs.torch_api.dispatch import without_modes
from planner.graphs.torch_api.patches import Patches


def leave_generators_alone(patches: Patches) -> None:
    """Let AOTAutograd not rewind the generators when it is done, unless the model seeded them.

    A capture draws nothing, fake tensors have no numbers; but another thread that trains does, and
    would draw the same numbers again.
    """
    own: Any = aot_autograd.preserve_rng_state  # type: ignore[attr-defined]
    elsewhere = threading.Event()  # another thread has seeded them

    def noting(seed: Callable[..., Any]) -> Callable[..., Any]:
        def seeded(*args: Any) -> Any:
            if not patches.mine():
                elsewhere.set()
            return seed(*args)

        return seeded

    @contextmanager
    def preserved() -> Iterator[None]:
        if not patches.mine():
            with own():
                yield
            return
        with without_modes():
            before = [(g, g.initial_seed(), g.get_state()) for g in _generators()]
        try:
            yield
        finally:
            with without_modes():
                for generator, seed, state in () if elsewhere.is_set() else before:
                    if generator.initial_seed() != seed:
                        generator.set_state(state)

    patches.attribute(aot_autograd, "preserve_rng_state", preserved)
    for name in ("manual_seed", "seed"):
        patches.attribute(torch, name, noting(getattr(torch, name)))


def _generators() -> list[torch.Generator]:
    if not torch.cuda.is_available():
        return [torch.default_generator]
    torch.cuda.init()  # type: ignore[no-untyped-call]
    return [torch.default_generator, torch.cuda.default_generators[torch.cuda.current_device()]]
