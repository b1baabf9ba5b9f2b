"""Results that a kernel writes over what is read last there: they take no memory of their own.

In a graph such a value has no bytes, and who reads it reads the one whose memory it lies in, too.
That is for kernels that run once: one that runs again would find what it reads overwritten.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from planner.graphs.capture.fused.around_kernels import KernelCall
from planner.graphs.torch_api.inductor.inductor_kernels import Kernels


def written_over(half: Kernels) -> set[str]:
    """Return the marked nodes whose values lie where something lay that is read no more.

    Args:
        half: forward's or backward's.
    """
    there, first = set(half.inputs), set[str]()
    found = set[str]()
    for kernel in half.kernels:
        for buffer in kernel.makes:
            if buffer.node is not None and buffer.node not in first:
                first.add(buffer.node)
                if buffer.over in there:  # not a part of what is made later
                    found.add(buffer.node)
        there |= {buffer.name for buffer in kernel.makes}
    return found


def in_place(
    calls: Sequence[KernelCall], over: Collection[str], kept: Collection[str]
) -> list[KernelCall]:
    """Return kernels whose results take no bytes where they are written over something.

    They are taken to lie where one of ``calls`` made a value of that size, which is read last
    there. The compiler may have chosen what was there before and is read last, too: then this one
    is given back instead, which is as much.

    Args:
        calls: kernels that run once, in order.
        over: the values that are written so, by name.
        kept: those that are held when all is over, which stay as they are.

    >>> calls = [KernelCall("mm", "mm", (), {"a": 8}), KernelCall("f", "f", ("a",), {"b": 8}),
    ...          KernelCall("mm_1", "mm", ("b",), {"c": 4})]
    >>> [(dict(k.makes), k.reads) for k in in_place(calls, {"b"}, {"c"})[1:]]
    [({'b': 0}, ('a',)), ({'c': 4}, ('b', 'a'))]
    """
    last = {name: i for i, call in enumerate(calls) for name in call.reads}
    size_bytes: dict[str, int] = {}
    lies: dict[str, str] = {}  # a value -> the one whose memory it lies in
    found = []
    for i, call in enumerate(calls):
        free = [n for n in call.reads if n in size_bytes and last[n] == i and n not in kept]
        makes = dict(call.makes)
        for name, size in call.makes.items():
            under = next((n for n in free if size_bytes[n] == size), None)
            if under is not None and name in over and name not in kept:
                free.remove(under)
                makes[name], lies[name] = 0, lies.get(under, under)
        size_bytes |= call.makes
        held = dict.fromkeys(lies[n] for n in call.reads if n in lies)
        reads = tuple(dict.fromkeys((*call.reads, *held)))
        found.append(replace(call, reads=reads, makes=makes))
    return found
