"""What README and docs say: the Python example runs, the commands parse, links point at files, tables are current."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    str(path.relative_to(ROOT))
    for folder in (
        ".",
        "docs",
        "benchmarks",
        "recipes",
        *(f"backends/{name}" for name in ("cuda", "rocm", "npu", "xpu")),
    )
    for path in sorted((ROOT / folder).glob("*.md"))
]


def test_the_python_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(example, names)
    assert len(names["frames"]) == 9 and names["frames"][0].shape == (64, 64, 3)


@pytest.mark.parametrize("line", re.findall(r"^cosmos3 .*$", README, re.M))
def test_commands_parse(line):
    from cosmos3_core.cli import cli

    name, *arguments = shlex.split(line, comments=True)[1:]
    cli.commands[name].make_context(name, arguments)  # raises on an unknown option or a value of the wrong type


@pytest.mark.parametrize("page", PAGES)
def test_links_point_at_files(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_paths_that_the_architecture_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in set(re.findall(r"`((?:[a-z]+/)[a-z_/]*\.?[a-z]*)[:`]", text)):
        assert (ROOT / "cosmos3_core" / path).exists() or (ROOT / path).exists(), path


@pytest.mark.parametrize("name", [path.name for path in (ROOT / "benchmarks" / "results").glob("*.json")])
def test_numbers_in_the_tables_are_the_results(name):
    """Every committed result has a row in benchmarks/README.md with its ratio, and is complete."""
    result = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
    page = (ROOT / "benchmarks/README.md").read_text()
    if result["benchmark"] == "memory":  # test_estimate.py compares it with what is estimated
        for measured in (stage for job in result["jobs"].values() for stage in (job["steps"], job["decode"])):
            row = f"| {measured['allocated'] / 1e9:.1f} | {measured['reserved'] / 1e9:.1f} |"
            assert row in page and f"| {measured['seconds']:.2f} |" in page
        return
    row = next(line for line in page.splitlines() if name in line)
    assert f"{result['speed_ratio']:.2f}x" in row
    assert result["relative_error"] <= result["settings"]["tolerance"]
    assert result["environment"]["command"] and result["environment"]["versions"]["torch"]
    if name in README:
        assert f"{result['speed_ratio']:.2f}x" in README
