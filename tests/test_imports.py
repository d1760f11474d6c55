"""Who may import whom: one table for every package of ours, no circles between modules, and no import in a function
without a need.

An import counts wherever it stands: in a function, and under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sources import ROOT, backend_sources, core_sources, imported, modules

ABOVE = ("everything above",)


@dataclass(frozen=True)
class May:
    """What a package may import beside itself and the standard library. `ours`: packages of ours, those of cosmos3_core
    by their bare names, or ABOVE: every room of the core in a line above its own. `libraries`: None for any."""

    ours: tuple[str, ...]
    libraries: tuple[str, ...] | None = None


VENDOR = ("contract", "quant", "testing")
"""What a device's package may know of the core."""

TABLE: dict[str, May] = {
    # The rooms of cosmos3_core: a lower one may import higher ones only. `core` is the package's __init__: the version.
    "core": May((), ()),
    "contract": May((), ("torch", "pluggy")),
    "quant": May(("contract",), ("torch",)),
    "model": May(("contract",), ("torch", "tokenizers", "jinja2", "safetensors", "numpy")),
    "reference": May(("contract", "quant"), ("torch",)),
    "scenarios": May(ABOVE),
    "files": May(ABOVE),
    "checkpoint": May(ABOVE),
    "plan": May(ABOVE),
    "sampling": May(ABOVE),
    "parallel": May(ABOVE),
    "engine": May(ABOVE),
    "settle": May(ABOVE),
    "runs": May(ABOVE),
    "guard": May(ABOVE),
    "evidence": May(ABOVE),
    "testing": May(ABOVE),
    "cli": May(ABOVE),
    "serve": May(ABOVE),
    # The public Python surface.
    "cosmos3": May(ABOVE),
    # Device packages, and the library of Triton kernels that some of them use.
    "cosmos3_triton": May(VENDOR),
    "cosmos3_cuda": May((*VENDOR, "cosmos3_triton")),
    "cosmos3_rocm": May((*VENDOR, "cosmos3_triton")),
    "cosmos3_xpu": May((*VENDOR, "cosmos3_triton")),
    "cosmos3_npu": May((*VENDOR, "cosmos3_triton")),
}
PACKAGES = list(TABLE)[: list(TABLE).index("cosmos3") + 1]


def package_of(module: str) -> str:
    """The row of the table that a dotted name belongs to: `cosmos3_core.model.rope` -> `model`, `cosmos3_npu.plugin` ->
    `cosmos3_npu`, the core's own __init__ and what stands in it -> `core`."""
    root, *rest = module.split(".")
    if root != "cosmos3_core":
        return root
    return rest[0] if rest and rest[0] in TABLE else "core"


def allowed(package: str) -> set[str]:
    """The packages of ours that a package may import."""
    ours = TABLE[package].ours
    return {package, *(PACKAGES[: PACKAGES.index(package)] if ours == ABOVE else ours)}


def forbidden(module: str, source: str) -> Iterator[tuple[int, str]]:
    """Yields (line, what it imports and may not)."""
    package = package_of(module)
    libraries = TABLE[package].libraries
    for line, _, name in imported(module, ast.parse(source)):
        root = name.split(".")[0]
        if root == "cosmos3" or root.startswith("cosmos3_"):
            if package_of(name) not in allowed(package):
                yield line, name
        elif libraries is not None and root not in libraries and root not in sys.stdlib_module_names:
            yield line, name


def sources() -> dict[str, Path]:
    """Every module of every package in the table that exists."""
    public = modules(ROOT / "cosmos3") if (ROOT / "cosmos3").is_dir() else ()
    return dict([*core_sources(), *backend_sources(), *public])


def graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """Which of these modules each of them imports. A package goes by its own name, without `__init__`."""
    names = {module.removesuffix(".__init__") for module in texts}
    edges: dict[str, set[str]] = {name: set() for name in names}
    for module, text in texts.items():
        for _, _, name in imported(module, ast.parse(text)):
            while name and name not in names:  # from a name inside a module to the module
                name = name.rpartition(".")[0]
            edges[module.removesuffix(".__init__")] |= {name} - {""}
    return edges


def circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """The groups of modules that import each other, directly or through others (strongly connected components)."""
    reached = {}
    for start in edges:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = edges[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[start] = seen
    return {frozenset(b for b in reached[a] if a in reached[b]) for a in edges if a in reached[a]}


def test_every_package_has_a_row():
    assert {package_of(module) for module in sources()} <= set(TABLE)


def test_every_room_is_in_a_row_of_its_own():
    folders = {path.parent.name for path in (ROOT / "cosmos3_core").glob("*/__init__.py")}
    assert folders <= set(PACKAGES), "a package without a row counts as the core's own __init__"


def test_rooms_import_higher_rooms_only():
    for package in PACKAGES:
        assert allowed(package) <= set(PACKAGES[: PACKAGES.index(package) + 1])


def test_packages_import_what_the_table_allows():
    found = [
        f"{path}:{line}: {package_of(module)} may not import {name}"
        for module, path in sources().items()
        for line, name in forbidden(module, path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


def test_no_modules_import_each_other():
    found = circles(graph({module: path.read_text("utf-8") for module, path in sources().items()}))
    assert not found, f"modules that import each other: {[sorted(circle) for circle in found]}"


HEAVY = {"PIL", "av", "huggingface_hub", "jinja2", "numpy", "pytest", "rich", "safetensors", "tokenizers", "torch"}
"""What takes so long to import that a command which does without it has to be spared it."""
WAITING = ("cli", "cosmos3")
"""Packages in which any import may stand in a function: `--help` and `import cosmos3` answer at once."""
PLUGIN = "cosmos3_core.testing.plugin"
"""Pytest loads it before it can rewrite the assertions of the suite, so it may not load that."""


def at_the_top(module: str, text: str) -> list[str]:
    """The full names of what is imported with a module itself: in no function, and not under TYPE_CHECKING."""
    found, nodes = [], [ast.parse(text)]
    while nodes:
        for node in ast.iter_child_nodes(nodes.pop()):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found += [name for _, _, name in imported(module, ast.Module([node], []))]
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not (
                isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            ):
                nodes.append(node)
    return found


def loads(name: str, tops: dict[str, list[str]]) -> set[str]:
    """The libraries of HEAVY that the import of a full name loads, by itself or through modules of `tops`."""
    found, seen, waiting = set(), set(), [name]
    while waiting:
        parts = waiting.pop().split(".")
        found |= {parts[0]} & HEAVY
        new = {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & tops.keys() - seen
        seen |= new
        waiting += [name for module in new for name in tops[module]]
    return found


def put_off(texts: dict[str, str]) -> set[str]:
    """Imports of ours in a function that spare nobody a heavy library."""
    tops, found = {module.removesuffix(".__init__"): at_the_top(module, text) for module, text in texts.items()}, set()
    for module, text in texts.items():
        if package_of(module) in WAITING or module == PLUGIN:
            continue
        here = loads(module.removesuffix(".__init__"), tops)
        for function in ast.walk(ast.parse(text)):
            for line, _, name in imported(module, function) if isinstance(function, ast.FunctionDef) else ():
                if name.startswith("cosmos3") and not loads(name, tops) - here:
                    found.add(f"{module}:{line}: import {name} at the top")
    return found


def test_an_import_in_a_function_spares_a_heavy_library():
    found = put_off({module: path.read_text("utf-8") for module, path in core_sources()})
    assert not found, "\n".join(sorted(found))


def test_an_import_in_a_function_that_spares_nothing_is_found():
    texts = {"cosmos3_core.plan.a": "def f():\n    from ..files import b, c\n    import torch"}
    texts |= {"cosmos3_core.files.b": "from . import d", "cosmos3_core.files.c": "import math"}
    texts |= {"cosmos3_core.files.d": "import torch", "cosmos3_core.cli.e": "def f():\n    from ..files import c"}
    assert put_off(texts) == {"cosmos3_core.plan.a:2: import cosmos3_core.files.c at the top"}
    assert len(put_off(texts | {"cosmos3_core.plan.a": "import torch\n" + texts["cosmos3_core.plan.a"]})) == 2


BAD = [
    ("cosmos3_core.__init__", "from . import plan"),
    ("cosmos3_core.contract.ops", "from cosmos3_core import reference"),
    ("cosmos3_core.contract.ops", "from cosmos3_core import __version__"),
    ("cosmos3_core.contract.ops", "from ..model.config import Config"),
    ("cosmos3_core.contract.__init__", "from ..model import config"),
    ("cosmos3_core.contract.ops", "import numpy"),
    ("cosmos3_core.quant.formats", "import numpy"),
    ("cosmos3_core.model.vae", "def f():\n    import cosmos3_core.engine"),
    ("cosmos3_core.model.vae", "if TYPE_CHECKING:\n    from ..quant import FORMATS"),
    ("cosmos3_core.model.text", "import transformers"),
    ("cosmos3_core.reference.ops", "from cosmos3_core.model import rope"),
    ("cosmos3_core.plan.resolve", "from ..sampling import noise"),
    ("cosmos3_core.plan.resolve", "from cosmos3_core.engine.engine import Engine"),
    ("cosmos3_core.plan.resolve", "import cosmos3_npu"),
    ("cosmos3_core.runs.saved", "def f():\n    from ..cli import run"),
    ("cosmos3_core.evidence.worker", "from ..testing import cases"),
    ("cosmos3_core.cli.__init__", "from cosmos3_rocm.plugin import rows"),
    ("cosmos3_core.cli.__init__", "import cosmos3"),
    ("cosmos3_core.serve.app", "from cosmos3_acme import plugin"),
    ("cosmos3_npu.attention", "from cosmos3_core.reference import ops"),
    ("cosmos3_npu.attention", "from cosmos3_core import model"),
    ("cosmos3_npu.attention", "def f():\n    import cosmos3_core.plan.resolve"),
    ("cosmos3_npu.attention", "import cosmos3_core"),
    ("cosmos3_npu.attention", "from cosmos3_cuda.attention import joined"),
    ("cosmos3_npu.attention", "import cosmos3_xpu"),
    ("cosmos3_triton.attention", "from cosmos3_cuda import plugin"),
]
GOOD = [
    ("cosmos3_core.contract.__init__", "import enum\nfrom . import ops\nfrom .errors import RunError"),
    ("cosmos3_core.model.vae", "import numpy\nfrom ..contract import ops\nfrom . import rope"),
    ("cosmos3_core.reference.ops", "import torch\nfrom cosmos3_core.contract.ops import Attention"),
    ("cosmos3_core.plan.resolve", "import pluggy\nfrom .. import __version__\nfrom cosmos3_core.reference import ops"),
    ("cosmos3_core.cli.run", "import rich\nfrom ..runs import saved\nfrom ..testing import record"),
    ("cosmos3_npu.attention", "import torch_npu\nfrom cosmos3_core.contract import Attention"),
    ("cosmos3_npu.formats", "from cosmos3_core.quant import mx\nfrom cosmos3_core import testing"),
    ("cosmos3_npu.plugin", "from . import attention\nfrom cosmos3_npu.linear import pack"),
    ("cosmos3_cuda.plugin", "from cosmos3_triton import attention"),
]


@pytest.mark.parametrize(("module", "source"), BAD)
def test_the_table_catches(module: str, source: str):
    assert list(forbidden(module, source))


@pytest.mark.parametrize(("module", "source"), GOOD)
def test_the_table_lets_pass(module: str, source: str):
    assert not list(forbidden(module, source))


CIRCLES = [
    {"a.b": "from . import c", "a.c": "from .b import f"},
    {"a.b": "def f():\n    from .c import g", "a.c": "from a.d import g", "a.d": "if TYPE_CHECKING:\n    import a.b"},
    {"a.__init__": "from . import b", "a.b": "from . import name"},
]
NO_CIRCLES = [
    {"a.b": "from . import c", "a.c": "import math", "a.d": "from . import b, c"},
    {"a.__init__": "from . import b\nfrom .b import f", "a.b": "from .c import f", "a.c": ""},
]


@pytest.mark.parametrize("texts", CIRCLES)
def test_a_circle_is_found(texts: dict[str, str]):
    assert circles(graph(texts)) == {frozenset(name.removesuffix(".__init__") for name in texts)}


@pytest.mark.parametrize("texts", NO_CIRCLES)
def test_what_is_no_circle_is_none(texts: dict[str, str]):
    assert not circles(graph(texts))
