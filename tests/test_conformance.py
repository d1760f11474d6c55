"""The conformance kit, judged: a correct device passes all of it, every planted fault is found by the test that is
named after it, and nothing of the kit can be left out without saying so."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mutate
import pytest
import torch
from command import cosmos3

from cosmos3_core import testing
from cosmos3_core.contract import OPS
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import fake_quant, multiply, pack
from cosmos3_core.reference import build_ops
from cosmos3_core.reference.ops import LinearPacker
from cosmos3_core.testing import suite
from cosmos3_core.testing.cases import Here
from cosmos3_core.testing.subject import Subject
from cosmos3_core.testing.suite.composites import FINISHES, PROJECTS
from cosmos3_core.testing.suite.linear import test_linear_of_a_packed_weight as judge_packed
from cosmos3_core.testing.suite.scaling import test_linear_scales_by_block as judge_scales

ROOT = Path(__file__).parents[1]


@pytest.fixture
def kit(tmp_path):
    """Runs the kit, or one test of it, in this process and returns its record: `exit_status`, and the outcome of every
    test by name."""

    def run(backend: str, keyword: str = "", test: str = "") -> dict:
        file = tmp_path / "record.json"
        # Without the collections that pytest makes at the end, to warn of what is thrown away with an error in it, and
        # without what it does to every logger before each test.
        alone = [
            "-c",
            str(testing.ALONE),
            "--noconftest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:unraisableexception",
            "-p",
            "no:logging",
            "-q",
        ]
        options = ["--tb=line", "-p", "cosmos3_core.testing.plugin", "--backend", backend, "--record", str(file)]
        pytest.main([f"{suite.__file__}::{test}" if test else suite.__file__, *alone, *options, "-k", keyword])
        return json.loads(file.read_text())

    return run


def outcomes(record: dict, outcome: str) -> dict[str, str]:
    return {name: test.get("reason", "") for name, test in record["tests"].items() if test["outcome"] == outcome}


def test_a_correct_device_passes_everything(acme, kit):
    record = kit("acme")
    assert not outcomes(record, "failed") and record["exit_status"] == 0
    assert {name.partition("[")[0] for name in record["tests"]} == set(suite.TESTS)
    assert all(outcomes(record, "skipped").values()), "a skip has its reason"
    assert "test_attention_parity[online_softmax-bfloat16-gqa32_8-ragged]" in outcomes(record, "passed")
    assert "test_linear_parity[transposed-bfloat16-int8-o256_i256-bias]" in outcomes(record, "passed")
    measured = record["tests"]["test_deterministic_rows_are_across_processes[gate-exp_gate]"]["measured"]
    assert measured == {"bit_equal": True}

    fingerprint = record["fingerprint"]
    assert fingerprint["backend"]["package"] == "cosmos3-acme" and len(fingerprint["backend"]["sources"]) == 64
    assert fingerprint["device"]["versions"] == {"driver": "3.1"} and fingerprint["versions"]["torch"]
    assert [row["name"] for row in fingerprint["rows"]][:2] == ["online_softmax", "few_queries"]
    assert record["depth"] == "quick" and record["selected"] is None and record["started"] <= record["finished"]


def test_the_kit_has_a_case_for_every_op_and_hides_no_test():
    """A test of the same name in two of its modules would hide one of them from whoever star-imports the kit."""
    assert set(suite.CASES) == set(OPS)
    modules = [import_module(f"{suite.__name__}.{found.name}") for found in pkgutil.iter_modules(suite.__path__)]
    assert sorted(suite.TESTS) == sorted(name for module in modules for name in vars(module) if name[:5] == "test_")


def test_the_reference_passes_its_own_kit(kit):
    """Of what eager torch is not the measure of itself: what it holds, leaves, says and exchanges."""
    few = "".join(f" and not {name}" for name in ("fp8", "fp4", "nf4", "q4_0", "q5_1", "q6_k", "q8_0", "w4a8", "asym"))
    record = kit("reference", f"(comm or memory or fuse or tensors){few}")
    assert not outcomes(record, "failed") and len(outcomes(record, "passed")) > 50
    assert "test_comm_between_processes[torch-exchange]" in outcomes(record, "passed")


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if not format.static])
@pytest.mark.parametrize("case", [PROJECTS[3], FINISHES[0], FINISHES[2]], ids=lambda case: case.id)
def test_eager_torch_in_a_format_is_within_the_composites_bounds(format, case):
    """Whose products lose what the format's reference numerics lose, and which do all else in bf16."""
    ops = build_ops()
    here = Here("bfloat16", "cpu", (format,), lambda format, activation: ops)
    half = "project" if case in PROJECTS else "finish"
    given = {
        "kernel": None,
        "dtype": "bfloat16",
        "format": format,
        "op": getattr(ops, half),
        "here": here,
        "case": case,
    }
    getattr(suite, f"test_{half}_parity")(**given)


