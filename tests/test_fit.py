"""Does a run fit, how long does it take, and what would fit: stages, seconds, changes, and real runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from command import cosmos3
from counted import TINY_CONFIG, TINY_VAE, VAE, config_of, job, whole
from devices import backend
from inputs import photograph
from tiny_model import TINY_MODEL

from cosmos3_core import reference
from cosmos3_core.checkpoint.model import describe
from cosmos3_core.checkpoint.repository import PUBLISHED
from cosmos3_core.contract import Ceiling, Tuning
from cosmos3_core.plan.cost import transformer, vae
from cosmos3_core.plan.cost.fit import Estimate
from cosmos3_core.plan.cost.nearest import nearest
from cosmos3_core.plan.cost.placing import Room
from cosmos3_core.plan.cost.stages import OVERHEAD_BYTES
from cosmos3_core.plan.cost.units import COMPUTE_EFFICIENCY, GIB, ceiling_of
from cosmos3_core.plan.placement import ALL_RESIDENT, ALL_STAGED
from cosmos3_core.sampling.solver import Solver
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.defaults import PROFILES
from cosmos3_core.settle import Wish, settle


@pytest.mark.parametrize("repository", PUBLISHED)
def test_every_published_repository_is_in_the_table(repository):
    described = describe(repository)
    assert described.facts.name == repository and described.config.num_hidden_layers in (36, 64, 28)
    assert (described.facts.variant == "distilled") == repository.endswith("4Step")
    asked = {"task": "t2i", "prompt": "(any)"}
    request, _ = requests.resolve(asked, PROFILES[0], described.facts, pick_seed=lambda: 0)
    schedule = request.schedule, request.steps, request.shift, described.scheduler, described.distilled_sigmas
    assert len(Solver.of(*schedule).timesteps) == request.steps


def test_a_ceiling_is_the_devices_own_before_its_architectures():
    one, other = (Ceiling(tflops={"bfloat16": n}, bandwidth=1e12, source="test") for n in (1.0, 2.0))
    backend = replace(reference.BACKEND, ceilings={"X90": one, "x1": other})
    device = reference.BACKEND.probe()
    assert ceiling_of(backend, replace(device, name="ACME X90", arch="x1")) is one
    assert ceiling_of(backend, replace(device, name="ACME X90 Laptop GPU", arch="x2")) is None
    assert ceiling_of(backend, replace(device, name="ACME X60", arch="x1")) is other
    assert ceiling_of(backend, replace(device, name="ACME X60", arch="x2")) is None


def test_a_guidance_interval_saves_its_steps():
    full, part = (whole("nano", 1024, 1024, 1, 50, guided_steps=guided) for guided in (50, 41))
    flops = [sum(work.flops for work in counted.parts["steps"]) for counted in (full, part)]
    assert flops[1] / flops[0] == pytest.approx(91 / 100)


GROWTH = """
import sys
from cosmos3_core import cli
from cosmos3_core.runs.manifest import peak_host_memory
model = sys.argv[1]
def run(size, name):
    options = f"--model {model} --backend reference --steps 2 --frames 9".split()
    sys.argv = ["cosmos3", "run", "a cube", *options, "--size", size, "-o", name]
    cli.main()
    return peak_host_memory()
