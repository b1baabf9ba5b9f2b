"""The house in numbers: ``make house`` prints its rooms in order, and whatever breaks a rule.

Reads the import statements themselves: those inside functions and under ``TYPE_CHECKING`` count.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
FLOORS = ("graphs", "solvers", "planner")
PRIVATE = re.compile(r"^torch\.(_(?!_)|.*\._(?!_)|fx\.experimental)|functorch|register_module_")
PRIVATE_ATTRIBUTES = frozenset(
    (
        *("_cdata", "_version", "_grad_fn", "_saved_tensors"),
        *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
        *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
        *("_state_dict_hooks", "_load_state_dict_pre_hooks"),
        *("_flat_weights", "_flat_weights_names", "_foreach_supported_types"),
        *("_schema", "_op_dk", "_dispatch_cache", "py_kernels"),
        *("_root", "_pretty_print_target"),
    )
)
"""Attributes of tensors, storages, modules, operators and graphs that torch calls its own."""


@cache
def sources() -> dict[str, Path]:
    """Return every module by its dotted path below the root, such as ``graphs.capture.trace``."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for floor in FLOORS
        for path in sorted((ROOT / floor).rglob("*.py"))
        if not any(parent.is_symlink() for parent in path.parents)
    }


@cache
def tree(path: Path) -> ast.Module:
    """Parse a file once."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, anywhere in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} uses a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str | None:
    """Return the module of ours that an imported name is or is in."""
    for floor in FLOORS[:2]:
        name = re.sub(rf"^planner\.{floor}\b", floor, name)
    while name and name not in sources():
        name = name.rpartition(".")[0]
    return name or None


@cache
def arrows() -> nx.DiGraph:
    """Return who imports whom, file by file."""
    found = nx.DiGraph()
    for module, path in sources().items():
        found.add_node(module)
        targets = (module_of(name) for name in imported(path))
        found.add_edges_from((module, t) for t in targets if t and t != module)
    return found


ORDER = (
    *(
        f"graphs/{name}"
        for name in (
            "checkout.py",
            "capture_error.py",
            "expert_capacity.py",
            "graph.py",
            "schedule.py",
        )
    ),
    *(f"graphs/{name}" for name in ("memory.py", "simulate.py", "snapshot.py", "binding.py")),
    "graphs/host_memory.py",
    *(f"graphs/{name}" for name in ("files.py", "instances.py", "scaling.py", "served_sizes.py")),
    "graphs/__init__.py",
    *(f"graphs/{name}" for name in ("hardware", "allocation.py", "torch_api", "costs", "capture")),
    *(f"solvers/{name}" for name in ("tuning.py", "api.py", "model", "bounds", "exact")),
    *(f"solvers/{name}" for name in ("baselines", "search", "minimum_budget.py")),
    *(f"solvers/{name}" for name in ("tightened.py", "given_order.py", "reorder.py", "auto.py")),
    "solvers/frontier.py",
    *(f"solvers/{name}" for name in ("offload.py", "least_with_host.py", "frontier_with_host.py")),
    "solvers/__init__.py",
    *(
        f"planner/{name}"
        for name in ("errors.py", "byte_sizes.py", "make_cluster.py", "progress.py")
    ),
    *(f"planner/{name}" for name in ("model_argument.py", "loss_chunks.py", "host_option.py")),
    "planner/tensor_parallel.py",
    *(f"planner/{name}" for name in ("step_options.py", "request_defaults.py", "request.py")),
    *(f"planner/{name}" for name in ("plan", "output")),
    *(
        f"planner/{name}"
        for name in ("textbook", "running", "allocator_budget.py", "host_budget.py")
    ),
    *(f"planner/{name}" for name in ("host_states.py", "request_notes.py", "step_variants.py")),
    *(f"planner/{name}" for name in ("planning.py", "planning_again.py", "sharding")),
    *(
        f"planner/{name}"
        for name in (
            "verification",
            "compared.py",
            "comparison.py",
            "plans.py",
            "fit.py",
            "compile_backend.py",
        )
    ),
    *(f"planner/{name}" for name in ("analysis", "integrations", "cli", "__init__.py")),
)
"""The rooms, lower first: a file may use its own room and those before."""


def room(module: str) -> str:
    """Return the room of a module: its folder on a floor, or a file at the top of one."""
    parts = sources()[module].relative_to(ROOT).parts
    return "/".join(parts[:2])


def arrows_up() -> list[str]:
    """Return the imports that point up in the order of the rooms."""
    place = {name: i for i, name in enumerate(ORDER)}
    return sorted(
        f"{one} -> {other}"
        for one, other in arrows().edges
        if place[room(one)] < place[room(other)]
    )


def circles() -> list[list[str]]:
    """Return the files that import each other in a circle."""
    return [sorted(c) for c in nx.strongly_connected_components(arrows()) if len(c) > 1]


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield every function with the module it is in."""
    for module, path in sources().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                yield module, node


