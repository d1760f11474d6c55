"""`cosmos3 recipes`: strict files, asserted plans and expectations, measured evidence, records that show tampering."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import cosmos3
from inputs import photograph
from tiny_model import TINY

from cosmos3_core import __version__, reference
from cosmos3_core.checkpoint.model import Weights
from cosmos3_core.checkpoint.tensors import TensorFiles
from cosmos3_core.cli.recipes import _verdict as told
from cosmos3_core.contract import Backend, Delegate, InputError, Kernel, RunError, Segment
from cosmos3_core.engine.engine import Engine
from cosmos3_core.evidence import fingerprint, quality, recipe, record, rounded, settle, state, verdict, worker
from cosmos3_core.evidence.closure import Sources
from cosmos3_core.evidence.embedded import evaluation, measures
from cosmos3_core.evidence.embedded.measures import Depth
from cosmos3_core.evidence.fingerprint import ROOT
from cosmos3_core.evidence.matrix import TICK, Survey, page
from cosmos3_core.evidence.packages import Package
from cosmos3_core.evidence.validate import validate
from cosmos3_core.files.digests import sha256_json
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import fake_quant
from cosmos3_core.reference import ops as reference_ops
from cosmos3_core.runs.memory import counted
from cosmos3_core.sampling.noise import generator, initial_noise
from cosmos3_core.scenarios.items import items_of
from cosmos3_core.settle.settle import STOCK_NEGATIVE_TOKENS
from cosmos3_core.testing import cases
from cosmos3_core.testing.suite.attention import PLAIN

pytestmark = pytest.mark.usefixtures("one_picture")
GOOD = """
title = "tiny"
[run]
model = "tiny"
task = "t2i"
size = "64x64"
steps = 2
seed = 3
backend = "reference"
[device]
name = "CPU"
[plan]
attention = "eager"
[expect]
seconds = 300
"""
NAME = "tiny-t2i-64x64-cpux1"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "tiny").symlink_to(TINY)
    (tmp_path / "recipes" / f"{NAME}.toml").write_text(GOOD)
    return tmp_path / "recipes"


@pytest.fixture
def recipes(capsys, monkeypatch, folder):
    monkeypatch.chdir(folder.parent)

    def call(*arguments):
        return cosmos3(capsys, monkeypatch, "recipes", "--folder", "recipes", *arguments)

    return call


def measured_in(folder: Path) -> str:
    """What the page of a package with these recipes has below its legend."""
    package = Package("cosmos3-here", "1", "cosmos3_core", replace(reference.BACKEND, recipes=folder))
    survey = Survey([package], state.state_of, lambda text, file: f"[{text}]({file.name})", Sources(ROOT))
    return page("", survey).split("## Model, task and device")[1]


def rewrite(folder: Path, *changes: tuple[str, str], name: str = NAME) -> Path:
    """The good recipe with pieces of its text replaced, under `name`."""
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("steps = 2", "step = 2", "'step': there is no such key. Did you mean steps?"),
        ("[plan]", "[plam]", "'plam': there is no such key. Did you mean plan?"),
        (
            'attention = "eager"',
            'atention = "eager"',
            "[plan] 'atention': there is no such key. Did you mean attention?",
        ),
        ("seconds = 300", "second = 300", "[expect] 'second': there is no such key. Did you mean seconds?"),
        ("seconds = 300", "seconds = true", "seconds = True: it is not a number"),
        ("seconds = 300", "seconds = -1", "seconds = -1: it is not above zero"),
        ("steps = 2", "steps = 2.5", "steps = 2.5: it is not a whole number"),
        ('"t2i"', '"t2g"', "task = 't2g': there is no such choice. Did you mean t2"),
        ("seed = 3", 'profile = "difusers"', "Did you mean diffusers?"),
        ("[device]", "[run.request]\nguidence = 3\n[device]", "'guidence': there is no such field. Did you mean guid"),
        ("[device]", "[run.request]\nseed = 3\n[device]", "seed: seed belongs into [run]"),
        ('backend = "reference"', "", "[run]: it has no backend"),
        ('name = "CPU"', "", "[device]: it has no name"),
        ("[expect]", '[known]\nstate = "works"\nreason = "so"\n[expect]', "state = 'works': there is no such choice"),
        ("[expect]", '[known]\nstate = "rehearsed"\nreason = "a"\nnote = "9 s"\n[expect]', "a number without whose"),
        ("64x64", "64x80", f"its name is not what it holds. Name it {NAME.replace('64x64', '64x80')}.toml"),
        ("[run]", "[run", "it is not TOML"),
        ("[plan]", "memory_gib = inf\n[plan]", "finite numbers (inf counts nothing)"),
        ('"CPU"', '"CPU"\ncount = 2', "count = 2: it does not say how they share the run. Add parallel to [run]"),
        ("seed = 3", 'parallel = "cfg=2"', "parallel = 'cfg=2': it takes 2 devices, and [device] has a count of 1"),
        ("seed = 3", 'parallel = "cgf=2"', "parallel = 'cgf=2': 'cgf=2' names no axis of the mesh. Did you mean cfg?"),
        ("seed = 3", 'parallel = "cfg=1"', "parallel = 'cfg=1': it takes 1 devices, and [device] has a count of 1"),
        ("[device]", "[run.request]\nview = 2026-11-30\n[device]", "2026-11-30: it is a date or a time"),
        ("[device]", "[run.request]\nstate = [[09:30:00]]\n[device]", "09:30:00: it is a date or a time"),
    ],
)
def test_a_wrong_file_is_one_message(folder, old, new, message):
    with pytest.raises(InputError) as caught:
        recipe.load(rewrite(folder, (old, new)))
    assert message in str(caught.value)


def test_a_recipe_is_a_cosmos3_run(folder, recipes):
    path = rewrite(
        folder,
        ('task = "t2i"\nsize = "64x64"', 'task = "i2v"\nsize = "64x64"'),
        ("[device]", '[run.kernels]\ngate = "eager"\n[run.request]\nimage = "cat.png"\nguidance = 3.5\n[device]'),
        name="tiny-i2v-64x64-cpux1",
    )
    assert recipe.load(path).given() == {
        "prompt": recipe.STOCK_PROMPT,
        "seed": 3,
        "task": "i2v",
        "size": "64x64",
        "steps": 2,
        "image": str(folder / "cat.png"),
        "guidance": 3.5,
    }
    code, out, _ = recipes("show", path.stem)
    assert code == 0 and "help wanted: nobody has measured it" in out
    assert "cosmos3 run --model tiny --backend reference --kernel gate=eager" in out and "plan.attention: eager" in out


def test_a_misspelt_name_gets_a_suggestion(recipes):
    code, _, err = recipes("show", NAME.replace("tiny", "tinny"))
    assert code == 2 and f"Did you mean {NAME}?" in err


@pytest.mark.parametrize(
    "wanted, found, alike",
    [
        ("H200", "NVIDIA H200", True),
        ("H200", "NVIDIA GH200 480GB", False),
        ("H20", "NVIDIA H200", False),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("RTX 5090", "NVIDIA GeForce RTX 5090", True),
        ("RTX 5090", "NVIDIA GeForce RTX 5080", False),
        ("Ascend 910B", "Ascend910B3 Ascend910B", True),
        ("Ascend 910C", "Ascend910_9391 Ascend910C", True),
        ("Ascend 910C", "Ascend910B3 Ascend910B", False),
        ("MI350X", "AMD Instinct MI350X", True),
        ("Arc B60", "Intel(R) Arc(TM) Pro B60 Graphics", True),
        ("Arc B60", "Intel(R) Arc(TM) B580 Graphics", False),
    ],
)
def test_devices_are_told_apart_by_their_names(wanted, found, alike):
    assert recipe.names_alike(wanted, found) is alike


# --- running ---------------------------------------------------------------------------------------------------------


def test_run_makes_the_output_and_holds_it_to_its_expectations(folder, recipes, monkeypatch):
    heard, check = [], settle.check_expect
    monkeypatch.setattr(settle, "check_expect", lambda *given: (heard.append(given[1]), check(*given))[1])
    code, out, err = recipes("run", NAME)
    assert (code, out.strip()) == (0, f"{NAME}.png"), err
    manifest = json.loads(Path(f"{NAME}.png.json").read_text())
    assert manifest["request"]["seed"] == 3 and manifest["request"]["prompt"] == recipe.STOCK_PROMPT
    (judged,), seconds = list(heard), manifest["seconds"]
    assert judged == pytest.approx(sum(seconds.values()) - seconds["total"])  # the stages, each once
    rewrite(folder, ("seconds = 300", "seconds = 0.001\npeak_host_gib = 0.01\npeak_device_gib = 1"))
    code, _, err = recipes("run", NAME, "-o", "again.png")
    assert code == 1 and Path("again.png").exists()
    assert re.search(r"seconds is [\d.]+, and at most 0.001 was expected", err) and "peak_host_gib is" in err
    assert "peak_device_gib cannot be measured on CPU" in err


@pytest.mark.parametrize(
    "name, changes, message",
    [
        (NAME, [('attention = "eager"', 'attention = "fast"')], r"\[plan\] attention=fast: the plan has eager"),
        ("tiny-t2i-64x64-h200x1", [('"CPU"', '"H200"')], "it is for 1 x H200, and this is CPU"),
        (
            "tiny-t2i-64x64-cpux3",
            [('"CPU"', '"CPU"\ncount = 3'), ("seed = 3", 'seed = 3\nparallel = "ulysses=3"')],
            "parallel ulysses=3: the model's 4 heads are not split evenly among 3",
        ),
        (NAME, [('"CPU"', '"CPU"\narch = "z80"')], r"it is for 1 x CPU \(z80\), and this is CPU \("),
        (NAME, [('"CPU"', '"CPU"\nmemory_gib = 1e6')], r"with 1e\+06 GiB, and this CPU has \d+ GiB"),
        (NAME, [('"reference"', '"acme"')], "--backend acme: no installed package provides it"),
        (NAME, [("[plan]", '[known]\nstate = "unsupported"\nreason = "too big"\n[plan]')], "unsupported: too big"),
    ],
)
@pytest.mark.parametrize("command", ["run", "validate"])
def test_what_cannot_run_here_is_refused_before_a_weight(folder, recipes, monkeypatch, command, name, changes, message):
    monkeypatch.setattr(TensorFiles, "read", lambda *_: pytest.fail("a weight was read"))
    rewrite(folder, *changes, name=name)
    code, _, err = recipes(command, name)
    assert code == 2 and re.search(message, err), err
    assert err.count("\n") == 1


# --- measuring -------------------------------------------------------------------------------------------------------


def test_validation_as_a_user_runs_it(folder, recipes):
    """Worker processes and all, without the checkpoint: random values that are the same in every process, a state of
    its own, and no tick. Afterwards every way of bending the result is tried."""
    code, out, err = recipes("validate", NAME, "--random-weights")
    assert code == 0, err
    assert f"validated on random weights: recipes/evidence/{NAME}.json" in out
    assert re.search(r"velocity_first: 0.0\d+ from float32, within 0.0\d+ \(eager bf16 0.0\d+; .*restart 0\)", out), out
    assert "output, restart against baseline: equal" in out and verdict.ITSELF in out
    assert f"evaluating the embedded model with the plan of {NAME}: 1 runs" in err and "\nt2i: 1 runs\n" in err
    assert re.search(r"evaluation of the embedded model with this plan in \d+ s: 3 bounds met", out), out
    file = folder / "evidence" / f"{NAME}.json"
    text, recipe_text = file.read_text(), (folder / f"{NAME}.toml").read_text()
    assert recipe_text.startswith(GOOD.rstrip()) and '[validated]\nstate = "validated on' in recipe_text
    for machine in (str(folder.parent), str(Path.cwd()), str(Path.home()), sys.prefix):
        assert machine not in text
    found = json.loads(text)
    cold, warm = (found["measurements"]["candidate"]["raw"][key] for key in ("cold", "warm"))
    assert cold["seconds"] > sum(cold["stages"].values()) > 0 and warm["stages"]["steps"] > 0
    assert "warm" not in found["measurements"]["restart"]["raw"]
    assert set(found["measurements"]["exact"]["raw"]) == {"plan", "tensors"}  # probed, and no more
    assert found["model"] == {"name": "tiny", "revision": None, "weights": "random"}

    def told() -> tuple[str, str]:
        code, out, err = recipes("list", "--json")
        assert code == 0, err
        (entry,) = json.loads(out)
        return entry["state"], entry["why"]

    assert told()[0] == "validated on random weights"
    assert recipes("list")[1].split("  ")[:2] == [NAME, "validated on random weights"]
    code, out, err = recipes("validate", "--all", "--resume", "--random-weights")
    assert (code, err) == (0, "") and out.startswith("about 0 s in all"), "its record is of today's code"
    shown = measured_in(folder)
    assert f"[◐ validated on random weights]({NAME}.toml)" in shown and TICK not in shown
    assert json.loads(recipes("list", "--json")[1])[0]["evaluation"] == found["verdict"]["evaluation"]
    (folder / f"{NAME}.toml").write_text(recipe_text + "# a comment\n")
    assert told()[0] == "validated on random weights"
    (folder / f"{NAME}.toml").write_text(recipe_text.replace("steps = 2", "steps = 3"))
    assert told() == ("stale", "the recipe was changed after it was measured")
    (folder / f"{NAME}.toml").write_text(re.sub(r"\[validated\].*", "", recipe_text, flags=re.S))
    assert told()[0] == "stale"
    (folder / f"{NAME}.toml").write_text(recipe_text)
    for path, value, message in BENT:
        bent = json.loads(text)
        place = bent
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        file.write_text(json.dumps(bent))
        assert told() == ("stale", message)
    file.write_text(text[:-20])
    assert told()[0] == "stale"
    file.unlink()
    assert told() == ("stale", f"{NAME}.json: No such file or directory")


BENT = [
    (("state",), "runs", "it was changed by hand"),
    (("comparisons", "output", "candidate", "ssim"), 0.99, "it was changed by hand"),
    (("noise_sha256",), "0" * 64, "it was changed by hand"),
    (
        ("measurements", "candidate", "raw", "warm", "seconds"),
        0.1,
        "the measurement 'candidate' was changed by hand",
    ),
    (("schema",), 0, f"it was written by another version of the tool (schema 0, now {record.SCHEMA})"),
    (("model", "weights"), "checkpoint", "it was changed by hand"),
]


def test_random_weights_stand_for_a_known_model_only(folder, recipes):
    rewrite(folder, ('model = "tiny"', 'model = "gone"'), name=NAME.replace("tiny", "gone"))
    code, _, err = recipes("validate", NAME.replace("tiny", "gone"), "--random-weights")
    assert code == 2 and "--model gone: there is no such folder" in err and err.count("\n") == 1


def test_a_published_model_settles_without_its_repository(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.resolve_revision", lambda *_, **__: pytest.fail("asked the hub"))
    changes = [('model = "tiny"', 'model = "nvidia/Cosmos3-Nano"'), ('"t2i"', '"t2v"')]
    path = rewrite(folder, *changes, name=NAME.replace("tiny-t2i", "nano-t2v"))
    settled = settle.settle(recipe.load(path), random_weights=True)
    assert settled.model.name == "nvidia/Cosmos3-Nano" and settled.model.config.num_hidden_layers == 36
    inputs = Engine(settled.model, settled.plan).read_inputs(settled.request)
    assert len(inputs.negative) == pytest.approx(STOCK_NEGATIVE_TOKENS, rel=0.05)


def kernel(strength: float, format: str = "none") -> Kernel:
    """Eager attention whose output is off by `strength`, relative and differently in every channel. With a format keys
    and values lose what it loses, and queries nothing."""

    def build(device):
        def wobbly(q_BSHD, segments, **options):
            if format != "none":
                segments = [tuple(fake_quant(x, FORMATS[format]) for x in segment) for segment in segments]
            out, lse = reference_ops.attention(q_BSHD, segments, **options)
            return out + strength * out.roll(1, dims=-1), lse

        return wobbly

    return Kernel(op="attention", name="wobbly", build=build, formats=(format,))


@pytest.fixture
def acme(monkeypatch, folder):
    """A backend on the host with one kernel of its own, and the recipe for it: called with the kernel."""

    def install(row: Kernel, *others: Kernel, serving: str = "wobbly"):
        device = replace(reference.probe(), name="Acme 9", versions={"driver": "1.0"})
        rows, probe = (row, *others), lambda: device
        backend = Backend(name="acme", torch_device="cpu", collectives="gloo", probe=probe, kernels=rows)
        monkeypatch.setattr(settle, "backend_of", lambda _: (backend, device))
        monkeypatch.setattr(worker, "are_random", lambda model, drawn: drawn)  # else its weights were called random
        changes = [('"CPU"', '"Acme 9"'), ('"reference"', '"acme"')]
        changes.append(('attention = "eager"', f'attention = "{serving}"'))
        name, format = "tiny-t2i-64x64-acme9x1", row.formats[0]
        if format != "none":
            name = f"tiny-t2i-64x64-attn{format}-acme9x1"
            changes.append(("[device]", f'[run.formats]\nattention = "{format}"\n[device]'))
        return recipe.load(rewrite(folder, *changes, name=name))

    return install


@pytest.mark.parametrize(
    "strength, random_weights, expected",
    [
        (0.001, False, "validated"),
        (0.5, False, "runs"),
        (0.001, True, "validated on random weights"),
        (1.0, True, "runs"),
    ],
)
def test_a_kernel_is_judged_by_what_it_changes(acme, monkeypatch, strength, random_weights, expected):
    opened, weights = [], Weights.__init__
    monkeypatch.setattr(Weights, "__init__", lambda one, model: (opened.append(model.name), weights(one, model))[1])
    measured = acme(kernel(strength))
    ((_, found),) = validate([measured], random_weights=random_weights, launch=worker.measure)
    assert found["state"] == expected and not found["same"] and "note" not in found["verdict"]
    assert set(opened) == ({"embedded"} if random_weights else {"tiny", "embedded"})
    error, noise = found["comparisons"]["error"], found["comparisons"]["noise"]
    quiet = dict.fromkeys(verdict.QUANTITIES, 0)
    assert noise == {"repeat": quiet, "restart": quiet}  # the baseline is eager torch, not the kernel
    assert 0 < error["baseline"]["velocity_first"] != error["candidate"]["velocity_first"]
    assert ("random weights" in state.state_of(recipe.load(measured.path)).why) is random_weights
    plans = {name: entry["raw"]["plan"] for name, entry in found["measurements"].items()}
    assert {name: (plan["kernels"]["attention"], plan["dtype"]) for name, plan in plans.items()} == {
        "baseline": ("eager", "bfloat16"),
        "restart": ("eager", "bfloat16"),
        "exact": ("eager", "float32"),
        "candidate": ("wobbly", "bfloat16"),
    }


@pytest.mark.parametrize("strength, expected", [(0.0, "validated"), (1.0, "runs")])
def test_a_recipe_with_a_format_is_held_to_what_the_format_loses(acme, strength, expected):
    """nvfp4, of which attention in 16 bits is far away."""
    ((measured, found),) = validate([acme(kernel(strength, "nvfp4"))], launch=worker.measure)
    assert found["state"] == expected == state.state_of(recipe.load(measured.path)).name
    error, plan = found["comparisons"]["error"], found["measurements"]["formats"]["raw"]["plan"]
    exact = found["measurements"]["exact"]["raw"]["plan"]["kernels"]
    assert plan["kernels"] == exact | {"attention": "rounded-nvfp4"} and exact["attention"] == "eager"
    assert plan["formats"] == {"attention": "nvfp4"} and plan["dtype"] == "bfloat16"
    assert set(found["measurements"]["formats"]["raw"]) == {"plan", "tensors"}  # probed, and no more
    for check in found["verdict"]["checks"]:
        loses = error["formats"][check["quantity"]]
        assert loses > 3 * error["baseline"][check["quantity"]] and check["formats"] == loses
        assert check["bound"] == min(verdict.MULTIPLE * loses + verdict.FLOOR, verdict.MOST)
    assert verdict.FORMATS_RULE == found["verdict"]["rule"] != verdict.RULE
    check = found["verdict"]["checks"][0]
    assert f"(eager bf16 {check['eager']:.3g}, in the formats {check['formats']:.3g}; " in told(found)
    cell = f"| {check['eager']:.2g} ({check['formats']:.2g}), {check['value']:.2g} |"
    assert cell in measured_in(measured.path.parent)


@pytest.mark.parametrize("format", FORMATS)
def test_eager_attention_in_a_format(format):
    """Attention loses something, and the text's own nothing."""
    attention = rounded.attention_in(FORMATS[format]).build(None)
    q, segments = PLAIN.inputs("float32")  # heads of 128
    exact, _ = reference_ops.attention(q, segments)
    assert 1e-3 < cases.Loss.of(attention(q, segments)[0], exact).whole < 0.3
    causal = q[:, :7], [Segment(q[:, :7], q[:, :7])]
    assert torch.equal(attention(*causal, causal=True)[0], reference_ops.attention(*causal, causal=True)[0])


