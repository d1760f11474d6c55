"""`cosmos3 matrix` and the recipes that ship: the page is current, and there is no tick without a record that holds."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import devices
import history
import pytest
from command import cosmos3

from cosmos3_core import reference
from cosmos3_core.contract import Device, InputError
from cosmos3_core.evidence import fingerprint, layouts, record, verdict
from cosmos3_core.evidence import settle as evidence
from cosmos3_core.evidence.matrix import PAGE, TICK, render
from cosmos3_core.evidence.packages import in_tree, recipes_of
from cosmos3_core.evidence.recipe import Recipe, files_of, load_all
from cosmos3_core.evidence.state import state_of
from cosmos3_core.plan.cost.units import GIB
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.facts import ModelFacts

ROOT = Path(__file__).parents[1]
PACKAGES = in_tree(ROOT)
RECIPES = [recipe for _, recipe in recipes_of(PACKAGES)]
HERE = Path("cosmos3_core") / "recipes"
"""Of the core in a checkout."""
NAMED = ("name", "arch")
LAYER = {"attention", "pack_linear", "rms_norm", "norm_rope", "gate"}
"""The ops of a decoder layer."""
TICKED = re.compile(rf"\| {TICK}|\[{TICK}")


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A checkout of its own: the sources, recipes and records of this one, and one recipe with a record that holds."""
    ignore = shutil.ignore_patterns("__pycache__", "recipes")
    shutil.copytree(ROOT / "cosmos3_core", tmp_path / "cosmos3_core", ignore=ignore)
    (tmp_path / HERE).mkdir()
    (tmp_path / "docs").mkdir()
    (measured,) = [recipe for recipe in RECIPES if recipe.name == "embedded-t2i-128x128-cpux1"]
    found = record.load(measured)
    shutil.copy(measured.path, tmp_path / HERE)
    # As if it had been measured with the code of today, on weights that are not random: sealed anew.
    raw = {name: entry["raw"] for name, entry in found["measurements"].items()}
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    device = Device(memory=1, count=1, unified=True, **{key: found["fingerprint"]["device"][key] for key in NAMED})
    found["fingerprint"] = fingerprint.fingerprint(reference.BACKEND, device, reference.BACKEND.kernels, embedded=True)
    found["model"]["weights"], found["state"] = "checkpoint", "validated"
    found["evaluation"] = {"not_run": "gate=eager: as in this test"}
    found["verdict"] = verdict.judge(found["comparisons"], found["same"], found["evaluation"])
    fresh = {key: value for key, value in found.items() if key != "sha256"} | {"measurements": raw}
    (copied,) = load_all(tmp_path / HERE)
    record.write(copied, record.seal(fresh))
    return tmp_path


def ticks(root: Path) -> int:
    return len(TICKED.findall(render(root).split("## Model, task and device")[1]))


def test_the_page_is_up_to_date():
    assert (ROOT / PAGE).read_text("utf-8") == render(ROOT), "type cosmos3 matrix"


def test_its_links_point_at_files():
    for target in set(re.findall(r"\]\(([^)]+)\)", (ROOT / PAGE).read_text("utf-8"))):
        assert (ROOT / "docs" / target.partition("#")[0]).exists(), target


def test_what_nobody_has_run_is_listed_by_device():
    """Recipes of no record at all, and no others."""
    section = render(ROOT).split("## Nobody has run these yet")[1].split("\n## ")[0]
    waiting = {one.name for one in RECIPES if state_of(one).name in ("rehearsed", "help wanted")}
    assert set(re.findall(r"\[([^]]+)\]\([^)]+\.toml\)", section)) == waiting
    assert "| 1 x Ascend 910B | npu | [nano-t2v-1280x720-ascend910bx1]" in section and "h200x1" in section


def test_what_earlier_code_measured_stands_apart():
    """With the commit of each record, which a page has to say: not every checkout has the history."""
    page = history.PAGE.read_text("utf-8")
    said = dict(history.commits(page))
    assert history.render(lambda file, words: said[file]) == page, "type python scripts/history.py"
    measured = (ROOT / PAGE).read_text("utf-8").split("## Measured")[1].split("\n## ")[0]
    assert "h200x1" in measured and "stale" not in measured
    assert {Path(file).stem for file in said}.isdisjoint(re.findall(r"^\| ([\w-]+) \|", measured, re.MULTILINE))


