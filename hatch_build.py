"""Fills the distribution's extras: one for every backend in `backends/`, next to the fixed ones of pyproject.toml."""

from __future__ import annotations

import os
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


class BackendExtras(MetadataHookInterface):
    """In a checkout an extra is the backend's folder, so that `pip install -e ".[npu]"` needs no package index. With
    COSMOS3_RELEASE set it is the published backend of exactly this version. `libraries` of pyproject.toml names the
    folders that are no backend, and the backends whose extras list each beside their own."""

    def update(self, metadata: dict) -> None:
        released = bool(os.environ.get("COSMOS3_RELEASE"))
        extras, libraries, required = dict(self.config["extras"]), self.config["libraries"], {}
        for pyproject in sorted(Path(self.root, "backends").glob("*/pyproject.toml")):
            folder = pyproject.parent
            source = f"=={metadata['version']}" if released else f" @ {folder.as_uri()}"
            required[folder.name] = f"cosmos3-{folder.name}{source}"
        for name in sorted(required.keys() - libraries.keys()):
            used = [required[library] for library, backends in libraries.items() if name in backends]
            extras[name] = [required[name], *used]
        metadata["optional-dependencies"] = extras
