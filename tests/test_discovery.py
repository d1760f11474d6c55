"""Finding, loading and choosing backends, with packages installed into a folder on the path: whatever a package does
wrong is one message that names it, and touches nobody who did not ask for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch  # before any fake package is installed: torch loads what is in the group torch.backends
from command import cosmos3
from sources import ROOT
from tiny_model import TINY_MODEL

from cosmos3_core import reference
from cosmos3_core.contract import API, InputError
from cosmos3_core.files import checkout
from cosmos3_core.plan import choose_backend, discovery
from cosmos3_core.plan.discovery import Rejected, installed, load

IMPORTS = "from cosmos3_core.contract import Backend, Delegate, Device, Kernel, Unavailable, hookimpl\n"
DEVICE = "Device(arch='x1', name='{} X1', count=2, memory=80 << 30, unified=False, versions=dict(driver='1.2'))"


def plugin(name: str, probe: str | None = None, kernels: str = "()", api: int = API) -> str:
    """The source of a backend. `probe` is one statement; without it there are two devices of 80 GiB."""
    return IMPORTS + (
        f"probes = []\n"
        f"def probe():\n    probes.append(1)\n    {probe or 'return ' + DEVICE.format(name.title())}\n"
        f"@hookimpl\ndef cosmos3_backend():\n"
        f"    return Backend(name={name!r}, torch_device='cpu', collectives='gloo', probe=probe, kernels={kernels}, "
        f"api={api})\n"
    )


def package(
    folder: Path,
    name: str,
    code: str | None = None,
    *,
    project: str | None = None,
    group: str = "cosmos3.backends",
    metadata: str = "",
) -> None:
    """Install a package: its module fake_NAME, and the dist-info that pip would leave beside it."""
    project = project or f"cosmos3-{name}"
    (folder / f"fake_{name}.py").write_text(plugin(name) if code is None else code)
    info = folder / f"{project.replace('-', '_')}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.5\n{metadata}")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = fake_{name}\n")


def unavailable(name: str, reason: str = "its driver is not loaded.") -> str:
    return plugin(name, f"raise Unavailable({reason!r})")


def imported() -> set[str]:
    return {name for name in sys.modules if name.startswith("fake_") and name != "fake_hub"}  # another test's server


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty site-packages. What this machine has installed besides is hidden, as are its accelerators."""
    monkeypatch.syspath_prepend(tmp_path)

    def ours(group):
        return [entry for entry in entry_points(group=group) if Path(entry.dist.locate_file("")) == tmp_path]

    monkeypatch.setattr(discovery, "entry_points", ours)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    yield tmp_path
    for name in imported():
        del sys.modules[name]