@pytest.fixture
def tf32():
    """A process in which float32 may be computed in TF32, as an environment can have it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_the_exact_baseline_takes_no_tf32(acme, monkeypatch, tf32):
    seen, probe = [], worker.probe

    def probing(engine, *arguments):
        seen.append((engine.target.dtype, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return probe(engine, *arguments)

    monkeypatch.setattr(worker, "probe", probing)
    list(validate([acme(kernel(0.001))], launch=worker.measure))
    # The candidate's process is another one, and here it is not.
    assert seen[:4] == 3 * [(torch.bfloat16, "high", True)] + [(torch.float32, "highest", False)] and len(seen) == 5


def test_recipes_for_one_request_share_what_is_measured_of_eager_torch(acme, folder):
    measured, jobs = [acme(kernel(0.001))], []
    for name, change in (("same", ('title = "', 'title = "again: ')), ("other", ("seed = 3", "seed = 4"))):
        (folder / name).mkdir()
        text = measured[0].path.read_text()
        assert change[0] in text
        (folder / name / measured[0].path.name).write_text(text.replace(*change))
        measured.append(recipe.load(folder / name / measured[0].path.name))

    def launch(job, say):
        jobs.append((Path(job.recipe).parent.name, Path(job.out).name))
        worker.measure(job, say)

    found = {one.path.parent.name: record for one, record in validate(measured, launch=launch)}
    shared = ["baseline", "restart", "exact"]
    own = {"recipes": ["evaluation", *shared, "candidate"], "same": ["candidate"], "other": [*shared, "candidate"]}
    assert jobs == [(name, job) for name, names in own.items() for job in names]
    assert {record["state"] for record in found.values()} == {"validated"}
    baselines = {name: record["measurements"]["baseline"]["sha256"] for name, record in found.items()}
    assert baselines["recipes"] == baselines["same"] != baselines["other"]
    assert found["recipes"]["evaluation"] == found["same"]["evaluation"] == found["other"]["evaluation"]
    for one in measured:
        assert state.state_of(recipe.load(one.path)).name == "validated"


@pytest.mark.parametrize("schedule", ["native", "distilled"])
def test_the_probes_are_what_the_run_went_through(folder, schedule):
    """Of two steps, so that the short trajectory is the whole; twice from one state, with a sampler that draws too."""
    settled = settle.settle(recipe.load(folder / f"{NAME}.toml"))
    model = settled.model
    if schedule == "distilled":
        model = replace(model, scheduler={"stochastic_sampling": True}, distilled_sigmas=(1.0, 0.5))
    engine, request = Engine(model, settled.plan), replace(settled.request, schedule=schedule)
    inputs = engine.read_inputs(request, initial_noise(items_of(request, model.config), generator(0)))
    state, velocities, latents = engine.start(request, inputs), [], []
    while not state.done:
        latents.append(state.x)
        velocities += engine.predict([state])
        engine.advance(state, velocities[-1])
    start = engine.start(request, inputs)
    for _ in range(2):
        found = worker.probe(engine, start, latents[1])
        for name, expected in zip(verdict.QUANTITIES, [*velocities, state.x], strict=True):
            assert torch.equal(found[name], expected), name


def from_a_picture(folder: Path, format: str | None = None) -> recipe.Recipe:
    photograph(80, 80).save(folder / "desk.png")
    changes = [('"t2i"', '"i2v"'), ("[device]", '[run.request]\nimage = "desk.png"\n[device]')]
    changes.append(("steps = 2", "steps = 2\nframes = 5"))
    name = NAME.replace("t2i", "i2v")
    if format:
        changes.append(("[device]", f'[run.formats]\npack_linear = "{format}"\n[device]'))
        name = name.replace("-cpu", f"-{format}-cpu")
    return recipe.load(rewrite(folder, *changes, name=name))


def test_eager_torch_in_a_format_leaves_the_vae_as_it_is(folder):
    """The picture's latents are those of the baseline, whose text has lost nothing."""
    contexts = []
    for measured, role in ((from_a_picture(folder), settle.BASELINE), (from_a_picture(folder, "int8"), settle.FORMATS)):
        settled = settle.settle(measured, role)
        contexts.append(Engine(settled.model, settled.plan).prepare(settled.request))
    pictures, texts = zip(*((one.clean, one.texts[0].segments[0].k_BTKD) for one in contexts), strict=True)
    assert pictures[0].any() and torch.equal(*pictures) and not torch.equal(*texts)


