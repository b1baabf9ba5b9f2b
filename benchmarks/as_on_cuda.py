"""What a capture for a card makes of layers and models, beside what a CUDA build of torch calls.

On a build of torch with CUDA, no card needed, ``python -m benchmarks.as_on_cuda --record`` writes
down the operators that forward passes call on fake tensors of ``cuda``: the real dispatch, with the
shapes, dtypes and strides of the results. On any build ``python -m benchmarks.as_on_cuda`` captures
the same forward passes on a CPU for a card, and shows which are equal, kernel for kernel.

Two things only a card decides, so a build without one cannot tell: which fused kernel attention
takes (here all take the parts) and whether cuDNN has bfloat16. ``benchmarks.gpu`` looks at those,
and at the backward pass, which cannot be traced on fake tensors of a card that is not there.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import masking_utils

from benchmarks.cuda_cases import CASES, Case
from benchmarks.record import record, show
from planner.graphs.capture.call_arguments import arguments_of
from planner.graphs.capture.trace import run_forward
from planner.graphs.torch_api.cuda.card import card_of
from planner.graphs.torch_api.decompositions import eager_pieces
from planner.graphs.torch_api.dispatch import TorchDispatchMode
from planner.graphs.torch_api.fake_kernels import lenient_kernels
from planner.graphs.torch_api.fake_tensors import FakeTensorMode
from planner.graphs.torch_api.patches import patching
from planner.graphs.torch_api.pytree import tree_leaves

ON_CUDA = Path(__file__).parent / "as_on_cuda.json"
ARCHITECTURE = "sm_80"

_NO_KERNEL = {
    *("_unsafe_view", "alias", "as_strided", "detach", "empty", "expand", "lift_fresh", "permute"),
    *("prim", "profiler", "select", "slice", "split", "split_with_sizes", "squeeze", "t"),
    *("transpose", "unbind", "unsqueeze", "view"),
}
"""What moves no data."""
_ONE_NAME = {
    "_batch_norm_with_update": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "native_batch_norm": "batch_norm",
}
"""Names of one kernel by how it is traced."""

_BY_THE_CARD = {"convnext (model), autocast", "segformer (model), autocast"}
"""Cases with depthwise convolutions whose layout is cuDNN's, if the card has it for bfloat16."""

_LAYOUT = re.compile(r" by \[[\d, ]*\]")

Kernels = list[str]
# not a list of this file: what a model does to those that its code reaches is undone
_CALLED: ContextVar[Kernels] = ContextVar("_CALLED")


@dataclass(frozen=True)
class Row:
    """A forward pass: whether it calls the same kernels, or the first that differs."""

    case: str
    kernels: int
    verdict: str
    planned: str
    on_cuda: str


class _Log(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name, _, overload = str(func).removeprefix("aten.").partition(".")
        if name not in _NO_KERNEL:
            one = _ONE_NAME.get(name)
            name = one or (name if overload == "default" else f"{name}.{overload}")
            results = [_described(x) for x in tree_leaves(made) if isinstance(x, Tensor)]
            _CALLED.get().append(f"{name} -> {', '.join(results[:3] if one else results)}")
        return made


def _described(x: Tensor) -> str:
    kind = str(x.dtype).removeprefix("torch.")
    return f"{kind}{list(x.shape)}" + ("" if x.is_contiguous() else f" by {list(x.stride())}")


class _Logged(nn.Module):
    """A model whose kernels are written down where it calls them, inside of whatever traces it."""

    def __init__(self, inner: nn.Module, autocast: str | None) -> None:
        super().__init__()
        self.inner, self.autocast = inner, autocast

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        _CALLED.get().clear()
        with _autocast(self.autocast), sdpa_kernel(SDPBackend.MATH), _Log():  # type: ignore[no-untyped-call]
            return self.inner(*args, **kwargs)


@contextlib.contextmanager
def _autocast(kind: str | None) -> Iterator[None]:
    """Switch autocast on, which ``torch.autocast`` declines for a card that is not there."""
    if kind is None:
        yield
        return
    before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, True)  # noqa: FBT003
    torch.set_autocast_dtype(kind, torch.bfloat16)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled(kind, before[0])
        torch.set_autocast_dtype(kind, before[1])


