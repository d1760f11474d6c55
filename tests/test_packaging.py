"""What a user installs: the extras of a checkout and of a release, what is in the wheel and the sdist, versions that
agree, what an index page shows, and a package and command line that load nothing heavy."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from email import message_from_bytes
from email.message import Message
from importlib.metadata import EntryPoint
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_model import TINY_MODEL

from cosmos3_core import __version__
from cosmos3_core.files.checkout import build_version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
BACKENDS = {"cuda", "npu", "rocm", "xpu"}
KERNELS = "triton"
"""The distribution of our kernels, which is no backend and no extra."""
EXTRAS = {name: sorted((name, KERNELS)) for name in BACKENDS}
"""The folders that an extra installs. Hatchling sorts requirements."""
PACKAGES = ("cosmos3", "cosmos3_core")
HEAVY = {"torch", "diffusers", "transformers", "huggingface_hub", "av", "PIL", "numpy"}


def build(tree: Path, target: str, release: bool) -> Path:
    """Builds `tree` with hatchling, which needs no network, and returns the one artifact."""
    environment = {name: value for name, value in os.environ.items() if name != "COSMOS3_RELEASE"}
    if release:
        environment["COSMOS3_RELEASE"] = "1"
    out = tree.parent / f"{tree.name}-{target}-{'release' if release else 'checkout'}"
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (artifact,) = out.iterdir()
    return artifact


def metadata(wheel: Path, package: str = "cosmos3") -> Message:
    with ZipFile(wheel) as archive:
        return message_from_bytes(archive.read(f"{package}-{__version__}.dist-info/METADATA"))


def requirements_of_extra(wheel: Path, extra: str) -> list[Requirement]:
    """The requirements of the wheel that `extra` adds."""
    lines = [Requirement(line) for line in metadata(wheel).get_all("Requires-Dist")]
    return [line for line in lines if line.marker and line.marker.evaluate({"extra": extra})]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of this tree, in a folder whose name a URL has to escape."""
    return copied(tmp_path_factory.mktemp("packaging") / "a checkout")


def copied(tree: Path) -> Path:
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", ".nox", ".whl", ".*_cache", "__pycache__")
    )
    return tree


@pytest.fixture(scope="module")
def wheel(checkout) -> Path:
    return build(checkout, "wheel", release=False)


@pytest.fixture(scope="module")
def release_wheel(checkout) -> Path:
    return build(checkout, "wheel", release=True)


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_an_extra_of_a_checkout_is_the_folder_of_the_backend_and_that_of_its_kernels(name, checkout, wheel):
    found = [(line.name, line.url) for line in requirements_of_extra(wheel, name)]
    assert found == [(f"cosmos3-{part}", (checkout / "backends" / part).as_uri()) for part in EXTRAS[name]]


def assert_is_release(wheel: Path) -> None:
    for name, parts in EXTRAS.items():
        found = [(line.name, str(line.specifier)) for line in requirements_of_extra(wheel, name)]
        assert found == [(f"cosmos3-{part}", f"=={__version__}") for part in parts]
    assert " @ " not in "".join(metadata(wheel).get_all("Requires-Dist"))


def test_an_extra_of_a_release_is_the_backend_of_the_same_version(release_wheel):
    assert_is_release(release_wheel)


@pytest.mark.parametrize("clone", ["pip-install-ab12/cosmos3_0c41", "pip-req-build-ab12", "git-v0/checkouts/0c41/4f"])
def test_what_pip_and_uv_cloned_is_as_released(clone, tmp_path):
    """The clone is gone, or nobody's, when the extra is asked for again."""
    assert_is_release(build(copied(tmp_path / clone), "wheel", release=False))


def test_the_extras_are_the_backends_check_and_test(wheel, release_wheel):
    for built in (wheel, release_wheel):
        assert set(metadata(built).get_all("Provides-Extra")) == BACKENDS | {
            "check",
            "test",
            "parquet",
            "plot",
            "transfer",
        }
        assert [line.name for line in requirements_of_extra(built, "check")] == ["pytest"]