# Faults ----------------------------------------------------------------------------------------------------------

SAMPLE = {
    "rms_norm_rows_after_512",
    "norm_rope_wrong_at_8_8_128",
    "norm_weight_by_address",
    "rms_norm_cut_off",
    "rms_norm_overwrites_fp32",
    "dense_residual",
    "rms_norm_leaks_by_shape",
    "build_takes_interrupts",
    "swapped_halves",
    "refuses_gates",
}
"""A fault of each kind, but of those that take a process anew."""


class OrderLost(LinearPacker):
    """Of weights whose features lie in another order, as GPTQ's do, the order is not read."""

    def __call__(self, weight_OI, bias_O, *, format="none"):
        found = weight_OI if isinstance(weight_OI, torch.Tensor) else replace(weight_OI, order=None)
        return super().__call__(found, bias_O, format=format)


@pytest.mark.parametrize("format", ["w4a16", "w4a16_asym", "w4a8"])
def test_a_row_that_loses_the_order_of_features_is_found(format):
    row, here = SimpleNamespace(packed=True), Here("bfloat16", "cpu", (format,), lambda format, activation: build_ops())
    judge = partial(judge_packed, row, "bfloat16", format, here=here, device="cpu")
    judge(LinearPacker(FORMATS))
    with pytest.raises(AssertionError, match="relative error"):
        judge(OrderLost(FORMATS))


class Rescaled(LinearPacker):
    """The scales of one side, or what they are for, are `changed`."""

    def __init__(self, of: str, **changed):
        super().__init__(FORMATS)
        self.of, self.changed = of, changed

    def __call__(self, weight_OI, bias_O, *, format="none"):
        meaning = FORMATS[format]
        if self.of == "weights":
            weight = pack(weight_OI, replace(meaning, **self.changed), weight=True)
            return super().__call__(replace(weight, format=meaning), bias_O, format=format)
        linear = super().__call__(weight_OI, bias_O, format=format)
        taken = replace(meaning.of_inputs, **self.changed)
        stored = replace(linear.weight, format=meaning.weight_only())
        return lambda x_MI: multiply(fake_quant(x_MI.float(), taken, weight=True), stored, bias_O).to(x_MI.dtype)


def scales_judged(format: str, of: str, row) -> None:
    here = Here("bfloat16", "cpu", (format,), lambda format, activation: build_ops())
    judge_scales(None, "bfloat16", format, row, here, "cpu", of)


@pytest.mark.parametrize("of", ["weights", "activations"])
@pytest.mark.parametrize(
    ("format", "changed"),
    [
        ("mxfp8", {"exponent": "ceil"}),
        ("mxfp4", {"exponent": "ceil"}),
        ("mxfp8", {"group": 0, "scale": "fp32"}),
        ("fp8", {"outputs": 0}),
        ("fp8_block", {"group": 0, "outputs": 1}),
        ("int8", {"outputs": 0}),
    ],
    ids=str,
)
def test_scales_that_are_not_the_formats_are_found(format, changed, of):
    with pytest.raises(AssertionError, match="do not come out as they are"):
        scales_judged(format, of, Rescaled(of, **changed))


