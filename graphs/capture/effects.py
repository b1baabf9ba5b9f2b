"""What a model's forward does to Python beside returning: found once, done again at each call.

A tensor left in an attribute, appended to a list or handed out by a hook is a further output of
the step, put in its place after every planned call. What depends on how often the code ran cannot
be done again and is refused. Knows nothing of graphs or plans.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from planner.graphs.capture.first_call import SetsUp
from planner.graphs.capture.guards.keyed_use import used_by_key_alone
from planner.graphs.capture.guards.paths import MISSING, Attribute, Item, Path, Step
from planner.graphs.capture.guards.pending import Pending, tells_a_value
from planner.graphs.capture.guards.python_state import Change, PythonState
from planner.graphs.capture_error import CaptureError
from planner.graphs.torch_api.pytree import TreeSpec, flatten_made, tree_unflatten
from planner.graphs.torch_api.symbolic_sizes import is_size

_STORES = frozenset(("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF"))
_CONSTANTS = (
    *(type(None), bool, int, float, complex, str, bytes, type, type(MISSING)),
    *(torch.dtype, torch.device, torch.layout, torch.Size),
)


@dataclass(frozen=True, slots=True)
class Output:
    """A leaf of an effect: an output of the step, by its index."""

    index: int


@dataclass(frozen=True, slots=True)
class Number:
    """A leaf of an effect: the number in an output of the step, rounded to these digits in turn."""

    index: int
    rounding: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Argument:
    """A leaf of an effect: one of the tensors that the step was called with, by its index."""

    index: int


@dataclass(frozen=True)
class Effect:
    """Something put under a key of a place, or taken away: ``leaves`` may be ``Output``s."""

    owner: Path
    step: Step
    leaves: tuple[Any, ...]
    spec: TreeSpec
    replaces: bool
    repeats: bool = False
    """Whether the same was there before."""

    @property
    def path(self) -> Path:
        """Where it is put."""
        return self.owner.then(self.step)

    @property
    def has_tensors(self) -> bool:
        """Whether any of it is made by the step."""
        return any(isinstance(x, Output | Number | Argument) for x in self.leaves)


@dataclass(frozen=True)
class Effects:
    """All that a step does beside returning, in the order in which it is done again."""

    items: tuple[Effect, ...] = ()

    def release(self, modules: Sequence[nn.Module]) -> None:
        """Let go of tensors of the call before that this one will replace."""
        for effect in self.items:
            if effect.replaces and effect.has_tensors:
                owner = effect.owner.find(modules)
                if isinstance(effect.step.of(owner), Tensor):
                    effect.step.put(owner, None)

    def replay(
        self, modules: Sequence[nn.Module], outputs: Sequence[Any], arguments: Sequence[Tensor]
    ) -> None:
        """Do it again.

        Args:
            modules: of the model that was called, in order.
            outputs: of the step.
            arguments: the parameters, buffers and inputs that the step was called with.
        """
        for effect in self.items:
            owner = effect.owner.find(modules)
            leaves = [_filled(x, outputs, arguments) for x in effect.leaves]
            value = tree_unflatten(leaves, effect.spec)
            if isinstance(owner, set):
                owner.add(value)
            elif isinstance(owner, list) and not effect.replaces:
                owner.append(value)
            else:
                effect.step.put(owner, value)

    def at(self, number: Callable[[Any], Any]) -> Effects:
        """Return what is done at some sizes.

        Args:
            number: what a size that was a symbol is there.
        """
        return Effects(tuple(replace(e, leaves=tuple(map(number, e.leaves))) for e in self.items))


NO_EFFECTS = Effects()


def _filled(leaf: Any, outputs: Sequence[Any], arguments: Sequence[Tensor]) -> Any:
    if isinstance(leaf, Output):
        return outputs[leaf.index]
    if isinstance(leaf, Number):
        return reduce(round, leaf.rounding, outputs[leaf.index].item())
    return arguments[leaf.index] if isinstance(leaf, Argument) else leaf


def effects_of(
    state: PythonState, arguments: Sequence[Tensor], output: Callable[[str, Tensor], int]
) -> Effects:
    """Return what the run since a state was noted did to it.

    Args:
        state: of Python before the run.
        arguments: the traced tensors that the step was called with.
        output: makes a tensor an output of the step, under a name; returns its index.

    Raises:
        SetsUp: what is kept cannot be kept again, but perhaps the first call alone does.
        CaptureError: something else that cannot be done again at each call.
    """
    if (generator := state.drawn_from()) is not None:
        raise CaptureError(
            f"the forward pass draws from {generator}{state.where_drawn()}, which runs when a plan "
            "is made and never again: every step would see the same numbers; draw with torch "
            "(torch.rand, torch.bernoulli), or outside the model and pass the result as an input"
        )
    for name in state.made_modules():
        where = next(_stores(state, {name}), "")
        raise CaptureError(
            f"the forward pass makes submodule {name!r}{where}, whose parameters no optimizer "
            "knows; if that is at the first call only, call the model once before planning"
        )
    for moved in state.keys_moved():
        last = moved.steps[-1] if moved.steps else None
        if isinstance(last, Attribute) and used_by_key_alone(state.reached.codes, last.name):
            continue  # a cache, which notes what was used last
        raise CaptureError(
            f"the forward pass changes the order or the type of the keys of {moved}"
            f"{_line(state, moved)}, so that each call depends on the one before, which a plan "
            "does not see; keep what comes next in a buffer (register_buffer), or outside the model"
        )
    for array in state.rewritten():
        raise CaptureError(
            f"the forward pass writes into an array of Python or NumPy, {array}, which a plan, "
            "that runs no Python, would not do again; keep it in a buffer (register_buffer)"
        )
    known: dict[int, Any] = {id(t): Argument(i) for i, t in enumerate(arguments)}
    items = []
    changes = sorted(state.changes(), key=_appended_last)
    for change in changes:
        leaves, spec = flatten_made(change.now)
        found = tuple(_leaf(x, change.path, known, output) for x in leaves)
        if (strange := next((x for x in found if x is _STRANGE), None)) is not None:
            raise _kept(state, change, leaves[found.index(strange)], changes)
        effect = Effect(
            change.place.path,
            change.step,
            found,
            spec,
            replaces=change.before is not MISSING,
            repeats=not change.differs,
        )
        plain = effect.replaces and not effect.has_tensors
        unseen = isinstance(change.place.owner, type)  # who reads those of a class is not known
        if plain and (unseen or not isinstance(change.step, Attribute)):
            raise _depends(state, change)
        items.append(effect)
    return Effects(tuple(items))


_STRANGE = object()


def _leaf(
    value: Any, path: Path, known: dict[int, Any], output: Callable[[str, Tensor], int]
) -> Any:
    """Return how a value is made again at each call, ``_STRANGE`` if it cannot be."""
    if isinstance(value, Pending):
        return Number(output(_name(path), value.tensor.detach()), value.rounding)
    if not isinstance(value, Tensor):
        plain = isinstance(value, _CONSTANTS) or is_size(value)
        return value if plain and not tells_a_value(value) else _STRANGE
    if type(value) in (Tensor, nn.Parameter):
        return value  # a constant of the model's own
    if id(value) not in known:
        known[id(value)] = Output(output(_name(path), value))
    return known[id(value)]


def _kept(
    state: PythonState, change: Change, value: Any, changes: Sequence[Change]
) -> CaptureError:
    if tells_a_value(value):
        return CaptureError(
            f"the forward pass keeps a text made of a value of the step in {change.path}"
            f"{_line(state, change.path)}, which a plan cannot make again at each call; keep the "
            "number (item()) or the tensor, and make the text outside"
        )
    text = (
        f"the forward pass keeps a {type(value).__name__} in {change.path}"
        f"{_line(state, change.path)}, which a plan cannot make again at each call; return it, or "
        "keep tensors and plain values there, in lists, tuples or dicts"
    )
    again = isinstance(value, types.FunctionType) or change.is_of_stand_ins
    return SetsUp(text, changes) if again else CaptureError(text)


def not_read_before(effects: Effects, state: PythonState, reads: Collection[Path]) -> Effects:
    """Return the effects but for those that put again what was read there, which is watched.

    Args:
        effects: of the forward pass.
        state: what was there before.
        reads: where something was read before it was written.

    Raises:
        CaptureError: an attribute is read and then replaced by something else.
    """
    kept = [e for e in effects.items if not (e.repeats and e.path in reads)]
    for effect in kept:
        if isinstance(effect.step, Attribute) and effect.path in reads:
            raise CaptureError(
                f"the forward pass reads {effect.path} and then replaces it"
                f"{_line(state, effect.path)}, so that each call depends on the one before, which "
                "a plan does not see; keep it in a buffer (register_buffer), or if it is set up at "
                "the first call only, call the model once before planning"
            )
    return Effects(tuple(kept))


def only_appended(effects: Effects, state: PythonState) -> list[Path]:
    """Return the lists in attributes that the code appends to and does nothing else with.

    Args:
        effects: of the forward pass.
        state: what its code reaches.
    """
    owners = {e.owner for e in effects.items if isinstance(e.step, Item) and not e.replaces}
    return [
        owner
        for owner in owners
        if len(owner.steps) == 1
        and isinstance(name := owner.steps[0], Attribute)
        and state.reached.only_appends_to(name.name)
    ]


def refuse_backward_effects(state: PythonState) -> None:
    """Refuse what hooks of the backward pass changed, when the forward's changes are undone.

    Raises:
        CaptureError: something changed.
    """
    changed = (c.path for c in state.changes() if c.differs)
    for path in (*changed, *state.keys_moved()):
        raise CaptureError(
            f"a hook of the backward pass changes {path}, which a plan, that runs no "
            "hooks of its submodules, would not do again; remove the hook, or keep it on parameters"
        )


def tensors_left_at(effects: Effects, model: nn.Module) -> list[Tensor]:
    """Return the tensors that are now where a step leaves others: it must not read them."""
    modules = list(model.modules())
    found: list[Tensor] = []
    for effect in (e for e in effects.items if e.has_tensors):
        owner = effect.owner.find(modules)
        inside = owner.values() if isinstance(owner, dict) else owner
        here = inside if isinstance(owner, dict | list | set) else [effect.step.of(owner)]
        found += [x for x in here if isinstance(x, Tensor)]
    return found


def _appended_last(change: Change) -> tuple[bool, int]:
    key = getattr(change.step, "key", None)
    return change.before is MISSING, key if isinstance(key, int) else 0


def _depends(state: PythonState, change: Change) -> CaptureError:
    return CaptureError(
        f"the forward pass changes {change.path} from {change.before!r} to {change.now!r}"
        f"{_line(state, change.path)}; a plan runs no Python, so it would stay as it was when the "
        "plan was made; keep it in a buffer (register_buffer), or change it outside the model"
    )


def _name(path: Path) -> str:
    last = path.steps[-1] if path.steps else path.root
    return str(last).strip(".") or str(path.root)


def _line(state: PythonState, path: Path) -> str:
    """Return where the code stores something of that name, if names tell: `` at file:line``."""
    names = [s.name for s in path.steps if isinstance(s, Attribute)]
    words = {*(names[-1:]), *(str(getattr(s, "key", "")) for s in path.steps[-1:])}
    return next(_stores(state, words), "")


def _stores(state: PythonState, words: set[str]) -> Iterator[str]:
    for place in state.places:
        forward = getattr(type(place.owner), "forward", None)
        if not isinstance(place.owner, nn.Module) or not inspect.isfunction(forward):
            continue
        line = forward.__code__.co_firstlineno
        for instruction in dis.get_instructions(forward):
            line = instruction.starts_line or line
            if instruction.opname in _STORES and instruction.argval in words:
                yield f" at {forward.__code__.co_filename}:{line}"
