"""The kernels and buffers that Inductor will make of a graph, asked of itself.

Asking goes the way of compiling, up to where code is written and would be compiled, but for what
loops compute; compiling tells what it makes at that same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor, fx
from torch._functorch import config as functorch_config
from torch._functorch._aot_autograd.descriptors import (
    InputMutationAOTOutput,
    IntermediateBaseAOTOutput,
)
from torch._functorch._aot_autograd.graph_compile import collect_bw_donated_buffer_idxs
from torch._functorch._aot_autograd.schemas import ViewAndMutationMeta
from torch._guards import detect_fake_mode, tracing
from torch._inductor import compile_fx, config
from torch._inductor.compile_fx import (
    compile_fx_backward,
    compile_fx_inner,
    create_compiler_config_extra,
)
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V

from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.inductor.inductor_kernels import Kernels, read
from planner.graphs.torch_api.inductor.kept_operators import let_go
from planner.graphs.torch_api.inductor.kernels_together import compile_together
from planner.graphs.torch_api.inductor.near_fusions import near_fusions
from planner.graphs.torch_api.inductor.partitioner import Halves, JointStep, copy_of
from planner.graphs.torch_api.inductor.quick_strides import quick_strides
from planner.graphs.torch_api.inductor.sums_in_place import lower_sums
from planner.graphs.torch_api.inductor.symbols import NUMBERS, AtMost
from planner.graphs.torch_api.inductor.without_code import without_code
from planner.graphs.torch_api.patches import Patches, patching

SETTINGS: dict[str, Any] = {
    "allow_buffer_reuse": False,
    "fx_graph_cache": False,
    "fx_graph_remote_cache": False,
}
"""What Inductor is told, asked or compiling: to give every buffer back where it dies, and to lower
every graph, so that what it makes of it is read.

