"""`cosmos3 run` on a device whose memory does not hold the decode of whole frames."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from command import cosmos3

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.plan.cost.fit import Estimate, Job, fitting_tile
from cosmos3_core.plan.cost.units import GIB

MODEL = open_model("tiny")
CLIP = Estimate(
    MODEL.config,
    MODEL.vae,
    Job(width=256, height=192, frames=5, steps=1, guidance=1, guided_steps=0, prompt_tokens=512, negative_tokens=0),
    "bfloat16",
)

OPTIONS = (
    "--backend acme --model tiny --dtype bfloat16 --size 256x192 --frames 5 --steps 1 --guidance 1 -o out.mp4".split()
)


def needed(tile: int | None) -> int:
    """Bytes that the decode takes."""
    return replace(CLIP, job=replace(CLIP.job, tile=tile)).stage("decode").peak


@pytest.fixture
def run(acme, capsys, monkeypatch, tmp_path):
    """`cosmos3 run` of CLIP on a device of so many bytes: (request, its origins, stderr)."""
    plugin = importlib.import_module("cosmos3_acme.plugin")
    monkeypatch.chdir(tmp_path)

    def call(memory: int, *arguments):
        device = replace(plugin.probe(), memory=memory)
        with monkeypatch.context() as patch:
            patch.setattr(plugin, "probe", lambda: device)
            code, _, err = cosmos3(capsys, monkeypatch, "run", "a cube", *OPTIONS, *arguments)
        assert code == 0, err
        manifest = json.loads(Path("out.mp4.json").read_text())
        assert manifest["output"]["frames"] == 5 and manifest["plan"]["device"]["memory"] == memory
        return manifest["request"], manifest["origin"], err

    return call


def test_the_largest_tile_that_fits_is_taken():
    assert needed(None) > needed(192) > needed(128)
    assert fitting_tile(CLIP, needed(None)) is None
    assert fitting_tile(CLIP, needed(None) - 1) == 192 == fitting_tile(CLIP, needed(192))
    assert fitting_tile(CLIP, needed(192) - 1) == 128 == fitting_tile(CLIP, needed(128))
    assert fitting_tile(CLIP, needed(128) - 1) is None


def test_where_whole_frames_do_not_fit_a_run_takes_the_tile_and_says_why(run):
    memory = needed(128)
    request, origin, _ = run(memory)
    assert request["tile"] == 128
    said = f"plan: whole frames take {needed(None) / GIB:.1f} GiB to decode, and the device has {memory / GIB:.1f}"
    assert origin["tile"] == said


def test_where_they_fit_there_is_no_tile(run):
    request, origin, _ = run(needed(None))
    assert request["tile"] is None and not origin["tile"].startswith("plan")


def test_a_tile_that_was_asked_for_is_the_one(run):
    for memory in (needed(128), needed(None)):
        request, origin, _ = run(memory, "--tile", 192)
        assert request["tile"] == 192 and not origin["tile"].startswith("plan")
