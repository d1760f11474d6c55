"""A package as pip leaves it, without pip."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def install(package: Path, site: Path) -> None:
    """What pip leaves of an editable install: a dist-info folder. The package's own folder goes on the path."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (entries,) = project["entry-points"].values()
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[cosmos3.backends]", *lines, ""]))


def forget(package: str) -> None:
    """Import it anew the next time: another one of this name may be installed by then."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
