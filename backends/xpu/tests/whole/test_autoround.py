"""Checkpoints of the embedded model that AutoRound's own package wrote, judged by `cosmos3 evaluate --depth quick`; and
one that it calibrated, generated from. Each is made and judged in processes of its own, all at a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cosmos3_xpu_rehearsal.written import OTHERWISE

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.model.weights import shapes

pytestmark = pytest.mark.skipif(
    find_spec("auto_round") is None, reason="AutoRound is not installed: make rehearse-xpu installs it"
)
SCHEMES = {"W4A16": ("w4a16", "w4a16"), "MXFP8": ("mxfp8", "mxfp8"), "MXFP4": ("mxfp4", "mxfp8")}
"""By AutoRound's name: our formats of the text tower and of the media tower."""
ROWS = {"w4a16": "torch-int4", "mxfp8": "vllm-fp8", "mxfp4": "vllm-fp4"}
"""What multiplies in each."""
MEDIA = re.compile("moe_gen|add_")
"""In the names of the media tower's matrices."""


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


def check_modules(folder: Path, scheme: str) -> None:
    """All of the layers' but those that stay in 16 bits, in the format of their tower; proj_in and proj_out are as they
    were."""
    model, (text, media) = open_model(str(folder)), SCHEMES[scheme]
    stays = OTHERWISE[scheme] if scheme == "W4A16" else ()
    wanted = {
        name.removesuffix(".weight"): media if MEDIA.search(name) else text
        for name, shape in shapes(model.config).items()
        if name.startswith("layers.") and len(shape) == 2 and name.removesuffix(".weight") not in stays
    }
    assert {module: format.name for module, format in model.quantization.modules.items()} == wanted


def check_rows(plan: dict[str, Any], scheme: str) -> None:
    """A product in each format is on the device's own row."""
    (most,) = plan["formats"].values()
    rows = {most: plan["kernels"]["pack_linear"]} | plan.get("others", {})
    assert rows == {format: ROWS[format] for format in SCHEMES[scheme]}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_checkpoint_of_autoround_shows_what_was_asked_for(scheme, made):
    """Within all bounds of the model in bfloat16, by what docs/xpu.md says to type."""
    folder, judging = made[scheme]
    found = judging.result()
    check_modules(folder, scheme)
    asked = ("cosmos3", "plan", "--model", folder, "--backend", "xpu", "--task", "t2i", "--json")
    check_rows(json.loads(ran(*asked))["plan"], scheme)
    assert found["met"], [one for one in found["measures"] if not one["met"]]


def test_a_calibrated_checkpoint_of_autoround_is_generated_from(made):
    """Its own calibration drives diffusers' pipeline, and saves of the transformer the layers alone; with the other
    tensors of its source it is a checkpoint like any other."""
    folder, running = made["calibrated"]
    told = running.result()
    check_modules(folder, "W4A16")
    check_rows(told["plan"], "W4A16")
