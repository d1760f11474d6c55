"""`cosmos3 run --backend xpu` on a CPU: a picture, a clip with sound, a policy's actions, of the embedded model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert (kernels["attention"], kernels["gate"], kernels["rms_norm"]) == ("sdpa", "vllm", "torch")


@pytest.mark.parametrize("format", FORMATS)
def test_the_embedded_model_runs_in_a_format(format, tmp_path):
    told = cosmos3(tmp_path, *JOBS["picture.png"], "--model", "embedded", "--format", format, "-o", "picture.png")
    assert told["plan"]["kernels"]["pack_linear"] == FORMATS[format]
