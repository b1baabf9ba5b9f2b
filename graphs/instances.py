"""Read graphs from files: instances others have published (networkx node-link JSON), and our own.

Knows the two dialects of the published ones. Knows nothing of what is asked of the graphs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planner.graphs.files import FORMAT, graph_from_dict
from planner.graphs.graph import Graph, Op, Phase, Value

_EXPECTED = (
    "expected networkx node-link JSON with nodes of {id, cost_cpu, cost_ram} or "
    "{name, duration, out_cost}"
)


def read_graph(path: str | Path) -> Graph:
    """Read a graph that ``save_graph`` wrote or a published instance, whichever the file is.

    Raises:
        ValueError: the file is not JSON, or of neither kind.
    """
    data = _parse(path)
    own = isinstance(data, dict) and data.get("format") == FORMAT
    return graph_from_dict(data) if own else _instance(path, data)


def load_instance(path: str | Path) -> Graph:
    """Read one node-link file; every node becomes an op with one output.

    Two dialects: Checkmate's (``id, backward, cost_cpu, cost_ram``) and the random layered graphs
    of the constraint-programming papers (``name, duration, out_cost``). Costs keep their own units.

    Raises:
        ValueError: the file is not node-link JSON of either dialect, or has a cycle.
    """
    return _instance(path, _parse(path))


def _parse(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {_EXPECTED}; it is not JSON (truncated?): {error}") from error


def _instance(path: str | Path, data: Any) -> Graph:
    try:
        nodes, links = data["nodes"], data["links"]
        checkmate = "cost_cpu" in nodes[0]
        key, ends = ("id", ("source", "target")) if checkmate else ("name", ("0", "1"))
        edges = [(link[ends[0]], link[ends[1]]) for link in links]
        table = {node[key]: node for node in nodes}
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path}: {_EXPECTED}; found {error!r}") from error
    order = data.get("graph", {}).get("order") or _order(path, table, edges)
    return _graph(Path(path).stem, table, edges, order)


def _order(path: str | Path, table: dict[Any, Any], edges: list[tuple[Any, Any]]) -> list[Any]:
    ids = sorted(table)
    if all(u < v for u, v in edges):
        return ids
    import networkx as nx  # takes a third of the time to import planner

    digraph = nx.DiGraph()
    digraph.add_nodes_from(ids)
    digraph.add_edges_from(edges)
    try:
        return list(nx.lexicographical_topological_sort(digraph))
    except nx.NetworkXUnfeasible as error:
        raise ValueError(f"{path}: the graph has a cycle, so no order exists") from error


def _graph(
    name: str, table: dict[Any, Any], edges: list[tuple[Any, Any]], order: list[Any]
) -> Graph:
    position = {node: i for i, node in enumerate(order)}
    parents: list[set[int]] = [set() for _ in order]
    for u, v in edges:
        parents[position[v]].add(position[u])
    ops, values = [], []
    for i, node in enumerate(order):
        data = table[node]
        label = str(data["name"])
        seconds = float(data.get("cost_cpu", data.get("duration", 0)))
        phase = Phase.BACKWARD if data.get("backward") else Phase.FORWARD
        ops.append(Op(label, label, tuple(sorted(parents[i])), (i,), seconds, phase=phase))
        values.append(Value(label, int(data.get("cost_ram", data.get("out_cost", 0)))))
    return Graph(tuple(ops), tuple(values), name=name)
