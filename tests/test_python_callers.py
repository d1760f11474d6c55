"""What a program may do to `import cosmos3`: its own threads, functions, tensors, and whatever it has set of torch."""

from __future__ import annotations

import functools
import json
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import cosmos3 as command_line
from PIL import Image
from tiny_model import TINY_MODEL

import cosmos3
from cosmos3_core.engine import stages
from cosmos3_core.reference import ops

PICTURE = {"frames": 1, "size": "64x64", "steps": 2, "guidance": 1, "seed": 7}
CLIP = {**PICTURE, "frames": 5}
UNSEEDED = {name: value for name, value in PICTURE.items() if name != "seed"}


@pytest.fixture(scope="module")
def pipe() -> cosmos3.Pipeline:
    return cosmos3.load(TINY_MODEL, backend="reference")


@pytest.fixture(scope="module")
def picture(pipe) -> cosmos3.Result:
    return pipe("a cup", **PICTURE)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- threads and functions of the caller -----------------------------------------------------------------------------


def waited_for(work) -> None:
    """Do something in another thread. What hangs fails, instead of the whole suite with it."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for the caller, who waits for it"


@pytest.mark.parametrize("stage", ["read prompts", "steps", "decode"])
def test_progress_may_wait_for_a_thread_that_uses_the_pipe(stage, pipe, picture):
    others = []

    def progress(name, done, total):
        if name == stage and not others:
            others.append(None)
            waited_for(lambda: others.append(pipe("a cup", **PICTURE)))

    result = pipe("a cup", progress=progress, **PICTURE)
    assert torch.equal(result.latents, picture.latents) and torch.equal(others[1].latents, picture.latents)


def test_progress_and_cancel_may_wait_for_a_thread_that_uses_the_same_run(pipe, picture):
    run, others = pipe.start("a cup", **PICTURE), []

    def ask(*_):
        if run.index == 1 and not others:
            others.append(None)
            waited_for(lambda: (run.preview(), run.save("half.st"), others.append(run.run())))
        return False

    result = run.run(cancel=ask, progress=ask)
    assert others[1] is result and torch.equal(result.latents, picture.latents)
    assert torch.equal(pipe.resume("half.st").run().latents, picture.latents)


def test_an_interrupt_while_others_have_their_turn_leaves_the_lock_as_it_was():
    turn, taken, main = stages.Turn(), threading.Event(), threading.get_ident()

    def other():
        with turn:
            taken.set()
            threading.Event().wait(0.2)  # in which the first waits for its turn
            signal.pthread_kill(main, signal.SIGINT)
            threading.Event().wait(0.2)

    with pytest.raises(KeyboardInterrupt), turn, turn, turn.handed_on():
        threading.Thread(target=other, daemon=True).start()
        taken.wait(30)
    waited_for(turn.__enter__)


def test_the_time_of_the_callers_functions_is_no_stages(pipe, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(stages, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def progress(name, done, total):
        clock[0] += 100

    seconds = pipe("a cup", progress=progress, **PICTURE).manifest["seconds"]
    assert seconds.keys() >= {"read prompts", "steps", "decode"} and {seconds["steps"], seconds["decode"]} == {0.0}


def test_several_threads_share_the_steps_of_a_run(pipe, picture):
    whole, run, results = pipe("a cup", **PICTURE | {"steps": 5}), pipe.start("a cup", **PICTURE | {"steps": 5}), []
    gate = threading.Barrier(3)

    def work():
        gate.wait(30)
        results.append(run.run())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3 and {id(result) for result in results} == {id(results[0])}
    assert torch.equal(results[0].latents, whole.latents)


async def later(*_):
    return None


def pieces(*_):
    yield


class Later:
    async def __call__(self, *_):
        return None


@pytest.mark.parametrize("name", ["on_step", "progress"])
@pytest.mark.parametrize("function", [later, pieces, Later(), functools.partial(later, 1)])
def test_a_function_that_would_not_run_is_refused(name, function, pipe):
    with pytest.raises(cosmos3.InputError, match=f"{name} = .*async or a generator"):
        pipe("a cup", **{name: function}, **PICTURE)


class Answers:
    def is_set(self):
        return np.array([True, False])


@pytest.mark.parametrize("cancel", [threading.Event, Answers(), lambda: None, lambda one: False, later])
def test_a_cancel_that_does_not_answer_is_found_before_the_first_step(cancel, pipe):
    with pytest.raises(cosmos3.InputError, match="cancel"):
        pipe("a cup", cancel=cancel, on_step=lambda run: pytest.fail("a step was taken"), **PICTURE)


# --- tensors of the caller -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [torch.clone, lambda noise: noise.clone().numpy()])
def test_noise_may_change_after_the_call(form, pipe, picture):
    noise = form(picture.noise)
    run = pipe.start("a cup", noise=noise, **UNSEEDED)
    noise *= 0
    result = run.run()
    assert torch.equal(result.latents, picture.latents) and torch.equal(result.noise, picture.noise)


def test_what_is_handed_out_is_the_callers(pipe, picture):
    result = pipe("a cup", **PICTURE)
    run = pipe.start("a cup", **PICTURE)
    run.step()
    for tensor in (result.latents, result.noise, result.tensor, run.preview().tensor, run.latents):
        assert not tensor.is_inference() and tensor.mul_(1) is tensor
    for of in (result, run):
        of.manifest["request"]["seed"] = of.request["seed"] = 3
        of.manifest.clear()
        assert of.manifest["request"]["seed"] == of.request["seed"] == 7
    result.latents.zero_(), result.noise.zero_()
    assert torch.equal(result.latents, picture.latents) and torch.equal(result.noise, picture.noise)


NOISES = {
    "complex": lambda noise: noise.to(torch.complex64),
    "complex array": lambda noise: noise.numpy().astype("c8"),
    "of no memory": lambda noise: noise.to("meta"),
    "sparse": lambda noise: noise.to_sparse(),
}


@pytest.mark.parametrize("name", NOISES)
def test_noise_that_is_no_plain_tensor_is_refused(name, pipe, picture):
    with pytest.raises(cosmos3.InputError) as refused:
        pipe("a cup", noise=NOISES[name](picture.noise), **UNSEEDED)
    assert refused.value.field == "noise"


EMPTY = Image.new("RGB", (0, 0))
INPUTS = {
    "an empty picture": {"image": EMPTY},
    "a clip of empty pictures": {"video": [EMPTY] * 9},
    "of no memory": {"image": torch.zeros(8, 8, 3, device="meta")},
    "sparse": {"image": torch.zeros(8, 8, 3).to_sparse()},
    "a clip of no memory": {"video": torch.zeros(9, 8, 8, 3, device="meta")},
}


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_without_pixels_is_refused(name, pipe):
    with pytest.raises(cosmos3.InputError, match="it is "):
        pipe.start("a cup", **{**CLIP, "frames": 13} | INPUTS[name])


# --- what a program has set of torch ---------------------------------------------------------------------------------

SET = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("name", SET)
def test_a_run_is_the_same_whatever_torch_is_set_to(name, pipe, picture):
    with SET[name]():
        result = cosmos3.load(TINY_MODEL, backend="reference")("a cup", **PICTURE)
        again = pipe("a cup", noise=picture.noise.tolist(), **UNSEEDED)
        run = pipe.start("it moves", image=result.images[0], **CLIP)
        run.step()
        rest = pipe.resume(run.save("half.st"), image=result.images[0]).run()
    assert torch.equal(result.latents, picture.latents) and torch.equal(again.latents, picture.latents)
    assert torch.equal(rest.latents, pipe("it moves", image=result.images[0], **CLIP).latents)
    assert not result.tensor.is_inference() and not result.latents.is_inference()


def test_another_default_dtype_is_refused(pipe):
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(cosmos3.RunError, match="torch.set_default_dtype"):
            pipe("a cup", **PICTURE)
    finally:
        torch.set_default_dtype(torch.float32)


# --- requests given back, files, arguments ---------------------------------------------------------------------------


def test_the_request_of_a_run_with_noise_is_not_repeated_with_another(pipe, picture):
    result = pipe("a cup", noise=picture.noise, **UNSEEDED)
    with pytest.raises(cosmos3.InputError, match="whose noise was given"):
        pipe(**result.request)
    assert torch.equal(pipe(noise=result.noise, **result.request).latents, picture.latents)
    assert pipe(**result.request | {"seed": 3}).seed == 3


@pytest.mark.parametrize("profile", ["vllm-omni", "sglang", "diffusers"])
def test_a_request_is_repeated_under_another_profile(profile, pipe, picture, capsys, monkeypatch):
    """Also what it says only because its own profile filled it, and what has no effect in it."""
    other = cosmos3.load(TINY_MODEL, backend="reference", profile=profile)
    theirs = other("a cup", **PICTURE)
    assert torch.equal(other(**picture.request).latents, picture.latents)
    assert torch.equal(pipe(**theirs.request).latents, theirs.latents)
    Path("theirs.json").write_text(json.dumps(theirs.request))
    arguments = ["--request", "theirs.json", "--model", TINY_MODEL, "--backend", "reference", "-o", "ours.png"]
    code, _, err = command_line(capsys, monkeypatch, "run", *arguments)
    assert code == 0, err
    with pytest.raises(cosmos3.InputError, match="Drop tile"):  # no profile fills it
        pipe(**theirs.request | {"tile": 256})


def test_a_run_overwrites_its_own_file_only(pipe):
    cup, plate = pipe.start("a cup", **PICTURE), pipe.start("a plate", **PICTURE)
    cup.step(), plate.step()
    cup.save("run.st")
    cup.save("run.st")
    Path("run.st").unlink()
    plate.save("run.st")
    kept = Path("run.st").read_bytes()
    with pytest.raises(cosmos3.InputError, match="there is a file of that name"):
        cup.save("run.st")
    assert Path("run.st").read_bytes() == kept


WRONG = {
    "load": lambda pipe, result: cosmos3.load(TINY_MODEL, "reference"),
    "pipe": lambda pipe, result: pipe("a cup", "a plate"),
    "start": lambda pipe, result: pipe.start("a cup", "a plate"),
    "resume": lambda pipe, result: pipe.resume("x.st", nise=3),
    "run": lambda pipe, result: pipe.start("a cup", **PICTURE).run(on_stp=None),
    "finish": lambda pipe, result: pipe.start("a cup", **PICTURE).finish(cancl=None),
    "save": lambda pipe, result: result.save("x.png", latens="x.st"),
    "show": lambda pipe, result: cosmos3.show(),
    "capabilities": lambda pipe, result: cosmos3.capabilities(TINY_MODEL, profil="reference"),
    "backends": lambda pipe, result: cosmos3.backends(disabled=()),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_an_input_error_everywhere(name, pipe, picture):
    with pytest.raises(cosmos3.InputError, match=rf"calling {name}\(\)"):
        WRONG[name](pipe, picture)


@pytest.mark.parametrize("value", ["no", 1, object(), None])
def test_a_switch_is_true_or_false(value, pipe):
    for call in (pipe, pipe.start, lambda _, anyway, **fields: pipe.resume("x.st", anyway=anyway)):
        with pytest.raises(cosmos3.InputError, match="anyway = "):
            call("a cup", anyway=value, **PICTURE)


def test_an_unknown_profile_is_found_at_load():
    with pytest.raises(cosmos3.InputError, match="profile 'comfy'"):
        cosmos3.load(TINY_MODEL, backend="reference", profile="comfy")


# --- own kernels -----------------------------------------------------------------------------------------------------


def attending(change):
    """Attention with something wrong in it."""

    def wrong(q, segments, *, causal=False, want_lse=False):
        return change(q, segments, ops.attention(q, segments, causal=causal, want_lse=want_lse)[0])

    return wrong


def zeroing(q, segments, out):
    segments[0].k_BTKD.zero_()
    return out, None


def reusing(q, segments, out, buffers={}):  # noqa: B006
    buffer = buffers.setdefault(out.shape, torch.empty_like(out))
    return buffer.copy_(out), None


def silent(x, weight, *, bias_I=None, residual_MI=None, out_MI=None):
    return None


def packed(weight, bias, *, format="none"):
    linear = ops.pack_linear(weight, bias, format=format)
    return type("Packed", (), {"__call__": lambda _, x: linear(x).double(), "tensors": lambda _: linear.tensors()})()


KERNELS = {
    "axes": ("attention", attending(lambda q, _, out: (out.transpose(1, 2), None)), r"bfloat16 \[1, 4, .* is wanted"),
    "dtype": ("attention", attending(lambda q, _, out: (out.float(), None)), "float32 .* is wanted"),
    "device": ("attention", attending(lambda q, _, out: (out.to("meta"), None)), "on meta, .* is wanted"),
    "no tuple": ("attention", attending(lambda q, _, out: out), "a tuple of 2 is wanted"),
    "its input": ("attention", attending(lambda q, _, out: (q, None)), "the memory of an input"),
    "a changed input": ("attention", attending(zeroing), "it changed an input"),
    "a used buffer": ("attention", attending(reusing), "the memory of an earlier result"),
    "nothing written": ("norm_silu", silent, "left a part of out_MI"),
    "half a gate": ("gate", lambda x, *, activation: x, r"bfloat16 \[.* is wanted"),
    "a linear's dtype": ("pack_linear", packed, "float64 .* is wanted"),
    "a linear without tensors": ("pack_linear", lambda weight, bias, *, format="none": abs, "`tensors` is wanted"),
    "no capture": ("capture", lambda function: None, "a function is wanted"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_breaks_its_protocol_is_named(name):
    op, function, found = KERNELS[name]
    pipe = cosmos3.load(TINY_MODEL, backend="reference", kernels={op: function})
    with pytest.raises(cosmos3.RunError, match=found) as failed:
        pipe("a cup", **PICTURE)
    assert f"{op}={function.__name__} (yours" in failed.value.asked


def test_a_class_is_no_kernel():
    with pytest.raises(cosmos3.InputError, match="it is a class"):
        cosmos3.load(TINY_MODEL, backend="reference", kernels={"attention": Later})


def test_a_run_does_not_go_on_with_another_function_of_the_same_name():
    def loaded(function):
        return cosmos3.load(TINY_MODEL, backend="reference", kernels={"attention": function})

    def attention(q, segments, *, causal=False, want_lse=False):
        return ops.attention(q, segments, causal=causal, want_lse=want_lse)

    first = attention
    run = loaded(first).start("a cup", **PICTURE)
    run.step()
    run.save("run.st")
    assert loaded(first).resume("run.st").index == 1

    def attention(q, segments, *, causal=False, want_lse=False):
        return ops.attention(q * 2, segments, causal=causal, want_lse=want_lse)

    with pytest.raises(cosmos3.InputError, match=r"ran on attention \(yours, .*here it would be attention \(yours"):
        loaded(attention).resume("run.st")
