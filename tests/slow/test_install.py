"""`pip install ".[cuda,npu,xpu]"` of a checkout, as a user types it, in a virtual environment of its own; from git; and
`make release`.

Nothing is downloaded: the environment finds torch and the build tool in the packages of the Python that runs the tests,
so what is tested is the checkout's own metadata, builds and entry points. A really empty environment costs the download
of torch (200 MB for a CPU) and some minutes more, and tests pip's index in addition, not us.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from tiny_model import TINY_MODEL

from cosmos3_core import __version__

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The bin folder of an environment with `.[cuda,npu,xpu]` of a copy of this tree."""
    folder = tmp_path_factory.mktemp("install")
    checkout, environment = folder / "a checkout", folder / "environment"
    shutil.copytree(
        ROOT, checkout, ignore=shutil.ignore_patterns(".git", ".venv", ".nox", ".whl", ".*_cache", "__pycache__")
    )
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "host.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    offline = ("--no-index", "--no-build-isolation", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", *offline, ".[cuda,npu,xpu]", cwd=checkout)
    # A .pth that is named in another .pth is not read: the host's own editable cosmos3 is out of sight.
    where = run(python, "-c", "import cosmos3_core, cosmos3_npu; print(cosmos3_core.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(site)
    return environment / "bin"


def test_the_kernels_come_with_the_backend_that_builds_rows_of_them(installed, tmp_path):
    script = "from importlib.metadata import version; import cosmos3_triton.rows; print(version('cosmos3-triton'))"
    assert run(installed / "python", "-c", script, cwd=tmp_path).strip() == __version__


def test_the_backends_are_listed_with_the_reasons_why_they_cannot_be_used(installed, tmp_path):
    listed = {
        backend["name"]: backend
        for backend in json.loads(run(installed / "cosmos3", "backends", "--json", cwd=tmp_path))
    }
    assert set(listed) == {"reference", "cuda", "npu", "xpu"}
    assert (listed["cuda"]["package"], listed["cuda"]["state"]) == ("cosmos3-cuda", "unavailable")
    assert "built without CUDA" in listed["cuda"]["reason"]
    assert (listed["npu"]["package"], listed["npu"]["state"]) == ("cosmos3-npu", "unavailable")
    assert "torch_npu is not installed" in listed["npu"]["reason"]
    assert (listed["xpu"]["package"], listed["xpu"]["state"]) == ("cosmos3-xpu", "unavailable")
    assert "was built without XPU; install an XPU build of torch" in listed["xpu"]["reason"]


def test_the_backend_named_on_the_command_line_is_refused_with_that_reason(installed, tmp_path):
    command = [
        installed / "cosmos3",
        "run",
        "a cat",
        "--model",
        TINY_MODEL,
        "--backend",
        "npu",
        "--dry-run",
        "-o",
        "a.png",
    ]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "torch_npu is not installed" in done.stderr and "Traceback" not in done.stderr


def test_an_extra_of_a_git_repository_is_as_released(tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(ROOT, repository, ignore=shutil.ignore_patterns(".git", ".venv", ".nox", ".whl", ".*_cache"))
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for step in (["init"], ["add", "."], ["commit", "-m", "all of it"]):
        run("git", *who, *step, cwd=repository)
    alone = ("--no-index", "--no-build-isolation", "--no-deps", "--ignore-installed", "--disable-pip-version-check")
    target = ("--target", tmp_path / "site")
    run(sys.executable, "-m", "pip", "install", "-q", *alone, *target, f"git+{repository.as_uri()}", cwd=tmp_path)
    (info,) = (tmp_path / "site").glob("cosmos3-*.dist-info")
    said = (info / "METADATA").read_text("utf-8")
    assert f"Requires-Dist: cosmos3-npu=={__version__}; extra == 'npu'" in said and "file:" not in said


def test_a_release_is_built_checked_installed_and_run(tmp_path):
    said = run(sys.executable, ROOT / "scripts" / "release.py", tmp_path / "dist", cwd=tmp_path)
    assert len(said.splitlines()) == 12 and f"cosmos3_npu-{__version__}-py3-none-any.whl" in said
    again = [sys.executable, str(ROOT / "scripts" / "release.py"), str(tmp_path / "dist")]
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 1 and "is not empty" in done.stderr
