"""Checkpoints of the embedded model that AutoRound's own package wrote, judged by `cosmos3 evaluate --depth quick`; and
one that it calibrated, generated from. Each is made and judged in processes of its own, all at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cosmos3_core.checkpoint.model import open_model

pytestmark = pytest.mark.skipif(
    find_spec("auto_round") is None, reason="AutoRound is not installed: make rehearse-xpu installs it"
)
SCHEMES: dict[str, tuple[str, str, dict[tuple[str, str], float]]] = {
    "W4A16": ("w4a16", "torch-int4", {("velocity", "error"): 0.337}),
    "MXFP8": ("mxfp8", "vllm-fp8", {}),
    "MXFP4": (
        "mxfp4",
        "vllm-fp4",
        {("velocity", "error"): 0.3835, ("inverse-dynamics", "error"): 0.0251, ("t2vs", "silence"): 0.7333},
    ),
}
"""By AutoRound's name: our format, the row that multiplies in it, and what 4 bits push beyond the bound of the model in
bfloat16, as eager torch came to with the same checkpoint (`--kernel pack_linear=eager`, 1 December 2026)."""
MORE = 1.1
"""How much farther off what is missed may be."""


def ran(*command: object, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True)
    assert done.returncode in codes, done.stderr
    return done.stdout


def judged(folder: Path, scheme: str) -> dict[str, Any]:
    """The evaluation, as JSON, of a checkpoint that is written first."""
    ran("cosmos3_xpu_rehearsal.written", scheme, folder)
    asked = ("cosmos3", "evaluate", "--model", folder, "--backend", "xpu", "--depth", "quick", "--json")
    return json.loads(ran(*asked, codes=(0, 1)))


def calibrated(folder: Path) -> dict[str, Any]:
    """The manifest of a picture by a checkpoint that is written first."""
    ran("cosmos3_xpu_rehearsal.written", "W4A16", folder, "calibrated")
    picture = folder.parent / "ball.png"
    ran("cosmos3", "run", "a red ball", "--model", folder, "--backend", "xpu", "--steps", 4, "-o", picture, "--quiet")
    return json.loads(Path(f"{picture}.json").read_text())


Made = dict[str, tuple[Path, Future[dict[str, Any]]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[Made]:
    """The folder of each checkpoint, and what it comes to."""
    with ThreadPoolExecutor() as pool:
        folders = {name: tmp_path_factory.mktemp(name) / "model" for name in (*SCHEMES, "calibrated")}
        yield {
            name: (folder, pool.submit(judged, folder, name) if name in SCHEMES else pool.submit(calibrated, folder))
            for name, folder in folders.items()
        }


def check_modules(folder: Path, format: str) -> None:
    """All of the layers', and proj_in and proj_out are as they were."""
    modules = open_model(str(folder)).quantization.modules
    assert {one.name for one in modules.values()} == {format} and all(name.startswith("layers.") for name in modules)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_checkpoint_of_autoround_shows_what_was_asked_for(scheme, made):
    """Within all bounds of the model; where 4 bits miss one, as eager torch does, and no farther off."""
    format, row, eager = SCHEMES[scheme]
    folder, judging = made[scheme]
    found = judging.result()
    check_modules(folder, format)
    assert found["kernels"]["pack_linear"] == row
    missed = {(one["task"], one["measure"]): one for one in found["measures"] if not one["met"]}
    assert missed.keys() <= eager.keys(), missed
    for key, one in missed.items():
        near = one["value"] <= MORE * eager[key] if one["most"] is not None else MORE * one["value"] >= eager[key]
        assert near, (one, eager[key])


def test_a_calibrated_checkpoint_of_autoround_is_generated_from(made):
    """Its own calibration drives diffusers' pipeline, and saves of the transformer the layers alone; with the other
    tensors of its source it is a checkpoint like any other."""
    folder, running = made["calibrated"]
    told = running.result()
    check_modules(folder, "w4a16")
    assert told["plan"]["kernels"]["pack_linear"] == "torch-int4"
    assert set(told["model"]["quantization"]["modules"].values()) == {"w4a16"}