@pytest.mark.parametrize("of", ["weights", "activations"])
@pytest.mark.parametrize("format", ["mxfp8", "mxfp4"])
@pytest.mark.parametrize("exponent", ["floor", "even", "rceil"])
def test_the_usual_rules_of_a_shared_exponent_are_right(format, exponent, of):
    scales_judged(format, of, Rescaled(of, exponent=exponent))


def test_a_fault_of_each_kind_is_found_by_a_test_of_its_op():
    """`make mutate` plants them all."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "mutate.py", *SAMPLE], capture_output=True, text=True, timeout=600
    )
    found = set(re.findall(r"^right +(\w+): ", done.stderr, re.M))
    assert found == SAMPLE and done.returncode == 0, done.stdout + done.stderr


def test_the_outcome_of_every_fault_is_kept():
    """Of today's faults, written by `make mutate`: none is missed, and few are found by a test of something else. The
    page counts those that were not tried since they were written, so that nobody takes them for found."""
    outcomes, known = json.loads(mutate.GOLDEN.read_text("utf-8")), mutate.faults()
    assert {name: one["kind"] for name, one in outcomes.items()} == {name: kind for name, (kind, _) in known.items()}
    assert set(mutate.FIRST) | {"written"} | set(mutate.WHOLE) == {kind for kind, _ in known.values()}
    caught = Counter(one["caught"] for one in outcomes.values())
    assert caught["right"] >= 200 and caught["missed"] == 0 and caught["elsewhere"] < len(known) / 20


@pytest.mark.parametrize("loaded", [False, True])
def test_what_loading_torch_s_compiler_changes_is_no_row_s(acme, monkeypatch, loaded):
    """And what a row changes besides is."""
    subject, interval, limit = Subject("acme"), sys.getswitchinterval(), sys.getrecursionlimit()
    try:
        with subject.looking("gate-exp_gate", "a test"):
            sys.setswitchinterval(2 * interval)
            sys.setrecursionlimit(2 * limit)
            if loaded:
                monkeypatch.setitem(sys.modules, "torch._inductor.of_this_test", SimpleNamespace())
    finally:
        sys.setswitchinterval(interval)
        sys.setrecursionlimit(limit)
    changed = [what.partition(":")[0] for what in subject.changed["gate-exp_gate"]]
    assert changed == ["sys.getrecursionlimit()"] * (not loaded) + ["sys.getswitchinterval()"]


def test_a_fault_says_where_and_how_to_see_it_again(acme, kit):
    acme("swapped_halves")
    name = "test_silu_is_on_the_first_half[exp_gate-bfloat16]"
    told = kit("acme", test=name)["tests"][name]
    assert told["where"] == "gate=exp_gate bfloat16" and told["rule"] == "silu(20) · 1 is 20, silu(1) · 20 is 14.6."
    assert told["reason"].startswith("gate 20 and up 1 give 14.6")
    line = f"from cosmos3_core.testing.plugin import again; again('acme', '{name}')"
    assert told["again"] == f'python -c "{line}"'
    scope: dict = {}
    exec(line.replace("; ", "; status = "), scope)
    assert scope["status"] == 1


# A vendor's folder -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(acme, tmp_path, capsys):
    """Run a vendor's two lines and whatever follows them: (exit status, what was printed)."""

    def run(*lines: str, keyword: str = "silu_is_on") -> tuple[int, str]:
        count = len(list(tmp_path.glob("test_*.py")))
        module = tmp_path / f"test_{tmp_path.name}_{count}.py"  # a name of its own: modules stay imported
        module.write_text("\n".join(["from cosmos3_core.testing.suite import *", 'BACKEND = "acme"', *lines, ""]))
        options = ["-c", str(testing.ALONE), "-p", "no:cacheprovider", "-q", "--import-mode=importlib"]
        capsys.readouterr()
        status = pytest.main([str(module), *options, "-k", keyword])
        captured = capsys.readouterr()
        return int(status), captured.out + captured.err

    return run