@contextlib.contextmanager
def _masks_unseen() -> Iterator[None]:
    """Let transformers build every mask: it skips some where it may look at their values."""
    own = masking_utils.is_tracing
    masking_utils.is_tracing = lambda *_: True
    try:
        yield
    finally:
        masking_utils.is_tracing = own


def captured(case: Case) -> Kernels:
    """Return the kernels of a forward pass as a capture on a CPU has them for a card."""
    model, inputs = case.build()
    _CALLED.set([])
    logged = _Logged(model, "cpu" if case.autocast else None)
    with _masks_unseen():
        run_forward(logged, arguments_of(inputs), card=card_of(ARCHITECTURE))
    return in_order(_CALLED.get())


def called(case: Case) -> Kernels:
    """Return the kernels that a build with CUDA calls on fake tensors of a card.

    Raises:
        RuntimeError: one of them asks the card.
    """
    model, inputs = case.build()
    _CALLED.set([])
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with patching() as patches, _masks_unseen(), FakeTensorMode(allow_non_fake_inputs=True):
        lenient_kernels(patches)
        eager_pieces(patches)
        there = model._apply(_on_card)  # type: ignore[no-untyped-call]
        logged = _Logged(there, "cuda" if case.autocast else None)
        args = inputs if isinstance(inputs, tuple) else ()
        kwargs = inputs if isinstance(inputs, Mapping) else {}
        logged(*map(_on_card, args), **{name: _on_card(x) for name, x in kwargs.items()})
    return in_order(_CALLED.get())


def _on_card(x: Tensor) -> Tensor:
    there = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
    return there.requires_grad_(x.requires_grad)


def in_order(kernels: Sequence[str]) -> Kernels:
    """Sort neighbouring casts: the arguments of one call are cast in no order that C++ promises.

    >>> in_order(["mm -> a", "_to_copy -> c", "_to_copy -> b", "mm -> d"])
    ['mm -> a', '_to_copy -> b', '_to_copy -> c', 'mm -> d']
    """
    runs = itertools.groupby(kernels, lambda kernel: kernel.startswith("_to_copy"))
    return [k for cast, run in runs for k in (sorted(run) if cast else run)]


def compared(case: Case, on_cuda: Mapping[str, int]) -> Row:
    """Compare what is captured for a card with what was written down.

    Args:
        case: what is captured.
        on_cuda: how often the build with CUDA called each kernel.
    """
    found = _counted(Counter(captured(case)), case)
    wanted = _counted(on_cuda, case)
    ours, theirs = sorted(found - wanted), sorted(wanted - found)
    verdict = "equal" if not ours and not theirs else "DIFFERENT"
    return Row(case.name, found.total(), verdict, *(x[0] if x else "" for x in (ours, theirs)))


def _counted(kernels: Mapping[str, int], case: Case) -> Counter[str]:
    counts: Counter[str] = Counter()
    for kernel, count in kernels.items():
        counts[_LAYOUT.sub("", kernel) if case.name in _BY_THE_CARD else kernel] += count
    return counts


def written() -> dict[str, dict[str, int]]:
    """Return what a build with CUDA called, by case; a case that asks the card is not in it."""
    found: dict[str, dict[str, int]] = json.loads(ON_CUDA.read_text("utf-8"))["kernels"]
    return found


def write() -> list[str]:
    """Write down what this build calls, and return the cases that ask the card."""
    kernels: dict[str, dict[str, int]] = {}
    asking = []
    for case in CASES:
        try:
            kernels[case.name] = dict(Counter(called(case)))
        except RuntimeError as error:
            if not any(word in str(error) for word in ("NVIDIA driver", "CUDA driver")):
                raise
            asking.append(case.name)
    build = {"torch": torch.__version__, "kernels": kernels}
    ON_CUDA.write_text(json.dumps(build, indent=1) + "\n", "utf-8")
    return asking


def main() -> int:
    """Compare, or write down what this build of torch calls."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="write down what this build calls")
    if parser.parse_args().record:
        print("asked the card:", ", ".join(write()))
        return 0
    on_cuda = written()
    rows = [compared(case, on_cuda[case.name]) for case in CASES if case.name in on_cuda]
    show(f"Captured for a card, beside torch {json.loads(ON_CUDA.read_text())['torch']}", rows)
    record("as-on-cuda", rows)
    return int(any(row.verdict != "equal" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