small = run("64x64", "small.mp4")
print(run("512x512", "large.mp4") - small)
"""


def test_a_real_run_grows_by_what_is_estimated(tmp_path):
    """Within a factor of 5: the workspaces of the host's convolutions, which are largest without AVX-512, and the video
    encoder are no tensors."""
    done = subprocess.run([sys.executable, "-c", GROWTH, TINY_MODEL], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tuning = reference.BACKEND.tuning["*"]
    counted = Estimate(TINY_CONFIG, TINY_VAE, job(512, 512, 9, 2), "bfloat16", tuning=tuning)
    tensors = max(stage.weights + stage.latents + stage.activations for stage in counted.stages)
    assert tensors / 1.5 < int(done.stdout.split()[-1]) < 5 * tensors


def test_stages_follow_each_other_or_stay():
    asked = job(1280, 720, 189, input_frames=1)
    counted = Estimate(config_of("nano"), VAE, asked, "bfloat16")
    stages = {stage.name: stage for stage in counted.stages}
    assert list(stages) == ["read prompts", "encode input", "steps", "decode"]
    parts = counted.weights
    assert stages["read prompts"].weights == parts["understanding"] + parts["embedding"]
    assert round(stages["steps"].weights / 1e9, 1) == 14.0  # docs/model.md, section 3.3
    assert stages["steps"].text_kv == 2 * 512 * 147_456
    resident = replace(counted, placement=ALL_RESIDENT).stages
    assert {stage.weights for stage in resident} == {sum(parts.values())}


def test_guidance_costs_a_second_prompt_and_in_small_pictures_a_wider_pass():
    one, two = (whole("nano", 1024, 1024, 1, guided_steps=guided).stage("steps") for guided in (0, 35))
    assert two.text_kv == 2 * one.text_kv and two.activations > 1.8 * one.activations
    one, two = (whole("nano", 1280, 720, 189, guided_steps=guided).stage("steps") for guided in (0, 35))
    assert two.activations == one.activations


def test_time_follows_from_the_ceiling_and_is_unknown_without_one():
    counted = whole("nano", 832, 480, 93)
    ceiling = Ceiling(tflops={"bfloat16": 989.0}, bandwidth=3.35e12, source="data sheet")
    seconds = counted.seconds(ceiling)
    assert set(seconds) == {"read prompts", "steps", "decode", "step", "total"}
    fast = replace(ceiling, reached={"bfloat16": 1.1 * COMPUTE_EFFICIENCY})
    assert counted.seconds(fast)["step"] == pytest.approx(seconds["step"] / 1.1, rel=0.01)
    assert counted.seconds(fast)["decode"] == seconds["decode"]
    assert seconds["total"] == pytest.approx(sum(seconds[part] for part in ("read prompts", "steps", "decode")))
    slow = replace(ceiling, bandwidth=1e9)
    assert counted.seconds(slow)["step"] > 10 * seconds["step"]
    assert counted.seconds(None) is None
    assert replace(counted, dtype="float32").seconds(ceiling) is None
    assert replace(counted, dtype="float16").seconds(ceiling) == seconds


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.mark.parametrize(("name", "off"), [("e2e-nano-720p189-h100", 0.08), ("e2e-nano-720p189-fp8-h100", 0.05)])
def test_the_time_of_a_run_is_what_was_measured(name, off):
    """With cuda's kernels on an H100. The share of its rate that bf16 is said to reach is that of slower code: it lies
    in the sources that the records are of, and another one would void them."""
    (measured,) = json.loads((RESULTS / f"{name}.json").read_text())["results"]
    counted = replace(whole("nano", 1280, 720, 189, steps=35, guided_steps=35), formats=measured["formats"])
    seconds = counted.seconds(backend("cuda").ceilings["H100 80GB HBM3"])
    assert seconds["steps"] == pytest.approx(measured["run"]["stages"]["steps"], rel=off)


def test_the_time_of_a_short_pass_is_about_what_was_measured():
    passes = json.loads((RESULTS / "step-nano-video-h100.json").read_text())["results"]
    for measured in (result for result in passes if result["work"] == "832x480x93"):
        counted = replace(whole("nano", 832, 480, 93, guided_steps=0), formats=measured["formats"])
        seconds = counted.seconds(backend("cuda").ceilings["H100 80GB HBM3"])
        assert seconds["step"] == pytest.approx(measured["seconds"]["cosmos3"]["median_s"], rel=0.1)


def test_the_times_of_an_h200_are_what_was_measured():
    """Passes of videos, within 4 %, and the decode, within 3 %."""
    ceiling = backend("cuda").ceilings["NVIDIA H200"]
    for measured in json.loads((RESULTS / "step-nano-video-h200.json").read_text())["results"]:
        counted = replace(
            whole("nano", *map(int, measured["work"].split("x")), guided_steps=0), formats=measured["formats"]
        )
        assert counted.seconds(ceiling)["step"] == pytest.approx(measured["seconds"]["cosmos3"]["median_s"], rel=0.04)
    measured = json.loads((RESULTS / "vae-720p189-h200.json").read_text())["seconds"]["cosmos3"]["median_s"]
    assert whole("nano", 1280, 720, 189).seconds(ceiling)["decode"] == pytest.approx(measured, rel=0.03)


def test_formats_change_weights_and_rates():
    counted = whole("nano", 832, 480, 93)
    fp8 = replace(counted, formats={"pack_linear": "fp8"})
    both = replace(counted, formats={"pack_linear": "fp8", "attention": "fp8"})
    wide, narrow = counted.weights, fp8.weights
    # 2 of 36 media layers are kept, and no text layer.
    assert narrow["generation"] / wide["generation"] == pytest.approx((2 + 34 / 2) / 36, abs=0.001)
    assert narrow["understanding"] / wide["understanding"] == pytest.approx(1 / 2, abs=0.001)
    assert {name for name in wide if narrow[name] != wide[name]} == {"understanding", "generation"}
    assert fp8.stage("steps").weights < 0.6 * counted.stage("steps").weights
    known = Ceiling(tflops={"bfloat16": 800.0, "fp8": 1600.0}, bandwidth=3e12, source="test")
    steps = [count.seconds(known)["step"] for count in (counted, fp8, both)]
    assert steps[0] > 1.2 * steps[1] and steps[1] > 1.1 * steps[2]
    assert both.seconds(replace(known, tflops={"bfloat16": 800.0})) is None
    weight_only = replace(counted, formats={"pack_linear": "w4a16"})
    assert weight_only.stage("steps").weights < 0.4 * counted.stage("steps").weights
    assert weight_only.seconds(known)["step"] == pytest.approx(counted.seconds(known)["step"])


def with_all_rows_at_once():
    """Counting as runs were that the records of before December 2026 are of."""
    return mock.patch.object(transformer, "FINISH_ROWS", sys.maxsize)


def quantized(stem: str, counted: Estimate, grows: bool = True) -> Iterator[tuple[str, int, int]]:
    """What was measured of steps in each format: name, bytes reserved, bytes counted; `grows`: by an allocator with
    segments that grow."""
    for result in json.loads((RESULTS / f"{stem}.json").read_text())["results"]:
        if "peak" not in result:
            continue
        name, rows = result["format"], result["kernels"]
        row = next((one for one in backend("cuda").kernels if one.name == rows.get("pack_linear")), None)
        formats = {} if name == "none" else {"pack_linear": name}
        widens = bool(formats and row and row.widens)
        rounds = bool(formats and rows["finish"] == "composed" and not widens)
        tuning = Tuning(expandable_segments=grows)
        own = replace(counted, formats=formats, widens=widens, rounds=rounds, tuning=tuning)
        yield f"{stem} {name}", result["peak"]["reserved"], own.stage("steps").peak - grows * OVERHEAD_BYTES


@with_all_rows_at_once()
def before() -> list[tuple[str, int, int]]:
    """What each program of benchmarks measured of whole runs at Nano's size, until December 2026."""
    found = []
    for name in ("e2e-nano-720p189-h100", "e2e-nano-720p189-fp8-h100", "e2e-nano-720p189-resident-h100"):
        (run,) = json.loads((RESULTS / f"{name}.json").read_text())["results"]
        counted = replace(whole("nano", 1280, 720, 189), formats=run["formats"])
        counted = replace(counted, placement=ALL_RESIDENT if "resident" in name else ALL_STAGED)
        found.append((name, run["run"]["reserved"], counted.peak))
    jobs = json.loads((RESULTS / "memory-nano-h100.json").read_text())["jobs"]
    for name, measured in jobs.items():
        counted = whole("nano", *map(int, name.split("x")), negative_tokens=3500)
        found.append((f"memory {name}", measured["steps"]["reserved"], counted.stage("steps").peak))
    for stem in ("quantized-nano-h200", "quantized-nano-more-h200"):
        found += quantized(stem, whole("nano", 1280, 720, 189, guided_steps=0), grows="more" in stem)
    return found


