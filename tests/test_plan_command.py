"""`cosmos3 plan` as a user meets it: does it fit, what would, what is printed, and what it costs to ask."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import devices
import pytest
from command import cosmos3
from tiny_model import TINY_MODEL

from cosmos3_core.cli import cli
from cosmos3_core.contract import Backend, Ceiling, Device
from cosmos3_core.plan.cost.units import GIB
from cosmos3_core.reference import BACKEND
from cosmos3_core.scenarios.fields import FIELDS


@pytest.fixture
def plan(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return cosmos3(capsys, monkeypatch, "plan", "--backend", "reference", *arguments)

    return call


@pytest.fixture
def told(plan):
    def call(*arguments):
        code, out, err = plan("--json", *arguments)
        told = json.loads(out)
        assert code == (0 if told["estimate"]["fits"] else 1), err
        return told

    return call


WHOLE = ("--placement", "understanding=staged,generation=staged")
"""No layer on the host."""


# --- does it fit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        (["--model", "nano", "--memory", 24], True),
        (["--model", "nano", "--memory", 12, *WHOLE], False),
        (["--model", "nano", "--memory", 12], True),
        (["--model", "super", "--memory", 80], True),
        (["--model", "super", "--memory", 48, *WHOLE], False),
        (["--model", "super", "--memory", 8], False),
        (["--model", "edge", "--memory", 16], True),
        (["--model", TINY_MODEL, "--size", "64x64", "--frames", 5], True),
    ],
)
def test_the_exit_code_says_whether_it_fits(plan, arguments, fits):
    code, out, err = plan(*arguments)
    assert (code == 0) is fits, err
    assert f"fits       {'yes' if fits else 'no'}: " in out
    assert ("does not fit" in out) is not fits


def test_what_does_not_fit_comes_with_changes_that_do(plan, told):
    asked = ("--model", "nano", "--memory", 18, *WHOLE)
    offered = told(*asked)["estimate"]["nearest"]
    assert offered
    for change in offered:
        assert change["peak"] <= 18 * GIB
        assert told(*asked, *change["options"].split())["estimate"]["memory"]["peak"] == change["peak"]
    _, out, _ = plan(*asked)
    assert f"instead    {offered[0]['options']} fits" in out


def test_where_no_request_fits_it_says_so(plan, told):
    assert told("--model", "super", "--memory", 5)["estimate"]["nearest"] == []
    _, out, _ = plan("--model", "super", "--memory", 5)
    said = " ".join(out.split())
    assert "choose a smaller model" in said and "a shorter clip, of 25 frames or more with all of its inputs" in said


def test_a_format_without_a_kernel_is_proposed_and_called_slow(plan, told):
    asked = ("--model", "nano", "--size", "480p", "--memory", 14, *WHOLE)
    offered = told(*asked)["estimate"]["nearest"]
    assert offered[0]["options"] == "--format q8_0" and all(change["eager"] for change in offered)
    for change in offered[:1]:
        assert told(*asked, *change["options"].split())["estimate"]["memory"]["peak"] == change["peak"]
    _, out, _ = plan(*asked)
    assert "instead    --format q8_0 fits (12.1 GiB, by eager torch: slowly)" in out


def test_options_reach_the_estimate(told):
    def peak(*arguments):
        return told("--model", "edge", *arguments)["estimate"]["memory"]["peak"]

    whole = peak("--size", "720p", "--frames", 189)
    assert peak("--size", "480p", "--frames", 189) < whole
    assert peak("--size", "720p", "--frames", 5, "--tile", 256) < whole
    small = ("--size", "256p", "--frames", 9)
    assert peak(*small, "--dtype", "float32") > 1.5 * peak(*small)
    asked = (["--steps", 35, "--guidance", 1], ["--steps", 35], ["--steps", 70])
    flops = [told(*options)["estimate"]["work"]["run_flops"] for options in asked]
    assert 1.9 < flops[1] / flops[0] < 2 and 1.9 < flops[2] / flops[1] < 2


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (["--model", "nano"], {"task": "t2v", "size": "1280x720", "frames": 189, "steps": 35, "guidance": 6.0}),
        (["--model", "edge"], {"task": "t2v", "size": "832x480", "frames": 121, "steps": 35, "guidance": 5.0}),
        (["--frames", 1], {"task": "t2i", "size": "1024x1024", "frames": 1, "steps": 50, "guidance": 4.0}),
        (["--task", "i2v"], {"task": "i2v", "size": "1280x720", "frames": 189, "steps": 35, "guidance": 6.0}),
        (
            ["--model", "nvidia/Cosmos3-Super-Image2Video-4Step", "--task", "i2v"],
            {"task": "i2v", "size": "832x480", "frames": 189, "steps": 4, "guidance": 1.0},
        ),
    ],
)
def test_what_is_left_open_is_what_run_would_fill_in(told, arguments, request_):
    found = told(*arguments)
    assert found["request"].items() >= (request_ | {"tile": None}).items()
    stages = ["read prompts", *(["encode input"] if request_["task"] == "i2v" else []), "steps", "decode"]
    assert [stage["name"] for stage in found["estimate"]["memory"]["stages"]] == stages


def test_a_published_name_and_its_short_form_are_one(told):
    short, published = (told("--model", model, "--set", "seed=1") for model in ("nano", "nvidia/Cosmos3-Nano"))
    assert short.pop("started") and published.pop("started") and short["model"]["name"] == "nvidia/Cosmos3-Nano"
    assert short == published


# --- what is printed -------------------------------------------------------------------------------------------------


def test_the_json_keeps_its_keys(told):
    found = told("--model", "nano", "--memory", 18, *WHOLE)
    manifest = {"cosmos3", "started", "model", "profile", "request", "origin", "plan", "guardrail", "notes"}
    assert set(found) == {*manifest, "estimate"}
    assert set(found["request"]) == set(found["origin"]) == set(FIELDS)
    estimate = found["estimate"]
    numbers = {"tokens", "memory", "nearest", "lower", "work", "seconds", "exchange", "assumed"}
    assert set(estimate) == {"forecast", "fits", "lack", *numbers} and estimate["exchange"] is None  # of one device
    assert set(estimate["memory"]) == {"device", "given", "peak", "weights", "stages"}
    parts = estimate["memory"]["weights"]
    assert estimate["memory"]["stages"][0]["weights"] == parts["understanding"] + parts["embedding"]
    assert estimate["memory"]["device"] == 18 * GIB and estimate["memory"]["given"] is True
    for stage in estimate["memory"]["stages"]:
        assert set(stage) == {"name", "weights", "text_kv", "latents", "activations", "overhead", "kept", "peak"}
        assert stage["peak"] > stage["weights"] + stage["text_kv"] + stage["latents"] + stage["activations"]
    assert estimate["memory"]["peak"] == max(stage["peak"] for stage in estimate["memory"]["stages"])
    assert set(estimate["work"]) == {"step_flops", "step_bytes", "run_flops", "run_bytes"}
    assert estimate["tokens"] == {"prompt": 512, "negative": 3500, "media": 44_160, "counted": False}
    assert found["plan"]["kernels"]["attention"] == "eager"


def test_the_text_names_what_was_chosen_and_assumed(plan):
    _, out, _ = plan("--model", "nano", "--memory", 24)
    for line in (
        "device     reference: CPU",
        "24.0 GiB (--memory)",
        "attention eager",
        "t2v 1280x720, 189 frames, 35 steps, guidance 6",
        "placement  understanding and generation and codecs staged: on the device while it is used, and then no longer",
        "decode     in whole frames",
        "time       unknown",
        "assumed    a prompt of 512 tokens and a negative one of 3500",
        "4% of weights, 8% to 15% of the rest and 1 GiB beyond the tensors",
    ):
        assert line in out
    assert "\x1b" not in out  # plain where it is no terminal


def test_the_text_names_what_runs_inside_another_kernel_and_in_the_place_of_one(acme, capsys, monkeypatch):
    """As JSON does. What no format quantizes, the text's attention among it, has kernels of its own."""
    asked = ("plan", "--backend", "acme", "--model", "nano", "--memory", 80)
    small = "attention few_queries for calls of fewer than 48 tokens"
    _, out, err = cosmos3(capsys, monkeypatch, *asked)
    kernels = next(line for line in out.splitlines() if line.startswith("kernels"))
    assert "fused      gate is done inside finish=whole_half\n" in out and "gate" not in kernels, err
    assert f"smaller    {small}\n" in out and "kept" not in out
    asked += ("--format", "attention=int8")
    plan = json.loads(cosmos3(capsys, monkeypatch, *asked, "--json")[1])["plan"]
    assert (plan["below"], plan["kept"]) == ({}, {"attention": "online_softmax"})
    assert plan["kept_below"] == {"attention": {"few_queries": 48}}
    _, out, _ = cosmos3(capsys, monkeypatch, *asked)
    assert "smaller" not in out and f"kept       {small}\n" in out
    assert "kept       attention online_softmax, for what no format quantizes\n" in out