def refused(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- listing and loading ---------------------------------------------------------------------------------------------


def test_listing_imports_nothing(site):
    package(site, "acme", "raise SystemExit(3)")
    package(site, "bolt")
    found = installed()
    assert list(found) == ["reference", "acme", "bolt"]
    assert (found["acme"].package, found["acme"].version, found["acme"].value) == ("cosmos3-acme", "1.5", "fake_acme")
    assert not imported()


def test_only_the_named_backend_is_imported(site):
    package(site, "acme")
    package(site, "bolt")
    assert load("bolt").name == "bolt"
    assert imported() == {"fake_bolt"}
    assert load("reference") is reference.BACKEND


def test_two_packages_with_one_name_are_refused_and_others_work(site):
    package(site, "acme", project="cosmos3-acme")
    package(site, "acme", project="acme-cosmos3")
    package(site, "bolt")
    message = refused(load, "acme")
    assert "provided by acme-cosmos3 and cosmos3-acme" in message
    assert "pip uninstall acme-cosmos3 or pip uninstall cosmos3-acme" in message
    assert load("bolt").name == "bolt" and imported() == {"fake_bolt"}


def test_what_an_interrupted_pip_left_is_no_second_package(site):
    package(site, "acme")
    (site / "~osmos3_acme-1.4.dist-info").mkdir()
    for name in ("METADATA", "entry_points.txt"):
        text = (site / "cosmos3_acme-1.5.dist-info" / name).read_text()
        (site / "~osmos3_acme-1.4.dist-info" / name).write_text(text)
    assert load("acme").name == "acme"


def test_reference_cannot_be_taken(site, capsys, monkeypatch):
    package(site, "reference", project="cosmos3-evil")
    assert load("reference") is reference.BACKEND
    backend, _, lines = choose_backend()
    assert backend is reference.BACKEND
    assert "warning: skipped: backend reference: it is provided by cosmos3-evil too" in lines
    code, out, _ = cosmos3(capsys, monkeypatch, "backends")
    assert code == 0 and out.startswith("reference  cosmos3 ") and "pip uninstall cosmos3-evil" in out
    assert not imported()


ROW = "Kernel(op={!r}, name={!r}, build=lambda device: None{})"


def rows_of(op: str, fields: str, second: tuple[str, str] | None = None) -> str:
    """The source of rows: f, and g where there is a second one, each with these fields."""
    rows = [ROW.format(op, "f", fields), *([ROW.format(second[0], "g", second[1])] if second else [])]
    return f"({', '.join(rows)},)"


FAULTS = {
    "misspelt hook": (plugin("acme").replace("def cosmos3_backend", "def cosmos3_backnd"), "cosmos3_backnd"),
    "hook with an argument": (plugin("acme").replace("cosmos3_backend()", "cosmos3_backend(device)"), "device"),
    "no hook": (plugin("acme").replace("@hookimpl", ""), "fake_acme has no hook. Its author should define `@hookimpl"),
    "no Backend": (IMPORTS + "@hookimpl\ndef cosmos3_backend(): pass", "returned an object of type NoneType"),
    "a hook that raises": (plugin("acme", kernels="1 / 0"), "ZeroDivisionError: division by zero"),
    "another name": (plugin("acne"), "its Backend is named 'acne'. Its author should give"),
    "one row twice": (
        plugin("acme", kernels="({0}, {0})".format(ROW.format("gate", "fast", ""))),
        "gate=fast has the name of another row",
    ),
    "the name of eager torch": (
        plugin("acme", kernels=f"({ROW.format('gate', 'eager', '')},)"),
        "gate=eager has the name of eager torch",
    ),
    "an op that is not": (
        plugin("acme", kernels=f"({ROW.format('gates', 'f', '')},)"),
        "'gates', which does not exist",
    ),
    "text for a tuple": (
        plugin("acme", kernels=f"({ROW.format('gate', 'fast', ', dtypes=' + repr('bfloat16'))},)"),
        "dtypes of its row gate=fast is the text 'bfloat16'. Its author should write a tuple: ('bfloat16',)",
    ),
    "text for fuses": (
        plugin("acme", kernels=rows_of("finish", ", fuses='gate'")),
        "fuses of its row finish=f is the text",
    ),
    "formats of a norm": (
        plugin("acme", kernels=rows_of("rms_norm", ", formats=('none', 'int8')")),
        "its row rms_norm=f declares formats. Its author should leave them to attention, pack_linear, project, finish",
    ),
    "a gate that fuses": (
        plugin("acme", kernels=rows_of("gate", ", fuses=('pack_linear',)")),
        "its row gate=f fuses pack_linear. Its author should leave that to project and finish",
    ),
    "a composite in a composite": (
        plugin("acme", kernels=rows_of("finish", ", fuses=('project',)")),
        "its row finish=f fuses 'project', which is no op of its own",
    ),
    "an unknown op fused": (
        plugin("acme", kernels=rows_of("finish", ", fuses=('gates',)")),
        "fuses 'gates', which is no",
    ),
    "a linear that prepares": (
        plugin("acme", kernels=rows_of("pack_linear", ", prepares=True")),
        "its row pack_linear=f prepares segments or delegates calls. Its author should leave that to attention",
    ),
    "a linear that delegates": (
        plugin("acme", kernels=rows_of("pack_linear", ", delegates=(Delegate('g', 9),)")),
        "its row pack_linear=f prepares segments or delegates calls",
    ),
    "a delegate that is not": (
        plugin("acme", kernels=rows_of("attention", ", delegates=(Delegate('g', 9),)")),
        "its row attention=f delegates to 'g', which is no other row of attention that serves by itself",
    ),
    "a row that delegates to itself": (
        plugin("acme", kernels=rows_of("attention", ", delegates=(Delegate('f', 9),)")),
        "its row attention=f delegates to 'f', which is no other row",
    ),
    "a delegate of another op": (
        plugin("acme", kernels=rows_of("attention", ", delegates=(Delegate('g', 9),)", ("gate", ""))),
        "its row attention=f delegates to 'g', which is no other row",
    ),
    "a delegate that prepares": (
        plugin(
            "acme", kernels=rows_of("attention", ", delegates=(Delegate('g', 9),)", ("attention", ", prepares=True"))
        ),
        "Its author should name one that neither delegates nor prepares",
    ),
    "a delegate that delegates": (
        plugin(
            "acme",
            kernels=rows_of(
                "attention", ", delegates=(Delegate('g', 9),)", ("attention", ", delegates=(Delegate('f', 9),)")
            ),
        ),
        "Its author should name one that neither delegates nor prepares",
    ),
    "no rows at all": (plugin("acme", kernels="None"), "TypeError"),
    "a contract that is no number": (plugin("acme", api="'one'"), "its api is 'one', which is no version"),
    "a row that is none": (plugin("acme", kernels="({'op': 'gate'},)"), "one of its rows is an object of type dict"),
    "a name nobody can ask for": (plugin("acme", kernels=rows_of("gate", "").replace("'f'", "'auto'")), "by this name"),
    "a delegate below a text": (
        plugin("acme", kernels=rows_of("attention", ", delegates=(Delegate('g', '9'),)", ("attention", ""))),
        "delegates calls below '9' queries",
    ),
    "tuning without a type": (
        plugin("acme", kernels="(), tuning={'acme1': {}}"),
        "its tuning of acme1 is an object of type dict. Its author should make it a contract.Tuning",
    ),
}


@pytest.mark.parametrize("code, said", FAULTS.values(), ids=FAULTS)
def test_a_fault_names_the_package_and_what_to_do(site, code, said):
    package(site, "acme", code)
    message = refused(load, "acme")
    assert message.startswith("backend acme of cosmos3-acme 1.5: ") and said in message
    assert "author" in message


@pytest.mark.parametrize(
    "raised", ["ImportError('no libacme.so')", "SystemExit('no libacme.so')", "OSError('no libacme.so')"]
)
def test_a_plugin_that_raises_is_told_to_who_asks_for_it(site, raised):
    package(site, "acme", f"raise {raised}")
    message = refused(load, "acme")
    assert raised.partition("(")[0] + ": no libacme.so" in message and "pip install --upgrade cosmos3-acme" in message


def test_a_syntax_error_is_one_line_too(site):
    package(site, "acme", "def f(:\n")
    assert "SyntaxError" in refused(load, "acme")


@pytest.mark.parametrize(
    "api, fix", [(API - 2, "pip install --upgrade cosmos3-acme"), (API + 1, "pip install --upgrade cosmos3")]
)
def test_another_contract_is_refused_by_name(site, api, fix):
    package(site, "acme", plugin("acme", api=api))
    message = refused(load, "acme")
    assert message.startswith(f"backend acme of cosmos3-acme 1.5: it is written for contract {api}")
    assert message.endswith(fix)


@pytest.mark.parametrize("api", [API, API - 1])
def test_this_contract_and_the_one_before_are_accepted(site, api):
    package(site, "acme", plugin("acme", api=api))
    assert load("acme").api == api


def test_an_unknown_name(site):
    package(site, "acme", "raise SystemExit(3)")
    assert refused(load, "acne").endswith("Did you mean acme?")
    assert refused(load, "graphcore").endswith("Backends here: reference, acme")


BOLT = "Provides-Extra: bolt\nRequires-Dist: cosmos3-bolt==0.1.0; extra == 'bolt'\n"
"""An extra of cosmos3 that brings a backend."""


def test_a_backend_of_ours_that_is_not_installed(site):
    package(site, "x", project="cosmos3", group="no.group", metadata=BOLT + "Provides-Extra: test\n")
    assert refused(load, "bolt").endswith(f'Type pip install -e "{ROOT}[bolt]"')
    assert "no installed package provides it" in refused(load, "test")


def test_without_a_checkout_the_published_package_is_named(site, monkeypatch, tmp_path):
    package(site, "x", project="cosmos3", group="no.group", metadata=BOLT)
    monkeypatch.setattr(checkout, "CHECKOUT", tmp_path)
    assert refused(load, "bolt").endswith('Type pip install "cosmos3[bolt]"')


# --- disabling -------------------------------------------------------------------------------------------------------


def test_disabled_backends_are_not_used(site):
    package(site, "acme")
    package(site, "bolt")
    backend, _, line = choose_backend(None, ["acme"])
    assert backend.name == "bolt" and imported() == {"fake_bolt"}
    assert choose_backend(None, ["all"])[0] is reference.BACKEND
    assert "COSMOS3_DISABLE_BACKENDS disables it" in refused(choose_backend, "acme", ["acme"])


@pytest.mark.parametrize("value", ["acne", "bolt, acne", "all,acne"])
def test_disabling_a_name_that_is_not_there(site, monkeypatch, capsys, value):
    package(site, "acme")
    package(site, "bolt")
    monkeypatch.setenv("COSMOS3_DISABLE_BACKENDS", value)
    code, out, err = cosmos3(capsys, monkeypatch, "backends")
    assert (code, out) == (2, "")
    assert err == "error: COSMOS3_DISABLE_BACKENDS=acne: no installed package provides it. Did you mean acme?\n"


# --- choosing --------------------------------------------------------------------------------------------------------


def test_the_only_accelerator_is_used_probed_once_and_named(site):
    package(site, "acme")
    package(site, "bolt", unavailable("bolt"))
    backend, device, line = choose_backend()
    assert (backend.name, device.name, device.count) == ("acme", "Acme X1", 2)
    assert line == "backend acme: Acme X1, chosen because it is the only accelerator here"
    assert len(sys.modules["fake_acme"].probes) == len(sys.modules["fake_bolt"].probes) == 1


def test_a_named_backend_is_probed_once_and_said_nothing_about(site):
    package(site, "acme")
    package(site, "bolt")
    backend, device, line = choose_backend("acme")
    assert (backend.name, device.name, line) == ("acme", "Acme X1", "")
    assert len(sys.modules["fake_acme"].probes) == 1 and imported() == {"fake_acme"}


def test_several_accelerators_are_an_error_that_lists_them(site):
    package(site, "acme")
    package(site, "bolt")
    message = refused(choose_backend)
    assert "acme (Acme X1) and bolt (Bolt X1)" in message and message.endswith("`backend` acme or `backend` bolt")


def test_a_named_backend_that_is_unavailable_is_an_error_with_its_sentence(site):
    package(site, "acme", unavailable("acme"))
    package(site, "bolt")
    message = refused(choose_backend, "acme")
    assert message == "`backend` acme: its driver is not loaded. Or choose another `backend`"


@pytest.mark.parametrize(
    "probe, said",
    [("raise RuntimeError('no\\ndriver')", "RuntimeError: no driver"), ("return 3", "an object of type int")],
)
def test_a_probe_that_fails_in_another_way_is_the_packages_fault(site, probe, said):
    package(site, "acme", plugin("acme", probe))
    with pytest.raises(Rejected, match=said):
        choose_backend("acme")


def test_broken_packages_are_skipped_with_a_line_each(site):
    package(site, "acme", "raise SystemExit('no libacme.so')")
    package(site, "bolt", plugin("bolt", "raise OSError(5, 'bus error')"))
    package(site, "core")
    backend, _, lines = choose_backend()
    first, second, last = lines.splitlines()
    assert backend.name == "core" and last.startswith("backend core: Core X1")
    assert first.startswith("warning: skipped: backend acme of cosmos3-acme 1.5: loading it raised SystemExit: no lib")
    assert second.startswith("warning: skipped: backend bolt: its probe() raised OSError: [Errno 5] bus error")


def test_without_accelerators_the_reference_is_used_and_named(site):
    package(site, "acme", unavailable("acme"))
    backend, device, line = choose_backend()
    assert backend is reference.BACKEND and device.name == "CPU"
    assert line.startswith("backend reference: CPU, chosen because no accelerator backend is available here")
    assert "\n" not in line


@pytest.fixture
def seen_by_torch(site, monkeypatch):
    """Torch sees an accelerator of type bolt, and cosmos3 has the extras acme and bolt."""
    package(site, "y", project="torch-bolt", group="torch.backends")
    extras = "".join(f"Provides-Extra: {name}\n" for name in ("acme", "bolt", "check", "test"))
    extras += "".join(f"Requires-Dist: cosmos3-{name}; extra == '{name}'\n" for name in ("acme", "bolt"))
    package(site, "x", project="cosmos3", group="no.group", metadata=extras)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: type("device", (), {"type": "bolt"}))
    return site