def test_another_input_makes_a_record_stale(folder):
    measured = from_a_picture(folder)
    list(validate([measured], launch=worker.measure))
    measured = recipe.load(measured.path)
    assert state.state_of(measured).name == "validated on random weights"
    photograph(80, 96).save(folder / "desk.png")
    found = state.state_of(measured)
    assert found.name == "stale" and found.why.startswith("validated on random weights, measured on ")
    assert found.why.endswith("since then the image desk.png changed")
    (folder / "desk.png").unlink()
    assert state.state_of(measured).why.endswith("since then the image desk.png is gone")
    photograph(80, 80).save(folder / "desk.png")


def test_one_tower_is_in_memory_at_a_time(folder, monkeypatch):
    towers, loaded = weakref.WeakSet(), []

    def watched(load):
        def loading(weights, *arguments):
            if weights.model.name == "embedded":  # an evaluation keeps what is loaded
                return load(weights, *arguments)
            assert not towers, "the other tower is still there"
            loaded.append(load.__name__)
            towers.add(tower := load(weights, *arguments))
            return tower

        return loading

    for name in ("understanding", "generation"):
        monkeypatch.setattr(Weights, name, watched(getattr(Weights, name)))
    ((_, found),) = validate([from_a_picture(folder)], launch=worker.measure)
    assert loaded == ["understanding", "generation"] * (2 + 2 + 1 + 3)  # runs and probes of each measurement
    assert found["comparisons"]["error"]["candidate"]["velocity_first"] > 0


