"""The embedded model, end to end on the device: a picture in every format, a video with sound, and actions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import CHIP, FORMATS
from PIL import Image

import cosmos3
from cosmos3_core.contract import InputError

TABLE = Path(__file__).parents[4] / "docs" / "images" / "table.png"
PRODUCTS = {
    "none": "npu::npu_add_rms_norm",
    "int8": "npu::npu_quant_matmul",
    "mxfp8": "npu::npu_quant_matmul",
    "mxfp4": "npu::npu_quant_matmul",
    "mxfp4a8": "npu::npu_quant_matmul",
    "mxfp4_dual": "npu::npu_dual_level_quant_matmul",
}
ONE = {"Ascend910B": "int8", "Ascend910C": "w4a16", "Ascend950": "mxfp8"}[CHIP]
"""The format of what is not a picture."""


def load(format: str, **options):
    formats = {} if format == "none" else {"pack_linear": format}
    return cosmos3.load("embedded", backend="npu", formats=formats, **options)


@pytest.mark.parametrize("format", ["none", *FORMATS])
def test_a_picture(tmp_path, launches, format):
    load(format)("two green squares", task="t2i", steps=2, seed=1).save(tmp_path / "squares.png")
    manifest = json.loads((tmp_path / "squares.png.json").read_text())
    kernels = manifest["plan"]["kernels"]
    eager = {op for op, row in kernels.items() if row == "eager"}
    assert eager <= {"patch_embed", "capture"}
    product = PRODUCTS.get(format, "npu::npu_weight_quant_batchmatmul")
    steps = len(manifest["timesteps"])
    assert launches.counts[product] >= 6 * steps
    attention = "npu::npu_fusion_attention" if CHIP == "Ascend950" else "npu::npu_fused_infer_attention_score"
    assert launches.counts[attention] >= 6 * steps
    # The host asks whether the latents are finite, takes them, and takes the pixels; no step waits.
    assert launches.waits.total() <= 3, dict(launches.waits)


@pytest.mark.skipif(CHIP != "Ascend950", reason="MX is the 950's")
def test_attention_in_mxfp8_is_refused_for_the_embedded_model_s_heads():
    with pytest.raises(InputError, match="takes head dims of 64 and 128, not 32"):
        cosmos3.load("embedded", backend="npu", formats={"attention": "mxfp8"})


def test_no_step_waits_for_the_device(tmp_path, launches):
    """A run of more steps makes the host wait no more often, and every step launches as much as any other. (One that is
    recorded is called twice here, and its replays make as many calls.)"""
    pipe, found = load("none", kernels={"capture": "eager"}), []
    for steps in (1, 2, 3, 4):
        launches.clear()
        pipe("two green squares", task="t2i", steps=steps, seed=1).save(tmp_path / f"{steps}.png")
        found.append((launches.waits.total(), launches.counts.total()))
    waits, counts = zip(*found[1:], strict=True)  # the first one loads
    assert len(set(waits)) == 1, found
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0, found


def test_a_video_with_sound(tmp_path, launches):
    text = "a blue ball bounces off the right edge"
    result = load(ONE)(text, task="t2vs", frames=5, steps=2, seed=1)
    result.save(tmp_path / "ball.mp4")
    assert (tmp_path / "ball.mp4").stat().st_size


def test_actions(tmp_path, launches):
    pipe = load(ONE)
    result = pipe("move to the cyan ring", image=TABLE, task="policy", domain="pusht", chunk=16, steps=2, seed=1)
    result.save(tmp_path / "reach.json")
    assert json.loads((tmp_path / "reach.json").read_text())


@pytest.mark.skipif(CHIP == "Ascend950", reason="the row refuses the 950")
def test_a_picture_is_the_same_with_graphs(tmp_path, monkeypatch):
    """The first step of a pass runs as it is, the second is recorded, and from there on all are replays."""
    found, replays, was = [], [], torch.npu.NPUGraph.replay
    monkeypatch.setattr(torch.npu.NPUGraph, "replay", lambda graph: (replays.append(graph), was(graph)))
    for row in ("npu-graph", "eager"):
        with cosmos3.load("embedded", backend="npu", kernels={"capture": row}) as pipe:
            for index, steps in enumerate((2, 3)):
                path = tmp_path / f"{row}-{index}.png"
                pipe("two green squares", task="t2i", steps=steps, seed=1).save(path)
                assert json.loads((tmp_path / f"{path.name}.json").read_text())["plan"]["kernels"]["capture"] == row
                with Image.open(path) as picture:
                    found.append(picture.tobytes())
    assert found[:2] == found[2:]
    assert len(replays) == 1 + 3 and len({id(graph) for graph in replays}) == 1
