"""Recipes and records inside a package: one that is installed and none of ours is listed, validated, stays validated,
and stands in the page of what is installed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import guide
import pytest
from command import cosmos3
from installed import forget, install

from cosmos3_core.contract import InputError
from cosmos3_core.evidence import checks, packages, recipe, state, worker
from cosmos3_core.evidence.closure import Sources
from cosmos3_core.evidence.fingerprint import ROOT
from cosmos3_core.evidence.validate import validate
from cosmos3_core.plan import discovery
from cosmos3_core.plan.known import known_device

NAME = guide.RECIPE


@pytest.fixture
def acme(tmp_path, monkeypatch) -> Path:
    """The folder of the guide's package, installed."""
    folder = tmp_path / "cosmos3_acme"
    guide.write(tmp_path)
    install(tmp_path, tmp_path / "site")
    path = [str(tmp_path / "site"), str(tmp_path)]
    monkeypatch.setattr(sys, "path", [*path, *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*path, str(ROOT)]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    forget("cosmos3_acme")
    yield folder
    forget("cosmos3_acme")


@pytest.fixture
def told(capsys, monkeypatch):
    def call(*arguments) -> str:
        code, out, err = cosmos3(capsys, monkeypatch, *arguments)
        assert code == 0, err
        return out

    return call


@pytest.mark.usefixtures("one_picture")
def test_an_outside_packages_recipe_validates_lists_as_validated_and_stays_so(acme, told):
    listed = {row["name"]: row for row in json.loads(told("recipes", "list", "--json"))}
    assert listed[NAME]["package"] == "cosmos3-acme" and listed[NAME]["state"] == "help wanted"
    assert listed["embedded-t2i-128x128-cpux1"]["package"] == "cosmos3"
    assert "plan.attention: by_segment" in told("recipes", "show", NAME)
    (package,) = (one for one in packages.installed_packages() if one.name == "cosmos3-acme")
    before = checks.code_digest(package.backend, package.module, Sources(ROOT))
    ((_, found),) = validate([recipe.load(acme / "recipes" / f"{NAME}.toml")], launch=worker.measure)
    assert "cosmos3_acme/attention.py" in found["fingerprint"]["files"]
    assert (acme / "recipes" / "evidence" / f"{NAME}.json").is_file()

    def state_told() -> str:
        folder = ("--folder", acme / "recipes")  # of this package alone, which is sooner told
        (row,) = (row for row in json.loads(told("recipes", *folder, "list", "--json")) if row["name"] == NAME)
        return row["state"]

    assert state_told() == found["state"] == "validated"
    (acme / "recipes" / "checks").mkdir()
    (acme / "recipes" / "checks" / "acme1.json").write_text("{}")
    (acme / "recipes" / "other.toml").write_text('title = "x"')
    assert state_told() == found["state"]
    assert checks.code_digest(package.backend, package.module, Sources(ROOT)) == before
    (acme / "attention.py").write_text((acme / "attention.py").read_text() + "# another\n")
    assert state_told() == "stale" and checks.code_digest(package.backend, package.module, Sources(ROOT)) != before


def test_what_a_row_s_note_says_is_no_code_of_the_kit_s_record(acme):
    """A note may say that nobody has run the row, and has to change with the record that shows that somebody has."""
    (package,) = (one for one in packages.installed_packages() if one.name == "cosmos3-acme")
    file, found = acme / "rows.py", []
    for text in (
        'A = f(name="é", notes=f"new; {1}: "\n    "never run", arch=())\nB = [f(notes="a"), f(notes="b")]\n',
        'A = f(name="é", notes="it runs", arch=())\nB = [f(notes=""), f(notes="longer")]\n',
        'A = f(name="e", notes="it runs", arch=())\nB = [f(notes=""), f(notes="longer")]\n',
        "this is no Python\n",
        "this is no  Python\n",
    ):
        file.write_text(text, encoding="utf-8")
        found.append(checks.code_digest(package.backend, package.module, Sources(ROOT)))
    assert found[0] == found[1] and len({*found[1:]}) == 4


def kit_record(package: packages.Package, **changes) -> str:
    """What the kit writes, as far as it is read here."""
    fingerprint = {
        "contract": 2,
        "kit": checks.kit_digest(Sources(ROOT)),
        "backend": {"name": "acme", "sources": checks.code_digest(package.backend, package.module, Sources(ROOT))},
        "device": {"name": "ACME One", "arch": "acme1"},
    }
    record = {"depth": "full", "finished": "2026-11-30T02:50:16+00:00", "exit_status": 0, "selected": None}
    tests = {"test_a": {"outcome": "passed"}, "test_b": {"outcome": "skipped", "reason": "so"}}
    return json.dumps(record | {"fingerprint": fingerprint, "tests": tests} | changes)


def test_the_page_of_what_is_installed_has_its_kernels_recipes_and_kit_records(acme, told):
    (package,) = (one for one in packages.installed_packages() if one.name == "cosmos3-acme")
    folder = acme / "recipes" / "checks"
    folder.mkdir()
    records = {
        "a-full": kit_record(package),
        "b-quick": kit_record(package, depth="quick"),
        "c-part": kit_record(package, selected="attention"),
        "d-failed": kit_record(package, exit_status=1),
        "g-nothing": kit_record(package, tests={}),
        "h-skipped": kit_record(package, tests={"test_a": {"outcome": "skipped"}}),
        "i-failed": kit_record(package, tests={"test_a": {"outcome": "passed"}, "test_b": {"outcome": "failed"}}),
        "j-strange": kit_record(package, tests={"test_a": {"outcome": "fine"}}),
        "e-old": kit_record(package).replace(checks.kit_digest(Sources(ROOT)), "0" * 64),
        "f-none": "{}",
    }
    for name, text in records.items():
        (folder / f"{name}.json").write_text(text)
    page = told("matrix", "--installed")
    (line,) = (line for line in page.splitlines() if line.startswith("| cosmos3-acme 0.1 | acme | 1 | 1 |"))
    said = dict(one.split(": ", 1) for one in line.split("|")[5].strip().replace("; since", ", since").split("; "))
    on = "on ACME One (acme1) on 2026-11-30"
    assert said["✅ a-full"] == f"passed {on}, depth full: 1 passed, 1 skipped"
    assert said["b-quick"] == f"passed {on}, depth quick: 1 passed, 1 skipped"
    assert said["c-part"].startswith(f"passed {on}, depth full, only attention")
    assert said["d-failed"].startswith("did not pass on ACME One")
    assert said["e-old"].startswith("stale, passed") and said["e-old"].endswith("since then the kit changed")
    assert said["f-none"].startswith("broken: it is damaged")
    assert said["g-nothing"] == said["h-skipped"] == "broken: it is damaged: its exit status is 0, and no test passed"
    assert said["i-failed"] == "broken: it is damaged: its exit status is 0, and a test failed"
    assert said["j-strange"] == "broken: it is damaged: a test's outcome is 'fine'"
    assert f"| {NAME} | help wanted | nobody has measured it | – |" in page
    assert "| acme | attention | by_segment | acme1 |" in page and "| 1 x ACME One |" in page


def test_a_package_without_what_it_declares_hides_no_other(acme, told):
    for path in sorted((acme / "recipes").iterdir()):
        path.unlink()
    (acme / "recipes").rmdir()
    rows = {row["name"]: row for row in json.loads(told("recipes", "list", "--json"))}
    assert rows["cosmos3-acme"]["state"] == "broken" and "there is no such folder" in rows["cosmos3-acme"]["why"]
    assert len(rows) > 15 and "| cosmos3-acme 0.1 | acme | 1 | 0 | no record |" in told("matrix", "--installed")
    forget("cosmos3_acme")
    (acme / "plugin.py").write_text("raise OSError('no driver')\n")
    rows = {row["name"]: row for row in json.loads(told("recipes", "list", "--json"))}
    assert rows["cosmos3-acme"]["state"] == "broken" and "no driver" in rows["cosmos3-acme"]["why"]
    assert "| cosmos3-acme 0.1 | broken: " in told("matrix", "--installed")


RECIPES = "recipes=Path(__file__).parent / RECIPES"
KNOWN = 'known=(Device(arch="acme1", name="ACME One", count=1, memory=8 * 2**30, unified=True),)'
UNMADE = 'Device(arch="acme1", name="A", count=1, memory=0, unified=True)'


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (RECIPES, 'recipes="recipes"', r"its recipes are .* write recipes=Path\(__file__\)"),
        (RECIPES, 'recipes=Path("my_recipes")', r"its recipes are .* write recipes=Path\(__file__\)"),
        (KNOWN, 'known=("A",)', "a device that it knows is an object of type str"),
        (KNOWN, f"known=({UNMADE},)", "a device that it knows has a memory of 0"),
        (KNOWN, KNOWN.replace('"ACME One"', "None"), "a device that it knows has a name of None"),
        (KNOWN, KNOWN.replace('"acme1"', '""'), "a device that it knows has an arch of ''"),
        (KNOWN, KNOWN.replace(",)", ")"), "what it knows is one device"),
    ],
)
def test_what_a_package_says_of_its_recipes_and_devices_is_checked(acme, right, wrong, said):
    text = (acme / "plugin.py").read_text()
    assert right in text
    (acme / "plugin.py").write_text(text.replace(right, wrong))
    with pytest.raises(InputError, match=said):
        discovery.load("acme")
    if right == KNOWN:  # who asks for such a device is told why it is not known
        with pytest.raises(InputError, match=f"Those of acme are not looked at .*{said}"):
            known_device("ACME One", None, ())


def test_a_name_that_two_packages_have_needs_the_path(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        (folder / f"{NAME}.toml").write_text(guide.package()[f"cosmos3_acme/recipes/{NAME}.toml"])
    with pytest.raises(InputError, match="several packages have one of that name: .*Give the path of its file"):
        recipe.find(NAME, folders)
    assert state.state_of(recipe.find(str(folders[1] / f"{NAME}.toml"), folders)).name == "help wanted"


@pytest.mark.parametrize("folders", [1, 5])
def test_a_name_that_there_is_none_of_is_said_in_one_line(tmp_path, folders):
    """One folder is one that was named; several are the packages'."""
    where = f"in {tmp_path}" if folders == 1 else "in the installed packages"
    with pytest.raises(InputError) as error:
        recipe.find("nowhere", [tmp_path] * folders)
    assert str(error.value) == f"recipe 'nowhere': there is none of that name {where}. See cosmos3 recipes list"


def test_the_checkouts_packages_name_the_folders_that_they_carry():
    for package in packages.in_tree(ROOT):
        assert package.recipes and package.recipes.is_dir() and list(package.recipes.glob("*.toml")), package.name