SWAPPED = "test_silu_is_on_the_first_half[exp_gate-bfloat16]"
LINK = "https://example.com/issues/12"


def test_two_lines_are_a_vendors_folder(folder):
    status, said = folder()
    assert status == 0 and "passed" in said


def test_a_known_failure_is_expected_by_row_or_by_name(acme, folder):
    acme("swapped_halves")
    assert folder(keyword="silu_is_on")[0] == 1
    entry = f'KNOWN_FAILURES = {{"test_silu_is_on_the_first_half[exp_gate]": "notyet: halves are swapped, {LINK}"}}'
    status, said = folder(entry, keyword="silu_is_on")
    assert status == 0 and "2 xfailed" in said
    status, said = folder(f'KNOWN_FAILURES = {{"{SWAPPED}": "never: no halves, {LINK}"}}', keyword="silu_is_on")
    assert status == 1 and "1 failed" in said and "1 xfailed" in said


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([f'KNOWN_FAILURES = {{"{SWAPPED}": "notyet: swapped halves, {LINK}"}}'], "XPASS(strict)"),
        ([f'KNOWN_FAILURES = {{"test_gate[exp_gate]": "notyet: swapped halves, {LINK}"}}'], "there is no such test"),
        ([f'KNOWN_FAILURES = {{"{SWAPPED}": "later"}}'], "notimpl|notyet|never: reason, link"),
        ([f'KNOWN_FAILURES = {{"{SWAPPED}": "notyet: swapped halves"}}'], "notimpl|notyet|never: reason, link"),
        (["del test_gate_parity"], "test_gate_parity is deleted, overridden or not collected"),
        (["def test_gate_parity(): pass"], "test_gate_parity is deleted, overridden or not collected"),
        (["import pytest", "pytestmark = pytest.mark.skip"], "KNOWN_FAILURES is the only excuse"),
        (['BACKEND = "acmee"'], "Did you mean acme?"),
        (["BACKEND = None"], "names no backend"),
    ],
)
def test_nothing_is_left_out_in_silence(folder, lines, said):
    status, printed = folder(*lines)
    assert status != 0 and said in printed
    assert "Traceback" not in printed and "INTERNALERROR" not in printed


def test_a_test_is_left_out_with_a_reason(folder):
    known = f'KNOWN_FAILURES = {{"test_gate_parity": "never: the device has no gate, {LINK}"}}'
    assert folder("del test_gate_parity", known)[0] == 0


# The command -----------------------------------------------------------------------------------------------------


def test_check_exits_with_what_the_kit_found(acme, capsys, monkeypatch, tmp_path):
    file = tmp_path / "acme.json"
    code, out, _ = cosmos3(capsys, monkeypatch, "check", "--backend", "acme", "-k", "gate", "--record", file)
    assert code == 0 and "passed" in out
    assert json.loads(file.read_text())["selected"] == "gate"
    acme("swapped_halves")
    code, out, _ = cosmos3(capsys, monkeypatch, "check", "--backend", "acme", "-k", "silu_is_on")
    assert code == 1 and "gate 20 and up 1 give 14.6" in out
    failed = [line for line in out.splitlines() if line.startswith("failed ")]
    assert failed and re.search(r"gate-exp_gate +2 failed", out) and "/" not in "".join(failed)


def test_check_that_is_stopped_says_so(acme, capsys, monkeypatch, tmp_path):
    """Its numbers are not those of the kit, and its record says that, too."""
    module, file = tmp_path / "test_stopped.py", tmp_path / "acme.json"
    module.write_text(
        "from cosmos3_core.testing.suite import *\n\n"
        "def test_silu_of_a_user_with_ctrl_c():\n    raise KeyboardInterrupt\n"
    )
    check = ("check", "--backend", "acme", "-k", "silu", "--module", module, "--record", file)
    code, out, _ = cosmos3(capsys, monkeypatch, *check)
    assert code == 130 and "It was stopped" in out and "--depth full" not in out
    record = json.loads(file.read_text())
    assert record["exit_status"] == int(pytest.ExitCode.INTERRUPTED)
    assert not [name for name in record["tests"] if "ctrl_c" in name], "it has not ended"


