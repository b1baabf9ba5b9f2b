"""What a unit is: modules that a model repeats, which are alike, and how often they are called."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from planner.errors import CaptureError
from planner.graphs.capture.call_arguments import Arguments
from planner.graphs.capture.guards.call import class_name, signature_of
from planner.graphs.capture_error import CaptureError as GraphsCaptureError
from planner.graphs.torch_api.module_internals import hooks_of, named_parameters_of


@dataclass(frozen=True)
class Candidates:
    """The modules that may be units, by path: the blocks, and what is large around them.

    ``chosen`` says that the blocks were named by the user, each of which has to be a unit then.
    """

    blocks: Mapping[str, nn.Module]
    around: Mapping[str, nn.Module]
    chosen: bool

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All of them."""
        return {**self.blocks, **self.around}

    def without_heads(self) -> Candidates:
        """Leave out what multiplies by a weight around the blocks: the head is one."""
        around = {p: m for p, m in self.around.items() if type(m).forward is not nn.Linear.forward}
        return replace(self, around=around)


def candidates_of(model: nn.Module, chosen: Sequence[str] | None) -> Candidates:
    """Find what may be a unit.

    Args:
        model: whose modules are looked at.
        chosen: paths of those to take instead.

    Raises:
        CaptureError: as ``find_units``.
    """
    blocks = find_units(model, chosen)
    around = {} if chosen is not None else large_around(model, blocks)
    return Candidates(blocks, around, chosen is not None)