def test_an_accelerator_whose_package_is_missing_is_an_error_with_the_pip_line(seen_by_torch):
    message = refused(choose_backend)
    assert "torch sees an accelerator of type bolt" in message
    assert f'Type pip install -e "{ROOT}[acme]" or pip install -e "{ROOT}[bolt]", or' in message
    assert message.endswith("or `backend` reference for the CPU")
    assert choose_backend("reference")[0] is reference.BACKEND
    assert choose_backend(None, ["all"])[0] is reference.BACKEND


def test_an_accelerator_whose_package_does_not_work_is_an_error_with_its_reason(seen_by_torch):
    package(seen_by_torch, "bolt", unavailable("bolt"))
    message = refused(choose_backend)
    assert "no installed backend can use it; bolt: its driver is not loaded" in message
    assert f'Type pip install -e "{ROOT}[acme]", or `backend` reference' in message


def test_an_accelerator_that_nobody_has_a_package_for_is_no_error(seen_by_torch, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: type("device", (), {"type": "other"}))
    assert choose_backend()[0] is reference.BACKEND


# --- the command line ------------------------------------------------------------------------------------------------


def test_backends_shows_every_state(site, capsys, monkeypatch):
    row = "Kernel(op='attention', name={!r}, build=print, dtypes=({!r},), notes={!r})"
    rows = f"({row.format('half', 'float16', 'no')}, {row.format('fast', 'bfloat16', 'fuses its scale')})"
    package(site, "acme", plugin("acme", kernels=rows))
    package(site, "bolt", unavailable("bolt"))
    package(site, "core", "raise OSError('no libcore.so')")
    package(site, "dual")
    package(site, "dual", project="dual-cosmos3")
    package(site, "edge", plugin("edge", api=API + 1))
    package(site, "fuse", "raise SystemExit(3)")
    monkeypatch.setenv("COSMOS3_DISABLE_BACKENDS", "fuse")
    code, out, err = cosmos3(capsys, monkeypatch, "backends", "--json")
    assert (code, err) == (0, "")
    told = {backend["name"]: backend for backend in json.loads(out)}
    assert {name: backend["state"] for name, backend in told.items()} == {
        "reference": "available",
        "acme": "available",
        "bolt": "unavailable",
        "core": "broken",
        "dual": "duplicate",
        "edge": "incompatible",
        "fuse": "disabled",
    }
    device = told["acme"]["device"]
    assert (device["name"], device["arch"], device["count"], device["memory"]) == ("Acme X1", "x1", 2, 80 << 30)
    chosen = {row["op"]: row["name"] for row in told["acme"]["kernels"] if row["chosen"]}
    assert chosen == {row.op: row.name for row in reference.BACKEND.kernels} | {"attention": "fast"}
    assert told["bolt"]["reason"] == "its driver is not loaded"
    assert told["bolt"]["kernels"] and not any(row["chosen"] for row in told["bolt"]["kernels"])
    assert "OSError: no libcore.so" in told["core"]["reason"]
    assert "cosmos3-dual and dual-cosmos3" in told["dual"]["reason"]

    code, out, err = cosmos3(capsys, monkeypatch, "backends")
    assert code == 0
    blocks = {block.split()[0]: block for block in out.split("\n\n")}
    assert "2x Acme X1 (x1), 80.0 GiB, driver 1.2" in blocks["acme"]
    lines = [" ".join(line.split()) for line in blocks["acme"].splitlines()]
    assert (
        "attention half float16 none refused: takes float16, not bfloat16" in lines
        and "attention fast* bfloat16 none fuses its scale" in lines
    )
    assert blocks["bolt"].splitlines()[0] == "bolt  cosmos3-bolt 1.5  unavailable: its driver is not loaded"
    assert "fake_fuse" not in imported()


