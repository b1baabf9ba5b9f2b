"""Units without what is inside them, in the place of those of a model while its root is looked at.

The root's step neither reads a unit's parameters nor depends on what shards or plans the unit. A
hollow one has the unit's attributes, which the root's code may read, and one parameter without
elements, so that a backward pass leads to it. Knows how its call is traced: as one opaque operator.
Knows nothing of how it is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from planner.graphs.capture.call_arguments import Arguments, arguments
from planner.graphs.capture.guards.call import device_of
from planner.graphs.capture.opaque_units import Stub, called, cast
from planner.graphs.torch_api.module_internals import STORED, children_of, set_children

ANCHOR = "anchor"
_UNIT = "hollow_unit"
"""Under which name the forward of a hollow module has its unit."""


class HollowUnit:
    """A unit of a root: the module, the hollow one in its place, and how the root calls it.

    While it has a ``stub`` its call is one operator; otherwise it is the unit's. ``call`` are the
    arguments that the operator was traced with last.
    """

    def __init__(self, path: str, unit: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Take a unit by its path, and the dtype that its inputs are cast to first, if any."""
        self.path, self.unit, self.dtype = path, unit, dtype
        self.stub: Stub | None = None
        self.call: Arguments | None = None
        self.anchor = nn.Parameter(torch.empty(0, device=device_of(unit)))

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.stub is None:
                return self.unit(*args, **kwargs)
            call = cast(arguments(args, kwargs), self.dtype)
            self.call = _without_data(call)
            return called(self.path, self.stub, call.tensors, self.module.get_parameter(ANCHOR))

        vars(forward)[_UNIT] = self
        self.module = type(unit).__new__(type(unit))
        nn.Module.__init__(self.module)
        self.module.register_parameter(ANCHOR, self.anchor)
        self._own = {**vars(self.module), "forward": forward}
        self._given: dict[str, Any] = {}

    def renewed(self) -> nn.Module:
        """Return the hollow module with the attributes that the unit has now."""
        self.anchor.grad, inside = None, vars(self.module)
        self._given = {k: v for k, v in vars(self.unit).items() if k not in STORED}
        inside.clear()
        inside.update(self._given)
        inside.update(self._own, training=self.unit.training)
        return self.module

    def give_back(self) -> None:
        """Set on the unit what somebody has set on the hollow module since it was renewed."""
        inside, unit, missing = vars(self.module), vars(self.unit), object()
        for name in (self._given.keys() | inside.keys()) - self._own.keys():
            now = inside.get(name, missing)
            if now is missing:
                unit.pop(name, None)
            elif now is not self._given.get(name, missing):
                unit[name] = now


def _without_data(call: Arguments) -> Arguments:
    """Return the form of a call, its tensors without elements."""
    leaves = (_NOTHING if isinstance(x, Tensor) else x for x in call.leaves)
    return replace(call, leaves=tuple(leaves))


_NOTHING = torch.empty(0)


@contextmanager
def hollowed(model: nn.Module, units: Mapping[str, HollowUnit]) -> Iterator[None]:
    """Put hollow units in the place of a model's, and the units back after.

    Args:
        model: has the units.
        units: by their paths.
    """
    with ExitStack() as stack:
        for path, unit in units.items():
            above, _, name = path.rpartition(".")
            parent = model.get_submodule(above)
            before = children_of(parent)
            stack.callback(set_children, parent, before)
            set_children(parent, {**before, name: unit.renewed()})
            stack.callback(unit.give_back)
        yield


@contextmanager
def as_operators(units: Mapping[str, HollowUnit], stubs: Mapping[str, Stub]) -> Iterator[None]:
    """Let the calls of hollow units be operators, while the root is traced.

    Args:
        units: by their paths.
        stubs: what stands in for their calls, by the same paths.
    """
    for path, unit in units.items():
        unit.stub = stubs[path]
    try:
        yield
    finally:
        for unit in units.values():
            unit.stub = None


def hollow_in(model: nn.Module) -> dict[str, HollowUnit]:
    """Return the hollow units that a model has now, by their paths."""
    forwards = (vars(module).get("forward") for module in model.modules())
    found = (getattr(forward, _UNIT, None) for forward in forwards)
    return {unit.path: unit for unit in found if isinstance(unit, HollowUnit)}