def test_a_wheel_built_from_a_released_sdist_is_a_release(checkout, tmp_path):
    with tarfile.open(build(checkout, "sdist", release=True)) as archive:
        archive.extractall(tmp_path, filter="data")
    tree = tmp_path / f"cosmos3-{__version__}"
    assert (tree / "backends" / "npu" / "pyproject.toml").is_file()
    assert_is_release(build(tree, "wheel", release=False))


@pytest.mark.parametrize("name", sorted({*BACKENDS, KERNELS}))
def test_a_package_builds_a_wheel_of_this_version(name, checkout):
    built = build(checkout / "backends" / name, "wheel", release=True)
    package = f"cosmos3_{name}"
    head = metadata(built, package)
    assert (head["Name"], head["Version"]) == (f"cosmos3-{name}", __version__)
    needed = {"cosmos3"} if name == KERNELS else {"cosmos3", f"cosmos3-{KERNELS}"}
    assert set(head.get_all("Requires-Dist")) == {f"{part}=={__version__}" for part in needed}
    assert_shows_what_an_index_asks_for(head)
    entries = f"{package}-{__version__}.dist-info/entry_points.txt"
    with ZipFile(built) as archive:
        lines = archive.read(entries).decode().splitlines() if entries in archive.namelist() else []
        modules = {path for path in archive.namelist() if path.startswith(f"{package}/")}
    assert lines == ([] if name == KERNELS else ["[cosmos3.backends]", f"{name} = {package}.plugin"])
    folder = ROOT / "backends" / name
    files = (path for path in folder.glob(f"{package}/**/*") if path.is_file() and "__pycache__" not in path.parts)
    assert f"{package}/py.typed" in modules
    assert modules == {path.relative_to(folder).as_posix() for path in files}
    assert any(path.startswith(f"{package}/recipes/") for path in modules) is (name != KERNELS)


def test_the_wheel_holds_every_file_of_the_package_and_no_other(checkout, wheel):
    files = (path for package in PACKAGES for path in (checkout / package).rglob("*") if path.is_file())
    ours = {path.relative_to(checkout).as_posix() for path in files}
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"cosmos3-{__version__}.dist-info/")}
    assert names == ours and names > {f"{package}/py.typed" for package in PACKAGES}


def test_the_wheel_holds_the_license_the_readme_and_the_version(wheel):
    head = metadata(wheel)
    assert (head["Name"], head["Version"]) == ("cosmos3", __version__)
    assert_shows_what_an_index_asks_for(head)
    page, readme = head.get_payload(), (ROOT / "README.md").read_text("utf-8")
    assert page.splitlines()[0] == "# cosmos3" and len(page.splitlines()) == len(readme.splitlines())
    source = f"{PYPROJECT['project']['urls']['Source']}/blob/main"
    assert f"({source}/docs/SUPPORT.md)" in page and f"({source}/docs/SUPPORT.md#measured)" in page
    with ZipFile(wheel) as archive:
        license_text = archive.read(f"cosmos3-{__version__}.dist-info/licenses/LICENSE").decode()
    assert "Apache License" in license_text and "END OF TERMS AND CONDITIONS" in license_text


def assert_shows_what_an_index_asks_for(head: Message) -> None:
    assert (head["License-Expression"], head["License-File"]) == ("Apache-2.0", "LICENSE")
    assert head["Author"] and head["Requires-Python"] == ">=3.11"
    assert head["Description-Content-Type"] == "text/markdown"
    assert "Programming Language :: Python :: 3.11" in head.get_all("Classifier")
    urls = dict(line.split(", ") for line in head.get_all("Project-URL"))
    assert urls == PYPROJECT["project"]["urls"] and {"Homepage", "Source", "Documentation", "Issues"} <= set(urls)
    assert not re.findall(r"\]\((?!https?:)", head.get_payload()), "a link that goes nowhere on an index page"


def test_the_licenses_are_one():
    texts = {path.read_text("utf-8") for path in (ROOT / "LICENSE", *ROOT.glob("backends/*/LICENSE"))}
    assert len(texts) == 1 and len(list(ROOT.glob("backends/*/LICENSE"))) == len(BACKENDS) + 1