def shared(
    folder: Path, keyword: str, jobs: int, plugin: str = "", options: str = "--draw 3 --deselect other"
) -> tuple[subprocess.CompletedProcess, Any]:
    """`cosmos3 check` in a process of its own, with a plugin of pytest's in all processes and the environment's
    options, and its record, if there is one."""
    (folder / "another.py").write_text(f"import os\nWORKER = os.environ.get('PYTEST_XDIST_WORKER')\n{plugin}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"PYTHONPATH": str(folder), "PYTEST_ADDOPTS": f"-p another {options}"}
    file = folder / "r.json"
    check = ["check", "--backend", "reference", "--jobs", str(jobs), "--record", str(file)]
    check += ["-k", keyword] if keyword else []
    command = [sys.executable, "-m", "cosmos3", *check]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran, json.loads(file.read_text()) if file.exists() else None


def test_processes_share_the_rows(tmp_path):
    """Whole ones. What several processes find together is what one finds, by the same names."""
    keyword, found = "silu_is_on or near_zero and not linear and not attention", {}
    told = "def pytest_runtest_call(item):\n    with open(%r, 'a') as file: print(WORKER, item.name, file=file)\n"
    for jobs in (1, 2):
        ran, record = shared(tmp_path, keyword, jobs, told % str(tmp_path / f"{jobs}.txt"))
        assert ran.returncode == 0, ran.stdout + ran.stderr
        outcome = {name: (test["outcome"], test.get("reason")) for name, test in record["tests"].items()}
        assert record["selected"] == f"{keyword}, other, draw 3", "all that makes it another run than the kit's"
        found[jobs] = outcome, record["fingerprint"], sorted(ran.stdout.splitlines())
    assert found[1] == found[2] and len(found[1][0]) > 10
    lines = [line.split() for line in (tmp_path / "2.txt").read_text().splitlines()]
    where = {(worker, row_of_name(name)) for worker, name in lines}
    assert len(where) == len({row for _, row in where}) and len({worker for worker, _ in where}) == 2


def row_of_name(name: str) -> str:
    """The op that a test of those is about."""
    return "gate" if "silu_is_on" in name else re.sub(r".*\[|-.*", "", name)


DEAD = "test_silu_is_on_the_first_half[eager-float32]"


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        # In a kernel's fault, say: another process would die of it, too, and what they had not run is not passed.
        (
            f"def pytest_runtest_call(item):\n    if item.name == {DEAD!r}: os._exit(11)\n",
            (f"failed {DEAD}: gate=eager float32: worker", f"again('reference', '{DEAD}')", "A process died"),
        ),
        (
            f"def pytest_runtest_call(item):\n    if item.name == {DEAD!r}: raise RuntimeError('no /lib/\\udcff.so')\n",
            (f"failed {DEAD}", "1 failed"),
        ),
        ("if WORKER: os._exit(3)\n", ("A process died",)),
        (
            "from cosmos3_core.testing.subject import Subject\nif WORKER: Subject.device = 'it is busy'\n",
            ("one of several processes does not find the device: it is busy. Leave --jobs out",),
        ),
    ],
    ids=["in_a_call", "with_a_message_that_is_no_utf8", "at_its_start", "without_the_device"],
)
def test_a_process_that_cannot_go_on_is_no_success(tmp_path, plugin, said):
    ran, record = shared(tmp_path, "silu_is_on or gate and near_zero or rms_norm and near_zero", 2, plugin)
    assert ran.returncode == 1 and (record is None or record["exit_status"] != 0), ran.stdout + ran.stderr
    assert all(words in ran.stdout for words in said), ran.stdout
    assert ran.stdout.count("does not find") <= 1 and "Leave -k out" not in ran.stderr


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_record_without_some_of_the_tests_says_so(tmp_path, jobs):
    """Whatever has left them out."""
    plugin = "def pytest_collection_modifyitems(items): items[:] = items[:40]\n"
    ran, record = shared(tmp_path, "", jobs, plugin, options="")
    assert ran.returncode == 0 and re.fullmatch(r"without \d{3,} of its tests", record["selected"]), ran.stdout


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("-n 2", 0, "in all"),
        ("-m nothing", 2, "PYTEST_ADDOPTS: its options leave no test of the kit. Unset it"),
        (
            "-o python_functions=test_gate*",
            2,
            "test_own_formats_keep_their_bound is deleted, overridden or not collected",
        ),
    ],
)
def test_options_of_the_environment_are_no_second_way(tmp_path, options, code, said):
    keyword = "silu_is_on" if options == "-n 2" else ""
    ran, record = shared(tmp_path, keyword, 1, options=options)
    assert ran.returncode == code and said in ran.stdout + ran.stderr, ran.stdout + ran.stderr
    assert (record is None) == (code == 2), "what ran no test leaves the record that was there"