def test_check_says_whether_it_is_and_writing_makes_it_so(capsys, monkeypatch, copy):
    for _ in range(2):
        code, out, err = cosmos3(capsys, monkeypatch, "matrix", "--check")
        assert code == 1 and "docs/SUPPORT.md: it is out of date. Type cosmos3 matrix" in err
    code, out, _ = cosmos3(capsys, monkeypatch, "matrix")
    assert (code, out.strip()) == (0, str(PAGE))
    assert cosmos3(capsys, monkeypatch, "matrix", "--check")[0] == 0
    (copy / PAGE).write_text((copy / PAGE).read_text() + "one more line\n")
    assert cosmos3(capsys, monkeypatch, "matrix", "--check")[0] == 1


def test_a_record_that_holds_makes_a_tick(copy):
    assert ticks(copy) == 2  # in the grid and in the list
    checks = record.load(*load_all(copy / HERE))["verdict"]["checks"]
    assert " | ".join(f"{check['eager']:.2g}, {check['value']:.2g}" for check in checks) in render(copy)
    assert render(copy).count("not run (gate=eager: as in this test) |") == 2  # with its state and what was measured


def changed_code(root: Path) -> None:
    with (root / "cosmos3_core" / "sampling" / "guidance.py").open("a") as file:
        file.write("# another\n")


def changed_record(root: Path) -> None:
    (path,) = (root / HERE / "evidence").glob("*.json")
    found = json.loads(path.read_text())
    found["measurements"]["candidate"]["raw"]["cold"]["seconds"] = 0.1
    path.write_text(json.dumps(found))


def changed_recipe(root: Path) -> None:
    (path,) = (root / HERE).glob("*.toml")
    path.write_text(path.read_text().replace("seed = 7", "seed = 8"))


def no_record(root: Path) -> None:
    shutil.rmtree(root / HERE / "evidence")


@pytest.mark.parametrize("change", [changed_code, changed_record, changed_recipe, no_record])
def test_no_tick_without_a_record_that_holds(copy, change):
    change(copy)
    assert ticks(copy) == 0 and "stale" in render(copy)


def test_a_file_that_is_no_recipe_stands_in_the_page_with_its_fault(copy):
    (copy / HERE / "bad.toml").write_text('title = "x"')
    assert ticks(copy) == 2
    assert "| [bad](../cosmos3_core/recipes/bad.toml) | broken | bad.toml: it has no run | – |" in render(copy)


def test_the_page_says_what_a_record_proves():
    assert "does not prove that a measurement took place" in (ROOT / PAGE).read_text("utf-8")


def test_a_message_changes_nothing(copy):
    file = copy / "cosmos3_core" / "checkpoint" / "repository.py"
    text = file.read_text()
    assert "Install cosmos3 again" in text
    file.write_text(text.replace("Install cosmos3 again", "Install it again"))
    assert ticks(copy) == 2


# --- the recipes that ship -------------------------------------------------------------------------------------------

DEVICE_TABLE = {
    "Cosmos3-Nano": {
        *(("H200", 1), ("B300", 1), ("RTX 5090", 1), ("Ascend 910B", 1), ("Ascend 910C", 1), ("Ascend 950", 1)),
        *(("MI300X", 1), ("MI350X", 1), ("gfx1151", 1), ("Arc B580", 1), ("Arc B60", 1)),
        *(("H200", 2), ("RTX 4090", 2), ("Arc B60", 2)),
    },
    "Cosmos3-Super": {
        *((name, count) for name in ("H200", "B300", "H100", "A100") for count in (2, 8)),
        *(("MI300X", 8), ("Ascend 910B", 8), ("Ascend 910C", 8), ("Arc B60", 4)),
    },
}
SHARED = [recipe for recipe in RECIPES if recipe.device["count"] > 1 and recipe.run["backend"] != "reference"]