def test_a_failed_verdict_cannot_be_turned_by_computing_the_hashes_anew(acme):
    measured = acme(kernel(0.5))
    ((_, found),) = validate([measured], launch=worker.measure)
    assert state.state_of(recipe.load(measured.path)).name == "runs"

    def resealed(**changes) -> state.State:
        raw = {name: entry["raw"] for name, entry in found["measurements"].items()}
        bent = {key: value for key, value in found.items() if key != "sha256"} | {"measurements": raw} | changes
        record.write(recipe.load(measured.path), record.seal(bent))
        return state.state_of(recipe.load(measured.path))

    passed = found["verdict"] | {"passed": True, "checks": [c | {"held": True} for c in found["verdict"]["checks"]]}
    for bent in (resealed(state="validated"), resealed(state="validated", verdict=passed)):
        assert bent.name == "stale" and "does not follow from its comparisons" in bent.why
    assert resealed().name == "runs"


def without_shape(found, *said) -> None:
    """As if it had never been judged, by a case that does not have it or has None."""
    del found["cases"][0]["shape"]
    found["cases"][0] |= dict.fromkeys(("shape",) if said else ())
    found["measures"] = [one for one in found["measures"] if one["measure"] != "shape"]


def more_than_right(found) -> None:
    found["cases"][0]["colour"] = found["measures"][0]["value"] = 2.0