def test_a_device_with_a_known_ceiling_gets_seconds(plan, told, monkeypatch):
    ceiling = Ceiling(tflops={"bfloat16": 989.0}, bandwidth=3.35e12, source="the data sheet")
    device = Device(arch="x1", name="Fast One", count=1, memory=80 * GIB, unified=False)
    values = {"torch_device": "cpu", "collectives": "gloo", "kernels": BACKEND.kernels, "ceilings": {"x1": ceiling}}
    backend = Backend(name="fast", probe=lambda: device, **values)
    settling = importlib.import_module("cosmos3_core.settle.settle")  # the package has a function of that name
    monkeypatch.setattr(settling, "choose_backend", lambda name, disabled: (backend, device, "chosen because"))
    seconds = told("--model", "nano")["estimate"]["seconds"]
    # About 130 PFLOP at 55 % of the peak, and the decode's 3 at 60 %.
    assert 200 < seconds["steps"] < 290 and 4 < seconds["decode"] < 6
    assert seconds["step"] == pytest.approx(seconds["steps"] / 35)
    _, out, err = plan("--model", "nano")
    assert "s a step" in out and "55% of the peak rate in bfloat16" in out and "the data sheet" in out
    assert "chosen because" in err
    assert told("--model", "nano", "--dtype", "float32")["estimate"]["seconds"] is None  # the sheet has no rate for it


