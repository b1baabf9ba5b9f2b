"""Operators and what their schemas say: what they write to, and which overload writes where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

__all__ = [
    "OpOverload",
    "OpOverloadPacket",
    "argument_place",
    "draws",
    "out_variant",
    "overwritten",
    "returns_truth",
    "said",
]


def overwritten(target: OpOverload, args: Sequence[Any]) -> Iterator[Any]:
    """Yield the arguments that a call writes to.

    >>> list(overwritten(torch.ops.aten.add_.Tensor, ("x", "y")))
    ['x']
    """
    for argument, value in zip(target._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield value


def returns_truth(target: OpOverload) -> bool:
    """Tell an operator that returns a truth value in Python.

    >>> returns_truth(torch.ops.aten.equal.default)
    True
    """
    return str(target._schema.returns[0].type) == "bool"


def argument_place(target: OpOverload, part: str) -> int:
    """Return the place of the first argument with this text in its name.

    >>> argument_place(torch.ops.aten._softmax.default, "dim")
    1
    """
    return next(i for i, a in enumerate(target._schema.arguments) if part in a.name)


@cache
def out_variant(target: OpOverload) -> tuple[OpOverload, str] | None:
    """Return the overload of an operator that writes into a given tensor, and that keyword.

    Overloads that torch generates do not count: they make a fresh tensor and copy it.

    >>> out_variant(torch.ops.aten.mul.Tensor)
    (<OpOverload(op='aten.mul', overload='out')>, 'out')
    >>> out_variant(torch.ops.aten.mul.Scalar) is None
    True
    """
    wanted = [(a.name, str(a.type)) for a in target._schema.arguments]
    packet = target.overloadpacket
    for name in packet.overloads():
        overload: OpOverload = getattr(packet, name)
        if torch.Tag.generated in overload.tags:
            continue
        arguments = overload._schema.arguments
        written = [a.name for a in arguments if a.is_out]
        if len(written) == 1 and wanted == [
            (a.name, str(a.type)) for a in arguments if not a.is_out
        ]:
            return overload, written[0]
    return None


def views_its_operand(target: object) -> bool:
    """Tell an operator whose result lies in its first operand's memory.

    >>> aten = torch.ops.aten
    >>> views_its_operand(aten.view.default), views_its_operand(aten.exp.default)
    (True, False)
    """
    if not isinstance(target, OpOverload) or not target._schema.arguments:
        return False
    alias = target._schema.arguments[0].alias_info
    return alias is not None and not alias.is_write


_ATTENTION, _SEEDED = (
    frozenset(
        getattr(torch.ops.aten, f"_scaled_dot_product_{kind}_attention{half}")
        for kind in ("flash", "efficient", "cudnn")
    )
    for half in ("", "_backward")
)


def draws(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell a call that draws from the generator.

    Attention without dropout does not, nor does its backward kernel, which is given the seed.

    Args:
        target: an operator, or any other function.
        args, kwargs: what it is called with.

    >>> draws(torch.ops.aten.rand_like.default, (torch.zeros(2),), {})
    True
    """
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    packet = target.overloadpacket
    if packet not in _ATTENTION:
        return packet not in _SEEDED
    return bool(said(target, args, kwargs).get("dropout_p", 0.0))


def said(target: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a call says, by name; what it leaves to defaults is not in it.

    Args:
        target: the operator.
        args, kwargs: what it is called with.

    >>> said(torch.ops.aten._softmax.default, ("x", -1), {"half_to_float": False})
    {'self': 'x', 'dim': -1, 'half_to_float': False}
    """
    names = [argument.name for argument in target._schema.arguments]
    return dict(zip(names, args, strict=False)) | dict(kwargs)