BETTER = {
    "an error": (lambda r: r["comparisons"]["error"]["candidate"].update(velocity_first=1e-4), "by its samples"),
    "no error": (lambda r: r["comparisons"]["error"]["candidate"].update(velocity_first=0.0), "digests are different"),
    "the noise": (lambda r: r["comparisons"]["noise"]["restart"].update(velocity_middle=0.2), "digests are equal"),
    "the output": (
        lambda r: r["comparisons"]["output"]["candidate"].update(psnr_db=None),
        "have digests that are different",
    ),
    "itself": (lambda r: r.update(same=True), "does not follow from their plans"),
    "a name": (lambda r: r.update(recipe="other-t2i-64x64-acme9x1"), "it is the record of other-t2i-64x64-acme9x1"),
    "a request": (lambda r: r["request"].update(steps=99), "its request's steps is 99, and the recipe's 2"),
    "a device": (lambda r: r["fingerprint"]["device"].update(name="Other"), "it was measured on Other, and the recipe"),
    "a model": (lambda r: r["model"].update(name="nvidia/Cosmos3-Nano"), "its model is nvidia/Cosmos3-Nano"),
    "kernels": (lambda r: r["fingerprint"].update(kernels=[]), "its fingerprint is without the kernel"),
    "samples": (lambda r: r["samples"]["exact"].clear(), "samples of its velocity_first are missing"),
    "a case": (lambda r: r["evaluation"]["cases"][0].update(colour=0.5), "do not follow from its cases"),
    "a mean": (lambda r: r["evaluation"]["measures"][0].update(value=0.99), "do not follow from its cases"),
    "a bound": (lambda r: r["evaluation"]["measures"][0].update(least=0.1), "do not follow from its cases"),
    "its bounds": (lambda r: r["evaluation"]["bounds"].pop("colour"), "do not follow from its cases"),
    "a device of its evaluation": (lambda r: r["evaluation"].update(device="Acme 10"), "is of the device Acme 10"),
    "another seed": (lambda r: r["evaluation"]["cases"][0].update(seed=1), "has other cases than its runs"),
    "a measure left out": (lambda r: without_shape(r["evaluation"]), "does not say shape of a case of t2i"),
    "a measure not judged": (lambda r: without_shape(r["evaluation"], None), "judges no t2i.shape, which has a bound"),
    "more than right": (lambda r: more_than_right(r["evaluation"]), "says colour 2 of a case of t2i"),
    "fewer cases": (lambda r: r["evaluation"]["cases"].clear(), "do not follow from its cases"),
    "other rows": (lambda r: r["evaluation"]["kernels"].update(attention="eager"), "has other kernels than its plan"),
    "another model": (lambda r: r["evaluation"].update(model="tiny"), "its evaluation is of the model tiny"),
    "a backend": (lambda r: r["evaluation"].update(backend="other"), "its evaluation is of the backend other"),
    "an evaluation": (lambda r: r.pop("evaluation"), "it holds no evaluation"),
    "no reason": (lambda r: r.update(evaluation={"not_run": 7}), "its evaluation.not_run is 7, not text"),
    "a reason": (lambda r: r.update(evaluation={"not_run": "no time"}), "does not follow from its comparisons"),
    "a type": (lambda r: r["comparisons"]["output"]["restart"].update(ssim="1"), 'ssim is "1", not a number'),
    "a key": (lambda r: r.update(signature="x"), 'has the key "signature", which nothing reads'),
}