By default it keeps a dead buffer for a later one of its size, up to a peak that it estimates with
buffers that no kernel makes: more than it would need.
"""


class _Asked(Exception):
    """Ends a compilation once kernels are known."""


def kernels_of(step: JointStep, halves: Halves) -> tuple[Kernels, Kernels]:
    """Return the kernels that Inductor makes of forward and of backward, without their code.

    Args:
        step: whose halves they are.
        halves: with a fake value on every node; they are not changed.
    """
    forward, backward = map(copy_of, halves)
    for node in (*forward.graph.nodes, *backward.graph.nodes):
        step.largest.put(node)
    inputs = [n.meta["val"] for n in forward.graph.find_nodes(op="placeholder")]
    mode = detect_fake_mode(inputs)
    assert mode is not None, "the values of a traced graph are fake"
    _set_visible(forward, step.forward_outputs)
    with config.patch(SETTINGS), V.set_fake_mode(mode), tracing(None):
        first = _asked(forward, inputs, partial(_forward, static=step.static))
        strides = dict(zip(first.returned, first.strides, strict=True))
        saved = [
            _restrided(n.meta["val"], strides.get(n.name), mode)
            for n in backward.graph.find_nodes(op="placeholder")
        ]
        given = _given_up(forward, backward, step.forward_outputs)
        second = _asked(backward, saved, _backward, given)
    return first, second


def _given_up(forward: fx.GraphModule, backward: fx.GraphModule, count: int) -> list[int]:
    """Return which inputs of backward it may write into: saved values that nobody else has."""
    if not functorch_config.donated_buffer:
        return []
    (kept,) = forward.graph.output_node().args
    assert isinstance(kept, tuple | list)
    numbers = sum(isinstance(n, fx.Node) and isinstance(n.meta["val"], int) for n in kept[count:])
    said = SimpleNamespace(
        num_forward=count,
        tensors_saved_for_backwards_slice=slice(count, len(kept) - numbers),
        num_symints_saved_for_bw=numbers,
    )
    return collect_bw_donated_buffer_idxs(forward, backward, cast(ViewAndMutationMeta, said))


def _forward(module: fx.GraphModule, inputs: list[Any], *, static: Sequence[int]) -> None:
    compile_fx_inner(module, inputs, static_input_idxs=static)


def _backward(module: fx.GraphModule, inputs: list[Any]) -> None:
    extra = create_compiler_config_extra(module)
    compile_fx_backward(module, inputs, extra, inner_compile=compile_fx_inner)


def _asked(
    module: fx.GraphModule,
    inputs: list[Any],
    compiled: Callable[[fx.GraphModule, list[Any]], None],
    given_up: list[int] | None = None,
) -> Kernels:
    """Go the way of a compilation up to where kernels are known."""
    found = []

    def told(kernels: Kernels) -> None:
        found.append(kernels)
        raise _Asked

    with _watched(module, told, given_up) as patches:
        without_code(patches)
        try:
            compiled(module, inputs)
        except Exception as error:
            if isinstance(cause := innermost(error), CaptureError):
                raise cause from None
            if not found:
                raise
    return found[0]


def innermost(error: BaseException) -> BaseException:
    """Return what was raised before Inductor and Dynamo wrapped it.

    Args:
        error: as it arrives.
    """
    inner = getattr(error, "inner_exception", None)
    return error if inner is None else innermost(inner)


def watching(told: Callable[[Kernels, bool], None], largest: AtMost) -> Callable[..., Any]:
    """Return what compiles a half for ``compile_fx(inner_compile=)``, and tells its kernels.

    Args:
        told: called with the kernels, and whether they are backward's, before there is code.
        largest: what sizes that are symbols are at most, for which the kernels are told.
    """

    def inner(module: fx.GraphModule, inputs: list[Any], **said: Any) -> Any:
        if said.get("is_inference"):
            let_go(module)
            return compile_fx_inner(module, inputs, **said)
        backward = bool(said.get("is_backward"))
        with _watched(module, lambda k: told(k, backward), largest=largest) as patches:
            compile_together(patches)
            return compile_fx_inner(module, inputs, **said)

    return inner


@contextmanager
def _watched(
    module: fx.GraphModule,
    told: Callable[[Kernels], None],
    given_up: list[int] | None = None,
    largest: AtMost = NUMBERS,
) -> Iterator[Patches]:
    """Tell the kernels of a graph once their code is written, and not compiled yet.

    Other threads compile meanwhile as ever.
    """
    returned = _names(module)
    seen = False

    class Watched(GraphLowering):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if given_up is not None and patches.mine():
                self.bw_donated_idxs = given_up

        def codegen(self) -> Any:
            nonlocal seen
            written = super().codegen()
            if not patches.mine():
                return written
            seen = True
            told(read(self, returned, largest))
            return written

    inputs = tuple(n.name for n in module.graph.find_nodes(op="placeholder"))
    with patching() as patches, near_fusions(module):
        patches.attribute(compile_fx, "GraphLowering", Watched)
        lower_sums(patches)
        quick_strides(patches)
        yield patches
    if not seen:  # a graph that computes nothing is not lowered
        told(Kernels((), (), inputs, returned, returned, (None,) * len(returned)))


def _names(module: fx.GraphModule) -> tuple[str | None, ...]:
    (outputs,) = module.graph.output_node().args
    assert isinstance(outputs, tuple | list)
    return tuple(x.name if isinstance(x, fx.Node) else None for x in outputs)


def _set_visible(forward: fx.GraphModule, count: int) -> None:
    """Say which outputs a person sees, whose strides are kept: not what is written into inputs."""
    out = forward.graph.output_node()
    known = list(out.meta.get("desc") or ())[:count]
    written = sum(isinstance(d, InputMutationAOTOutput) for d in known)
    (outputs,) = out.args
    assert isinstance(outputs, tuple | list)
    shown = [i for i in range(written, count) if isinstance(outputs[i], fx.Node)]
    bases = {i for i, d in enumerate(known) if isinstance(d, IntermediateBaseAOTOutput)}
    out.meta["user_visible_output_idxs"] = [i for i in shown if i not in bases]


def _restrided(value: Any, stride: tuple[int, ...] | None, mode: Any) -> Any:
    """Return a saved value as forward leaves it."""
    if stride is None or not isinstance(value, Tensor) or value.stride() == stride:
        return value
    with mode:
        return value.as_strided(value.shape, stride)
