"""Fills in the distribution's extras, one for every backend in `backends/`, and its README for an index page."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

CLONES = re.compile(r"pip-(install|req-build)-|git-v\d+$")
"""Folders in which pip and uv put what they cloned; they are gone, or nobody's, once it is installed."""
RELATIVE = re.compile(r"(\]\()(?!https?:|#)([^)\s]+)(?=\))")


class Metadata(MetadataHookInterface):
    """In a checkout an extra is the backend's folder, so that `pip install -e ".[npu]"` needs no package index. In a
    release (COSMOS3_RELEASE is set), and where an installer cloned the repository, it is the published backend of
    exactly this version. `libraries` of pyproject.toml names the folders that are no backend, and the backends whose
    extras list each beside their own."""

    def update(self, metadata: dict) -> None:
        metadata["optional-dependencies"] = self._extras(metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": self._readme(metadata["urls"]["Source"])}

    def _extras(self, version: str) -> dict[str, list[str]]:
        cloned = any(CLONES.match(part) for part in Path(self.root).parts)
        released = bool(os.environ.get("COSMOS3_RELEASE")) or cloned
        extras, libraries, required = dict(self.config["extras"]), self.config["libraries"], {}
        for pyproject in sorted(Path(self.root, "backends").glob("*/pyproject.toml")):
            folder = pyproject.parent
            source = f"=={version}" if released else f" @ {folder.as_uri()}"
            required[folder.name] = f"cosmos3-{folder.name}{source}"
        for name in sorted(required.keys() - libraries.keys()):
            used = [required[library] for library, backends in libraries.items() if name in backends]
            extras[name] = [required[name], *used]
        return extras

    def _readme(self, source: str) -> str:
        """README.md with links that hold outside the repository, too."""
        text = Path(self.root, "README.md").read_text("utf-8")
        return RELATIVE.sub(lambda link: f"{link[1]}{source}/blob/main/{link[2]}", text)
