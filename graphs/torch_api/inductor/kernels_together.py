"""C++ kernels compiled several at a time, where Inductor compiles each by itself.

Most of what one takes is reading torch's headers and linking its libraries. Each keeps its source,
its flags and a module of its own; several modules are of one library. Knows nothing of what kernels
compute.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

from torch._inductor.async_compile import AsyncCompile, get_compile_threads
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.utils import clear_on_fresh_cache

from planner.graphs.torch_api.patches import Patches

MOST = 16
"""How many kernels one call of the compiler takes at most; fewer, where threads could take more."""
_HEADER = "#include <torch/csrc/inductor/cpp_prefix.h>"
_HEADERS = (
    f"{_HEADER}\n#include <Python.h>\n#include <cerrno>\n#include <cstdlib>\n#include <sstream>\n"
)
_ENTRY = re.compile(r'extern\s+"C"\s+void\s+kernel\(')


class _Kernel:
    """A kernel that is compiled with those that wait beside it, when the first is wanted."""

    def __init__(self, argtypes: Sequence[str], source: str, together: _Together) -> None:
        self.argtypes, self.source, self._together = tuple(argtypes), source, together
        self.made: Callable[..., None] | None = None

    def result(self) -> Callable[..., None]:
        """Return what Python calls it by."""
        if self.made is None:
            self._together.compile()
        assert self.made is not None, "all that waited are compiled"
        return self.made


@clear_on_fresh_cache
class _Together:
    """Kernels that wait, and those that this process has compiled, which Inductor's cache is of."""

    known: ClassVar[dict[tuple[Sequence[str], str], _Kernel]] = {}
    cache_clear = staticmethod(known.clear)

    def __init__(self) -> None:
        self._waiting: list[_Kernel] = []

    def add(self, argtypes: Sequence[str], source: str) -> _Kernel:
        """Return a kernel that is compiled when one of those that wait is wanted."""
        kernel = _Kernel(argtypes, source, self)
        found = self.known.setdefault((kernel.argtypes, source), kernel)
        if found is kernel:
            self._waiting.append(kernel)
        return found

    def compile(self) -> None:
        """Compile what waits, at once in as many calls of the compiler as it has threads."""
        kernels, self._waiting = self._waiting, []
        threads = get_compile_threads()
        submit = AsyncCompile.submit if threads > 1 else None  # which would wait for itself
        calls = min(len(kernels), max(threads, -(-len(kernels) // MOST)))
        parts = [kernels[i::calls] for i in range(calls)]
        try:
            loads = [_entry(0).load_async(_source(part), submit_fn=submit) for part in parts]
            for part, load in zip(parts, loads, strict=True):
                library = load()
                for place, kernel in enumerate(part):
                    module = _entry(place)._load_library_inner(library.__file__, library.key)
                    kernel.made = getattr(module, _entry(place).entry_function)
        finally:
            for kernel in kernels:
                if kernel.made is None:  # the compiler failed, and is to fail again
                    self.known.pop((kernel.argtypes, kernel.source), None)


@cache
def _entry(place: int) -> type[CppPythonBindingsCodeCache]:
    """Return what loads the kernel at a place of a library, whose module has a name of its own."""
    name = f"kernel_{place}"
    return type(name, (CppPythonBindingsCodeCache,), {"entry_function": name})


def _source(kernels: Sequence[_Kernel]) -> str:
    """Return the source of a library: each kernel, and what lets Python call it, apart."""
    parts = [_HEADERS]
    for place, kernel in enumerate(kernels):
        of = _entry(place)
        taken = [
            f"parse_arg<{t.replace('const ', '')}>(args, {n})"
            for n, t in enumerate(kernel.argtypes)
        ]
        call = f"{of.entry_function}({', '.join(taken)}); Py_RETURN_NONE;"
        bindings = of.suffix_template.format(
            arg_len=len(taken),
            call_entry_func=call,
            entry_func=of.entry_function,
            extra_parse_arg="",
        )
        own = _ENTRY.sub(f"void {of.entry_function}(", kernel.source.replace(_HEADER, ""))
        parts.append(f"namespace remat_{place} {{\n{own}\n{bindings}\n}}\n")
    return "".join(parts)


def _fits(source: str) -> bool:
    """Tell a kernel that can lie beside others: it has one entry, and Inductor's header alone."""
    return len(_ENTRY.findall(source)) == 1 and source.count("#include") == 1 and _HEADER in source


def compile_together(patches: Patches) -> None:
    """Let Inductor compile the C++ kernels of a graph in a few calls of the compiler.

    Args:
        patches: that undo it; other threads compile meanwhile as ever.
    """
    together = _Together()
    of_one: Any = CppPythonBindingsCodeCache
    one_async, one, wait = of_one.load_pybinding_async, of_one.load_pybinding, AsyncCompile.wait

    def fits(cls: type, source: str, said: dict[str, Any]) -> bool:
        plain = cls is CppPythonBindingsCodeCache and said.keys() <= {"submit_fn"}
        return plain and patches.mine() and _fits(source)

    def load_async(cls: type[Any], /, argtypes: Sequence[str], source: str, **said: Any) -> Any:
        if fits(cls, source, said):
            return together.add(argtypes, source).result
        return one_async.__func__(cls, argtypes, source, **said)

    def load(cls: type[Any], /, argtypes: Sequence[str], source: str, **said: Any) -> Any:
        if fits(cls, source, said):
            return together.add(argtypes, source)
        return one.__func__(cls, argtypes, source, **said)

    def waited(self: AsyncCompile, scope: dict[str, Any]) -> None:
        for name, kernel in scope.items():
            if isinstance(kernel, _Kernel):
                scope[name] = kernel.result()
        wait(self, scope)

    patches.attribute(of_one, "load_pybinding_async", classmethod(load_async))
    patches.attribute(of_one, "load_pybinding", classmethod(load))
    patches.attribute(AsyncCompile, "wait", waited)
