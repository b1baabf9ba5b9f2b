"""A call of one operator: its signature as text, and real tensors to run it on.

Knows how to make arguments that a kernel accepts from nothing but shapes. Knows nothing of costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor

from planner.graphs.costs.roofline import tensors_in
from planner.graphs.torch_api.cuda.cudnn_recurrent import RECURRENT_FAKES, WARNS_ONCE
from planner.graphs.torch_api.fake_kernels import use_fakes
from planner.graphs.torch_api.fake_tensors import FakeTensorMode
from planner.graphs.torch_api.operators import OpOverload, argument_place
from planner.graphs.torch_api.patches import patching
from planner.graphs.torch_api.quiet import silence_fake_tensors
from planner.graphs.torch_api.storages import storage_key

Fill = Callable[[int, torch.dtype, torch.device, int], Tensor]
_BLOCK = 2**16


@dataclass(frozen=True, slots=True, eq=False)
class OperatorCall:
    """An operator and its arguments, tensors fake, on meta or real: only their shapes are used."""

    target: OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> Any:
        """Call the operator."""
        return WARNS_ONCE.get(self.target, self.target)(*self.args, **self.kwargs)


def tensors_of(call: OperatorCall) -> Iterator[Tensor]:
    """Yield the tensor arguments of a call."""
    return tensors_in((call.args, call.kwargs))


def device_of(call: OperatorCall) -> torch.device:
    """Return where a call runs: with its first tensor, else where it is told to."""
    for tensor in tensors_of(call):
        return tensor.device
    return torch.device(call.kwargs.get("device") or "cpu")


def signature(call: OperatorCall) -> str:
    """Describe a call by all that a kernel's time and memory depend on, contents apart.

    Two calls with the same operator, shapes, strides, dtypes, scalars and sharing of storages
    have the same signature.

    >>> x = torch.empty(2, 3, device="meta")
    >>> signature(OperatorCall(torch.ops.aten.add.Tensor, (x, x), {"alpha": 2}))
    'aten.add.Tensor((float32[2,3][3,1]+0@0 meta, float32[2,3][3,1]+0@0 meta), {alpha: 2})'
    """
    storages: dict[int, int] = {}
    return f"{call.target}({_text(call.args, storages)}, {_text(call.kwargs, storages)})"


def _text(tree: Any, storages: dict[int, int]) -> str:
    if isinstance(tree, Tensor):
        shape, stride = (",".join(map(str, n)) for n in (tree.shape, tree.stride()))
        number = storages.setdefault(storage_key(tree), len(storages))
        dtype = str(tree.dtype).removeprefix("torch.")
        offset = tree.storage_offset()
        return f"{dtype}[{shape}][{stride}]+{offset}@{number} {tree.device.type}"
    if isinstance(tree, list | tuple):
        return f"({', '.join(_text(item, storages) for item in tree)})"
    if isinstance(tree, Mapping):
        items = (f"{key}: {_text(tree[key], storages)}" for key in sorted(tree))
        return f"{{{', '.join(items)}}}"
    return repr(tree)


def materialise(call: OperatorCall, fill: Fill) -> OperatorCall:
    """Return the call on tensors of the same shapes, strides, dtypes and sharing of storages.

    ``fill`` makes the flat tensors; arguments whose contents steer a kernel are then set right.

    >>> x = torch.empty(4, 2, device="meta").t()
    >>> twice = materialise(OperatorCall(torch.ops.aten.add.Tensor, (x, x)), blank)
    >>> twice.args[0].stride(), twice.args[0].data_ptr() == twice.args[1].data_ptr()
    ((1, 2), True)
    """
    limit = _index_limit(call)
    sizes = _storage_bytes(call)
    storages: dict[int, Tensor] = {}

    def real(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            key = storage_key(tree)
            if key not in storages:
                storages[key] = fill(sizes[key], tree.dtype, tree.device, limit)
            flat = storages[key].view(tree.dtype)
            return flat.as_strided(tree.shape, tree.stride(), tree.storage_offset())
        if isinstance(tree, list | tuple):
            return type(tree)(map(real, tree))
        return tree

    args = real(call.args)
    kwargs = {key: real(value) for key, value in call.kwargs.items()}
    prepare = _PREPARE.get(call.target, tuple)
    return OperatorCall(call.target, prepare(args), kwargs)


def blank(size_bytes: int, dtype: torch.dtype, device: torch.device, limit: int) -> Tensor:
    """Make a flat tensor of zeros whose memory is not touched before it is read.

    Args:
        size_bytes: at least so long.
        dtype: of its elements.
        device: where it is.
        limit: not used; zeros index anything.
    """
    if device.type != "cpu":
        return torch.zeros(_count(size_bytes, dtype), dtype=dtype, device=device)
    data = numpy.zeros(_count(size_bytes, dtype) * dtype.itemsize, dtype=numpy.uint8)
    return torch.from_numpy(data).view(dtype)


def random(size_bytes: int, dtype: torch.dtype, device: torch.device, limit: int) -> Tensor:
    """Make a flat tensor by repeating a random block: to draw all of it would take longest.

    Floats are in [0, 1), which every operator accepts, and never denormal, which would slow it
    down.

    Args:
        size_bytes: at least so long.
        dtype: of its elements.
        device: where it is.
        limit: what integers are below, so that they index anything.
    """
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point or dtype.is_complex:
        block = torch.rand(_BLOCK, generator=generator)
    else:
        top = 2 if dtype is torch.bool else limit
        block = torch.randint(0, top, (_BLOCK,), generator=generator)
    block = block.to(dtype).to(device)
    flat = torch.empty(_count(size_bytes, dtype), dtype=dtype, device=device)
    whole = flat.numel() // _BLOCK * _BLOCK
    flat[:whole].view(-1, _BLOCK).copy_(block)
    flat[whole:].copy_(block[: flat.numel() - whole])
    return flat


def _hollow(size_bytes: int, dtype: torch.dtype, device: torch.device, limit: int) -> Tensor:
    return torch.empty(_count(size_bytes, dtype), dtype=dtype, device=device)


def _count(size_bytes: int, dtype: torch.dtype) -> int:
    """Return how many elements cover so many bytes, and any other dtype's view of them."""
    return max(1, -(-size_bytes // 16)) * 16 // dtype.itemsize


def _even_groups(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Set the ends of the groups so that each has its share of the rows, or of the sum."""
    left, right, ends, *_ = (*args, None)
    if isinstance(ends, Tensor):
        rows = left.shape[-2 if left.dim() == 2 < right.dim() else -1]
        ends.copy_(torch.arange(1, ends.numel() + 1) * rows // ends.numel())
    return args


def _recurrent_workspace(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace the opaque workspace by what forward makes: fake tensors know only that it exists."""
    image, w1, w2, w3, w4, hx, cx, *_ = args
    reverse, mode, hidden, layers, biases, train, both, sizes, batch_first, _opaque = args[-10:]
    forward = torch.ops.aten.mkldnn_rnn_layer.default
    flags = (reverse, sizes, mode, hidden, layers, biases, both, batch_first, train)
    return (*args[:-1], forward(image, w1, w2, w3, w4, hx, cx, *flags)[3])


def _recurrent_reserve(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace what cuDNN keeps for backward, and the weights it gathered, by what forward makes."""
    given, gradients, numbers, (state, _, mask) = args[:7], args[7:10], args[10:-3], args[-3:]
    x, weights, stride, _, hx, cx, _ = given
    forward = torch.ops.aten._cudnn_rnn.default
    y, _, _, reserve, gathered = forward(x, weights, stride, None, hx, cx, *numbers, state)
    before = x, weights, stride, gathered, hx, cx, y
    return (*before, *gradients, *numbers, state, reserve, mask)


def _seeds_on_host(target: OpOverload) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Put the seed and offset of attention's dropout where forward leaves them: on the CPU.

    The kernel takes them from there without a look at where they are (at/src/ATen/native/
    transformers/cuda/attention.cu, "Seed and Offset Device"); fake tensors have them on the card.
    """
    places = {argument_place(target, name) for name in ("philox_seed", "philox_offset")}

    def prepared(args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.cpu() if i in places else a for i, a in enumerate(args))

    return prepared


_SEEDED = (
    torch.ops.aten._scaled_dot_product_efficient_attention_backward.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention_backward.default,
    torch.ops.aten._efficient_attention_backward.default,
    torch.ops.aten._cudnn_attention_backward.default,
)

_PREPARE: dict[OpOverload, Callable[[tuple[Any, ...]], tuple[Any, ...]]] = {
    torch.ops.aten._grouped_mm.default: _even_groups,
    torch.ops.aten.mkldnn_rnn_layer_backward.default: _recurrent_workspace,
    torch.ops.aten._cudnn_rnn_backward.default: _recurrent_reserve,
    **{target: _seeds_on_host(target) for target in _SEEDED},
}


def _end_bytes(tensor: Tensor) -> int:
    """Return how far into its storage a tensor reaches."""
    if 0 in tensor.shape:
        return 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + last + 1) * tensor.element_size()


def _index_limit(call: OperatorCall) -> int:
    """Return a bound below which an integer indexes any dimension of any argument."""
    sizes = [n for tensor in tensors_of(call) for n in tensor.shape]
    scalars = [a for a in call.args if type(a) is int and a > 0]
    return max(1, min((*sizes, *scalars), default=1))


def output_bytes(call: OperatorCall) -> int:
    """Return the bytes of the storages a call makes, by running it on fake tensors."""
    with patching() as patches, FakeTensorMode(), torch.no_grad():
        silence_fake_tensors(patches)  # its caller tells of an operator that does not run
        if call.target in RECURRENT_FAKES:
            use_fakes(patches, RECURRENT_FAKES)
        fake = materialise(call, _hollow)
        return sum(new_storage_bytes(fake, fake.run()))


def input_bytes(call: OperatorCall) -> int:
    """Return the bytes of the storages a call reads, as far as its arguments reach into them."""
    return sum(_storage_bytes(call).values())


def new_storage_bytes(call: OperatorCall, outputs: Any) -> tuple[int, ...]:
    """Return the bytes of each storage among the outputs that is not one of the arguments'."""
    given = {storage_key(t) for t in tensors_of(call)}
    made = {storage_key(t): t.untyped_storage().nbytes() for t in tensors_in(outputs)}
    return tuple(size for key, size in made.items() if key not in given)


def _storage_bytes(call: OperatorCall) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for tensor in tensors_of(call):
        key = storage_key(tensor)
        sizes[key] = max(sizes.get(key, 0), _end_bytes(tensor))
    return sizes