def find_units(model: nn.Module, chosen: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the outermost numbered modules with siblings and trainable parameters, by path.

    The tables of embeddings that a container has several of are units, too, by whatever name.

    Raises:
        CaptureError: none, or a chosen path that is not a module with trainable parameters of its
            own.

    >>> list(find_units(nn.ModuleDict({"h": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})))
    ['h.0', 'h.1']
    """
    modules = {path: m for path, m in model.named_modules() if _trainable(m)}
    if chosen is not None:
        for path in chosen:
            if path not in modules or not path:
                raise CaptureError(
                    f"unit {path!r} is not the path of a module with trainable parameters"
                )
        found = {path: modules[path] for path in chosen}
        _require_owning_alone(model, found)
        return found
    named = dict(model.named_modules())
    siblings: defaultdict[str, list[str]] = defaultdict(list)
    for path, module in modules.items():
        parts, parent = path.split("."), path.rpartition(".")[0]
        named_table = isinstance(module, _TABLES) and isinstance(named.get(parent), nn.ModuleDict)
        numbered = parts[-1].isdigit() and not any(part.isdigit() for part in parts[:-1])
        if named_table or numbered:
            siblings[parent].append(path)
    found = {p: modules[p] for group in siblings.values() if len(group) > 1 for p in group}
    alone = _owning_alone(model, found)
    if not alone:
        raise CaptureError(
            f"{class_name(model)} has no repeated blocks (modules such as h.0 and h.1 with "
            "parameters of their own) to shard; put its layers into an nn.ModuleList"
        )
    return alone


_TABLES = (nn.Embedding, nn.EmbeddingBag)
_PLAIN = (nn.Embedding.forward, nn.Linear.forward)
"""What is known to return nothing that lies in its weight, which is let go of afterwards."""
_LARGE = 0.5
"""What is around the blocks is a unit if it has this part of the elements of the largest block."""


def large_around(model: nn.Module, blocks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the large modules around the blocks, by path: the embedding and the head, if untied.

    As units they are gathered and let go like blocks, as torchtitan shards them; in the root their
    weights would stay whole from the first op of a step to the last. One with hooks stays there:
    what they read and return is the root's.

    Args:
        model: has the blocks.
        blocks: by path, as ``find_units`` returns them.

    >>> block = lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    >>> blocks = nn.ModuleList([block(), block()])
    >>> model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "h": blocks, "head": nn.Linear(4, 1)})
    >>> list(large_around(model, find_units(model)))
    ['embed']
    """
    largest = max(sum(p.numel() for p in block.parameters()) for block in blocks.values())
    around = {
        path: module
        for path, module in model.named_modules()
        if path
        and not any(path == b or path.startswith(f"{b}.") for b in blocks)
        and type(module).forward in _PLAIN
        and not any(True for _ in module.children())
        and not any(hooks_of(module))
        and any(p.requires_grad for p in module.parameters())
        and sum(p.numel() for p in module.parameters()) >= _LARGE * largest
    }
    return _owning_alone(model, around)


def _owning_alone(model: nn.Module, found: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Leave out what shares a parameter with anything else."""
    shared = _shared_by(model, found)
    return {path: module for path, module in found.items() if path not in shared}


def _require_owning_alone(model: nn.Module, found: Mapping[str, nn.Module]) -> None:
    """Refuse what shares a parameter: sharded by itself, it would no longer be tied.

    Raises:
        CaptureError: one does; the message names the parameter and where else it is.
    """
    for path, (name, elsewhere) in _shared_by(model, found).items():
        raise CaptureError(
            f"{name} of unit {path!r} is a parameter of {elsewhere}, too, and a unit has "
            "parameters of its own: name a module that has both, or leave this one out"
        )


def _shared_by(model: nn.Module, found: Mapping[str, nn.Module]) -> dict[str, tuple[str, str]]:
    """Return the units that share a parameter: its name, and what it is shared with."""
    owners: defaultdict[int, set[str]] = defaultdict(set)
    for path, module in model.named_modules(remove_duplicate=False):
        unit = next((u for u in found if path == u or path.startswith(f"{u}.")), "")
        for p in module.parameters(recurse=False):
            owners[id(p)].add(unit)
    shared = dict[str, tuple[str, str]]()
    for path, module in found.items():
        for name, p in named_parameters_of(module):
            if others := sorted(owners[id(p)] - {path}):
                elsewhere = f"unit {others[0]!r}" if others[0] else "what is in no unit"
                shared.setdefault(path, (f"{path}.{name}", elsewhere))
    return shared


def _trainable(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def kinds_of(units: Mapping[str, nn.Module]) -> Callable[[str, nn.Module, Arguments], str]:
    """Return what describes a unit and its call by all that two of one kind are likely to share.

    Plain attributes count, for instance a stride, unless each unit's is its own number.
    """
    plain = {path: _attributes(unit) for path, unit in units.items()}
    names = set[tuple[str, str]]().union(*plain.values())
    positions = {
        name
        for name in names
        if all(
            found[name] == path.rpartition(".")[2] for path, found in plain.items() if name in found
        )
    }

    def kind(path: str, unit: nn.Module, call: Arguments) -> str:
        try:
            described = signature_of(unit, call)
        except GraphsCaptureError as error:
            raise GraphsCaptureError(f"the call of unit {path!r}: {error}") from error
        told = [(*k, v) for k, v in plain[path].items() if k not in positions]
        return json.dumps([described, told], sort_keys=True)

    return kind


def _attributes(unit: nn.Module) -> dict[tuple[str, str], str]:
    return {
        (name, key): repr(value)
        for name, module in unit.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str)
        or (isinstance(value, tuple) and all(isinstance(v, int | float) for v in value))
    }


def called_once(
    recorded: list[tuple[str, Arguments, Hashable]], candidates: Candidates
) -> list[tuple[str, Arguments, Hashable]]:
    """Leave out what is not called exactly once: it stays part of the root.

    Args:
        recorded: path, arguments and kind of every call, in order.
        candidates: the modules that may be units; of those that were named, another number of
            calls is an error.
    """
    counts = dict.fromkeys(candidates.modules, 0)
    for path, _, _ in recorded:
        counts[path] += 1
    other = [path for path, count in counts.items() if count != 1]
    if candidates.chosen and other:
        raise CaptureError(f"unit {other[0]!r} is called {counts[other[0]]} times, expected once")
    kept = [entry for entry in recorded if counts[entry[0]] == 1]
    if not any(path in candidates.blocks for path, *_ in kept):
        raise CaptureError("no repeated block is called exactly once, so none can be sharded")
    return kept
