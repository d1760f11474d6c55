"""A record's fingerprint: it changes with what the plan computes with, and with nothing else. On copied sources."""

from __future__ import annotations

import functools
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from devices import backend

from cosmos3_core import reference
from cosmos3_core.contract import Delegate, Device, Kernel
from cosmos3_core.evidence import fingerprint
from cosmos3_core.evidence.closure import Sources
from cosmos3_core.evidence.fingerprint import differences, files_now

ROOT = Path(__file__).parents[1]
KERNELS = (("attention", "acme"), ("gate", "made"), ("norm_silu", "partial"))
PACKAGE = {
    "__init__.py": "",
    "plugin.py": """
from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING

from .shapes import WIDE

if TYPE_CHECKING:
    from .typed import Table

CEILING = 100
SCALE = 2


def scaled(device: Table):
    return WIDE * SCALE


def build_attention(device):
    from .attention import attention

    return attention(scaled(device))


def build_other(device):
    from .other import other

    return other


def made(module, op):
    def build(device):
        return getattr(import_module(f".{module}", __package__), op)

    return build


def from_module(device, name):
    from .bound import table

    return table[name]
""",
    "shapes.py": "WIDE = 128\n",
    "typed.py": "Table = object\n",
    "attention.py": "from . import tiles\n\n\ndef attention(scale):\n    from cosmos3_core.quant import FORMATS\n",
    "tiles.py": "from pathlib import Path\n\nfrom .plugin import SCALE\n\nFOLDERS = 'tables', 'recipes'\n",
    "other.py": "def other():\n    pass\n",
    "fused.py": "from .rounding import up\n\ngate = up\n",
    "rounding.py": "up = round\n",
    "bound.py": "table = {}\n",
    "unused.py": "",
    "tables/acme1.toml": "block = 64\n",
    "recipes/acme1.toml": "title = 'one'\n",
    "recipes/evidence/acme1.json": "{}\n",
}
"""A backend: a plain build function, a factory's, and a partial; two rows share a plugin with a third."""


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A checkout with the core's sources, cuda's, its kernels', and a backend's in-tree package cosmos3_plain."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cosmos3_core", tmp_path / "cosmos3_core", ignore=ignore)
    for name in ("cuda", "triton"):
        shutil.copytree(ROOT / "backends" / name, tmp_path / "backends" / name, ignore=ignore)
    for name, text in PACKAGE.items():
        file = tmp_path / "backends" / "plain" / "cosmos3_plain" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "backends" / "plain")
    yield tmp_path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cosmos3_plain"]:
        del sys.modules[name]


def rows() -> list[Kernel]:
    plugin = import_module("cosmos3_plain.plugin")
    builds = (plugin.build_attention, plugin.made("fused", "gate"), functools.partial(plugin.from_module, name="a"))
    return [Kernel(op=op, name=name, build=build) for (op, name), build in zip(KERNELS, builds, strict=True)]


def measured(kernels: list[Kernel], embedded: bool = False) -> dict:
    device = Device(arch="acme1", name="ACME One", count=1, memory=1, unified=True, versions={"driver": "3.1"})
    backend = type("Backend", (), {"name": "plain", "tuning": {}, "formats": ()})
    return fingerprint.fingerprint(backend, device, kernels, embedded=embedded)


def changed(root: Path, then: dict, name: str, old: str = "", new: str = "# another\n", embedded: bool = False) -> list:
    """What is said of a record after a file of the checkout was changed."""
    (file,) = (place / name for place in (root, *root.glob("backends/*")) if (place / name).is_file())
    text = file.read_bytes()
    assert old.encode() in text
    file.write_bytes(text.replace(old.encode(), new.encode(), 1))
    return differences(then, {"files": files_now(then, Sources(root), embedded=embedded)})


COMPUTES = [
    "cosmos3_core/engine/passes.py",
    "cosmos3_core/sampling/guidance.py",
    "cosmos3_core/sampling/solver.py",
    "cosmos3_core/model/rope.py",
    "cosmos3_core/quant/numerics.py",
    "cosmos3_core/reference/ops.py",
    "cosmos3_core/contract/attention.py",
    "cosmos3_core/scenarios/conditioning.py",
    "cosmos3_core/scenarios/prompts.py",
    "cosmos3_core/scenarios/sizes.py",
    "cosmos3_core/scenarios/defaults.toml",
    "cosmos3_plain/attention.py",
    "cosmos3_plain/tiles.py",
    "cosmos3_plain/tables/acme1.toml",
    "cosmos3_plain/shapes.py",
    "cosmos3_plain/fused.py",
    "cosmos3_plain/rounding.py",
    "cosmos3_plain/bound.py",
]
DOES_NOT = [
    "cosmos3_core/__init__.py",
    "cosmos3_core/checkpoint/repository.py",
    "cosmos3_core/cli/run.py",
    "cosmos3_core/contract/errors.py",
    "cosmos3_core/evidence/validate.py",
    "cosmos3_core/files/video.py",
    "cosmos3_core/runs/manifest.py",
    "cosmos3_core/testing/cases.py",
    "cosmos3_core/assets/embedded/vae/config.json",
    "cosmos3_cuda/fa3.py",
    "cosmos3_plain/other.py",
    "cosmos3_plain/typed.py",
    "cosmos3_plain/unused.py",
    "cosmos3_plain/recipes/acme1.toml",
    "cosmos3_plain/recipes/evidence/acme1.json",
]


