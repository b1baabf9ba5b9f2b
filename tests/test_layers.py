"""The import rules, read from the import statements themselves: see ``tests/house.py``."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

SOURCES = house.sources()
WITHOUT_TORCH = {
    "solvers": (),
    "graphs.hardware": ("graphs.hardware.detect",),
}


def test_every_room_is_in_the_order() -> None:
    assert {house.room(module) for module in SOURCES} == set(house.ORDER)


def test_no_file_is_in_a_circle() -> None:
    assert house.circles() == []


def test_no_arrow_points_up() -> None:
    assert house.arrows_up() == []


@pytest.mark.parametrize("module", SOURCES)
def test_only_the_command_line_prints(module: str) -> None:
    tree = house.tree(SOURCES[module])
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    prints = {ast.unparse(f) for f in calls} & {"print", "click.echo"}
    assert not prints or module.startswith("planner.cli")


@pytest.mark.parametrize("module", SOURCES)
def test_torch_stays_where_it_is_needed(module: str) -> None:
    folder, spared = next(
        ((f, s) for f, s in WITHOUT_TORCH.items() if module.startswith(f)), ("", (module,))
    )
    at_the_root = module.startswith("graphs") and module.count(".") < 2
    if (folder and module not in spared) or (at_the_root and module in SOURCES):
        used = {name.partition(".")[0] for name in house.imported(SOURCES[module])}
        assert not used & {"torch", "transformers"} or SOURCES[module].name == "__init__.py"


@pytest.mark.parametrize("module", SOURCES)
def test_torch_is_private_outside_its_folder(module: str) -> None:
    found = house.private_torch_in(SOURCES[module])
    assert not found or module.startswith("graphs.torch_api."), "\n".join(found)


def test_the_rule_about_torch_sees_names_attributes_and_patches(tmp_path: Path) -> None:
    lines = [
        "import torch, torch.distributed as dist",
        "from torch import nn",
        "from torch.fx.experimental import proxy_tensor",
        "from torch.utils._pytree import tree_map",
        "kernel = torch._ops.OpOverload",
        "aten = torch.ops.aten._softmax, torch.__version__",
        "key = x.untyped_storage()._cdata",
        "hooks = vars(nn.Linear(2, 2))['_forward_hooks']",
        "nn.Module.__getattribute__ = None",
        "del torch.nn.Module.forward",
        "def f():",
        "    setattr(dist, 'all_reduce', None)",
        "    nn.Linear(2, 2).weight = None",
    ]
    path = tmp_path / "planted.py"
    path.write_text("\n".join(lines))
    assert house.private_torch_in(path) == [
        "'_forward_hooks'",
        "._cdata",
        "patch of dist",
        "patch of nn.Module.__getattribute__",
        "patch of torch.nn.Module.forward",
        "torch._ops",
        "torch._ops.OpOverload",
        "torch.fx.experimental.proxy_tensor",
        "torch.utils._pytree.tree_map",
    ]


def test_the_rules_see_files() -> None:
    assert {p.relative_to(house.ROOT).parts[0] for p in SOURCES.values()} == set(house.FLOORS)
    assert "graphs" in house.arrows()["solvers.api"]


def test_every_file_name_is_used_once() -> None:
    names = [p.name for p in SOURCES.values() if not p.name.startswith("__")]
    assert len(names) == len(set(names))


def test_folders_of_the_checkout_are_those_inside_the_package() -> None:
    import graphs.graph
    import planner.graphs.graph
    import planner.solvers.api
    import solvers.api

    assert graphs.graph is planner.graphs.graph
    assert solvers.api is planner.solvers.api
    assert graphs is planner.graphs
    assert Path(graphs.graph.__file__).samefile(house.ROOT / "graphs" / "graph.py")


def test_one_file_beside_the_command_line_writes() -> None:
    """Progress is shown by one file; everything else returns text."""
    writers = {m for m in SOURCES if "rich.console.Console" in house.imported(SOURCES[m])}
    assert {m for m in writers if not m.startswith("planner.cli")} == {"planner.progress"}


def test_parameters_are_told() -> None:
    """Public functions of more than two parameters say what each is."""
    assert house.undocumented() == []


def test_no_class_shares_its_name() -> None:
    names = [name for name, count in house.class_names().items() if count > 1]
    assert names == ["CaptureError"]  # the one of planner derives from the one of graphs


def test_planner_is_imported_without_torch() -> None:
    code = "import planner, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