def test_check_names_its_tests(acme, capsys, monkeypatch, tmp_path):
    """Where somebody has written to the null device, too: no tool reads that as its configuration."""
    (tmp_path / "null").write_text("[pytest\n")
    monkeypatch.setattr(os, "devnull", str(tmp_path / "null"))
    code, out, _ = cosmos3(capsys, monkeypatch, "check", "--backend", "acme", "--list", "-k", "silu_is_on")
    assert code == 0 and out.splitlines() == [
        f"test_silu_is_on_the_first_half[exp_gate-{dtype}]" for dtype in ("float32", "bfloat16")
    ]


def test_check_takes_the_known_failures_of_a_test_module(acme, capsys, monkeypatch, tmp_path):
    acme("swapped_halves")
    module = tmp_path / "test_acme.py"
    module.write_text(
        "from cosmos3_core.testing.suite import *\n"
        f'KNOWN_FAILURES = {{"test_silu_is_on_the_first_half[exp_gate]": "notyet: halves are swapped, {LINK}"}}\n'
    )
    check = ("check", "--backend", "acme", "-k", "silu_is_on", "--module")
    code, out, _ = cosmos3(capsys, monkeypatch, *check, module)
    assert code == 0 and "xfailed" in out
    acme()
    code, out, _ = cosmos3(capsys, monkeypatch, *check, module)
    assert code == 1 and "XPASS(strict)" in out
    code, _, err = cosmos3(capsys, monkeypatch, *check, tmp_path / "none.py")
    assert code == 2 and "there is no such file" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "acmee"], "Did you mean acme?"),
        (["--backend", "acme", "-k", "no_such_test"], "no test of the kit matches it"),
        (["--backend", "acme", "-k", "("], "Wrong expression passed to '-k'"),
        (["--backend", "acme", "-k", "(", "--jobs", "2"], "Wrong expression passed to '-k'"),
        (["--backend", "acme", "-k", "no_such_test", "--jobs", "2"], "no test of the kit matches it"),
        (["--backend", "acme", "--jobs", "0"], "0 is not in the range"),
        (["--backend", "acme", "--record", "/nowhere/at/all.json"], "no file can be written there"),
        (["--backend", "acme", "--record", "pipe"], "it exists and is not an ordinary file"),
        (["--backend", "acme", "--record", "t.py", "--module", "./t.py"], "it is the module of the kit"),
    ],
)
def test_check_refuses_what_it_cannot_do(acme, capsys, monkeypatch, tmp_path, options, said):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    code, _, err = cosmos3(capsys, monkeypatch, "check", *options)
    assert code == 2 and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("missing", "options", "said"),
    [("pytest", [], "pip install pytest"), ("xdist", ["--jobs", "2"], "pip install pytest-xdist")],
)
def test_check_without_pytest_says_what_to_install(acme, capsys, monkeypatch, missing, options, said):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    code, _, err = cosmos3(capsys, monkeypatch, "check", "--backend", "acme", *options)
    assert code == 2 and said in err