def test_a_record_that_was_made_better_and_sealed_anew_is_found(acme):
    measured = acme(kernel(0.1))
    ((_, found),) = validate([measured], launch=worker.measure)
    for name, (change, said) in BETTER.items():
        bent = copy.deepcopy({key: value for key, value in found.items() if key != "sha256"})
        bent["measurements"] = {name: entry["raw"] for name, entry in bent["measurements"].items()}
        change(bent)
        record.write(recipe.load(measured.path), record.seal(bent))
        told = state.state_of(recipe.load(measured.path))
        assert told.name == "stale" and said in told.why and told.record is None, name


POLICY = Path(__file__).parents[1] / "backends/cuda/cosmos3_cuda/recipes/nano-policy-droid-policy-832x480-h200x1.toml"


@pytest.mark.parametrize(("canvas", "other"), [("832x480", False), ("640x640", False), ("1280x704", True)])
def test_a_canvas_that_an_input_settles_is_one_of_the_recipes_tier(tmp_path, canvas, other):
    for file in (POLICY, *POLICY.parent.glob(f"*/{POLICY.stem}.json"), POLICY.parent / "media/desk-832x480.jpg"):
        where = tmp_path / file.relative_to(POLICY.parent)
        where.parent.mkdir(exist_ok=True)
        where.write_bytes(file.read_bytes())
    copied = tmp_path / POLICY.name
    bent = json.loads((tmp_path / "evidence" / f"{POLICY.stem}.json").read_text())
    bent["request"]["canvas"] = canvas
    bent["measurements"] = {name: entry["raw"] for name, entry in bent["measurements"].items()}
    record.write(recipe.load(copied), record.seal({key: value for key, value in bent.items() if key != "sha256"}))
    said = f"its request's canvas is {canvas}, and the recipe's 480p" in (state.state_of(recipe.load(copied)).why or "")
    assert said is other


# --- the evaluation of the embedded model ----------------------------------------------------------------------------


def at_heads_of(head_dim: int, fault) -> Kernel:
    """Eager attention, with a fault for heads of that many channels."""

    def attention(q_BSHD, segments, **options):
        out, lse = reference_ops.attention(q_BSHD, segments, **options)
        return (fault(out) if q_BSHD.shape[-1] == head_dim else out), lse

    return Kernel(op="attention", name="wobbly", build=lambda device: attention)


def test_a_kernel_that_breaks_pictures_fails_the_verdict_by_the_measure(acme, folder):
    """One without a fault for the recipe's own model, so that no error against float32 shows it."""
    ((measured, found),) = validate([acme(at_heads_of(32, torch.zeros_like))], launch=worker.measure)
    assert found["state"] == "runs" and all(check["held"] for check in found["verdict"]["checks"])
    missed = "evaluation: t2i colour 0, bound at least 0.9"
    assert missed in verdict.failures(found["verdict"])
    assert "with this plan in " in told(found) and ": t2i colour 0, bound at least 0.9" in told(found)
    measured = recipe.load(measured.path)
    assert state.state_of(measured).name == "runs" and missed in state.state_of(measured).why
    assert "t2i colour 0, bound at least 0.9" in measured_in(folder).split("## Measured")[1]


def test_an_evaluation_names_what_it_was_made_with(acme, monkeypatch):
    ((measured, found),) = validate([acme(kernel(0.001))], launch=worker.measure)
    made, measured = found["evaluation"], recipe.load(measured.path)
    assert (made["model"], made["backend"], made["device"]) == ("embedded", "acme", "Acme 9")
    assert made["kernels"]["attention"] == "wobbly" and made["dtype"] == "bfloat16" and made["depth"] == "quick"
    assert re.fullmatch("sha256 [0-9a-f]{64}", made["weights"]) and made["version"].startswith(__version__)
    assert {one["measure"] for one in made["measures"]} == {"colour", "shape", "count"}
    (weights,) = (name for name in found["fingerprint"]["files"] if name.endswith("embedded/vae/config.json"))
    now = state.fingerprint_here(measured, Sources(ROOT))
    assert state.state_of(measured, now).name == "validated"
    changed = now | {"files": now["files"] | {weights: "0"}}
    assert state.state_of(measured, changed).why.endswith(f"since then the code changed: {weights}")
    for change in ({"runs": {"t2i": 2}}, {"bounds": {}}):
        depth = replace(measures.depths()["quick"], **change)
        monkeypatch.setattr(measures, "depths", lambda depth=depth: {"quick": depth})
        told = state.state_of(measured, now)
        assert told.name == "stale" and told.why.endswith("since then what an evaluation runs or asks for changed")
        assert told.record is not None


