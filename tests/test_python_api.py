"""`import cosmos3` as a program meets it: what is public, the same as the command line to the bit, and wrong calls."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import cosmos3 as command_line
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import TINY, TINY_MODEL

import cosmos3
from cosmos3 import words
from cosmos3_core.checkpoint.tensors import TensorFiles
from cosmos3_core.contract import OPS
from cosmos3_core.files.outputs import read_metadata
from cosmos3_core.plan.cost.units import GIB
from cosmos3_core.plan.own import PROTOCOLS, with_own
from cosmos3_core.reference import BACKEND, build_ops, ops
from cosmos3_core.runs import keeping
from cosmos3_core.runs.generation import Generation
from cosmos3_core.scenarios.fields import FIELDS

SMALL = {"size": "64x64", "steps": 2, "guidance": 1, "seed": 7}
PICTURE = {"frames": 1, **SMALL}
CLIP = {"frames": 5, **SMALL}


@pytest.fixture(scope="module")
def pipe() -> cosmos3.Pipeline:
    """One for all tests: it is resident, and what it loaded stays."""
    return cosmos3.load(TINY_MODEL, backend="reference")


@pytest.fixture(scope="module")
def picture(pipe) -> cosmos3.Result:
    return pipe("a cup", **PICTURE)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- what is public --------------------------------------------------------------------------------------------------

PUBLIC = {
    "Cancelled": "(asked, found, next_step, field=None)",
    "Cosmos3Error": "(asked, found, next_step, field=None)",
    "InputError": "(asked, found, next_step, field=None)",
    "Pipeline": {
        "__enter__": "()",
        "__call__": "(prompt=None, *, n=None, image=None, video=None, noise=None, output=None, overwrite=False, "
        "on_step=None, progress=None, cancel=None, anyway=False, **fields)",
        "backend": "",
        "close": "()",
        "kernels": "",
        "model": "",
        "plan": "(prompt=None, **fields)",
        "resume": "(path, *, image=None, video=None, keyframe=None, extend=None, edge=None, blur=None, depth=None, "
        "seg=None, wsm=None, tile=None, anyway=False)",
        "start": "(prompt=None, *, image=None, video=None, noise=None, anyway=False, **fields)",
        "why": "",
    },
    "Plan": "(fits, peak_bytes, device_bytes, seconds, step_seconds, stages, kernels, nearest, request, origin, "
    "notes=(), device='', forecast=False, parallel='')",
    "Policy": {
        "act": "(observation)",
        "reset": "()",
        "seconds": "",
    },
    "Preview": {"images": "", "numpy": "", "save": "(path, *, overwrite=False)", "tensor": ""},
    "Result": {
        "actions": "",
        "fps": "",
        "images": "",
        "latents": "",
        "manifest": "",
        "noise": "",
        "numpy": "",
        "request": "",
        "save": "(path, *, manifest=None, latents=None, sound=None, plot=None, sheet=None, overwrite=False)",
        "seed": "",
        "sound": "",
        "sound_rate": "",
        "tensor": "",
    },
    "Run": {
        "actions": "()",
        "__iter__": "()",
        "done": "",
        "finish": "(*, progress=None, cancel=None)",
        "index": "",
        "latents": "",
        "manifest": "",
        "preview": "()",
        "request": "",
        "run": "(*, on_step=None, progress=None, cancel=None)",
        "save": "(path)",
        "seed": "",
        "step": "()",
        "steps": "",
    },
    "RunError": "(asked, found, next_step, field=None)",
    "Stage": "(name, peak_bytes, weight_bytes, seconds)",
    "__version__": "",
    "backends": "()",
    "capabilities": "(model='nvidia/Cosmos3-Nano', *, profile='reference')",
    "forecasts": "(model='nvidia/Cosmos3-Nano', *, backend=None, formats=None, high_precision_steps=None, "
    "kernels=None, dtype=None, profile=None, resident=True, placement=None, **fields)",
    "load": "(model='nvidia/Cosmos3-Nano', *, backend=None, formats=None, high_precision_steps=None, kernels=None, "
    "dtype=None, revision=None, profile=None, resident=True, placement=None, memory_limit=None, parallel=None, "
    "**others)",
    "plan": "(model='nvidia/Cosmos3-Nano', *, backend=None, formats=None, high_precision_steps=None, kernels=None, "
    "dtype=None, profile=None, resident=True, placement=None, device=None, arch=None, memory=None, "
    "host_memory=None, parallel=None, devices=None, objective='latency', **fields)",
    "quantize": "(model='nvidia/Cosmos3-Nano', output=None, *, format, dialect=None, group=None, policy=None, "
    "method='nearest', calibrate=None, sweep=None, keep_share=None, max_error=None, backend=None, revision=None, "
    "overwrite=False, progress=None, **fields)",
    "show": "(path)",
}
"""Every public name with its signature; of a class that callers do not make themselves, its public members. Something
new may be added in a minor version; what is taken away or changed waits for a major one."""


def signature(value) -> str:
    """Without annotations, and without self."""
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(value).parameters.values()]
    return str(inspect.Signature([p for p in parameters if p.name != "self"]))


def members(kind: type) -> dict[str, str]:
    names = [name for name in dir(kind) if not name.startswith("_") or name in ("__call__", "__enter__", "__iter__")]
    names = [name for name in names if name != "__call__" or "__call__" in vars(kind)]
    found = {name: getattr(kind, name) for name in names}
    return {name: "" if isinstance(value, property) else signature(value) for name, value in found.items()}


def test_what_is_public_is_this():
    assert list(PUBLIC) == sorted(cosmos3.__all__) == dir(cosmos3)
    found = {}
    for name, frozen in PUBLIC.items():
        value = getattr(cosmos3, name)
        if isinstance(frozen, dict):
            found[name] = members(value)
        else:
            found[name] = signature(value) if callable(value) else ""
    assert found == PUBLIC


def test_everything_public_says_what_it_does():
    for name in cosmos3.__all__:
        value = getattr(cosmos3, name)
        if name != "__version__":
            assert value.__doc__
        for member in members(value) if isinstance(PUBLIC[name], dict) else ():
            assert getattr(value, member).__doc__ or member in ("__enter__", "__iter__")


def test_importing_it_imports_nothing_heavy():
    program = (
        "import sys, cosmos3; cosmos3.InputError, cosmos3.__version__;"
        "print({'torch', 'numpy', 'PIL', 'diffusers', 'av', 'click'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'cosmos3' has no attribute 'lode'"):
        cosmos3.lode  # noqa: B018


def test_the_module_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "cosmos3", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"cosmos3, version {cosmos3.__version__}")


# --- the same as the command line ------------------------------------------------------------------------------------

OF_THE_RUN = ("started", "seconds", "peak_host_memory_bytes", "output", "sha256")


def comparable(manifest: dict) -> dict:
    return {name: value for name, value in manifest.items() if name not in OF_THE_RUN}


@pytest.mark.parametrize("task", ["t2i", "i2v"])
def test_a_request_gives_the_same_here_and_on_the_command_line(task, picture, capsys, monkeypatch, folder):
    """Latents to the bit, every byte of the pixels, and the manifest but for its times."""
    picture.save("desk.png")
    fields = PICTURE if task == "t2i" else {**CLIP, "image": "desk.png"}
    suffix = "png" if task == "t2i" else "mp4"
    options = [word for name, value in fields.items() for word in (f"--{name}", value)]
    arguments = [
        "--model",
        TINY_MODEL,
        "--backend",
        "reference",
        *options,
        "-o",
        f"a.{suffix}",
        "--save-latents",
        "a.st",
    ]
    code, _, err = command_line(capsys, monkeypatch, "run", "a red cup", *arguments)
    assert code == 0, err
    alike = cosmos3.load(TINY_MODEL, backend="reference", resident=False)
    alike("a red cup", **fields).save(f"b.{suffix}", latents="b.st")
    for name, tensor in load_file("a.st").items():
        assert torch.equal(tensor, load_file("b.st")[name])
    first, second = (json.loads(Path(f"{name}.{suffix}.json").read_text()) for name in "ab")
    assert comparable(first) == comparable(second)
    assert first["seconds"].keys() == second["seconds"].keys()
    inside = [json.loads(read_metadata(Path(f"{name}.{suffix}"))["cosmos3"]) for name in "ab"]
    assert comparable(inside[0]) == comparable(inside[1])
    if task == "t2i":
        assert np.array_equal(*(np.asarray(Image.open(f"{name}.png")) for name in "ab"))


def test_a_run_goes_on_from_python_on_the_command_line_and_back(pipe, capsys, monkeypatch):
    whole = pipe("a cup", **CLIP)
    run = pipe.start("a cup", **CLIP)
    run.step()
    run.save("here.st")
    code, _, err = command_line(capsys, monkeypatch, "run", "--resume", "here.st", "-o", "x.mp4", "--save-latents", "x")
    assert code == 0, err
    assert torch.equal(load_file("x")["final.vision"], whole.latents)

    options = ["--model", TINY_MODEL, "--frames", 5, "--size", "64x64", "--steps", 2, "--seed", 7]
    options += ["--guidance", 1, "-o", "y.mp4"]
    with monkeypatch.context() as patch:
        patch.setattr(Generation, "step", stopping_after(1))
        code, _, err = command_line(capsys, patch, "run", "a cup", *options)
    assert code == 130, err
    there = pipe.resume(Path("y.mp4.state.safetensors"))
    assert (there.index, there.steps, there.seed) == (1, 2, 7)
    assert torch.equal(there.run().latents, whole.latents)


def stopping_after(count: int):
    """Steps of a generation, after so many of which the user presses Ctrl-C."""
    step = Generation.step

    def stop(self):
        if self.begun.index == count:
            raise KeyboardInterrupt
        return step(self)

    return stop


def test_a_result_repeats_its_request(pipe, picture):
    again = pipe(**picture.request)
    assert torch.equal(again.latents, picture.latents) and again.request == picture.request
    assert again.manifest["request"]["seed"] == picture.seed == 7


def test_it_is_the_same_whether_what_was_loaded_stays(picture):
    other = cosmos3.load(TINY_MODEL, backend="reference", resident=False)("a cup", **PICTURE)
    assert torch.equal(other.latents, picture.latents)
    placements = [one.manifest["plan"]["execution"]["placement"] for one in (picture, other)]
    assert [set(one.values()) for one in placements] == [{"resident"}, {"staged"}]


# --- many outputs, threads -------------------------------------------------------------------------------------------


def test_several_outputs_count_seeds_on_and_read_a_prompt_once(pipe, picture):
    first, second, third, _ = pipe(["a cup", {"subject": "a plate"}], n=2, **PICTURE)
    assert [first.seed, second.seed, third.seed] == [7, 8, 9]
    assert torch.equal(first.latents, picture.latents) and not torch.equal(second.latents, first.latents)
    assert torch.equal(second.latents, pipe("a cup", **PICTURE | {"seed": 8}).latents)
    assert "read prompts" in first.manifest["seconds"] and "read prompts" not in second.manifest["seconds"]
    assert [one.manifest["origin"]["seed"] for one in (first, second, third)] == ["user", *["counted on from 7"] * 2]
    assert third.request["prompt"] == '{"subject": "a plate"}'
    assert isinstance(pipe("a cup", n=1, **PICTURE), list)


def test_threads_share_a_pipe(pipe, picture):
    results: dict[int, cosmos3.Result] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: pipe("a cup", **PICTURE | {"seed": 7 + i})}))
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[0].latents, picture.latents) and results[1].seed == 8
    steps = [results[i].manifest["seconds"]["steps"] for i in (0, 1)]
    assert all(results[i].manifest["seconds"]["total"] > steps[i] for i in (0, 1))


def test_two_runs_take_turns(pipe):
    alone = pipe("a plate", **CLIP)
    cup, plate = pipe.start("a cup", **CLIP), pipe.start("a plate", **CLIP)
    assert list(zip(cup, plate, strict=True)) == [(1, 1), (2, 2)]
    assert torch.equal(plate.finish().latents, alone.latents) and plate.finish() is plate.finish()


def test_several_devices_take_a_launcher_and_a_plan_takes_none():
    """Programs that torchrun starts are in tests/parallel."""
    with pytest.raises(cosmos3.InputError) as raised:
        cosmos3.load(TINY_MODEL, backend="reference", parallel="cfg=2,ulysses=2")
    assert raised.value.field == "parallel"
    assert raised.value.found == "it takes 4 processes, and this is one that no launcher has started"
    assert raised.value.next_step == "Start it by srun or mpirun, or type torchrun --nproc-per-node 4 PROGRAM"
    request = {"frames": 5, "size": "80x48", "guidance": 3}
    plan = cosmos3.plan(TINY_MODEL, backend="reference", devices=4, objective="memory", **request)
    assert plan.parallel and f", as {plan.parallel}" in repr(plan)
    assert cosmos3.plan(TINY_MODEL, backend="reference", parallel="cfg=2", **request).parallel == "cfg=2"
    assert cosmos3.plan(TINY_MODEL, backend="reference", **request).parallel == ""
    with pytest.raises(cosmos3.InputError, match="cosmos3.plan\\(devices=N\\).parallel says the best one"):
        cosmos3.load(TINY_MODEL, devices=2)
    with pytest.raises(cosmos3.InputError, match="Here it is `parallel` of cosmos3.load"):
        cosmos3.load(TINY_MODEL, tensor_parallel_size=2)


# --- values as a program has them ------------------------------------------------------------------------------------


def test_values_may_be_those_of_libraries_and_none_is_the_default(pipe, picture):
    forms = [
        {"size": (64, 64), "seed": np.int64(7), "steps": torch.tensor(2)},
        {"size": np.array([64, 64]), "seed": 7.0, "steps": np.float32(2), "shift": None, "image": None},
    ]
    for form in forms:
        assert torch.equal(pipe("a cup", frames=1, guidance=1, **form).latents, picture.latents)
    assert pipe.plan(size="256p:1:1", frames=np.int8(5)).request["size"] == "256x256"
    assert pipe.plan("a cup", system_prompt=np.bool_(True), task="t2v").request["system_prompt"] is True


def test_a_captions_dict_is_its_json(pipe, capsys, monkeypatch):
    caption = {"subjects": "a cup", "actions": ["it falls"]}
    Path("c.json").write_text(json.dumps(caption))
    code, out, _ = command_line(
        capsys, monkeypatch, "run", "@c.json", "--model", TINY_MODEL, "--frames", 1, "--dry-run", "--json"
    )
    assert code == 0
    assert pipe.start(caption, **PICTURE).request["prompt"] == json.loads(out)["request"]["prompt"]


def test_a_picture_in_memory_is_the_picture_in_its_file(pipe, picture):
    picture.save("desk.png")
    from_file = pipe("it moves", image=Path("desk.png"), **CLIP)
    for form in (picture.images[0], picture.numpy[0], picture.tensor[0], Path("desk.png").read_bytes()):
        assert torch.equal(pipe("it moves", image=form, **CLIP).latents, from_file.latents)
    assert pipe("it moves", video=from_file.numpy, frames=9, **SMALL).numpy.shape == (9, 64, 64, 3)


def test_noise_may_be_handed_over_or_be_in_a_file(pipe, picture):
    picture.save("a.png", latents="a.st")
    plain = {"frames": 1, "size": "64x64", "steps": 2, "guidance": 1}
    for noise in ("a.st", Path("a.st"), picture.noise, picture.noise.numpy(), picture.noise[None]):
        assert torch.equal(pipe("a cup", noise=noise, **plain).latents, picture.latents)
    own = pipe("a cup", noise=picture.noise, **plain)
    assert own.manifest["latents"]["file"] == "in memory" and own.seed is own.request["seed"] is None
    assert own.manifest["origin"]["seed"] == "no effect: the noise was given"
    run = pipe.start("a cup", noise=picture.noise, **plain)
    assert run.seed is None and run.step() == 1
    assert torch.equal(pipe.resume(run.save("own.st")).run().latents, picture.latents)
    assert torch.equal(picture.noise, torch.randn(48, 1, 4, 4, generator=torch.Generator().manual_seed(7)))


# --- stopping --------------------------------------------------------------------------------------------------------


def test_a_run_is_cancelled_in_every_stage_and_goes_on(pipe):
    whole, stages = pipe("a cup", **CLIP), []
    for stage in ("read prompts", "steps", "decode"):
        event = threading.Event()

        def progress(name, done, total, event=event, stage=stage):
            stages.append(name)
            if name == stage:
                event.set()

        with pytest.raises(cosmos3.Cancelled) as stop:
            pipe("a cup", cancel=event, progress=progress, **CLIP)
        assert torch.equal(stop.value.run.run().latents, whole.latents)
        assert pickle.loads(pickle.dumps(stop.value)).run is None
    assert {"read prompts", "steps", "decode"} <= set(stages)


def test_an_output_that_was_named_keeps_what_was_computed(pipe):
    event = threading.Event()
    with pytest.raises(cosmos3.Cancelled) as stop:
        pipe("a cup", output="cup.mp4", cancel=event, on_step=lambda run: event.set(), **CLIP)
    assert "1 of 2 steps are kept; go on with pipe.resume('cup.mp4.state.safetensors')" in stop.value.__notes__
    assert [path.name for path in Path().iterdir()] == ["cup.mp4.state.safetensors"]
    result = pipe("a cup", output="cup.png", **SMALL)  # a picture, by its suffix
    assert result.request["task"] == "t2i" and cosmos3.show("cup.png")["request"] == result.request


def test_an_output_that_was_named_is_kept_while_it_is_made(pipe, monkeypatch):
    """A process that is killed loses little; what was kept goes with the result."""
    monkeypatch.setattr(keeping, "EVERY", 0.0)
    seen = []

    def look(run):
        deadline = time.monotonic() + 60
        while not os.path.exists("cup.png.state.safetensors") and time.monotonic() < deadline:
            time.sleep(0.01)
        if run.index == 2:
            seen.append(pipe.resume("cup.png.state.safetensors"))

    result = pipe("a cup", output="cup.png", on_step=look, **SMALL | {"steps": 3})
    assert sorted(os.listdir()) == ["cup.png", "cup.png.json"]
    assert seen[0].index in (1, 2) and torch.equal(seen[0].run().latents, result.latents)


def test_what_on_step_raises_comes_through_with_its_run(pipe, picture):
    def boom(run):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as raised:
        pipe("a cup", on_step=boom, **PICTURE)
    run = raised.value.run
    assert run.index == 1 and run.save("kept.st") == Path("kept.st")
    assert torch.equal(run.run().latents, picture.latents), "and what was asked to stop it is no part of it"


def test_what_was_cancelled_says_where_it_goes_on(pipe):
    for stage, done in (("read prompts", 0), ("decode", 2)):
        event = threading.Event()
        with pytest.raises(cosmos3.Cancelled) as stop:
            pipe("a cup", cancel=event, progress=lambda name, *_, s=stage, e=event: name == s and e.set(), **PICTURE)
        assert stop.value.next_step == f"{done} of 2 steps are done: error.run.run() goes on"
    assert stop.value.run.finish().seed == 7


def test_a_preview_is_the_first_frame_of_what_is_foreseen(pipe):
    run = pipe.start("a cup", **CLIP)
    seen = []
    for step in run:
        run.preview().save(f"{step}.png")
        seen.append(np.asarray(Image.open(f"{step}.png")))
    assert all(pixels.shape == (64, 64, 3) for pixels in seen) and (seen[0] != seen[1]).any()


# --- plan, kernels ---------------------------------------------------------------------------------------------------


def test_a_plan_has_the_commands_numbers(pipe, capsys, monkeypatch):
    _, out, _ = command_line(
        capsys, monkeypatch, "plan", "--model", TINY_MODEL, "--backend", "reference", "--size", "720p", "--json"
    )
    told = json.loads(out)
    sequential = cosmos3.load(TINY_MODEL, backend="reference", resident=False).plan(size="720p")
    memory = told.get("memory") or told["estimate"]["memory"]
    assert sequential.peak_bytes == memory["peak"] and sequential.fits and sequential.nearest == ()
    assert [stage.peak_bytes for stage in sequential.stages] == [stage["peak"] for stage in memory["stages"]]
    assert pipe.plan(size="720p").stages[0].weight_bytes > sequential.stages[0].weight_bytes
    assert pipe.plan(task="i2v").request["task"] == "i2v" and pipe.plan("a cup", image="x.png").request["task"] == "i2v"


def test_a_plan_needs_no_pipe(pipe, monkeypatch):
    told = cosmos3.plan(TINY_MODEL, backend="reference", prompt="a cup", **CLIP)
    assert (told.stages, told.kernels) == (pipe.plan(**CLIP).stages, pipe.kernels) and told.request["prompt"] == "a cup"
    monkeypatch.setattr(importlib.import_module("cosmos3_core.settle.settle"), "open_model", None)
    nano = cosmos3.plan(backend="reference", resident=False, size="720p", image=SHOT)
    assert nano.request["task"] == "i2v" and nano.request["negative_prompt"] is nano.request["prompt"] is None
    with pytest.raises(cosmos3.InputError) as refused:
        cosmos3.plan(TINY_MODEL, backend="reference", stpes=3, n=2)
    assert [fault.next_step for fault in refused.value.faults] == ["Did you mean steps?", "It is an argument of a call"]


def test_a_plan_prints_as_a_few_lines(pipe):
    plan = pipe.plan(**CLIP)
    first, *stages = str(plan).splitlines()
    assert repr(plan) == f"<cosmos3 plan: {first}>" and first.startswith("t2v 64x64, 5 frames, 2 steps: ")
    assert [line.split(":")[0].strip() for line in stages] == [stage.name for stage in plan.stages]
    assert "fits" in first and max(map(len, str(plan).splitlines())) <= 120


def test_a_request_that_does_not_fit_is_refused_before_a_weight_is_read(pipe, monkeypatch):
    monkeypatch.setattr(TensorFiles, "read", lambda *_: pytest.fail("a weight was read"))
    settling = importlib.import_module("cosmos3_core.settle.settle")
    one_by_one = cosmos3.load(TINY_MODEL, backend="reference", resident=False).plan(**CLIP).peak_bytes
    assert pipe.plan(**CLIP).peak_bytes > one_by_one
    for memory, then in ((one_by_one, "Load the model with `resident` False, which fits"), (GIB // 2, "Use a smaller")):
        device = replace(BACKEND.probe(), memory=memory)
        monkeypatch.setattr(settling, "choose_backend", lambda *_, device=device: (BACKEND, device, ""))
        tight = cosmos3.load(TINY_MODEL)
        with pytest.raises(cosmos3.InputError, match="there are") as refused:
            tight("a cup", **CLIP)
        assert refused.value.next_step.startswith(then) and "`anyway`" in refused.value.next_step
        said, apart = str(tight.plan(**CLIP)), memory == one_by_one
        assert "does not fit" in said and said.endswith("\n  `resident` False would fit") is apart
        assert tight.plan(**CLIP).nearest == (("`resident` False",) if apart else ())
        assert not tight.plan(**CLIP).fits and tight.plan(**CLIP).device_bytes == memory
        tight.start("a cup", anyway=True, **CLIP)


def mine(q, segments, *, causal=False, want_lse=False):
    return ops.attention(q, segments, causal=causal, want_lse=want_lse)


def test_a_function_may_serve_an_op_and_is_named(picture):
    pipe = cosmos3.load(TINY_MODEL, backend="reference", kernels={"attention": mine, "gate": "eager"})
    result = pipe("a cup", **PICTURE)
    plan = result.manifest["plan"]
    assert pipe.kernels["attention"] == plan["kernels"]["attention"]
    assert plan["kernels"]["attention"].startswith("mine (yours, ")
    assert plan["named"] == ["attention", "gate"] and torch.equal(result.latents, picture.latents)
    run = pipe.start("a cup", **PICTURE)
    run.step()
    run.save("mine.st")
    with pytest.raises(cosmos3.InputError, match="its attention ran on mine .yours, .*, and here it would be eager"):
        cosmos3.load(TINY_MODEL, backend="reference").resume("mine.st")


def test_every_op_that_is_a_function_may_be_one_of_the_callers():
    backend, named = with_own(BACKEND, {op: getattr(build_ops(), op) for op in PROTOCOLS})
    assert set(named) == set(OPS) - {"memory", "comm"} and all(" (yours" in name for name in named.values())
    assert len(backend.kernels) == len(BACKEND.kernels) + len(named)


def test_a_function_is_known_by_its_code_where_its_file_is_another_by_now():
    text, names = inspect.getsource(mine), {"ops": ops}
    exec(compile(text, "mine.py", "exec"), names)
    Path("mine.py").write_text("x = (\n")
    pipe = cosmos3.load(TINY_MODEL, backend="reference", kernels={"attention": names["mine"]})
    assert re.fullmatch(r"mine \(yours, [0-9a-f]{8}\)", pipe.kernels["attention"])


def broken(q, segments, *, causal=False, want_lse=False):
    return q.view(-1, 3, 7), None


def test_a_function_that_fails_is_named():
    pipe = cosmos3.load(TINY_MODEL, backend="reference", kernels={"attention": broken})
    with pytest.raises(cosmos3.RunError, match=r"attention=broken \(yours, .*\): .*RuntimeError") as failed:
        pipe("a cup", **PICTURE)
    assert failed.value.next_step == "Correct it, or drop it from `kernels`"
    with pytest.raises(ZeroDivisionError):  # what is no kernel's is not said to be
        pipe("a cup", progress=lambda stage, done, total: 1 // 0, **PICTURE)


def test_a_result_can_be_sent_to_another_process(picture):
    there = pickle.loads(pickle.dumps(picture))
    assert torch.equal(there.tensor, picture.tensor) and there.save("there.png") == Path("there.png")
    assert cosmos3.show("there.png")["request"] == picture.request


def test_a_run_of_a_folder_goes_on_by_any_name_of_the_folder(folder):
    (folder / "model").symlink_to(TINY)
    run = cosmos3.load(TINY, backend="reference").start("a cup", **PICTURE)
    run.step()
    assert cosmos3.load("model", backend="reference").resume(run.save("run.st")).index == 1


# --- wrong calls -----------------------------------------------------------------------------------------------------

LOAD = {
    "model a number": ({"model": 3}, "model = 3", "pathlib.Path"),
    "model None": ({"model": None}, "model = None", "pathlib.Path"),
    "model empty": ({"model": ""}, "model = ''", "pathlib.Path"),
    "model unknown": ({"model": "no/such/folder/at/all"}, "no/such/folder/at/all", ""),
    "model a file": ({"model": __file__}, Path(__file__).name, ""),
    "revision a number": ({"revision": 3}, "revision = 3", "as a string"),
    "revision of a folder": ({"revision": "main"}, "", ""),
    "backend unknown": ({"backend": "no-such"}, "no-such", "reference"),
    "backend a number": ({"backend": 0}, "backend = 0", "as a string"),
    "dtype unknown": ({"dtype": "float8"}, "float8", "bfloat16"),
    "dtype of torch": ({"dtype": torch.int8}, "int8", "bfloat16"),
    "dtype a number": ({"dtype": 16}, "dtype = 16", "as a string"),
    "formats a text": ({"formats": "fp8"}, "formats = 'fp8'", "as a dict"),
    "format unknown": ({"formats": {"pack_linear": "fp3"}}, "fp3", ""),
    "format of no op": ({"formats": {"linear": "fp8"}}, "linear", "attention"),
    "format a number": ({"formats": {"pack_linear": 8}}, "pack_linear=8", ""),
    "steps in 16 bits without a format": ({"high_precision_steps": "2,2"}, "`high_precision_steps`", "Drop it"),
    "steps in 16 bits that are no text": ({"high_precision_steps": (2, 2)}, "high_precision_steps = (2, 2)", "as a st"),
    "steps in 16 bits of one end": ({"high_precision_steps": "2"}, "`high_precision_steps` 2", "Write FIRST,LAST"),
    "kernels a text": ({"kernels": "eager"}, "kernels = 'eager'", "as a dict"),
    "kernels a list": ({"kernels": [mine]}, "kernels = [", "as a dict"),
    "kernel unknown": ({"kernels": {"attention": "no-such"}}, "no-such", "eager"),
    "kernel of no op": ({"kernels": {"attn": mine}}, "attn", "attention"),
    "kernel a number": ({"kernels": {"attention": 3}}, "kernels['attention'] = 3", "backends()"),
    "kernel None": ({"kernels": {"attention": None}}, "kernels['attention'] = None", "backends()"),
    "kernel of too few arguments": ({"kernels": {"attention": lambda q: q}}, "<lambda>", "Attention.__call__"),
    "kernel without causal": ({"kernels": {"attention": lambda q, s: q}}, "<lambda>", "Attention.__call__"),
    "kernel of methods": ({"kernels": {"memory": mine}}, "kernels['memory'] = mine", "backend"),
    "own kernel in a format": (
        {"kernels": {"attention": mine}, "formats": {"attention": "fp8"}},
        "attention",
        "",
    ),
    "profile unknown": ({"profile": "comfyui"}, "comfyui", "reference"),
    "profile a number": ({"profile": 1}, "profile = 1", "as a string"),
    "resident a text": ({"resident": "yes"}, "resident = 'yes'", "True or False"),
    "a dtype by another name": ({"torch_dtype": "bfloat16"}, "load(torch_dtype='bfloat16')", "`dtype` of"),
    "a device by another name": ({"device": "cpu"}, "load(device='cpu')", "`backend` of"),
    "a map of devices": ({"device_map": "auto"}, "device_map", "`backend` of"),
    "formats by another name": (
        {"quantization": "fp8"},
        "quantization",
        '`formats` of cosmos3.load, such as {"pack_li',
    ),
    "offload": ({"offload": True}, "offload", "`resident` False"),
    "a field of a request": ({"steps": 3}, "load(steps=3)", "It is an argument of a call"),
    "no such argument": ({"bakend": "cpu"}, "load(bakend='cpu')", "Did you mean backend?"),
    "quantize's argument": ({"format": "fp8"}, "load(format='fp8')", "Here it is `formats` of cosmos3.load, such as"),
}


@pytest.mark.parametrize("name", LOAD)
def test_a_wrong_load_is_refused(name):
    arguments, asked, then = LOAD[name]
    given = {"model": TINY_MODEL, "backend": "reference"} | arguments
    try:
        pipe = cosmos3.load(given.pop("model"), **given)
        pipe.plan(frames=5)  # a profile is looked up with the first request
    except cosmos3.InputError as error:
        check(error, asked, then)
    else:
        pytest.fail("it was taken")


def check(error: cosmos3.Cosmos3Error, asked: str, then: str) -> None:
    assert asked in str(error) and then in error.next_step, str(error)
    assert error.asked and error.found and error.next_step and "--" not in str(error).replace("no--", "")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


SHOT = Image.new("RGB", (64, 64), "white")


def two(a, b):
    return None


class Wordless:
    def __repr__(self):
        raise ValueError("it cannot be written")


CALLS = {
    "no prompt": ({"prompt": None}, "prompt", ""),
    "empty prompt": ({"prompt": " "}, "an empty prompt", "Describe"),
    "prompt a number": ({"prompt": 3}, "prompt = 3", "as a string"),
    "prompt bytes": ({"prompt": b"a cup"}, "prompt = b'a cup'", "as a string"),
    "prompt a set": ({"prompt": {"a cup"}}, "prompt", "as a string"),
    "prompt with NUL": ({"prompt": "a\0cup"}, "NUL", "UTF-8"),
    "prompt an empty dict": ({"prompt": {}}, "prompt", ""),
    "prompt no JSON": ({"prompt": {"a": object()}}, "prompt as a dict", "Give text"),
    "prompt with NaN": ({"prompt": {"a": float("nan")}}, "prompt as a dict", "Give text"),
    "no prompts": ({"prompt": []}, "empty list of prompts", "Give a prompt"),
    "a prompt of several is wrong": ({"prompt": ["a cup", 3]}, "prompt = 3", "as a string"),
    "negative prompt a list": ({"negative_prompt": ["x"]}, "a run has one", "as a string"),
    "prompt a list as text": ({"prompt": '["a cup"]'}, "it is a JSON list", "Give prose"),
    "prompt no JSON after all": ({"prompt": "{'caption': 'a cup'}"}, "it looks like JSON", "Give prose"),
    "prompt a whole request": ({"prompt": {"prompt": "a cup", "steps": 3}}, "it is a whole request", "only its prompt"),
    "negative prompt no JSON": ({"negative_prompt": '{"a": 1,}', "guidance": 4}, "it looks like JSON", "Give prose"),
    "unknown field": ({"heights": 64}, "heights", ""),
    "field of another library": ({"num_inference_steps": 3}, "num_inference_steps", "Here it is `steps`"),
    "outputs by another name": ({"num_videos_per_prompt": 2}, "num_videos_per_prompt", "Here it is `n` of a call"),
    "noise by another name": ({"latents": torch.zeros(1)}, "latents", "Here it is `noise`"),
    "a hook by another name": ({"callback_on_step_end": two}, "callback_on_step_end", "Here it is `on_step`"),
    "a generator by its name": ({"generator": torch.Generator()}, "generator", "generator.initial_seed()"),
    "the form of the output": ({"output_type": "np"}, "output_type", "Every result has .images"),
    "an argument misspelt": ({"cancle": None, "nois": 3}, "nois", "Did you mean noise?"),
    "an argument of loading": ({"backend": "cpu"}, "backend", "It is an argument of cosmos3.load"),
    "what is not yet": ({"lora": "x"}, "lora", "Not yet: LoRA"),
    "task unknown": ({"task": "t2x"}, "t2x", "t2v"),
    "task a list": ({"task": ["t2v"]}, "t2v", ""),
    "size words": ({"size": "large"}, "size 'large'", "WIDTHxHEIGHT"),
    "size odd": ({"size": (65, 64)}, "size", "64x64"),
    "size of three": ({"size": (64, 64, 3)}, "size", "WIDTHxHEIGHT"),
    "size of floats": ({"size": (64.5, 64)}, "size", "WIDTHxHEIGHT"),
    "size a number": ({"size": 64}, "size 64", "WIDTHxHEIGHT"),
    "tier unknown": ({"size": "999p"}, "999p", "720p"),
    "frames between": ({"frames": 10}, "10 frames", "9 and 13"),
    "frames none": ({"frames": 0}, "frames = 0", "1 to"),
    "frames a text": ({"frames": "five"}, "frames = 'five'", "whole number"),
    "frames a switch": ({"frames": True}, "frames = True", "whole number"),
    "frames an array": ({"frames": np.array([5, 9])}, "frames", "whole number"),
    "steps none": ({"steps": 0}, "steps = 0", "1 to"),
    "steps half": ({"steps": 2.5}, "steps = 2.5", "whole number"),
    "seed negative": ({"seed": -2}, "seed = -2", ""),
    "seed too large": ({"seed": 2**64}, "seed", "0 to"),
    "seeds count too far": ({"seed": 2**64 - 1, "n": 2}, "seed", "0 to"),
    "seed a generator": ({"seed": torch.Generator().manual_seed(7)}, "seed", "generator.initial_seed(), here 7"),
    "seed a list": ({"seed": [1, 2]}, "a run has one seed", "count on from it"),
    "guidance NaN": ({"guidance": float("nan")}, "guidance = nan", "0 to 20"),
    "guidance a tensor": ({"guidance": torch.ones(2)}, "guidance", "0 to 20"),
    "fps of a picture": ({"fps": 12}, "fps", "Drop"),
    "schedule unknown": ({"schedule": "euler"}, "euler", "karras"),
    "schedule of others": ({"schedule": "distilled"}, "distilled", ""),
    "interval backwards": ({"guidance_interval": (900, 100)}, "guidance_interval", "Did you mean"),
    "tile odd": ({"tile": 100}, "tile = 100", "256"),
    "tile of no use": ({"tile": 256}, "tile = 256", "Drop tile"),
    "indices of no clip": ({"condition_frame_indexes": [0]}, "condition_frame_indexes", "Drop"),
    "a switch as text": ({"system_prompt": "yes"}, "system_prompt", "true or false"),
    "n none": ({"n": 0}, "n = 0", "1 to"),
    "n a text": ({"n": "3"}, "n = '3'", "1 to"),
    "image missing": ({"image": "no.png", "frames": 5}, "no.png", ""),
    "image a folder": ({"image": Path(), "frames": 5}, "", ""),
    "image a number": ({"image": 3, "frames": 5}, "image", "PIL"),
    "image NaN": ({"image": np.full((8, 8, 3), np.nan), "frames": 5}, "image", "finite"),
    "image of no picture": ({"image": b"abc", "frames": 5}, "3 bytes", "PNG"),
    "image of four axes": ({"image": np.zeros((1, 8, 8, 3), np.uint8), "frames": 5}, "image", "x[0]"),
    "image empty": ({"image": np.zeros((0, 8, 3), np.uint8), "frames": 5}, "image", ""),
    "image of a t2i": ({"task": "t2i", "image": SHOT, "frames": 1}, "image", ""),
    "image and video": ({"image": SHOT, "video": [SHOT], "frames": 5}, "image", "Drop one"),
    "video of no frames": ({"video": [], "frames": 9}, "video", ""),
    "video too short": ({"video": [SHOT], "frames": 9}, "video", "longer clip"),
    "video of two sizes": ({"video": [SHOT, SHOT.resize((32, 32))], "frames": 9}, "video", "one size"),
    "video a picture": ({"video": SHOT, "frames": 9}, "video", ""),
    "i2v without its picture": ({"task": "i2v", "frames": 5}, "i2v", "image"),
    "noise of another shape": ({"noise": torch.zeros(48, 1, 4, 5), "seed": None}, "noise", "same size"),
    "noise NaN": ({"noise": torch.full((48, 1, 4, 4), torch.nan), "seed": None}, "noise", ""),
    "noise a text": ({"noise": "no.st", "seed": None}, "no.st", ""),
    "noise words": ({"noise": object(), "seed": None}, "noise of type object", "tensor"),
    "noise ragged": ({"noise": [[1], [1, 2]], "seed": None}, "noise of type list", "tensor"),
    "noise with a seed": ({"noise": torch.zeros(48, 1, 4, 4)}, "`seed` 7", "Drop one"),
    "noise for several": ({"noise": torch.zeros(48, 1, 4, 4), "seed": None, "n": 2}, "noise with several", "Call once"),
    "on_step a number": ({"on_step": 3}, "on_step = 3", "1 argument"),
    "on_step of two": ({"on_step": two}, "on_step", "1 argument"),
    "progress of two": ({"progress": two}, "progress", "3 arguments"),
    "cancel a number": ({"cancel": 3}, "cancel", "Event"),
    "output a number": ({"output": 3}, "output = 3", "pathlib.Path"),
    "output of another kind": ({"output": "cup.mp4"}, "cup.mp4", "cup.png"),
    "output a folder": ({"output": "."}, "it is a folder", "out.png"),
    "output the root": ({"output": "/"}, "it is a folder", "out.png"),
    "overwrite a text": ({"output": "cup.png", "overwrite": "no"}, "overwrite = 'no'", "True or False"),
    "cancel that has no words": ({"cancel": Wordless()}, "<Wordless", "Event"),
    "output without a folder": ({"output": "no/cup.png"}, "no/cup.png", "mkdir"),
    "output of several": ({"output": "cup.png", "n": 2}, "output with several", "save()"),
}


@pytest.fixture(scope="module")
def unread() -> cosmos3.Pipeline:
    return cosmos3.load(TINY_MODEL, backend="reference")


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_refused_before_a_weight_is_read(name, unread, monkeypatch, folder):
    monkeypatch.setattr(TensorFiles, "read", lambda *_: pytest.fail("a weight was read"))
    arguments, asked, then = CALLS[name]
    with pytest.raises(cosmos3.InputError) as refused:
        unread(**{"prompt": "a cup", **PICTURE} | arguments)
    check(refused.value, asked, then)
    assert list(folder.iterdir()) == [], "and it leaves nothing behind"


def test_all_faults_of_a_call_are_told_at_once_and_name_their_fields(unread):
    with pytest.raises(cosmos3.InputError) as refused:
        unread("a cup", frames=10, size="large", heigth=3)
    assert str(refused.value).startswith("3 faults in one request:")
    assert [fault.field for fault in refused.value.faults] == ["frames", "size", "heigth"]
    assert refused.value.field == "frames" and pickle.loads(pickle.dumps(refused.value)).faults[2].field == "heigth"
    fields = {"steps": 0, "seed": "x", "image": 3, "n": 0, "output": 3, "frames": 10, "profile": "x", "latents": 3}
    fields |= {"output": "no/a.mp4", "noise": "no.st", "prompt": None, "negative_prompt": "[[]]", "video": "no.mp4"}
    for field, value in (fields | {"image": "no.png"}).items():
        with pytest.raises(cosmos3.InputError) as refused:
            unread(**{"prompt": "a cup", "frames": 9, field: value})
        assert refused.value.field == field and refused.value.faults == (refused.value,), refused.value
        assert pickle.loads(pickle.dumps(refused.value)).field == field
    with pytest.raises(cosmos3.InputError) as refused:
        unread("a cup", task="i2v", steps=0)
    assert [fault.field for fault in refused.value.faults] == ["steps", "image"]
    wrong = {"model": "no-such", "backend": "no", "dtype": "int8", "profile": 3, "revision": "x", "resident": 3}
    wrong |= {"kernels": {"attention": "x"}, "formats": {"pack_linear": "x"}, "bakend": 3}
    wrong |= {"high_precision_steps": "2,2"}
    several = [("kernels", {"attn": mine}), ("kernels", {"attn": "eager"}), ("kernels", {"attention": lambda q: q})]
    for field, value in [*wrong.items(), *several]:
        with pytest.raises(cosmos3.InputError) as refused:
            cosmos3.load(**{"model": TINY_MODEL, "backend": "reference", field: value})
        assert refused.value.field == field, refused.value


def test_what_each_place_takes_is_what_its_function_takes():
    places = {words.CALL: cosmos3.Pipeline.__call__, words.START: cosmos3.Pipeline.start, words.LOAD: cosmos3.load}
    places |= {words.PLAN: cosmos3.plan, words.FORECASTS: cosmos3.forecasts, words.OF_A_PIPE: cosmos3.Pipeline.plan}
    for place, function in places.items():
        named = {p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD}
        fields = set() if place == words.LOAD else set(FIELDS)
        assert set(words.TAKES[place]) == (named | fields) - {"self"}


def test_an_attribute_of_another_library_is_answered(pipe, picture):
    answers = {
        (pipe, "to"): "Here it is `backend` of cosmos3.load",
        (pipe, "enable_model_cpu_offload"): "`resident` False of cosmos3.load",
        (pipe, "enable_vae_tiling"): "Not here: tiles are taken",
        (pipe, "scheduler"): "Here it is `schedule`",
        (pipe, "frames"): "It is an argument of a call",
        (pipe, "vae"): "It has backend, close,",
        (picture, "frames"): "It has actions, fps, images,",
        (picture, "image"): "Did you mean images?",
        (pipe.start("a cup", **PICTURE), "result"): "It has actions, done, finish,",
    }
    for (value, name), answer in answers.items():
        with pytest.raises(AttributeError, match=f"has no '{name}'") as raised:
            getattr(value, name)
        assert answer in str(raised.value)
    assert not hasattr(pipe, "_repr_html_") and copy.copy(picture).seed == 7
    for use in (lambda: picture[0], lambda: list(picture)):
        with pytest.raises(TypeError, match="its frames are in .images"):
            use()


def test_a_closed_pipe_frees_its_model_and_refuses_runs(picture, loaded):
    with cosmos3.load(TINY_MODEL, backend="reference") as pipe:
        run = pipe.start("a cup", **PICTURE)
        run.step()
        assert loaded.alive == ["generation", "understanding"]
    assert loaded.alive == ["generation"], "the run holds it"
    for use in (lambda: pipe("a cup", **PICTURE), lambda: pipe.start("a cup"), lambda: pipe.resume("x.st")):
        with pytest.raises(cosmos3.InputError, match="closed pipe"):
            use()
    assert torch.equal(run.run().latents, picture.latents) and not loaded.alive
    pipe.close()


def test_the_table_is_long_enough():
    assert len(LOAD) + len(CALLS) + len(USES) >= 80


def saved_run(pipe: cosmos3.Pipeline) -> str:
    run = pipe.start("a cup", **PICTURE)
    run.step()
    return str(run.save("run.st"))


def finished(pipe: cosmos3.Pipeline) -> cosmos3.Run:
    run = pipe.start("a cup", **PICTURE)
    run.run()
    return run


def of_another_kind(pipe: cosmos3.Pipeline, **other) -> None:
    cosmos3.load(TINY_MODEL, backend="reference", **other).resume(saved_run(pipe))


def changed_file(pipe: cosmos3.Pipeline) -> None:
    name = saved_run(pipe)
    data = bytearray(Path(name).read_bytes())
    Path(name).write_bytes(data[: len(data) // 2])
    pipe.resume(name)


def resumed_without_its_picture(pipe: cosmos3.Pipeline, **other) -> None:
    run = pipe.start("a cup", image=SHOT, **CLIP)
    run.step()
    pipe.resume(run.save("run.st"), **other)


USES = {
    "a step too many": (lambda pipe: finished(pipe).step(), "step 3", "Finish"),
    "finished too early": (lambda pipe: pipe.start("a cup", **PICTURE).finish(), "finishing", "run()"),
    "a preview too early": (lambda pipe: pipe.start("a cup", **PICTURE).preview(), "preview", "Take a step"),
    "saved too early": (lambda pipe: pipe.start("a cup", **PICTURE).save("x.st"), "0 steps", "Take a step"),
    "saved over a file": (lambda pipe: pipe.start("a cup", **PICTURE).save(__file__), "writing", "another name"),
    "saved to a number": (lambda pipe: pipe.start("a cup", **PICTURE).save(3), "path = 3", "pathlib.Path"),
    "saved to no folder": (lambda pipe: pipe.start("a cup", **PICTURE).save("no/x.st"), "no/x.st", "mkdir"),
    "a list started": (lambda pipe: pipe.start(["a", "b"], **PICTURE), "list of 2 prompts", "Start one for each"),
    "a run copied": (lambda pipe: copy.deepcopy(pipe.start("a cup", **PICTURE)), "pickling a run", "save(path)"),
    "a pipe pickled": (lambda pipe: pickle.dumps(pipe), "pickling a pipe", "Load it"),
    "on_step of no argument": (
        lambda pipe: pipe.start("a cup", **PICTURE).run(on_step=lambda: None),
        "on_step",
        "1 argument",
    ),
    "cancel without is_set": (lambda pipe: pipe.start("a cup", **PICTURE).run(cancel="now"), "cancel", "Event"),
    "resumed a missing file": (lambda pipe: pipe.resume("no.st"), "no.st", ""),
    "resumed a number": (lambda pipe: pipe.resume(3), "path = 3", "pathlib.Path"),
    "resumed a text": (lambda pipe: pipe.resume(__file__), "test_python_api.py", ""),
    "resumed half a file": (changed_file, "run.st", ""),
    "resumed in another dtype": (functools.partial(of_another_kind, dtype="float32"), "run.st", "Load the dtype"),
    "resumed without its picture": (resumed_without_its_picture, "image", "again"),
    "resumed with another picture": (
        functools.partial(resumed_without_its_picture, image=Image.new("RGB", (64, 64), "red")),
        "run.st",
        "Put the old",
    ),
    "resumed with a tile of no use": (lambda pipe: pipe.resume(saved_run(pipe), tile=256), "tile", "Drop"),
    "planned a wrong size": (lambda pipe: pipe.plan(size="large"), "large", "WIDTHxHEIGHT"),
    "planned an unknown field": (lambda pipe: pipe.plan(heigth=3), "heigth", ""),
    "a result saved as another kind": (lambda pipe: pipe("a cup", **PICTURE).save("x.mp4"), "x.mp4", "x.png"),
    "a result saved without a suffix": (lambda pipe: pipe("a cup", **PICTURE).save("x"), "writing x", "x.png"),
    "a result saved with a word": (
        lambda pipe: pipe("a cup", **PICTURE).save("x.png", overwrite="no"),
        "overwrite = 'no'",
        "True or False",
    ),
    "a preview saved with a word": (
        lambda pipe: next(run.preview() for run in [pipe.start("a cup", **CLIP)] if run.step()).save(
            "x.png", overwrite=0
        ),
        "overwrite = 0",
        "True or False",
    ),
    "a result saved to None": (lambda pipe: pipe("a cup", **PICTURE).save(None), "path = None", "pathlib.Path"),
    "a result saved over its manifest": (
        lambda pipe: pipe("a cup", **PICTURE).save("x.png", manifest="x.png"),
        "writing x.png",
        "another file name",
    ),
    "a preview saved as a clip": (
        lambda pipe: next(run.preview() for run in [pipe.start("a cup", **CLIP)] if run.step()).save("x.mp4"),
        "x.mp4",
        "x.png",
    ),
    "shown a missing file": (lambda pipe: cosmos3.show("no.png"), "no.png", ""),
    "shown a number": (lambda pipe: cosmos3.show(3), "path = 3", "pathlib.Path"),
    "shown a file without one": (lambda pipe: (SHOT.save("x.png"), cosmos3.show("x.png")), "x.png", "cosmos3 run"),
    "asked of no model": (lambda pipe: cosmos3.capabilities("no-such-model"), "no-such-model", ""),
    "asked of a number": (lambda pipe: cosmos3.capabilities(3), "model = 3", "pathlib.Path"),
    "asked of no profile": (lambda pipe: cosmos3.capabilities(TINY_MODEL, profile="comfyui"), "comfyui", "reference"),
    "noise of a stranger's file": (
        lambda pipe: (
            save_file({"x": torch.zeros(1)}, "x.st"),
            pipe("a cup", noise="x.st", frames=1),
        ),
        "x.st",
        "",
    ),
}


@pytest.mark.parametrize("name", USES)
def test_a_wrong_use_is_refused(name, pipe):
    use, asked, then = USES[name]
    with pytest.raises(cosmos3.InputError) as refused:
        use(pipe)
    check(refused.value, asked, then)


def test_a_web_handler_gets_bytes(picture):
    data = io.BytesIO()
    picture.images[0].save(data, "PNG")
    assert np.array_equal(np.asarray(Image.open(data)), picture.numpy[0])
