"""C++ kernels compiled several at a time: each is what it would be by itself."""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.exc import CppCompileError
from torch._inductor.utils import fresh_cache

from planner.graphs.torch_api.inductor import kernels_together
from planner.graphs.torch_api.inductor.kernels_together import MOST, compile_together
from planner.graphs.torch_api.patches import patching

TYPES = ["const float*", "float*"]


def source(body: str, *, include: str = "") -> str:
    """Return a kernel as Inductor writes it."""
    return f"""
#include <torch/csrc/inductor/cpp_prefix.h>
{include}
extern "C"  void  kernel(const float* in_ptr0,
                       float* out_ptr0)
{{
    {body}
}}
"""


def compiled(sources: list[str]) -> list[Any]:
    """Return kernels as the code that Inductor writes has them."""
    with patching() as patches:
        compile_together(patches)
        made = AsyncCompile()
        scope = {str(i): made.cpp_pybinding(TYPES, text) for i, text in enumerate(sources)}
        made.wait(scope)
    return list(scope.values())


@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_are_compiled_at_once_and_called_apart(threads: int) -> None:
    given = [source(f"out_ptr0[0] = in_ptr0[0] * {n};") for n in (2, 3, 2)]
    x, found = torch.full((1,), 5.0), torch.zeros(1)
    results = []
    with fresh_cache(), torch._inductor.config.patch(compile_threads=threads):
        for kernel in compiled(given):
            kernel(x, found)
            results.append(found.item())
    assert results == [10, 15, 10]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the sources that the compiler is called with, which it leaves alone."""
    found: list[str] = []

    def load_async(cls: Any, text: str, *_: Any, **__: Any) -> Any:
        found.append(text)

        library: Any = ModuleType("library")
        library.__file__, library.key, library.kernel = "", "", None
        return lambda: library

    def load(cls: Any, *_: str) -> Any:
        return type("Module", (), {cls.entry_function: staticmethod(cls.entry_function.__str__)})

    kernels_together._Together.cache_clear()
    monkeypatch.setattr(CppPythonBindingsCodeCache, "load_async", classmethod(load_async))
    monkeypatch.setattr(CppPythonBindingsCodeCache, "_load_library_inner", classmethod(load))
    return found


@pytest.mark.parametrize(("threads", "expected"), [(1, 3), (4, 4), (99, 40)])
def test_each_kernel_is_in_one_call_of_as_many_as_there_are_threads(
    calls: list[str], threads: int, expected: int
) -> None:
    given = [source(f"// number {n};") for n in range(40)]
    with torch._inductor.config.patch(compile_threads=threads):
        compiled([*given, *given])
        assert len(calls) == expected
        for n in range(40):
            assert sum(text.count(f"// number {n};") for text in calls) == 1
        assert all(text.count("PyInit_kernel_0") == 1 for text in calls)
        assert max(text.count("namespace") for text in calls) <= MOST
        compiled(given)  # known by now
        assert len(calls) == expected


def test_what_includes_more_or_is_compiled_by_another_thread_is_left_to_inductor(
    calls: list[str],
) -> None:
    other = source("", include="#include <vector>")
    compiled([other])
    with patching() as patches:
        compile_together(patches)
        scope = {}

        def compile_one() -> None:
            made = AsyncCompile()
            scope["kernel"] = made.cpp_pybinding(TYPES, source(""))
            made.wait(scope)

        thread = threading.Thread(target=compile_one)
        thread.start()
        thread.join()
    assert scope
    assert len(calls) == 2
    assert not any("namespace" in text for text in calls)


def test_what_cannot_be_compiled_is_said_each_time() -> None:
    with fresh_cache(), torch._inductor.config.patch(compile_threads=1):
        for _ in range(2):
            with pytest.raises(CppCompileError):
                compiled([source("not C++")])