def private_torch() -> dict[str, list[str]]:
    """Return for each file what of torch's own affairs it touches."""
    found = {module: private_torch_in(path) for module, path in sources().items()}
    return {module: names for module, names in found.items() if names}


def private_torch_in(path: Path) -> list[str]:
    """Return the private names, private attributes and patches of torch in a file."""
    names = {n for n in imported(path) if PRIVATE.search(n)}
    return sorted(names | set(_private_attributes(tree(path))) | set(_patched(path)))


def _private_attributes(parsed: ast.Module) -> Iterator[str]:
    """Yield dotted names below ``torch._``, and the attributes of torch's objects by name."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if PRIVATE.search(text) and not text.startswith("torch.ops."):
                yield text
            if node.attr in PRIVATE_ATTRIBUTES:
                yield f".{node.attr}"
        elif isinstance(node, ast.Constant) and node.value in PRIVATE_ATTRIBUTES:
            yield repr(node.value)


def _patched(path: Path) -> Iterator[str]:
    """Yield the modules, classes and functions of torch that a file sets or deletes members of."""
    ours = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).partition(".")[0] == "torch"
    }
    for node in ast.walk(tree(path)):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = [t for t in node.targets if isinstance(t, ast.Attribute | ast.Subscript)]
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [t for t in [node.target] if isinstance(t, ast.Attribute | ast.Subscript)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            targets = node.args[:1]
        yield from (f"patch of {ast.unparse(t)}" for t in targets if _root(t) in ours)


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def undocumented() -> list[str]:
    """Return the public functions of more than two parameters that do not say what each is."""
    found = []
    for module, node in functions():
        names = [a.arg for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in _SELF]
        said = ast.get_docstring(node) or ""
        public = not node.name.startswith("_") and _is_top(module, node) and not _is_told(node)
        if public and len(names) > 2 and not all(_tells(said, name) for name in names):
            found.append(f"{module}.{node.name}")
    return found


_SELF = {"self", "cls", "ctx", "mode", "func"}


def _is_top(module: str, function: ast.FunctionDef) -> bool:
    body = tree(sources()[module]).body
    classes = [n for n in body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    return function in body or any(function in c.body for c in classes)


def _is_told(function: ast.FunctionDef) -> bool:
    """Tell a command, whose options explain themselves, and the overloads of a function."""
    return any(
        "command" in (d := ast.unparse(x)) or d == "overload" for x in function.decorator_list
    )


def _tells(docstring: str, name: str) -> bool:
    return bool(re.search(rf"^\s*(\w+, )*{name}(, \w+)*: ", docstring, re.MULTILINE))


def lines(path: Path) -> int:
    """Return how many lines a file has."""
    return len(path.read_text(encoding="utf-8").splitlines())


def doctests() -> int:
    """Return how many examples the docstrings hold."""
    return sum(path.read_text(encoding="utf-8").count(">>> ") for path in sources().values())


def class_names() -> Counter[str]:
    """Count the public classes of each name."""
    return Counter(
        node.name
        for path in sources().values()
        for node in tree(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )


def report() -> str:
    """Lay the house out as text."""
    count = Counter(map(room, sources()))
    size = Counter[str]()
    for module, path in sources().items():
        size[room(module)] += lines(path)
    uses: dict[str, set[str]] = {name: set() for name in count}
    for one, other in arrows().edges:
        if room(one) != room(other):
            uses[room(one)].add(room(other))
    out = ["room, files, lines -> what it uses"]
    for name in (r for r in ORDER if r in count):
        used = ", ".join(r for r in ORDER if r in uses[name])
        out.append(f"  {name} {count[name]} {size[name]} -> {used}")
    longest = sorted(((n.end_lineno or 0) - n.lineno + 1, f"{m}.{n.name}") for m, n in functions())[
        -10:
    ]
    names = Counter(p.name for p in sources().values() if p.name not in ("__init__.py",))
    classes = class_names()
    private = private_torch()
    out += [
        f"files {len(sources())}, lines {sum(size.values())}, doctest lines {doctests()}",
        f"circles: {circles() or 'none'}",
        f"arrows up: {arrows_up() or 'none'}",
        f"file names used twice: {sorted(n for n, c in names.items() if c > 1)}",
        f"class names used twice: {sorted(n for n, c in classes.items() if c > 1)}",
        f"private torch in {len(private)} files: {', '.join(sorted(private))}",
        f"public functions that do not say what their parameters are: {len(undocumented())}",
        "longest functions: " + ", ".join(f"{name} {n}" for n, name in reversed(longest)),
    ]
    return "\n".join(out)


if __name__ == "__main__":
    print(report())