def since() -> Iterator[tuple[str, int, int]]:
    """The same of today's code."""
    counted = replace(whole("nano", 1280, 720, 189, guided_steps=0), repeats=False)
    for stem in ("quantized-nano-rest-h200", "quantized-nano-static-h200"):
        yield from quantized(stem, counted)
    for name, measured in json.loads((RESULTS / "memory-nano-h200.json").read_text())["jobs"].items():
        counted = whole("nano", *map(int, name.split("x")), negative_tokens=3500)
        counted = replace(counted, tuning=Tuning(expandable_segments=True))
        for part in ("steps", "decode"):
            peak = counted.stage(part).peak - OVERHEAD_BYTES  # what no allocator holds
            yield f"memory of {part} {name}", measured[part]["reserved"], peak


@pytest.mark.parametrize(("name", "reserved", "counted"), [*before(), *since()], ids=str)
def test_no_peak_that_was_reserved_is_above_what_is_counted_nor_far_below(name, reserved, counted):
    assert reserved <= counted <= 1.1 * reserved


def test_a_row_that_widens_takes_the_dtype_s_time_and_a_copy():
    """In place of the format's own products; the copy is of the largest matrix."""
    counted = replace(whole("nano", 1280, 720, 189), formats={"pack_linear": "fp8"})
    known = Ceiling(tflops={"bfloat16": 100, "fp8": 1000}, bandwidth=1e12, source="")
    wide, plain = replace(counted, widens=True), replace(counted, formats={})
    assert counted.seconds(known)["step"] < 0.8 * wide.seconds(known)["step"]
    assert wide.seconds(known)["step"] == pytest.approx(plain.seconds(known)["step"], rel=0.05)
    more = wide.stage("steps").activations - counted.stage("steps").activations
    assert more >= 2 * 2 * 12288 * 4096


