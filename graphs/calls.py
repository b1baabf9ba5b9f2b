"""A call of one operator: its signature as text, and real tensors to run it on.

Knows how to make arguments that a kernel accepts from nothing but shapes. Knows nothing of costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from graphs.costs import tensors_in

_BLOCK = 2**16


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """An operator and its arguments, tensors fake, on meta or real: only their shapes are used."""

    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> Any:
        """Call the operator."""
        return self.target(*self.args, **self.kwargs)


def tensors_of(call: Call) -> Iterator[Tensor]:
    """Yield the tensor arguments of a call."""
    return tensors_in((call.args, call.kwargs))


def device_of(call: Call) -> torch.device:
    """Return where a call runs: with its first tensor, else where it is told to."""
    for tensor in tensors_of(call):
        return tensor.device
    return torch.device(call.kwargs.get("device") or "cpu")


def signature(call: Call) -> str:
    """Describe a call by all that a kernel's time and memory depend on, contents apart.

    Two calls with the same operator, shapes, strides, dtypes, scalars and sharing of storages
    have the same signature.

    >>> x = torch.empty(2, 3, device="meta")
    >>> signature(Call(torch.ops.aten.add.Tensor, (x, x), {"alpha": 2}))
    'aten.add.Tensor((float32[2,3][3,1]+0@0 meta, float32[2,3][3,1]+0@0 meta), {alpha: 2})'
    """
    storages: dict[int, int] = {}
    return f"{call.target}({_text(call.args, storages)}, {_text(call.kwargs, storages)})"


def _text(tree: Any, storages: dict[int, int]) -> str:
    if isinstance(tree, Tensor):
        shape, stride = (",".join(map(str, n)) for n in (tree.shape, tree.stride()))
        number = storages.setdefault(_storage_id(tree), len(storages))
        dtype = str(tree.dtype).removeprefix("torch.")
        offset = tree.storage_offset()
        return f"{dtype}[{shape}][{stride}]+{offset}@{number} {tree.device.type}"
    if isinstance(tree, list | tuple):
        return f"({', '.join(_text(item, storages) for item in tree)})"
    if isinstance(tree, Mapping):
        items = (f"{key}: {_text(tree[key], storages)}" for key in sorted(tree))
        return f"{{{', '.join(items)}}}"
    return repr(tree)


def _storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def materialise(call: Call) -> Call:
    """Return the call on tensors of the same shapes, strides, dtypes and sharing of storages.

    Floats are random, as denormals and NaNs would slow a kernel down; integers are random below
    every dimension and scalar of the call, so that they index anything; ends of groups are even.
    """
    limit = _index_limit(call)
    storages: dict[int, Tensor] = {}
    sizes: dict[int, int] = {}
    for tensor in tensors_of(call):
        key = _storage_id(tensor)
        sizes[key] = max(sizes.get(key, 0), _end_bytes(tensor))

    def real(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            key = _storage_id(tree)
            if key not in storages:
                storages[key] = _filled(sizes[key], tree.dtype, tree.device, limit)
            flat = storages[key].view(tree.dtype)
            return flat.as_strided(tree.shape, tree.stride(), tree.storage_offset())
        if isinstance(tree, list | tuple):
            return type(tree)(map(real, tree))
        return tree

    args = real(call.args)
    kwargs = {key: real(value) for key, value in call.kwargs.items()}
    if "_grouped_mm" in str(call.target) and isinstance(ends := (*args, None, None)[2], Tensor):
        rows = args[0].shape[-2 if args[0].dim() == 2 and args[1].dim() == 3 else -1]
        ends.copy_(torch.arange(1, ends.numel() + 1) * rows // ends.numel())
    return Call(call.target, args, kwargs)


def _end_bytes(tensor: Tensor) -> int:
    """Return how far into its storage a tensor reaches."""
    if 0 in tensor.shape:
        return 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + last + 1) * tensor.element_size()


def _filled(size_bytes: int, dtype: torch.dtype, device: torch.device, limit: int) -> Tensor:
    """Make a flat tensor by repeating a random block: filling all of it would take longest."""
    flat = torch.empty(-(-size_bytes // 16) * 16 // dtype.itemsize, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    if dtype is torch.bool:
        block = torch.randint(0, 2, (_BLOCK,), generator=generator)
    elif dtype.is_floating_point or dtype.is_complex:
        block = torch.randn(_BLOCK, generator=generator)
    else:
        block = torch.randint(0, limit, (_BLOCK,), generator=generator)
    block = block.to(dtype).to(device)
    whole = flat.numel() // _BLOCK * _BLOCK
    flat[:whole].view(-1, _BLOCK).copy_(block)
    flat[whole:].copy_(block[: flat.numel() - whole])
    return flat


def _index_limit(call: Call) -> int:
    """Return a bound below which an integer indexes any dimension of any argument."""
    sizes = [n for tensor in tensors_of(call) for n in tensor.shape]
    scalars = [a for a in call.args if type(a) is int and a > 0]
    return max(1, min((*sizes, *scalars), default=1))


def output_bytes(call: Call) -> int:
    """Return the bytes of the storages a call makes, by running it on fake tensors."""
    with FakeTensorMode(), torch.no_grad():
        fake = materialise(call)
        given = {_storage_id(t) for t in tensors_of(fake)}
        made = {_storage_id(t): t for t in tensors_in(fake.run())}
        return sum(t.untyped_storage().nbytes() for key, t in made.items() if key not in given)


def input_bytes(call: Call) -> int:
    """Return the bytes of the storages a call reads, as far as its arguments reach into them."""
    sizes: dict[int, int] = {}
    for tensor in tensors_of(call):
        key = _storage_id(tensor)
        sizes[key] = max(sizes.get(key, 0), _end_bytes(tensor))
    return sum(sizes.values())