@pytest.mark.parametrize("name", COMPUTES)
def test_what_computes_counts(root, name):
    assert changed(root, measured(rows()), name) == [f"the code changed: {name}"]


@pytest.mark.parametrize("name", DOES_NOT)
def test_what_computes_nothing_does_not(root, name):
    assert changed(root, measured(rows()), name) == []


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("WIDE * SCALE", "WIDE + SCALE", ["scaled"]),
        ("SCALE = 2", "SCALE = 3", ["SCALE"]),
        ("return attention(", "return 2 * attention(", ["build_attention"]),
        ("return build\n", "return print\n", ["made"]),
        ("return table[name]", "return table", ["from_module"]),
        ("CEILING = 100", "CEILING = 200", []),
        ("return other\n", "return None\n", []),
        ("    from .typed import Table", "    from .other import other as Table", []),
    ],
)
def test_of_the_module_with_the_rows_only_what_a_chosen_row_builds_with_counts(root, old, new, said):
    then = measured(rows())
    found = changed(root, then, "cosmos3_plain/plugin.py", old, new)
    assert found == [f"the code changed: cosmos3_plain/plugin.py:{name}" for name in said]


def test_only_the_chosen_rows_count(root):
    (attention, gate, _) = rows()
    assert changed(root, measured([gate]), "cosmos3_plain/attention.py") == []
    assert changed(root, measured([attention]), "cosmos3_plain/fused.py") == []


def test_a_module_that_moves_or_comes_counts(root):
    then, folder = measured(rows()), root / "backends" / "plain" / "cosmos3_plain"
    (folder / "rounding.py").rename(folder / "rounded.py")
    said = changed(root, then, "cosmos3_plain/fused.py", ".rounding", ".rounded")
    names = ("fused", "rounded", "rounding")
    assert said == [f"the code changed: {', '.join(f'cosmos3_plain/{name}.py' for name in names)}"]


def test_a_factory_that_imports_what_nothing_names_counts_as_its_whole_package(root):
    made = import_module("cosmos3_plain.plugin").made
    then = measured([Kernel(op="gate", name="made", build=made("no such module", "gate"))])
    assert changed(root, then, "cosmos3_plain/unused.py") == ["the code changed: cosmos3_plain/unused.py"]


def test_the_embedded_models_weights_count_where_it_was_run(root):
    then, name = measured(rows(), embedded=True), "cosmos3_core/assets/embedded/vae/diffusion_pytorch_model.safetensors"
    assert changed(root, then, name, embedded=True) == [f"the code changed: {name}"]


def test_the_embedded_models_card_does_not(root):
    then, card = measured(rows(), embedded=True), "cosmos3_core/assets/embedded/README.md"
    assert changed(root, then, card, embedded=True) == []


def test_of_a_package_that_is_not_here_nothing_is_said(root):
    then = measured(rows())
    assert any(name.startswith("cosmos3_plain/") for name in then["files"])
    shutil.rmtree(root / "backends" / "plain")
    forget()
    assert differences(then, {"files": files_now(then, Sources(root), embedded=False)}) == []


def test_a_record_of_whole_packages_is_stale():
    then = {"code": {"cosmos3_core": "0"}, "rows": "0", "versions": {}, "device": {}}
    assert differences(then, {}) == ["records name the files and tuning they were measured with, and this one does not"]


@pytest.mark.parametrize(
    "name, used, own",
    [
        ("fa3", True, "cosmos3_cuda/attention.py"),
        ("sdpa-cudnn", False, "cosmos3_cuda/attention.py"),
        ("triton", False, "cosmos3_triton/attention.py"),
    ],
)
def test_the_real_fa3_counts_where_the_plan_runs_it(root, name, used, own):
    kernels = [row for row in backend("cuda").kernels if row.op == "attention" and row.name == name]
    assert bool(changed(root, measured(kernels), "cosmos3_cuda/fa3.py")) is used
    assert changed(root, measured(kernels), own)


@pytest.mark.parametrize(
    "declared", [{"fuses": ("gate",)}, {"prepares": True}, {"fresh": False}, {"delegates": (Delegate("eager", 64),)}]
)
def test_what_a_row_declares_counts(declared):
    row = reference.BACKEND.kernels[0]
    assert measured([row])["rows"] != measured([replace(row, **declared)])["rows"]
    assert measured([row])["rows"] == measured([replace(row, notes="in other words")])["rows"]