@pytest.mark.parametrize("model", DEVICE_TABLE)
def test_every_row_of_the_device_table_has_a_recipe(model):
    seeded = {(r.device["name"], r.device["count"]) for r in RECIPES if r.run["model"].endswith(model)}
    assert DEVICE_TABLE[model] <= seeded


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_shipped_recipe_is_a_valid_request_and_says_who_measured(recipe: Recipe):
    facts = ModelFacts(recipe.run["model"], "base", system_prompt=True, negative_prompt="{}")
    requests.resolve(recipe.given(), recipe.run.get("profile", "reference"), facts, pick_seed=lambda: 0)
    assert recipe.run["dtype"] == "bfloat16"
    assert "steps" in recipe.run  # a time without its steps says nothing
    assert all(Path(file).is_file() for file in files_of(recipe.given()).values())
    if recipe.validated:
        halves = {"project", "finish"} & set(recipe.plan)
        assert halves in (set(), {"project", "finish"})
        inside = {"pack_linear", "gate"} if halves else set()  # a half of a layer may do these itself
        assert LAYER - inside <= set(recipe.plan) <= LAYER | halves


@pytest.mark.parametrize("recipe", SHARED, ids=lambda recipe: recipe.name)
def test_a_recipe_for_several_devices_shares_its_request_as_it_says_and_fits(recipe: Recipe, monkeypatch):
    """By the plan: no device is here. That none was is said where there is no record."""
    one = devices.known(recipe.run["backend"], recipe.device["name"])
    device = replace(one, count=recipe.device["count"], memory=min(one.memory, recipe.device["memory_gib"] * GIB))
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    monkeypatch.setattr(evidence, "backend_of", lambda recipe: (devices.backend(recipe.run["backend"]), device))
    settled = evidence.settle(recipe, random_weights=True, host_memory=512 * GIB)
    assert str(settled.plan.layout) == recipe.parallel and settled.fits
    assert evidence.settle(recipe, evidence.BASELINE, random_weights=True, host_memory=512 * GIB).plan.layout.size == 1
    assert recipe.validated or recipe.known["state"] in ("help wanted", "rehearsed")


ON_HOPPER = [recipe for recipe in RECIPES if recipe.plan and recipe.device.get("arch") == "sm_90"]


@pytest.mark.parametrize("recipe", ON_HOPPER, ids=lambda recipe: recipe.name)
def test_an_asserted_plan_is_what_the_rows_come_to(recipe: Recipe, monkeypatch):
    """With every kernel library that a row needs. An op that is not named is done inside one that is."""
    name, found = devices.DEVICES["h100"]
    device = replace(found, name=f"NVIDIA {recipe.device['name']}", memory=recipe.device["memory_gib"] * GIB)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: package)
    monkeypatch.setattr(evidence, "backend_of", lambda recipe: (devices.backend(name), device))
    plan = evidence.settle(recipe, random_weights=True).plan
    assert {*recipe.plan, *plan.fused} == {*LAYER, "project", "finish"}


@pytest.mark.parametrize(
    "name, reason",
    [
        ("nano-t2v-832x480-h100x1", r"^attention=fa3: built for head dims 64, 96, 128, 192 and 256, not 32\. "),
        ("nano-t2v-832x480-fp8-attnfp8-h100x1", r"^attention=fa3-fp8: takes head dims 64, 128 and 256 in FP8, not 32"),
    ],
)
def test_the_plan_of_a_recipe_is_the_embedded_models_or_says_which_row_is_not(name, reason, monkeypatch):
    """Without the row that refuses the whole plan serves, that of composites, formats and delegates too."""
    monkeypatch.setattr("importlib.util.find_spec", lambda package: package)
    found = devices.DEVICES["h100"][1]
    monkeypatch.setattr(evidence, "backend_of", lambda recipe: (devices.backend("cuda"), found))
    monkeypatch.setattr(Recipe, "check_device", lambda recipe, found, **__: None)
    (one,) = [recipe for recipe in RECIPES if recipe.name == name]
    with pytest.raises(InputError, match=reason):
        evidence.plan_of_embedded(evidence.settle(one, random_weights=True).plan)
    formats = {op: format for op, format in one.formats.items() if op != "attention"}
    run = one.run | {"kernels": {"attention": "sdpa-cudnn"}, "formats": formats}
    apart = replace(one, tables=one.tables | {"plan": {}, "run": run})
    plan = evidence.settle(apart, random_weights=True).plan
    found = evidence.plan_of_embedded(plan)
    assert evidence.planned(found) == evidence.planned(plan) and {"cublas", "scaled-mm"} & {
        choice.kernel.name for choice in found.choices
    }


