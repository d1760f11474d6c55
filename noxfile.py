"""The suite on the oldest and the newest packages that pyproject.toml allows, and what newer Pythons would install.

`pip install "nox[uv]"`, then `nox` for every session, or `nox -s lowest -- tests/test_run.py` for one file of tests on
the oldest. Each has an environment of its own in `.nox`, with torch and all.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
PROJECT = nox.project.load_toml("pyproject.toml")
EXTRAS = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["extras"]


def resolve(session: nox.Session, resolution: str, python: str) -> Path:
    """What uv finds for a run and the tests on Linux, one version each, as a file of the session."""
    folder = Path(session.create_tmp())
    asked, pins = folder / "asked.in", folder / f"{resolution}-{python}.txt"
    asked.write_text("\n".join([*PROJECT["project"]["dependencies"], *EXTRAS["test"]]))
    where = ("--python-version", python, "--python-platform", "x86_64-unknown-linux-gnu")
    session.run("uv", "pip", "compile", asked, "--resolution", resolution, *where, "-q", "-o", pins, external=True)
    return pins


def suite(session: nox.Session, resolution: str) -> None:
    session.install("-r", str(resolve(session, resolution, "3.11")))
    session.install("--no-deps", "--editable", ".")
    session.run("python", "-m", "pytest", "-q", *(session.posargs or ["tests"]))


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The tests on the floors of pyproject.toml."""
    suite(session, "lowest-direct")


@nox.session(python="3.11")
def newest(session: nox.Session) -> None:
    """The tests on the newest of everything."""
    suite(session, "highest")


@nox.session(python=False)
@nox.parametrize("python", ["3.12", "3.13"])
def resolution(session: nox.Session, python: str) -> None:
    """There are packages for these Pythons, oldest and newest. Nothing is installed."""
    for wanted in ("lowest-direct", "highest"):
        resolve(session, wanted, python)