def test_a_version_has_the_commit_in_a_checkout_alone(tmp_path):
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    (tmp_path / "a.py").write_text("")
    assert build_version(tmp_path) == __version__, "no checkout"
    build_version.cache_clear()
    git("init")
    assert build_version(tmp_path) == __version__, "no commit yet"
    build_version.cache_clear()
    git("add", "a.py")
    git("commit", "-m", "first")
    assert build_version(tmp_path) == f"{__version__}+g{git('rev-parse', '--short=9', 'HEAD').strip()}"
    (tmp_path / "a.py").write_text("changed = True")
    build_version.cache_clear()
    assert re.fullmatch(rf"{re.escape(__version__)}\+g[0-9a-f]{{9}}\.dirty", build_version(tmp_path))


def test_the_console_script_of_the_wheel_can_be_called(wheel):
    with ZipFile(wheel) as archive:
        lines = archive.read(f"cosmos3-{__version__}.dist-info/entry_points.txt").decode().splitlines()
    assert lines[0] == "[console_scripts]"
    name, _, value = lines[1].partition(" = ")
    assert name == "cosmos3"
    assert callable(EntryPoint(name, value, "console_scripts").load())


def test_constraints_pin_every_direct_dependency_to_a_version_it_allows():
    extras = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["extras"]
    lines = PYPROJECT["project"]["dependencies"] + extras["check"] + extras["test"]
    direct = [Requirement(line) for line in lines]
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert set(pins) == {canonicalize_name(requirement.name) for requirement in direct}
    for requirement in direct:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def imported_by(*arguments: str) -> set[str]:
    """The top-level packages a fresh interpreter imports when it is run with `arguments`."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, re.sub(r"^import time:.*\n", "", done.stderr, flags=re.MULTILINE)
    names = re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, flags=re.MULTILINE)
    return {name.split(".")[0] for name in names}


def test_importing_the_package_loads_nothing_heavy():
    loaded = imported_by("-c", "import cosmos3, cosmos3_core")
    assert loaded > set(PACKAGES)
    assert not loaded & HEAVY


def test_help_loads_nothing_heavy():
    loaded = imported_by("-m", "cosmos3", "--help")
    assert "cosmos3_core" in loaded
    assert not loaded & HEAVY


def test_a_run_loads_no_compiler(tmp_path):
    """torch's brings sympy, and takes longer than the run."""
    run = ("cosmos3", "run", "a cup", "--model", TINY_MODEL, "--backend", "reference", "--size", "64x64")
    loaded = imported_by("-m", *run, "--frames", "5", "--sound", "--steps", "1", "-o", str(tmp_path / "cup.mp4"))
    assert "av" in loaded and "sympy" not in loaded


def test_the_engine_loads_no_diffusers():
    """It is what the tests compare with, and no dependency."""
    assert "diffusers" not in imported_by("-c", "import cosmos3_core.engine.engine, cosmos3_core.runs.manifest")


def test_a_heavy_import_would_be_seen():
    assert "numpy" in imported_by("-c", "import numpy")


def test_a_wheel_without_the_whole_embedded_model_is_found_out(tmp_path):
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
    release = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(release)
    folder, name = release.EMBEDDED, "vae/x.safetensors"
    sums = f"{hashlib.sha256(b'weights').hexdigest()}  {name}\n"

    def said(**files: str) -> list[str]:
        with ZipFile(wheel := tmp_path / "x.whl", "w") as archive:
            for inside, data in files.items():
                archive.writestr(f"{folder}/{inside}", data)
        return list(release.lacking(wheel))

    wrong = f"{folder}/{name} is missing or is not what its checksum says"
    assert said(**{"SHA256SUMS": sums, name: "weights"}) == []
    assert said(**{"SHA256SUMS": sums, name: "weight"}) == said(SHA256SUMS=sums) == [wrong]
    assert said() == ["it has no embedded model"]