# --- asking wrongly, and what asking costs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nanno"], "there is no such folder"),
        (["--frames", 10], "The nearest are 9 and 13"),
        (["--size", "1000x700"], "The nearest is"),
        (["--task", "t2x"], "there is no such task"),
        (["--memory", 0], "Give it in GiB"),
        (["--memory", "nan"], "Give it in GiB"),
        (["--dtype", "fp8"], "Dtypes are float32, bfloat16, float16"),
        (["--tile", 100], "tiles are multiples of 64"),
        (["--model", "nvidia/Cosmos3-Super-Text2Image-4Step", "--task", "t2v"], "is distilled for t2i and i2v only"),
        (["--model", "nvidia/Cosmos3-Super-Text2Image-4Step", "--task", "t2i", "--steps", 9], "Drop steps"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(plan, arguments, said):
    code, out, err = plan(*arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and said in err and len(err.splitlines()) == 1


ASKING = """
import sys
from cosmos3_core import cli
sys.argv = "cosmos3 plan --backend reference --model nano --memory 2".split()
try:
    cli.main()
except SystemExit as stop:
    print(stop.code)
print(sorted({"torch", "diffusers", "av", "numpy", "huggingface_hub", "tokenizers"} & set(sys.modules)))
"""


def test_asking_imports_no_torch_and_writes_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", ASKING], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["1", "[]"]
    assert not list(tmp_path.iterdir())


# --- plan and a dry run ----------------------------------------------------------------------------------------------

TINY = ("a cup", "--model", TINY_MODEL, "--backend", "reference", "--size", "64x64", "--frames", "5", "--seed", "3")


def test_a_plan_is_a_dry_run(capsys, monkeypatch, tmp_path):
    """Its options but the one that makes it one, and what it prints; with a prompt, up to the notes on the texts."""
    taken = {name: {option for p in cli.commands[name].params for option in p.opts} for name in ("run", "plan")}
    assert taken["run"] - taken["plan"] == {"--dry-run"} and taken["plan"] <= taken["run"]
    monkeypatch.chdir(tmp_path)
    cut = ("--profile", "vllm-omni", "--set", "max_text_tokens=20", "-o", "cup.mp4", "--require", "gate=eager")
    for typed in (TINY[1:], (*TINY, *cut)):
        told = []
        for words in (("plan",), ("run", "--dry-run")):
            code, out, err = cosmos3(capsys, monkeypatch, *words, *typed, "--json")
            assert (code, err) == (0, "")
            told.append(json.loads(out))
            text = cosmos3(capsys, monkeypatch, *words, *typed)[1]
            assert "fits       yes" in text and ("note       the prompt was cut from" in text) == (typed[0] == "a cup")
        assert all(one.pop("started") for one in told) and told[0] == told[1]
    assert told[0]["request"]["prompt"] == "a cup" and told[0]["origin"]["prompt"] == "user"
    assert "the prompt was cut" in told[0]["notes"][0] and not list(tmp_path.iterdir())


def test_a_plan_with_a_prompt_is_refused_like_its_run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for wrong in (("-o", "cup.png"), ("--image", "none.jpg"), ("--require", "gate=fused"), ("--task", "i2v")):
        said = [cosmos3(capsys, monkeypatch, name, *TINY, *wrong) for name in ("plan", "run")]
        assert said[0] == said[1] and said[0][0] == 2 and said[0][2].startswith("error: ")
    for report in (("--json",), ("--memory", "24")):
        code, _, err = cosmos3(capsys, monkeypatch, "run", *TINY, *report)
        assert code == 2 and err.startswith(f"error: {report[0]}: ") and "cosmos3 plan, or add --dry-run" in err


def test_what_is_not_known_without_a_prompt_is_not_made_up(plan, told):
    found = told("--model", "nano", "--task", "i2v")
    assert not any(found["request"][key] for key in ("prompt", "image", "negative_prompt"))
    assert found["origin"]["prompt"] == found["origin"]["image"] == "not given; no plan depends on it"
    out = plan("--model", "nano", "--task", "i2v", "--steps", 9, "--seed", 5)[1]
    for line in (
        'values     user: task "i2v", steps 9, seed 5',
        "values     not given; no plan depends on it: prompt, image",
        "values     checkpoint (assets/negative_prompt.json): negative_prompt",
    ):
        assert line in out.splitlines()
    assert "video" not in out and "(any)" not in out


def test_a_device_that_is_not_here_is_planned_for(capsys, monkeypatch):
    """By the rows of an installed backend for an architecture; what is known of its memory is what was said."""
    cuda = devices.backend("cuda")
    monkeypatch.setattr("cosmos3_core.plan.known.load", lambda name, disabled: cuda)
    ask = ("plan", "--backend", "cuda", "--model", "nano", "--size", "480p")
    code, out, err = cosmos3(capsys, monkeypatch, *ask, "--arch", "sm_110", "--memory", "12")
    assert (code, err) == (0, "") and "placement  generation streamed: in host memory" in out
    code, out, err = cosmos3(capsys, monkeypatch, *ask, "--arch", "sm_110", "--memory", "12", *WHOLE)
    assert (code, err) == (1, "") and "device     cuda: not in this machine (sm_110), 12.0 GiB (--memory)" in out
    assert "forecast   made without the device" in out
    assert "instead    --format fp8 fits" in out and "assumed    sm_110 with the torch and the packages that are" in out
    for wrong, said in {
        ("--arch", "sm_98", "--memory", "12"): "Did you mean sm_90?",
        ("--arch", "sm_110"): "Give --memory too",
    }.items():
        code, _, err = cosmos3(capsys, monkeypatch, *ask, *wrong)
        assert code == 2 and said in err and err.startswith("error: --arch ")
    for wrong, said in {(): "Give --backend and --memory too", ("--memory", "12"): "Give --backend too"}.items():
        code, _, err = cosmos3(capsys, monkeypatch, "plan", "--model", "nano", "--arch", "sm_110", *wrong)
        assert code == 2 and said in err and err.startswith("error: --arch ")
    code, _, err = cosmos3(capsys, monkeypatch, "run", "a cup", "--arch", "sm_110", "--memory", "12")
    assert code == 2 and "cosmos3 plan" in err


def test_the_tokens_of_a_prompt_are_counted(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, out, _ = cosmos3(capsys, monkeypatch, "plan", *TINY)
    assert "assumed    a prompt" not in out and all(len(line) <= 120 for line in out.splitlines())
    _, out, _ = cosmos3(capsys, monkeypatch, "plan", *TINY, "--json")
    tokens = json.loads(out)["estimate"]["tokens"]
    assert cosmos3(capsys, monkeypatch, "run", *TINY, "-o", "cup.mp4", "--quiet") == (0, "cup.mp4\n", "")
    ran = json.loads((tmp_path / "cup.mp4.json").read_text())["tokens"]
    assert tokens == ran | {"counted": True}


def test_where_nothing_smaller_fits_the_ways_out_are_named(plan):
    code, out, _ = plan("--model", "nano", "--size", "480p", "--memory", "2")
    assert code == 1 and all(word in " ".join(out.split()) for word in ("--model edge", "--format", "wherever they"))