def test_no_record_holds_a_path_of_the_machine_that_made_it():
    records = [path for package in PACKAGES for path in (package.recipes / "evidence").glob("*.json")]
    assert {path.stem for path in records} == {recipe.name for recipe in RECIPES if recipe.validated}
    for path in records:
        text = path.read_text()
        assert str(ROOT) not in text and str(Path.home()) not in text and "/tmp" not in text


def test_every_row_of_the_in_tree_backends_is_in_the_kernel_table():
    table = (ROOT / PAGE).read_text().split("## Kernels")[1]
    backends = [package.backend for package in PACKAGES]
    assert {"reference", "cuda", "npu", "rocm", "xpu"} <= {backend.name for backend in backends}
    for backend in backends:
        for row in backend.kernels:
            assert f"| {backend.name} | {row.op} | {row.name} |" in table


PAIR = {"cases": 3, "over": 0, "worst": 2.1e-06, "processes": [2, 4]}


def written(root: Path, pairs: dict, **said) -> dict[str, list[str]]:
    """The rows of a record's table, by feature."""
    part = {"code": layouts.code_digest(root), "pairs": pairs, "refused": {}} | said
    (root / layouts.RECORD).parent.mkdir(parents=True, exist_ok=True)
    (root / layouts.RECORD).write_text(json.dumps({"bound": 1e-5, "parts": {"some": part}}))
    return {name: cells for name, *cells in layouts.section(root)[2]}


def test_features_on_axes_are_those_of_the_record(tmp_path):
    """What failed says so, what was not run, too, and that the code has changed since."""
    name = layouts.pair_of("ring", "transfer")
    ring = list(layouts.DEGREES).index("ring")
    rows = written(tmp_path, {name: PAIR})
    assert rows["transfer"][ring] == "2.1e-06 (3)" and rows["transfer"][0] == rows["t2i"][ring] == "not run"
    assert rows["captured passes"][ring] == "never"
    assert "has changed" not in layouts.section(tmp_path)[0]
    rows = written(tmp_path, {name: PAIR | {"over": 1, "worst": 0.5}}, code="another", refused={"nf4 x ring": "it is"})
    assert rows["transfer"][ring] == "5.0e-01 (1 of 3 failed)" and rows["nf4"][ring] == "refused"
    said, *_ = layouts.section(tmp_path)
    assert "The code has changed since these ran: some." in said and "Refused is nf4 with ring: it is." in said
    assert written(tmp_path, {name: PAIR | {"worst": 0.5}})["transfer"][ring] == "as good: 5.0e-01 (3)"
    (tmp_path / layouts.RECORD).unlink()
    said, _, rows = layouts.section(tmp_path)
    assert "No record" in said and {"not run", "never"} == {cell for _, *cells in rows for cell in cells}


def test_a_record_of_features_that_is_damaged_is_named(tmp_path):
    with pytest.raises(InputError, match=r"record.json: it is damaged: it.parts.some.pairs.a x b has no cases"):
        written(tmp_path, {"a x b": {}})


def test_every_axis_and_task_was_run_with_every_axis():
    """The record in the checkout has no gap but what cannot be."""
    _, head, rows = layouts.section(ROOT)
    gaps = {
        (name, axis) for name, *cells in rows for axis, cell in zip(head[1:], cells, strict=True) if cell == "not run"
    }
    assert gaps == {("captured passes", "cfg"), ("captured passes", "vae")}
    assert not [name for name, *cells in rows if any("failed" in cell for cell in cells)]