def test_a_plan_that_cannot_run_the_embedded_model_says_which_kernel_and_why(acme, folder, recipes):
    def refuse(ask):
        return f"made for heads of 16, not {ask.head_dim}" if ask.head_dim != 16 else None

    jobs, said = [], []

    def launch(job, say):
        jobs.append(job.role)
        worker.measure(job, say)

    ((measured, found),) = validate([acme(replace(kernel(0.001), refuse=refuse))], launch=launch, say=said.append)
    reason = "attention=wobbly: made for heads of 16, not 32"
    assert found["evaluation"] == {"not_run": reason} == found["verdict"]["evaluation"]
    assert found["state"] == "validated" and settle.EVALUATION not in jobs
    assert f"not evaluating the embedded model: {reason}" in said
    assert f"evaluation of the embedded model with this plan: not run ({reason})" in told(found)
    assert state.state_of(recipe.load(measured.path)).why.endswith(f"; evaluation: not run ({reason})")
    rows = {row["name"]: row for row in json.loads(recipes("list", "--json")[1])}
    assert rows[measured.name]["evaluation"] == {"not_run": reason} and rows[NAME]["evaluation"] is None
    assert f"not run ({reason}) |" in measured_in(folder).split("## Measured")[1]


def test_rows_for_short_calls_are_part_of_the_plan_that_is_evaluated(acme):
    """The recipe's own request is short, so that its run has another row than those of the evaluation."""
    long = replace(kernel(0.001), delegates=(Delegate("short", below=1000),))
    measured = acme(long, replace(kernel(0.002), name="short"), serving="short")
    ((_, found),) = validate([measured], launch=worker.measure)
    assert found["measurements"]["candidate"]["raw"]["plan"]["kernels"]["attention"] == "short"
    assert found["evaluation"]["kernels"]["attention"] == "wobbly"
    assert found["evaluation"]["below"] == {"attention": {"short": 1000}}
    assert state.state_of(recipe.load(measured.path)).name == "validated"
    refuse = replace(kernel(0.002), name="short", refuse=lambda ask: "too wide" if ask.head_dim > 16 else None)
    ((_, found),) = validate([acme(long, refuse, serving="short")], launch=worker.measure)
    assert found["evaluation"] == {"not_run": "attention=short: too wide"}


def test_numbers_that_are_none_leave_no_record(acme):
    measured = acme(at_heads_of(32, lambda out: out * float("nan")))
    with pytest.raises(RunError, match="NaN or infinity"):
        list(validate([measured], launch=worker.measure))
    assert not record.path_of(measured).exists()


def test_a_measure_that_is_no_number_leaves_no_record(acme, monkeypatch):
    """A velocity is compared without a step, so that nothing before has looked at it."""
    found = {"measures": [{"task": "velocity", "measure": "error", "value": float("nan")}]}
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: found)
    measured = acme(kernel(0.001))
    with pytest.raises(RunError, match="the evaluation's velocity error: it is no number"):
        list(validate([measured], launch=worker.measure))
    assert not record.path_of(measured).exists()


@pytest.mark.parametrize("schema, lost", [(3, ["samples, from which errors", "an evaluation of"]), (4, ["an eval"])])
def test_a_record_of_an_earlier_schema_is_stale_and_still_told(acme, recipes, schema, lost):
    ((measured, found),) = validate([acme(kernel(0.001))], launch=worker.measure)
    gone = ("sha256", "evaluation", *(["samples"] if schema == 3 else []))
    old = {key: value for key, value in found.items() if key not in gone} | {"schema": schema}
    old["verdict"] = {key: value for key, value in found["verdict"].items() if key != "evaluation"}
    record.write(recipe.load(measured.path), old | {"sha256": sha256_json(old)})
    held = state.state_of(recipe.load(measured.path))
    assert held.name == "stale" and held.record is not None and "validated, measured on" in held.why
    assert held.why.count("records hold") == len(lost) and all(f"records hold {one}" in held.why for one in lost)
    assert recipes("show", measured.name)[0] == 0


@pytest.mark.parametrize(
    "depth, hint", [(None, "Try cosmos3 recipes run first"), (Depth({}, {}), "says so in its `refuse`")]
)
def test_a_failing_worker_is_one_line(folder, depth, hint):
    role = settle.EVALUATION if depth else "baseline"
    job = worker.Job(str(folder / "none.toml"), role, False, "", None, str(folder), 0.0, depth)
    with pytest.raises(RunError, match=rf"^measuring the {role}: recipe .*none.toml: No such file.*{hint}"):
        worker.launch(job, print)


BROKEN = {
    "no TOML": b"title = ",
    "not UTF-8": b"\xff\xfe",
    "too large": b"#" * (1 << 19),
    "too deep": b"x = " + b"[" * 100_000,
    "nothing": b"",
    "another type": b'title = "x"\nrun = 7\ndevice = {name = "x"}',
    "a date": b"title = 1979-05-27",
    "a path that is a number": b'title = "x"\n[run]\nmodel = "tiny"\ntask = "i2v"\nsize = "64x64"\n'
    b'backend = "reference"\n[run.request]\nimage = 7\n[device]\nname = "CPU"',
}


def test_one_bad_file_never_hides_the_others(folder, recipes):
    for number, data in enumerate(BROKEN.values()):
        (folder / f"bad{number}.toml").write_bytes(data)
    (folder / "pipe.toml").mkdir()
    code, out, err = recipes("list")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0 and not err and NAME in rows and " broken " not in rows[NAME]
    for name in ("pipe", *(f"bad{number}" for number in range(len(BROKEN)))):
        assert " broken " in rows[name], name
    listed = {row["name"]: row for row in json.loads(recipes("list", "--json")[1])}
    assert listed["bad4"]["why"] and listed[NAME]["state"] != "broken"
    assert recipes("show", NAME)[0] == 0
    code, _, err = recipes("show", "bad0")
    assert code == 2 and len(err.splitlines()) == 1 and "it is not TOML" in err


RECORDS = [b"", b"7", b"[]", b"{}", b"null", b"\xff", b'{"schema": 4}', b'{"schema": "4"}', b"[" * 100_000, b"{" * 99]


@pytest.mark.parametrize("data", RECORDS)
def test_a_bad_record_is_a_state_with_its_reason(folder, recipes, data):
    (folder / "evidence").mkdir(exist_ok=True)
    (folder / "evidence" / f"{NAME}.json").write_bytes(data)
    code, out, err = recipes("list")
    assert code == 0 and not err and "stale" in out and "damaged" in out
    assert recipes("show", NAME)[0] == 0


