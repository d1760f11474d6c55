"""`cosmos3 run --backend rocm` in Triton's interpreter: a picture and a clip of the embedded model, in bfloat16 and
with products and attention in 8 bits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

JOBS = {
    "picture.png": ["a red ball", "--steps", 2],
    "clip.mp4": ["a blue ball bounces off the right edge", "--frames", 5, "--steps", 1],
}
OURS = {"attention": "triton", "rms_norm": "triton", "norm_rope": "triton", "gate": "triton", "norm_silu": "triton"}
OURS |= {"patch_embed": "triton"}
FORMATS = {
    (): OURS,
    ("--format", "fp8", "--format", "attention=fp8"): OURS
    | {"attention": "triton-fp8", "project": "triton-scaled-mm", "finish": "triton-scaled-mm"},
    ("--format", "mxfp4"): OURS | {"pack_linear": "triton-a16"},
}


def cosmos3(folder: Path, *arguments) -> dict:
    """Its manifest."""
    command = [sys.executable, "-m", "cosmos3", "run", *map(str, arguments), "--backend", "rocm", "--seed", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (manifest,) = folder.glob("*.json")
    return json.loads(manifest.read_text())


@pytest.mark.parametrize("formats", FORMATS, ids=lambda given: " ".join(given[1::2]) or "bfloat16")
@pytest.mark.parametrize("name", JOBS)
def test_a_request_runs_with_our_kernels(name, formats, tmp_path):
    size = ["--model", "embedded", "--size", "64x64", "-o", name]
    kernels = cosmos3(tmp_path, *JOBS[name], *size, *formats)["plan"]["kernels"]
    assert {op: kernels[op] for op in FORMATS[formats]} == FORMATS[formats]
