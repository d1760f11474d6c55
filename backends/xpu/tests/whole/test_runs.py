"""`cosmos3 run --backend xpu` on a CPU: a picture, a clip with sound, a policy's actions, of the embedded model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TABLE = Path(__file__).parents[4] / "docs" / "images" / "table.png"
JOBS = {
    "picture.png": ["a red ball", "--steps", 4],
    "clip.mp4": ["a blue ball bounces off the right edge", "--sound", "--frames", 9, "--steps", 2],
    "reach.json": ["move to the cyan ring", "--image", TABLE, "--task", "policy", "--domain", "pusht", "--steps", 2],
}
FORMATS = {"none": "eager", "w4a16": "torch-int4", "mxfp4": "vllm-fp4", "mxfp8": "vllm-fp8", "int8": "torch-int8"}


def cosmos3(folder: Path, *arguments) -> dict:
    """Its manifest."""
    command = [sys.executable, "-m", "cosmos3", "run", *map(str, arguments), "--backend", "xpu", "--seed", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (manifest,) = folder.glob("*.*.json") if not arguments[-1].endswith(".json") else folder.glob("*.json.json")
    return json.loads(manifest.read_text())


@pytest.mark.parametrize("name", JOBS)
def test_a_request_of_every_kind_runs(name, tmp_path):
    kernels = cosmos3(tmp_path, *JOBS[name], "--model", "embedded", "-o", name)["plan"]["kernels"]
    assert (kernels["attention"], kernels["gate"], kernels["rms_norm"]) == ("sdpa", "vllm", "vllm")


@pytest.mark.parametrize("format", FORMATS)
def test_the_embedded_model_runs_in_a_format(format, tmp_path):
    told = cosmos3(tmp_path, *JOBS["picture.png"], "--model", "embedded", "--format", format, "-o", "picture.png")
    assert told["plan"]["kernels"]["pack_linear"] == FORMATS[format]


def test_four_processes_share_a_request(tmp_path):
    """As four GPUs would, which exchange by oneCCL's row, here over gloo: the picture of one process."""
    pictures = []
    for layout in ((), ("--parallel", "cfg=2,ulysses=2")):
        folder = tmp_path / str(len(layout))
        folder.mkdir()
        options = ["--model", "embedded", "--format", "w4a16", "--guidance", 3, *layout, "-o", "picture.png"]
        told = cosmos3(folder, *JOBS["picture.png"], *options)["plan"]
        pictures.append(np.asarray(Image.open(folder / "picture.png")).astype(float))
    assert told["kernels"]["comm"] == "xccl" and told["kernels"]["pack_linear"] == "torch-int4"
    assert pictures[0].std() > 1 and np.abs(pictures[1] - pictures[0]).mean() < 0.5


def test_groups_that_no_kernel_multiplies_are_one_sentence(tmp_path):
    """The plan does not know how large a checkpoint's groups are. What the sentence says to type works."""
    made = [sys.executable, "-m", "cosmos3", "quantize", "--model", "embedded", "--format", "w4a16", "--group", "16"]
    subprocess.run([*made, "-o", "small"], cwd=tmp_path, check=True, capture_output=True)
    options = [*JOBS["picture.png"], "--model", "small", "--task", "t2i", "-o", "picture.png"]
    command = [sys.executable, "-m", "cosmos3", "run", *map(str, options), "--backend", "xpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "groups of multiples of 32, not 16. --kernel pack_linear=eager" in done.stderr
    told = cosmos3(tmp_path, *options[:-2], "--kernel", "pack_linear=eager", *options[-2:])
    assert told["plan"]["kernels"]["pack_linear"] == "eager"