def test_a_change_of_code_versions_or_device_makes_a_record_stale(acme):
    measured = acme(kernel(0.001))
    list(validate([measured], launch=worker.measure))
    measured = recipe.load(measured.path)
    now = state.fingerprint_here(measured, Sources(ROOT))
    assert state.state_of(measured, now).name == "validated"
    for change, said in [
        ({"files": now["files"] | {"cosmos3_core/a.py": "0"}}, "the code changed: cosmos3_core/a.py"),
        ({"rows": "0"}, "the backend declares its rows otherwise"),
        ({"tuning": now["tuning"] | {"capture_rows": 1}}, "capture_rows was 8192 and is 1"),
        ({"versions": now["versions"] | {"driver": "1.1"}}, "driver was 1.0 and is 1.1"),
        ({"device": now["device"] | {"name": "Acme 10"}}, "name was Acme 9 and is Acme 10"),
    ]:
        found = state.state_of(measured, now | change)
        assert found.name == "stale" and found.why.endswith(said)


def test_a_missed_expectation_leaves_no_record(acme):
    measured = acme(kernel(0.001))
    measured.tables["expect"]["seconds"] = 0.001
    with pytest.raises(RunError, match="at most 0.001 was expected"):
        list(validate([measured], launch=worker.measure))
    assert not record.path_of(measured).exists()


def test_code_that_changes_under_a_measurement_leaves_no_record(acme, monkeypatch, tmp_path):
    measured, noise = acme(kernel(0.001)), tmp_path / "cosmos3_core" / "sampling" / "noise.py"
    shutil.copytree(Path(reference.__file__).parents[1], tmp_path / "cosmos3_core")
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)

    def launch(job, say):
        worker.measure(job, say)
        noise.write_text("# another\n" + noise.read_text())

    with pytest.raises(RunError, match="the code changed: cosmos3_core/sampling/noise.py while it was measured"):
        list(validate([measured], launch=launch))
    assert not record.path_of(measured).exists()


def test_a_folder_that_cannot_be_written_to_is_found_out_before_measuring(acme):
    measured = acme(kernel(0.001))
    (measured.path.parent / "evidence" / f"{measured.name}.json").mkdir(parents=True)
    with pytest.raises(InputError, match="it is a folder"):
        list(validate([measured], launch=lambda *_: pytest.fail("measured")))


def test_the_devices_peak_is_what_its_allocator_reserved(acme):
    measured = acme(kernel(0.001))
    assert counted(1 << 30, None) == counted(1 << 30, {"allocated": None, "reserved": None}) == {"host_bytes": 1 << 30}
    memory = counted(1 << 30, {"allocated": 3 << 30, "reserved": 5 << 30})
    assert (memory["allocated_bytes"], memory["reserved_bytes"]) == (3 << 30, 5 << 30)
    measured.tables["expect"]["peak_device_gib"] = 4
    with pytest.raises(RunError, match="peak_device_gib is 5, and at most 4 was expected"):
        settle.check_expect(measured, 1.0, memory)


# --- the rule and the metrics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "eager, candidate, passed",
    [
        (0.03, 0.058, True),
        (0.03, 0.062, False),
        (0.4, 0.5, True),  # as good as the baseline, however far both are from the truth
        (0.0, 4e-4, True),  # the baseline is exact
        (0.0, 6e-4, False),
        (0.03, float("nan"), False),
        (0.4, 0.49, True),
        (0.4, 0.51, False),  # where eager torch itself loses much, nothing is judged
    ],
)
@pytest.mark.parametrize("quantity", verdict.QUANTITIES)
def test_the_verdict_is_relative_to_what_bf16_loses(quantity, eager, candidate, passed):
    quiet = dict.fromkeys(verdict.QUANTITIES, 0.0)
    for noisy in ("baseline", "restart"):  # the worse of the two counts
        error = {"baseline": quiet, "restart": quiet, "candidate": quiet | {quantity: candidate}}
        found = verdict.judge({"error": error | {noisy: quiet | {quantity: eager}}}, False, None)
        assert found["passed"] is passed
        assert bool(verdict.failures(found)) is not passed


def test_the_bounds_are_the_conformance_kits():
    assert (verdict.MULTIPLE, verdict.FLOOR) == (cases.MULTIPLE, cases.FLOOR[settle.EAGER[settle.BASELINE]])


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Formula 13 of the paper, window by window."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11].astype(float), b[y : y + 11, x : x + 11].astype(float)
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq, cov = ((window * d).sum() for d in ((p - mp) ** 2, (q - mq) ** 2, (p - mp) * (q - mq)))
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


def test_ssim_against_known_values():
    stream = np.random.default_rng(0)
    a = stream.integers(0, 256, (2, 16, 19, 3), dtype=np.uint8)
    b = np.clip(a + stream.normal(0, 40, a.shape), 0, 255).astype(np.uint8)
    expected = np.mean([naive_ssim(a[f, ..., c], b[f, ..., c]) for f in range(2) for c in range(3)])
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    assert quality.ssim(a, b) == pytest.approx(expected, abs=1e-5) and 0.3 < expected < 0.99
    assert quality.ssim(a, a) == 1
    dark, light = (torch.full((1, 16, 16, 3), level, dtype=torch.uint8) for level in (100, 150))
    c1 = 2.55**2  # without structure only the luminance term is left
    assert quality.ssim(dark, light) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), abs=1e-5)


def test_psnr_and_relative_l1_against_known_values():
    dark, light = (torch.full((2, 4, 4, 3), level, dtype=torch.uint8) for level in (0, 255))
    assert quality.psnr(dark, dark) is None and quality.psnr(dark, light) == pytest.approx(0)
    assert quality.psnr(dark, dark + 1) == pytest.approx(48.1308, abs=1e-4)  # 20 log10 255
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert quality.relative_l1(x, y) == pytest.approx(2 / 7) and quality.relative_l1(x, x) == 0


def test_listing_loads_no_tensor_library(folder):
    probe = "import sys; from cosmos3_core.cli import cli; cli(['recipes', 'list'], standalone_mode=False); "
    probe += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], cwd=folder.parent, stdout=subprocess.DEVNULL).returncode == 0


def test_the_recipes_of_the_checkout_are_found_from_anywhere(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cosmos3(capsys, monkeypatch, "recipes", "list")
    assert code == 0 and "embedded-t2i-128x128-cpux1" in out and all(len(line) <= 100 for line in out.splitlines())
