"""`cosmos3 run` on a device of little memory: in tiles where whole frames cannot be decoded, refused where it does not
fit at all."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import cosmos3
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.engine.engine import Engine
from cosmos3_core.model.vae import VideoVAE
from cosmos3_core.plan.cost.fit import Estimate, Job
from cosmos3_core.plan.cost.placing import Room, fitting_tile
from cosmos3_core.plan.cost.units import GIB

MODEL = open_model(TINY_MODEL)
CLIP = Estimate(
    MODEL.config,
    MODEL.vae,
    Job(width=256, height=192, frames=5, steps=1, guidance=1, guided_steps=0, prompt_tokens=512, negative_tokens=0),
    "float32",
)

OPTIONS = f"--model {TINY_MODEL}".split()
OPTIONS += "--backend acme --dtype float32 --size 256x192 --frames 5 --steps 1 --guidance 1 -o out.mp4".split()


def needed(tile: int | None) -> int:
    """Bytes that the decode takes."""
    return replace(CLIP, job=replace(CLIP.job, tile=tile)).stage("decode").peak


@pytest.fixture
def small(acme, capsys, monkeypatch, tmp_path):
    """`cosmos3 run` of CLIP on a device of so many bytes: (exit code, stdout, stderr)."""
    plugin = importlib.import_module("cosmos3_acme.plugin")
    monkeypatch.chdir(tmp_path)

    def call(memory: int, *arguments, options=("a cube", *OPTIONS)):
        device = replace(plugin.probe(), memory=memory)
        with monkeypatch.context() as patch:
            patch.setattr(plugin, "probe", lambda: device)
            return cosmos3(capsys, monkeypatch, "run", *options, *arguments)

    return call


@pytest.fixture
def run(small):
    """A run that succeeds: (request, its origins)."""

    def call(memory: int, *arguments):
        code, _, err = small(memory, *arguments)
        assert code == 0, err
        manifest = json.loads(Path("out.mp4.json").read_text())
        assert manifest["output"]["frames"] == 5 and manifest["plan"]["device"]["memory"] == memory
        return manifest["request"], manifest["origin"]

    return call


def test_the_largest_tile_that_fits_is_taken():
    assert needed(None) > needed(192) > needed(128)
    assert fitting_tile(CLIP, Room(needed(None), None)) is None
    assert fitting_tile(CLIP, Room(needed(None) - 1, None)) == 192 == fitting_tile(CLIP, Room(needed(192), None))
    assert fitting_tile(CLIP, Room(needed(192) - 1, None)) == 128 == fitting_tile(CLIP, Room(needed(128), None))
    assert fitting_tile(CLIP, Room(needed(128) - 1, None)) == 64 == fitting_tile(CLIP, Room(needed(64), None))
    assert fitting_tile(CLIP, Room(needed(64) - 1, None)) is None


def test_a_clip_in_tiles_waits_on_the_host_whose_memory_counts_where_it_is_the_devices():
    tiled = replace(CLIP, job=replace(CLIP.job, tile=64))
    apart = replace(tiled, unified=False)
    assert 3 * 256 * 192 * 5 < tiled.stage("decode").activations - apart.stage("decode").activations
    assert replace(CLIP, unified=False).stage("decode") == CLIP.stage("decode"), "whole frames leave at once"
    controlled = replace(CLIP, job=replace(CLIP.job, controls=("edge", "blur"), input_frames=5))
    one, apart = (
        replace(controlled, job=replace(controlled.job, controls=("edge",))),
        replace(controlled, unified=False),
    )
    frame = 4 * 3 * 256 * 192
    found = [job.stage("encode input").activations for job in (apart, one, controlled)]
    waiting = [sum(job.job.encoded) * frame for job in (one, controlled)]
    assert [found[1] - found[0], found[2] - found[0]] == waiting and waiting[0] < waiting[1]


def test_where_whole_frames_do_not_fit_a_run_takes_the_tile_and_says_why(run):
    memory = needed(128)
    request, origin = run(memory)
    assert request["tile"] == 128
    said = f"plan: whole frames take {needed(None) / GIB:.1f} GiB to decode, and the device has {memory / GIB:.1f}"
    assert origin["tile"] == said


def test_where_they_fit_there_is_no_tile(run):
    request, origin = run(needed(None))
    assert request["tile"] is None and not origin["tile"].startswith("plan")


def test_a_tile_that_was_asked_for_is_the_one(run):
    for memory, anyway in ((needed(128), ["--anyway"]), (needed(None), [])):
        request, origin = run(memory, "--tile", 192, "--overwrite", *anyway)
        assert request["tile"] == 192 and not origin["tile"].startswith("plan")


# --- what does not fit -----------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """How often weights were opened, which may download them."""
    calls, open_weights = [], Engine.open_weights
    monkeypatch.setattr(Engine, "open_weights", lambda engine, watch, request: calls.append(1) or open_weights(engine))
    return calls


def test_what_does_not_fit_is_refused_before_any_weight(small, opened):
    memory = needed(128)
    code, out, err = small(memory, "--tile", 192)
    assert (code, out, opened, list(Path().iterdir())) == (2, "", [], []) and len(err.splitlines()) == 1
    assert err.startswith(f"error: {TINY_MODEL}: t2v 256x192, 5 frames, on ACME One: stage 'decode' takes")
    assert "Add --tile 128, which fits" in err and "--anyway" in err
    code, _, err = small(memory, "--tile", 128)
    assert code == 0, err


def test_where_nothing_would_fit_it_says_so(small, opened):
    code, _, err = small(GIB // 2)
    assert code == 2 and not opened and "Use a smaller model or a larger device" in err and "cosmos3 plan" in err


def test_anyway_goes_on(small, opened):
    code, _, err = small(GIB // 2, "--anyway")
    assert code == 0 and opened, err
    assert Path("out.mp4").exists()


def test_a_dry_run_prints_and_says_that_the_run_would_be_refused(small, opened):
    code, out, err = small(GIB // 2, "--dry-run", "--json")
    told = json.loads(out)
    assert code == 1 and not opened and told["request"]["task"] == "t2v"
    assert not told["estimate"]["fits"]
    assert small(GIB // 2, "--dry-run", "--anyway")[0] == 0


def test_a_stopped_run_is_offered_nothing_but_a_tile(small, monkeypatch):
    """The rest of its request is settled."""
    decode = VideoVAE.decode

    def full(vae, latents, tiling):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(VideoVAE, "decode", full)
    code, _, err = small(GIB // 2, "--anyway")
    assert code == 1 and "go on with: cosmos3 run --resume out.mp4.state.safetensors -o out.mp4 --anyway" in err
    monkeypatch.setattr(VideoVAE, "decode", decode)
    resume = ("--resume", "out.mp4.state.safetensors", "-o", "out.mp4")
    memory = needed(128)
    code, _, err = small(memory, "--tile", 192, options=resume)
    assert code == 2 and "Add --tile 128, which fits" in err
    code, _, err = small(memory - 1, "--tile", 192, options=resume)
    assert code == 2 and "--size" not in err and "--anyway" in err
    code, _, err = small(memory, "--tile", 128, options=resume)
    assert code == 0, err