def test_formats_that_are_widened_are_proposed_where_no_other_is_as_narrow():
    counted = whole("nano", 1280, 720, 189)
    for formats, wanted in (
        ({"fp8": False, "q8_0": True, "nf4": True}, ["fp8"]),
        ({"q8_0": True, "nf4": True}, ["q8_0"]),
    ):
        changes = nearest(counted, Room(22 * GIB, None), formats)
        found = [change.values["format"] for change in changes if "format" in change.values]
        assert found[:1] == wanted, changes


@pytest.mark.parametrize(
    ("name", "gib", "wanted"),
    [
        ("nano", 17, {("width", "height"), ("frames",)}),  # the steps are the peak, and no tile helps there
        ("edge", 10, {("tile",), ("width", "height")}),  # the decode is, and it holds one frame whatever the length
    ],
)
def test_the_nearest_changes_fit_and_are_nearest(name, gib, wanted):
    counted = whole(name, 1280, 720, 189)
    assert counted.peak > gib * GIB
    changes = nearest(counted, Room(gib * GIB, None))
    assert {tuple(change.values) for change in changes} == wanted
    for change in changes:
        assert change.estimate.peak <= gib * GIB
        if "frames" in change.values:
            longer = replace(counted.job, frames=change.values["frames"] + 4)
            assert replace(counted, job=longer).peak > gib * GIB


def test_a_change_comes_with_a_tile_where_it_needs_one():
    counted = whole("edge", 1280, 720, 189)
    changes = [change.values for gib in range(5, 15) for change in nearest(counted, Room(gib * GIB, None))]
    assert any({"frames", "tile"} <= values.keys() for values in changes), changes


def test_where_the_weights_alone_are_too_much_nothing_is_proposed():
    assert nearest(whole("super", 1280, 720, 189), Room(24 * GIB, None)) == []


def test_a_proposal_is_a_request_that_runs():
    """A tile smaller than the picture, a length of 4k+1, a size that exists."""
    for gib in range(5, 15):
        for change in nearest(whole("edge", 1280, 720, 189, tile=768), Room(gib * GIB, None)):
            proposed = change.estimate.job
            assert proposed.tile is None or proposed.tile < max(proposed.width, proposed.height)
            assert proposed.frames % 4 == 1 and proposed.width % 16 == proposed.height % 16 == 0


