"""Graphs on disk: the round trip, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from planner.graphs import (
    Graph,
    graph_from_dict,
    graph_to_dict,
    load_graph,
    load_instance,
    save_graph,
)
from planner.graphs.files import write_atomically
from tests.strategies import graphs, transformer


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_round_trip(graph: Graph) -> None:
    assert graph_from_dict(json.loads(json.dumps(graph_to_dict(graph)))) == graph


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    save_graph(transformer(2), tmp_path / "graph.json")
    assert load_graph(tmp_path / "graph.json") == transformer(2)
    assert [p.name for p in tmp_path.iterdir()] == ["graph.json"]


def _damaged(**changes: Any) -> dict[str, Any]:
    return graph_to_dict(transformer(1)) | changes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a JSON object with format 'remat-planner-graph'"),
        ({"format": "other"}, "expected a JSON object with format"),
        (_damaged(version=2), "graph version 2 is not 1: update the package"),
        (_damaged(op_fields=["name"]), "op fields are ['name']"),
        (_damaged(values=[["x", 1]]), "not enough values"),
        (_damaged(values=[["x", 1, "wool"]]), "'wool' is not a valid Kind"),
        (_damaged(values=3), "damaged graph"),
        (_damaged(ops=[["f"]]), "shorter"),
        (_damaged(outputs=[10_000]), "output 10000 is not one of"),
        ({k: v for k, v in _damaged().items() if k != "ops"}, "damaged graph: KeyError('ops')"),
    ],
)
def test_refuses(data: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        graph_from_dict(data)
    assert message in str(error.value)


def test_refuses_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    save_graph(transformer(1), path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match=r"graph\.json is not JSON \(truncated\?\)"):
        load_graph(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["graph.json"]


def test_reads_both_dialects_of_published_instances(tmp_path: Path) -> None:
    checkmate = {
        "graph": {},
        "nodes": [
            {"id": 0, "name": "a", "backward": False, "cost_cpu": 2, "cost_ram": 3},
            {"id": 1, "name": "b", "backward": True, "cost_cpu": 4, "cost_ram": 5},
        ],
        "links": [{"source": 0, "target": 1}],
    }
    layered = {
        "graph": {"order": ["p", "q"]},
        "nodes": [
            {"name": "q", "duration": 4, "out_cost": 5},
            {"name": "p", "duration": 2, "out_cost": 3},
        ],
        "links": [{"0": "p", "1": "q"}],
    }
    for data in (checkmate, layered):
        path = tmp_path / "instance.json"
        path.write_text(json.dumps(data))
        graph = load_instance(path)
        assert [op.seconds for op in graph.ops] == [2, 4]
        assert [v.size_bytes for v in graph.values] == [3, 5]
        assert graph.ops[1].inputs == (0,)


@pytest.mark.parametrize("text", ["{", "{}", '{"nodes": [], "links": []}', '{"nodes": 3}'])
def test_refuses_what_is_no_instance(tmp_path: Path, text: str) -> None:
    path = tmp_path / "instance.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"instance\.json: expected networkx node-link JSON"):
        load_instance(path)


def test_refuses_a_cycle(tmp_path: Path) -> None:
    nodes = [{"name": n, "duration": 1, "out_cost": 1} for n in "pq"]
    links = [{"0": "p", "1": "q"}, {"0": "q", "1": "p"}]
    path = tmp_path / "loop.json"
    path.write_text(json.dumps({"graph": {}, "nodes": nodes, "links": links}))
    with pytest.raises(ValueError, match="has a cycle"):
        load_instance(path)
