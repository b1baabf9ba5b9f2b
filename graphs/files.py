"""Graphs as JSON: versioned, validated when read, written atomically."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from planner.graphs.graph import Graph, Kind, Op, Phase, Value

FORMAT = "remat-planner-graph"
VERSION = 1
_OP_FIELDS = tuple(Op.__dataclass_fields__)


def graph_to_dict(graph: Graph) -> dict[str, Any]:
    """Return the graph as plain JSON types; rows, not records, to keep 20,000 ops small."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": graph.name,
        "values": [[v.name, v.size_bytes, v.kind.value] for v in graph.values],
        "op_fields": list(_OP_FIELDS),
        "ops": [[_plain(getattr(op, f)) for f in _OP_FIELDS] for op in graph.ops],
        "outputs": sorted(graph.outputs),
    }


def graph_from_dict(data: Any) -> Graph:
    """Rebuild a graph.

    Raises:
        ValueError: not this format, a newer version, or a field missing or of the wrong type.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"expected a JSON object with format {FORMAT!r}, found {str(data)[:80]}")
    if data.get("version") != VERSION:
        raise ValueError(
            f"graph version {data.get('version')!r} is not {VERSION}: update the package"
        )
    try:
        if tuple(data["op_fields"]) != _OP_FIELDS:
            raise ValueError(f"op fields are {data['op_fields']}, expected {list(_OP_FIELDS)}")
        values = tuple(Value(n, int(b), Kind(k)) for n, b, k in data["values"])
        ops = tuple(_op(row) for row in data["ops"])
        return Graph(ops, values, frozenset(data["outputs"]), data["name"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"damaged graph: {error!r}") from error


def _plain(field: Any) -> Any:
    return field.value if isinstance(field, Phase) else field


def _op(row: list[Any]) -> Op:
    fields = dict(zip(_OP_FIELDS, row, strict=True))
    fields |= {"inputs": tuple(fields["inputs"]), "outputs": tuple(fields["outputs"])}
    return Op(**(fields | {"phase": Phase(fields["phase"])}))


def save_graph(graph: Graph, path: str | Path) -> None:
    """Write the graph as JSON; the file appears whole or not at all."""
    write_atomically(path, json.dumps(graph_to_dict(graph), separators=(",", ":")))


def load_graph(path: str | Path) -> Graph:
    """Read a graph that ``save_graph`` wrote.

    Raises:
        ValueError: the file is not JSON, or not a graph of this version.
    """
    try:
        data = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON (truncated?): {error}") from error
    return graph_from_dict(data)


def write_atomically(path: str | Path, text: str) -> None:
    """Write text to a temporary file beside ``path``, then rename it into place."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