def test_counting_needs_no_torch():
    code = "import sys; import cosmos3_core.plan.cost.fit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@with_all_rows_at_once()
def test_the_estimate_covers_what_was_measured_on_an_h100():
    """Nano's step and decode with random weights: neither less memory than the allocator reserved nor less time, and no
    more than a quarter more."""
    for name, measured in json.loads((RESULTS / "memory-nano-h100.json").read_text())["jobs"].items():
        counted = whole("nano", *map(int, name.split("x")), negative_tokens=3500)
        seconds = counted.seconds(backend("cuda").ceilings["H100 80GB HBM3"])
        for part, time in (("steps", "step"), ("decode", "decode")):
            assert 1 <= counted.stage(part).peak / measured[part]["reserved"] < 5 / 4
            assert 1 <= seconds[time] / measured[part]["seconds"] < 5 / 4


def test_a_canvas_is_encoded_whole_whatever_of_it_is_shown(tmp_path):
    photograph(100, 60).save(tmp_path / "small.png")
    given = {"task": "policy", "prompt": "x", "image": str(tmp_path / "small.png"), "domain": "pusht", "canvas": "480p"}
    settled = settle(Wish(model="nvidia/Cosmos3-Nano", described=True, given=given, backend="reference"))
    request, estimate = settled.request, settled.estimate
    assert (request.width, request.height, request.canvas) == (96, 48, (832, 480))
    config, dtype = settled.model.vae, settled.plan.tuning.codec_dtype
    assert estimate.stage("encode input").activations == vae.encode_bytes(config, (30, 52), 1, dtype, waiting=1)
    assert estimate.parts["encode input"] == [vae.encode_work(config, (30, 52), 1, dtype)]
    assert estimate.execution.latent == (5, 3, 6)  # what the model sees and the decode makes


@pytest.mark.parametrize("chunks, wanted, decodes", [(1, True, 1), (1, False, 0), (3, True, 5), (3, False, 2)])
def test_of_an_output_without_the_video_only_what_a_chunk_begins_with_is_decoded(chunks, wanted, decodes):
    given = {"task": "policy", "domain": "pusht", "rollout": chunks, "canvas": "480p:16:9"}
    wish = Wish(model="nano", described=True, partial=True, given=given, backend="reference", decodes=wanted)
    estimate = settle(wish).estimate
    assert len(estimate.parts.get("decode", [])) == decodes
    assert ("decode" in [stage.name for stage in estimate.stages]) == bool(decodes)


@pytest.mark.parametrize(
    "output, sound, decoded", [("x.mp4", False, True), ("x.wav", True, False), ("x.FLAC", True, False)]
)
def test_the_plan_of_a_sound_alone_has_no_decode_of_its_video(capsys, monkeypatch, output, sound, decoded):
    words = ("--model", "nano", "--frames", 9, "--size", "256p:16:9", "--backend", "reference", "--memory", 80)
    code, out, err = cosmos3(capsys, monkeypatch, "plan", *map(str, words), "-o", output, "--json")
    assert code == 0, err
    stages = [stage["name"] for stage in json.loads(out)["estimate"]["memory"]["stages"]]
    assert ("decode" in stages, "decode sound" in stages) == (decoded, sound)
    out = cosmos3(capsys, monkeypatch, "plan", *map(str, words), "-o", output)[1]
    assert ("nothing of the video" in out) != decoded


def test_a_decode_that_is_not_done_does_not_have_to_fit(capsys, monkeypatch):
    """Whole frames of 1280x720 are not decoded in 12 GiB, so they get a tile, which a sound does not need."""
    words = ("--model", "nano", "--task", "t2v", "--sound", "--backend", "reference", "--memory", 12)
    fits = {}
    for output in ("x.mp4", "x.wav"):
        out = cosmos3(capsys, monkeypatch, "plan", *map(str, words), "-o", output, "--json")[1]
        fits[output] = json.loads(out)["request"]["tile"]
    assert fits["x.mp4"] is not None and fits["x.wav"] is None
