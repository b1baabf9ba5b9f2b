"""Let the folders ``graphs`` and ``solvers`` of a checkout be those inside ``planner``.

Installed, the two lie inside ``planner``, so that nothing of a user's own can be mistaken for them.
In a checkout they lie beside it, and ``import graphs.graph`` finds the same object as
``import planner.graphs.graph``. Knows the import system. Knows nothing of what is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import CodeType, ModuleType


class _Inside(MetaPathFinder, Loader):
    """Find ``name.x`` as the module that ``planner.name.x`` is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.own: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{self.name}.") or find_spec(f"planner.{fullname}") is None:
            return None
        return spec_from_loader(fullname, self)

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the code of a module that is run by ``python -m``."""
        spec = find_spec(f"planner.{fullname}")
        assert spec is not None, "it was found"
        assert isinstance(spec.loader, InspectLoader), "it is a file"
        return spec.loader.get_code(f"planner.{fullname}")

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"planner.{spec.name}")
        self.own[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = self.own.pop(module.__spec__.name)  # it ran under its own name


def become(name: str) -> None:
    """Put ``planner.NAME`` in the place of the top-level package ``NAME``, submodules included."""
    sys.modules[name] = importlib.import_module(f"planner.{name}")
    sys.meta_path.insert(0, _Inside(name))
