"""Builds the six distributions, checks what they say, installs their wheels in an empty environment and runs them.

    python scripts/release.py [FOLDER]        # `make release`: the files lie in dist/

Nothing is downloaded or published: torch and the other libraries are those of the Python that runs this. With
COSMOS3_RELEASE the extras are the published backends of the same version (hatch_build.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections import Counter
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import guide

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT, *sorted(path.parent for path in ROOT.glob("backends/*/pyproject.toml"))]
SAID = ("License-Expression", "License-File", "Author", "Requires-Python", "Classifier", "Description-Content-Type")
URLS = {"Homepage", "Source", "Documentation", "Issues", "Changelog"}
PLACEHOLDER = "example.com"
EMBEDDED = "cosmos3_core/assets/embedded"


def run(*command: str | Path, cwd: Path, **changes: str) -> str:
    """What a command prints. Ends the program, with all that it said, where the command fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | changes, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed\n{done.stdout}{done.stderr}")
    return done.stdout


def build(project: Path, into: Path) -> None:
    targets = ("-t", "sdist", "-t", "wheel", "-d", into)
    run(sys.executable, "-m", "hatchling", "build", *targets, cwd=project, COSMOS3_RELEASE="1")


def metadata(file: Path) -> Message:
    if file.suffix == ".whl":
        with ZipFile(file) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            return message_from_bytes(archive.read(name))
    with tarfile.open(file) as archive:
        found = archive.extractfile(f"{file.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert found is not None
        return message_from_bytes(found.read())


def problems(file: Path, version: str) -> Iterator[str]:
    """What is wrong with a distribution's metadata."""
    head = metadata(file)
    if head["Version"] != version:
        yield f"its version is {head['Version']}, and cosmos3's is {version}"
    for name in SAID:
        if name not in head:
            yield f"{name} is missing"
    if missing := URLS - {line.partition(",")[0] for line in head.get_all("Project-URL", [])}:
        yield f"URLs are missing: {', '.join(sorted(missing))}"
    for line in head.get_all("Requires-Dist", []):
        if "@" in line:
            yield f"it needs a place, not a version: {line}"
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", str(head.get_payload())):
        yield f"its page links to {link}, which is nowhere on an index"


def lacking(wheel: Path) -> Iterator[str]:
    """The files of the embedded model that the core's wheel has not, or has otherwise than their checksums say."""
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        if f"{EMBEDDED}/SHA256SUMS" not in names:
            yield "it has no embedded model"
            return
        for line in archive.read(f"{EMBEDDED}/SHA256SUMS").decode().splitlines():
            sha256, name = line.split("  ", 1)
            inside = f"{EMBEDDED}/{name}"
            if inside not in names or hashlib.sha256(archive.read(inside)).hexdigest() != sha256:
                yield f"{inside} is missing or is not what its checksum says"


def install(wheels: list[Path], folder: Path) -> Path:
    """An environment with these wheels and, from outside, the libraries of this Python; its bin folder."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    # A .pth inside one of these is not read, so that cosmos3 of this Python, if it is editable, stays out of sight.
    (site / "host.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    # What the host has is not looked at: it may have cosmos3 of the same version.
    alone = ("--no-index", "--no-deps", "--ignore-installed", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "-q", *alone, *wheels, cwd=folder)
    return folder / "bin"


def outside(folder: Path) -> Path:
    """A wheel of a package that is none of ours: that of the page for vendors, with its recipe."""
    guide.write(folder / "acme")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "wheels", cwd=folder / "acme")
    (wheel,) = (folder / "wheels").iterdir()
    return wheel


def recipes() -> Counter[str]:
    """How many recipes each distribution carries, by the checkout."""
    paths = [*ROOT.glob("cosmos3_core/recipes/*.toml"), *ROOT.glob("backends/*/cosmos3_*/recipes/*.toml")]
    return Counter(path.parts[-3].replace("_", "-").removesuffix("-core") for path in paths)


def try_out(bin: Path, folder: Path, version: str) -> None:
    """A run, a plan, the backends, their recipes and the conformance kit, in an empty folder."""
    cosmos3 = bin / "cosmos3"
    if (said := run(cosmos3, "--version", cwd=folder).split()[-1]) != version:
        sys.exit(f"the installed cosmos3 says that it is {said}, and {version} was built")
    run(
        cosmos3,
        "run",
        "two green squares",
        "--model",
        "embedded",
        "--backend",
        "reference",
        "-o",
        "squares.png",
        cwd=folder,
    )
    run(cosmos3, "plan", "--model", "embedded", "--backend", "reference", "--task", "t2v", cwd=folder)
    listed = run(cosmos3, "backends", "--json", cwd=folder)
    if absent := [
        path.name for path in PROJECTS[1:] if f'"cosmos3-{path.name}"' not in listed and path.name != "triton"
    ]:
        sys.exit(f"cosmos3 backends does not list {', '.join(absent)}")
    listed = Counter(recipe["package"] for recipe in json.loads(run(cosmos3, "recipes", "list", "--json", cwd=folder)))
    if listed != recipes() + Counter({"cosmos3-acme": 1}):
        sys.exit(f"cosmos3 recipes list shows {dict(listed)}, and the checkout has {dict(recipes())}")
    run(cosmos3, "recipes", "validate", guide.RECIPE, cwd=folder)
    states = [
        recipe["state"]
        for _ in range(2)
        for recipe in json.loads(run(cosmos3, "recipes", "list", "--json", cwd=folder))
        if recipe["name"] == guide.RECIPE
    ]
    if states != ["validated", "validated"]:
        sys.exit(f"an outside package's recipe was validated and is then listed as {' and '.join(states)}")
    page = run(cosmos3, "matrix", "--installed", cwd=folder)
    if f"| {guide.RECIPE} | ✅ validated |" not in page or "| acme | attention | by_segment |" not in page:
        sys.exit("cosmos3 matrix --installed does not show an outside package's recipe and kernels")
    run(bin / "python", "-c", "import cosmos3_triton.rows", cwd=folder)
    run(cosmos3, "check", "--backend", "reference", "-k", "gate", cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist")
    into = parser.parse_args().folder.absolute()
    if into.exists() and any(into.iterdir()):
        sys.exit(f"{into} is not empty. Remove it, so that no file of another build is released")
    for project in PROJECTS:
        build(project, into)
    files = sorted(into.glob("*.tar.gz")) + sorted(into.glob("*.whl"))
    assert len(files) == 2 * len(PROJECTS), files
    version = metadata(next(file for file in files if file.name.startswith("cosmos3-")))["Version"]
    wrong = [f"{file.name}: {problem}" for file in files for problem in problems(file, version)]
    (wheel,) = into.glob("cosmos3-*.whl")
    if wrong := [*wrong, *(f"{wheel.name}: {problem}" for problem in lacking(wheel))]:
        sys.exit("\n".join(wrong))
    with tempfile.TemporaryDirectory() as scratch:
        empty = Path(scratch, "empty")
        empty.mkdir()
        wheels = [*(file for file in files if file.suffix == ".whl"), outside(Path(scratch, "outside"))]
        try_out(install(wheels, Path(scratch, "environment")), empty, version)
    print(*(file.name for file in files), sep="\n")
    if PLACEHOLDER in str(metadata(files[0])["Project-URL"]):
        print(
            f"The URLs are still those of {PLACEHOLDER}: set [project.urls] before this is published.", file=sys.stderr
        )


if __name__ == "__main__":
    main()
