"""Inputs that a compiler copies first, to lie as kernels outside want them, and keeps so.

Such as images and the weights of convolutions. Forward and backward read the copy. Where backward
does not, it is gone with its only reader, and counts as that one's workspace.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from planner.graphs.capture.fused.around_kernels import KernelCall
from planner.graphs.torch_api.inductor.inductor_kernels import Buffer, Kernels

COPY = "layout_copy"
"""The target of what makes a copy; no plan says when it does."""


def copied_inputs(forward: Kernels, inputs: Collection[str]) -> dict[str, Buffer]:
    """Return the copies that are kept for backward, by the name of the input.

    Args:
        forward: its kernels.
        inputs: the names of what is there throughout.
    """
    made = {b.name: b for k in forward.kernels for b in k.makes if b.node is None}
    kept = zip(forward.returned, forward.outputs, strict=True)
    return {n: made[out] for n, out in kept if n is not None and n in inputs and out in made}


def reading_copies(
    calls: Sequence[KernelCall], copies: Mapping[str, KernelCall]
) -> list[KernelCall]:
    """Return kernels that read the copies of inputs.

    Args:
        calls: as they read the inputs.
        copies: what copies each input, by its name.

    >>> copy = KernelCall("copy of x", COPY, ("x",), {"copy of x": 4}, recomputable=False)
    >>> [k.reads for k in reading_copies([KernelCall("f", "f", ("x", "y"), {})], {"x": copy})]
    [('copy of x', 'y')]
    """
    return [
        replace(k, reads=tuple(copies[n].name if n in copies else n for n in k.reads))
        for k in calls
    ]
