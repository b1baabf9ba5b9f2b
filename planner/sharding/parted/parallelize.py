"""From a whole model to one whose layers are parted over a mesh, by styles of torch.

Knows nothing of degrees, costs or plans.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from planner.errors import BadRequest, CaptureError
from planner.graphs.capture.placed import local_of, placed_as

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import ParallelStyle

Styles = Mapping[str, "ParallelStyle"]
"""The style of each module by a pattern of its path, in which ``*`` is any one name."""


def parallelize(
    model: nn.Module, mesh: DeviceMesh, styles: Styles, *, source: int | None = 0
) -> None:
    """Part the layers of a model over a mesh of one dimension, in place; tied weights stay tied.

    Args:
        model: whole.
        mesh: the ranks that have a part each.
        styles: of its modules.
        source: the rank whose data all get their part of; none takes each rank's own.

    Raises:
        BadRequest: a pattern matches no module, or a style does not suit its module.
        CaptureError: tied weights would lie differently.
    """
    from torch.distributed.tensor.parallel import parallelize_module

    check_paths(model, styles)
    ties = list(_ties(model))
    for pattern, style in styles.items():
        try:
            parallelize_module(model, mesh, {pattern: style}, src_data_rank=source)
        except (NotImplementedError, AttributeError) as error:
            raise BadRequest(
                f"{type(style).__name__} does not suit the modules {pattern!r}: {error}"
            ) from error
    for places in ties:
        _tie(model, places)


def check_paths(model: nn.Module, styles: Styles) -> None:
    """Refuse patterns that match no module.

    Raises:
        BadRequest: the message names the pattern and modules that there are.
    """
    paths = [path for path, _ in model.named_modules()]
    for pattern in styles:
        if not any(matches(path, pattern) for path in paths):
            last = pattern.rpartition(".")[2]
            like = [p for p in paths if p.rpartition(".")[2] == last] or paths[1:]
            raise BadRequest(
                f"tensor_parallel= names modules {pattern!r}, and {type(model).__name__} has none; "
                f"it has {', '.join(repr(p) for p in like[:3])}"
            )


def matches(path: str, pattern: str) -> bool:
    """Tell whether a module's path is one of a pattern's.

    >>> matches("layers.3.q", "layers.*.q"), matches("layers.3.a.q", "layers.*.q")
    (True, False)
    """
    names, wanted = path.split("."), pattern.split(".")
    return len(names) == len(wanted) and all(map(fnmatchcase, names, wanted))


def described(styles: Styles) -> tuple[tuple[str, str], ...]:
    """Return patterns and styles as texts, the same for styles that do the same."""
    return tuple((pattern, _text(style)) for pattern, style in styles.items())


def _text(style: Any) -> str:
    if "__repr__" in {name for cls in type(style).__mro__[:-1] for name in vars(cls)}:
        return repr(style)
    own = {k: v for k, v in vars(style).items() if k != "src_data_rank"}
    return f"{type(style).__qualname__}({', '.join(f'{k}={v!r}' for k, v in sorted(own.items()))})"


def _ties(model: nn.Module) -> Iterator[list[str]]:
    """Yield the names of parameters that are one tensor."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    yield from (found for found in names.values() if len(found) > 1)


def _tie(model: nn.Module, names: list[str]) -> None:
    """Make parameters one tensor again, of which styles made one each."""
    first = model.get_parameter(names[0])
    for name in names[1:]:
        other = model.get_parameter(name)
        if str(placed_as(other)) != str(placed_as(first)):
            raise CaptureError(
                f"{names[0]!r} and {name!r} are one tensor, and tensor parallelism would part them "
                f"differently ({placed_as(first) or 'whole'}, {placed_as(other) or 'whole'}): give "
                "both modules styles that part the weight alike, or leave both whole"
            )
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, first)


def without_data(model: nn.Module) -> nn.Module:
    """Return a copy of a model on meta, which allocates nothing.

    Raises:
        CaptureError: it cannot be copied.
    """
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(_on_meta(p), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = _on_meta(b)
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied in order to part its layers: {error}"
        ) from error


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    part = local_of(tensor)
    return torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device="meta")
