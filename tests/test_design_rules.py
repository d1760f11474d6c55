"""The design rules that a linter cannot see, over the source of cosmos3_core and cosmos3: they name no device, the
model runs on the ops it was given, messages name no option, nothing is unpickled, functions and files are short. And
over the source of the in-tree backends and of our kernels: a plugin loads nothing heavy, kernels name no device either,
and functions and files are as short. Who may import whom is tests/test_imports.py.

A rule takes a module's dotted name and source text and yields a complaint for every line that breaks it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from sources import ROOT, backend_sources, core_sources, imported, modules

Rule = Callable[[str, str], Iterator[str]]

DEVICES = ("cuda", "rocm", "hip", "npu", "xpu", "mps")
DEVICE_ATTRIBUTES = {*DEVICES, *(f"is_{device}" for device in DEVICES)}
DEVICE_STRING = re.compile(rf"({'|'.join(DEVICES)})(:\d*)?", re.IGNORECASE)
CPU_STRING = re.compile(r"cpu(:\d*)?", re.IGNORECASE)

# What a backend may own, so what the model may only reach through its ops.
OWNED_BY_OPS = {
    "torch.nn.Linear",
    "torch.nn.RMSNorm",
    "torch.nn.functional.linear",
    "torch.nn.functional.rms_norm",
    "torch.nn.functional.scaled_dot_product_attention",
}
LIBRARY = "cosmos3_triton"
"""Our kernels: no backend, but a library that backends import."""
DEVICES = tuple(f"cosmos3_{name}.devices" for name in ("cuda", "npu", "rocm", "xpu"))
ROCM = ("cosmos3_rocm.flavours", "cosmos3_rocm.kernels", "cosmos3_rocm.signatures", "cosmos3_rocm.vendor")
LIGHT = ("cosmos3_core.contract", f"{LIBRARY}.rows", f"{LIBRARY}.tables", f"{LIBRARY}.targets", *DEVICES, *ROCM)
"""What a plugin may import at its top, and what holds to that itself."""
# What declares options. All others say in their messages what a caller can set, and do not know who the caller is.
HAS_OPTIONS = ("cosmos3_core.cli", "cosmos3_core.testing.plugin")
OTHER_PROGRAMS = re.compile(r"(pip install|hf download|torchrun) [^`]*")
OPTION = re.compile(r"(?<!\S)--[a-z]")
READ_THE_ENVIRONMENT = ("cosmos3_core.parallel.launchers", "cosmos3_core.engine.limits")
"""What torchrun, srun and mpirun tell a process they tell it in its environment, and in Python nobody hands it over. So
does a user tell torch's allocator, and what he says there is not to be undone."""
LONGEST_FUNCTION = 60
LONGEST_FILE = 450
LONGEST_CONTRACT = 580


def package_of(module: str) -> str:
    """`cosmos3_core.model.rope` -> `model`; the root itself -> ``."""
    return (module.split(".") + [""])[1]


