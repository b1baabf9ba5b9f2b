"""A tensor that is computed when something reads it; its shape, dtype and device are known before.

Knows how torch lets a class stand between a tensor and what is called with it. Knows nothing of
what is computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from planner.graphs.torch_api.pytree import tree_map


class LateTensor(Tensor):
    """Stands for a tensor that is computed, once, by the first call that is handed it.

    >>> like = torch.empty(2, 3, device="meta")
    >>> late = LateTensor.of(like, torch.device("cpu"), lambda: torch.ones(2, 3))
    >>> late.shape, late.is_computed
    (torch.Size([2, 3]), False)
    >>> late.sum(), late.is_computed
    (tensor(6.), True)
    """

    _compute: Callable[[], Tensor]
    _computed: Tensor | None
    _hooks: dict[int, Callable[[Tensor], Any]]

    @staticmethod
    def of(
        like: Tensor,
        device: torch.device,
        compute: Callable[[], Tensor],
        *,
        requires_grad: bool = True,
    ) -> LateTensor:
        """Return a tensor that is to be computed.

        Args:
            like: has its shape, strides and dtype.
            device: where it will be.
            compute: returns it.
            requires_grad: whether it will.
        """
        made = Tensor._make_wrapper_subclass(
            LateTensor,
            like.shape,
            strides=like.stride(),
            dtype=like.dtype,
            device=device,
            requires_grad=requires_grad,
        )
        assert isinstance(made, LateTensor)
        made._compute, made._computed, made._hooks = compute, None, OrderedDict()
        return made

    @property
    def is_computed(self) -> bool:
        """Whether something has read it."""
        with torch._C.DisableTorchFunctionSubclass():
            return self._computed is not None

    def later(self, func: Callable[[Tensor], Tensor]) -> LateTensor:
        """Return what a function makes of this tensor, computed when that is read.

        Args:
            func: of one tensor; it makes one of the same shape.
        """
        with torch._C.DisableTorchFunctionSubclass():
            empty = torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device="meta")
            wanted = self.requires_grad and func is not Tensor.detach
            device = self.device
        return LateTensor.of(
            func(empty), device, lambda: func(self.computed()), requires_grad=wanted
        )

    def computed(self) -> Tensor:
        """Return the tensor itself."""
        with torch._C.DisableTorchFunctionSubclass():
            if self._computed is None:
                with torch.enable_grad():
                    self._computed = self._compute()
                del self._compute  # and what it holds
                for hook in self._hooks.values() if self._computed.requires_grad else ():
                    self._computed.register_hook(hook)  # type: ignore[no-untyped-call]
            return self._computed

    def expire(self, error: Callable[[], Exception]) -> None:
        """Refuse to be computed from now on.

        Args:
            error: makes what is raised instead.
        """

        def refused() -> Tensor:
            raise error()

        with torch._C.DisableTorchFunctionSubclass():
            if self._computed is None:
                self._compute = refused

    def hooked(self, hook: Callable[[Tensor], Any]) -> RemovableHandle:
        """Keep a hook for its gradient until it is computed, as who shards a model registers one.

        Args:
            hook: as ``Tensor.register_hook`` takes it.
        """
        with torch._C.DisableTorchFunctionSubclass():
            handle = RemovableHandle(self._hooks)
            self._hooks[handle.id] = hook
            return handle

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch with the tensor itself, unless it asks what is known before."""
        if func in _KNOWN_BEFORE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func is Tensor.register_hook and not args[0].is_computed:
            return args[0].hooked(*args[1:])
        if func in _LATE_AGAIN and len(args) == 1 and not kwargs:
            return args[0].later(func)
        return _called(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own says nothing of its types
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call an operator with the tensor itself."""
        return _called(func, args, kwargs)


def _called(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    args, kwargs = tree_map(_itself, (tuple(args), dict(kwargs or {})))
    return func(*args, **kwargs)


def _itself(value: Any) -> Any:
    return value.computed() if isinstance(value, LateTensor) else value


_LATE_AGAIN = frozenset({Tensor.float, Tensor.detach})
"""What wrappers do to every output of a model, whoever reads it."""


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


_KNOWN_BEFORE = frozenset(
    {
        *map(_getter, ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_cuda")),
        *map(_getter, ("is_meta", "is_sparse", "itemsize", "nbytes", "_base")),
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.element_size),
        *(Tensor.is_floating_point, Tensor.is_complex, Tensor.is_contiguous, Tensor.__len__),
    }
)