def test_a_broken_package_breaks_no_command(tmp_path):
    package(tmp_path, "acme", "import os, sys\nprint('imported', file=sys.stderr)\nsys.exit(7)")
    environment = dict(os.environ, PYTHONPATH=str(tmp_path))

    def run(*arguments):
        command = [sys.executable, "-m", "cosmos3", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = run("--help")
    assert done.returncode == 0 and "backends" in done.stdout and done.stderr == ""
    done = run("backends")
    assert (
        done.returncode == 0
        and "broken: backend acme of cosmos3-acme 1.5: loading it raised SystemExit: 7" in done.stdout
    )
    assert "Traceback" not in done.stderr


RUN = ["run", "a cup", "--model", TINY_MODEL, "--size", "64x64", "--frames", "5", "--dry-run", "--json"]


def test_a_run_imports_no_backend_but_its_own(site, capsys, monkeypatch):
    package(site, "acme", "raise SystemExit(3)")
    code, out, err = cosmos3(capsys, monkeypatch, *RUN, "--backend", "reference")
    assert (code, err) == (0, "") and json.loads(out)["plan"]["backend"] == "reference"
    assert not imported()
    code, out, err = cosmos3(capsys, monkeypatch, *RUN, "--backend", "acme")
    assert (code, out) == (2, "") and err.startswith("error: backend acme of cosmos3-acme 1.5: loading it raised")


def test_a_run_says_which_backend_it_chose(site, capsys, monkeypatch):
    package(site, "acme")
    package(site, "bolt", "raise SystemExit(3)")
    code, out, err = cosmos3(capsys, monkeypatch, *RUN)
    assert code == 0 and json.loads(out)["plan"]["device"]["versions"] == {"driver": "1.2"}
    warning, line = err.splitlines()
    assert warning.startswith("warning: skipped: backend bolt")
    assert line == "backend acme: Acme X1, chosen because it is the only accelerator here"
    monkeypatch.setenv("COSMOS3_DISABLE_BACKENDS", "all")
    code, out, err = cosmos3(capsys, monkeypatch, *RUN)
    assert code == 0 and err.startswith("backend reference: CPU, chosen because")


def test_listing_backends_does_not_import_torch(tmp_path):
    """Unless a probe needs it: the packages of this machine are disabled."""
    package(tmp_path, "acme")
    script = (
        "import sys; from cosmos3_core import cli; cli.main(); print(sorted({'torch', 'diffusers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, "--disable-backends", "all", "backends"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(tmp_path)))
    assert done.stdout.splitlines()[-1] == "[]" and "acme  cosmos3-acme 1.5  disabled" in done.stdout, done.stderr