def used(module: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields (line, full dotted name) of every import and attribute chain, with import aliases resolved."""
    aliases = {}
    for line, bound, name in imported(module, tree):
        yield line, name
        root = name.split(".")[0]
        aliases[bound] = root if bound == root else name
    for node in ast.walk(tree):
        chain: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        if chain and isinstance(inner, ast.Name):
            yield node.lineno, ".".join([aliases.get(inner.id, inner.id), *chain])


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields (line, text) of the string constants, less docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def whole_strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """As `strings`, with an f-string as one text, {} in the place of its values."""
    parts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
            parts |= {(p.lineno, str(p.value)) for p in node.values if isinstance(p, ast.Constant)}
    yield from (found for found in strings(tree) if found not in parts)


def names_no_device(module: str, source: str) -> Iterator[str]:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in DEVICE_ATTRIBUTES:
            yield f"line {node.lineno}: attribute .{node.attr}"
    for line, _, name in imported(module, tree):
        if name.split(".")[0] in {"torch_npu", "triton"} or DEVICE_ATTRIBUTES & set(name.split(".")):
            yield f"line {line}: import of {name}"
    for line, text in strings(tree):
        if DEVICE_STRING.fullmatch(text):
            yield f"line {line}: device name {text!r}"


def reads_no_environment(module: str, source: str) -> Iterator[str]:
    if module in READ_THE_ENVIRONMENT:
        return
    for line, name in used(module, ast.parse(source)):
        if name in {"os.environ", "os.getenv"}:
            yield f"line {line}: {name}"


def model_runs_on_its_ops(module: str, source: str) -> Iterator[str]:
    if package_of(module) != "model":
        return
    tree = ast.parse(source)
    for line, name in used(module, tree):
        if name in OWNED_BY_OPS:
            yield f"line {line}: {name} belongs to the ops the model is given"
    for line, text in strings(tree):
        if CPU_STRING.fullmatch(text):
            yield f"line {line}: device name {text!r}"


def names_no_option(module: str, source: str) -> Iterator[str]:
    if module.startswith(HAS_OPTIONS):
        return
    for line, text in whole_strings(ast.parse(source)):
        if OPTION.search(OTHER_PROGRAMS.sub("", text)):
            yield f"line {line}: {text!r} names an option; a message names the field, in backquotes"


def unpickles_nothing(module: str, source: str) -> Iterator[str]:
    for line, name in used(module, ast.parse(source)):
        if name.split(".")[0] == "pickle" or name == "torch.load":
            yield f"line {line}: {name}"


def functions_fit_a_screen(module: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > LONGEST_FUNCTION:
                yield f"line {node.lineno}: {node.name} has {length} lines, {LONGEST_FUNCTION} fit a screen"


def files_are_short(module: str, source: str) -> Iterator[str]:
    if (length := len(source.splitlines())) > LONGEST_FILE:
        yield f"{length} lines; a file has at most {LONGEST_FILE}, so split it by meaning"


def kernels_know_no_device(module: str, source: str) -> Iterator[str]:
    if module.split(".")[0] != LIBRARY:
        return
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in DEVICE_ATTRIBUTES:
            yield f"line {node.lineno}: attribute .{node.attr}"
    for line, _, name in imported(module, tree):
        root, inside = name.split(".")[0], package_of(name) in {"contract", "quant"}
        ours = inside if root == "cosmos3_core" else root in {LIBRARY, "torch", "triton"} | sys.stdlib_module_names
        if not ours or DEVICE_ATTRIBUTES & set(name.split(".")):
            yield f"line {line}: our kernels may not import {name}"
    for line, text in strings(tree):
        if DEVICE_STRING.fullmatch(text):
            yield f"line {line}: device name {text!r}"


def plugin_loads_nothing_heavy(module: str, source: str) -> Iterator[str]:
    if not module.endswith(".plugin") and not module.startswith(LIGHT):
        return
    # What stands in a function is imported when it is called; what stands in an `if` or `try` is not put off by it.
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for line, _, name in imported(module, ast.Module([node], [])):
                    root = name.split(".")[0]
                    if not name.startswith(LIGHT) and root not in sys.stdlib_module_names:
                        yield f"line {line}: a plugin may import {name} inside a function only"
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                waiting.append(node)


RULES: list[Rule] = [
    names_no_device,
    reads_no_environment,
    model_runs_on_its_ops,
    names_no_option,
    unpickles_nothing,
    functions_fit_a_screen,
    files_are_short,
]


BACKEND_RULES: list[Rule] = [
    kernels_know_no_device,
    plugin_loads_nothing_heavy,
    unpickles_nothing,
    functions_fit_a_screen,
    files_are_short,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_core_keeps_the_rule(rule: Rule):
    complaints = [
        f"{path}: {said}"
        for module, path in [*core_sources(), *modules(ROOT / "cosmos3")]
        for said in rule(module, path.read_text("utf-8"))
    ]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("rule", BACKEND_RULES, ids=lambda rule: rule.__name__)
def test_backends_keep_the_rule(rule: Rule):
    found = [(path, said) for module, path in backend_sources() for said in rule(module, path.read_text("utf-8"))]
    assert not found, "\n".join(f"{path}: {said}" for path, said in found)


def test_the_rules_see_the_packages_they_are_about():
    assert {"contract", "model", "reference"} <= {package_of(module) for module, _ in core_sources()}
    plugins = {f"cosmos3_{name}.plugin" for name in ("cuda", "npu", "rocm", "xpu")}
    assert plugins | {f"{LIBRARY}.rows", f"{LIBRARY}.tables"} <= {name for name, _ in backend_sources()}


def test_the_contract_is_short():
    lengths = {module.partition(".")[2]: len(path.read_text("utf-8").splitlines()) for module, path in core_sources()}
    assert sum(lines for name, lines in lengths.items() if name.startswith("contract.")) <= LONGEST_CONTRACT


LONG_FUNCTION = "def f():\n" + "    pass\n" * LONGEST_FUNCTION
BAD: list[tuple[Rule, str, str]] = [
    (names_no_device, "engine.load", "import torch\nfree = torch.cuda.mem_get_info()"),
    (names_no_device, "engine.load", "import torch as t\nt.npu.synchronize()"),
    (names_no_device, "engine.load", "import torch.xpu"),
    (names_no_device, "engine.load", "from torch import cuda"),
    (names_no_device, "engine.load", "from torch.cuda import Event"),
    (names_no_device, "engine.load", "def f(x):\n    return x.is_cuda"),
    (names_no_device, "engine.load", "def f(x):\n    return x.cuda()"),
    (names_no_device, "engine.load", "def f():\n    import torch_npu"),
    (names_no_device, "engine.load", "import triton.language as tl"),
    (names_no_device, "engine.load", "x.to('cuda')"),
    (names_no_device, "engine.load", "x.to('cuda:1')"),
    (names_no_device, "engine.load", "x.to(f'npu:{index}')"),
    (names_no_device, "engine.load", "if name == 'ROCm':\n    pass"),
    (names_no_device, "testing.suite", "x.to('xpu')"),
    (reads_no_environment, "cli.__init__", "import os\nos.environ['A']"),
    (reads_no_environment, "cli.__init__", "import os\nos.environ.get('A')"),
    (reads_no_environment, "cli.__init__", "import os as o\no.getenv('A')"),
    (reads_no_environment, "cli.__init__", "import os.path\nos.environ['A']"),
    (reads_no_environment, "cli.__init__", "from os import environ"),
    (model_runs_on_its_ops, "model.block", "from torch.nn import functional as F\nF.linear(x, w)"),
    (model_runs_on_its_ops, "model.block", "import torch.nn.functional as F\nF.scaled_dot_product_attention(q, k, v)"),
    (model_runs_on_its_ops, "model.block", "import torch\ntorch.nn.functional.rms_norm(x, (8,))"),
    (model_runs_on_its_ops, "model.block", "import torch.nn\ntorch.nn.Linear(1, 2)"),
    (model_runs_on_its_ops, "model.block", "from torch import nn\nnn.RMSNorm(8)"),
    (model_runs_on_its_ops, "model.block", "from torch.nn import Linear"),
    (model_runs_on_its_ops, "model.block", "x.to('cpu')"),
    (names_no_option, "scenarios.request", "raise InputError(f'--image {name}')"),
    (names_no_option, "engine.inputs", "raise InputError('a', 'b', 'Drop --seed')"),
    (names_no_option, "plan.survey", "f'{a} --seed `pip install {b} --upgrade`'"),
    (names_no_option, "testing.record", "f'`pip install {b}` or --backend'"),
    (unpickles_nothing, "engine.load", "import pickle"),
    (unpickles_nothing, "engine.load", "from pickle import loads"),
    (unpickles_nothing, "engine.load", "import torch\ntorch.load('a.pt', weights_only=True)"),
    (unpickles_nothing, "engine.load", "from torch import load"),
    (functions_fit_a_screen, "engine.load", LONG_FUNCTION),
    (functions_fit_a_screen, "engine.load", "async " + LONG_FUNCTION),
    (files_are_short, "engine.load", "pass\n" * (LONGEST_FILE + 1)),
]
GOOD: list[tuple[Rule, str, str]] = [
    (names_no_device, "engine.load", '"""cuda"""\nimport torch\nx.to("cpu")\nx.device.type\nsay("no cuda here")'),
    (reads_no_environment, "cli.__init__", "import os\nos.path.join(environ, 'a')\nos.replace('a', 'b')"),
    (model_runs_on_its_ops, "model.block", "from torch import nn\nnn.Module\nnn.Conv3d\nself.ops.linear(x)"),
    (model_runs_on_its_ops, "reference.ops", "import torch\ntorch.nn.functional.linear(x, w)\ntorch.device('cpu')"),
    (names_no_option, "engine.inputs", "raise InputError(f'`image` {name}', 'a -- b', '---')"),
    (names_no_option, "cli.run", "raise InputError('--image')"),
    (names_no_option, "plan.survey", "f'pip install --upgrade {a}'\nf'Run `hf download {a} --revision {b}`'"),
    (unpickles_nothing, "engine.load", "import json\njson.load(file)\nself.load()"),
    (functions_fit_a_screen, "engine.load", LONG_FUNCTION.replace("    pass\n", "", 1)),
    (files_are_short, "engine.load", "pass\n" * LONGEST_FILE),
]


@pytest.mark.parametrize(("rule", "module", "source"), BAD)
def test_a_rule_catches(rule: Rule, module: str, source: str):
    assert list(rule(f"cosmos3_core.{module}", source))


@pytest.mark.parametrize(("rule", "module", "source"), GOOD)
def test_a_rule_lets_pass(rule: Rule, module: str, source: str):
    assert not list(rule(f"cosmos3_core.{module}", source))


BAD_KERNELS = [
    "import torch\ntorch.cuda.synchronize()",
    "from torch import xpu",
    "import torch_npu",
    "def f(x):\n    return x.is_cuda",
    "x.to('cuda')",
    "from cosmos3_cuda import plugin",
    "import fa3_fwd_interface",
    "from cosmos3_core.testing import cases",
    "import cosmos3_core",
]
GOOD_KERNELS = [
    "import math\nimport torch\nimport triton.language as tl\ntorch.accelerator\nx.device.index",
    "from cosmos3_core.contract import Kernel\nfrom cosmos3_core.quant import FORMATS\nfrom . import tables",
]


@pytest.mark.parametrize("source", BAD_KERNELS)
def test_the_rule_of_our_kernels_catches(source: str):
    assert list(kernels_know_no_device(f"{LIBRARY}.attention", source))
    assert not list(kernels_know_no_device("cosmos3_acme.attention", source))


@pytest.mark.parametrize("source", GOOD_KERNELS)
def test_the_rule_of_our_kernels_lets_pass(source: str):
    assert not list(kernels_know_no_device(f"{LIBRARY}.attention", source))


def test_what_a_plugin_may_import_at_its_top_loads_nothing_heavy_either():
    assert list(plugin_loads_nothing_heavy(f"{LIBRARY}.rows", "from .attention import Flash"))
    assert not list(plugin_loads_nothing_heavy(f"{LIBRARY}.rows", "import math\nfrom .tables import table"))
    assert not list(plugin_loads_nothing_heavy(f"{LIBRARY}.attention", "import torch"))


BAD_BACKEND: list[tuple[Rule, str, str]] = [
    (plugin_loads_nothing_heavy, "plugin", "import torch"),
    (plugin_loads_nothing_heavy, "plugin", "from torch.nn import functional"),
    (plugin_loads_nothing_heavy, "plugin", "try:\n    import torch_acme\nexcept ImportError:\n    pass"),
    (plugin_loads_nothing_heavy, "plugin", "class A:\n    import torch"),
    (plugin_loads_nothing_heavy, "plugin", "from . import attention"),
    (plugin_loads_nothing_heavy, "plugin", "from .attention import sdpa"),
    (plugin_loads_nothing_heavy, "plugin", "from cosmos3_triton import attention"),
]
GOOD_BACKEND: list[tuple[Rule, str, str]] = [
    (plugin_loads_nothing_heavy, "plugin", "from cosmos3_triton.rows import attention_rows"),
    (plugin_loads_nothing_heavy, "plugin", "import os\nfrom cosmos3_core.contract import Kernel\nos.sep"),
    (plugin_loads_nothing_heavy, "plugin", "def f():\n    import torch\n    from . import attention"),
    (plugin_loads_nothing_heavy, "attention", "import torch"),
]


@pytest.mark.parametrize(("rule", "module", "source"), BAD_BACKEND)
def test_a_backend_rule_catches(rule: Rule, module: str, source: str):
    assert list(rule(f"cosmos3_acme.{module}", source))


@pytest.mark.parametrize(("rule", "module", "source"), GOOD_BACKEND)
def test_a_backend_rule_lets_pass(rule: Rule, module: str, source: str):
    assert not list(rule(f"cosmos3_acme.{module}", source))


BANNED_BY_RUFF = [
    "import torch\n\ntorch.cuda.synchronize()\n",
    "from torch import npu\n",
    "import torch.xpu\n",
    "import torch_npu\n",
    "import triton.language as tl\n",
    "import os\n\nos.environ.get('A')\n",
    "from os import getenv\n",
]


def lint(path: str, source: str) -> str:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "--stdin-filename", path, "-"]
    return subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True).stdout


@pytest.mark.parametrize("source", BANNED_BY_RUFF)
def test_the_linter_bans_it_in_core_only(source: str):
    assert "TID251" in lint("cosmos3_core/engine/new.py", source)
    for folder in ("backends/acme/cosmos3_acme", "benchmarks", "scripts", "tests"):
        assert "All checks passed!" in lint(f"{folder}/new.py", source)
