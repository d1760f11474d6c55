"""Python imports this as it starts, in every process whose path has this folder: NPUs compute from the moment on that
somebody imports torch_npu."""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class Rehearsing(Loader):
    """torch_npu's own loader, and the rehearsal behind it."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        from rehearsal.inside import rehearse

        rehearse()


class Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name == "torch_npu" else None
        if found is not None and found.loader is not None:
            found.loader = Rehearsing(found.loader)
        return found


sys.meta_path.insert(0, Finder())
